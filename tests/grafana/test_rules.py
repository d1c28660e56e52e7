import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with apt install prometheus")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "grafana/rules.yml"),
        ("check", "config", "grafana/prometheus.yml"),
        ("test", "rules", "tests/grafana/alerts.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
