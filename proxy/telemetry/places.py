"""Where things are, as labels."""


def host_and_device(name: str) -> tuple[str, str]:
    """`h1/gpu:0` as the two labels it becomes."""
    host, _, device = name.partition("/")
    return host, device
