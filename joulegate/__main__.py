from joulegate.cli import app

app()
