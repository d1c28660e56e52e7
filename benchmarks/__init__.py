"""What the project claims about itself, as commands. Nothing here is imported by the gateway or shipped with it."""
