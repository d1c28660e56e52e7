"""Where a gateway listens, and who may then reach it."""

import socket
from pathlib import Path
from typing import Any

import pytest

from joulegate.serve import reached, url_of
from proxy.config import ConfigError, parse

ENGINES = {"engines": [{"name": "e1", "kind": "openai", "url": "http://127.0.0.1:9"}]}


def test_a_socket_that_was_handed_over_lets_in_no_strangers() -> None:
    """The configuration says 127.0.0.1; what systemd opened for us may be open to all."""
    closed = parse(ENGINES)
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as here:
        assert reached(closed, here) is closed
        with pytest.raises(ConfigError, match=r"listens on 0\.0\.0\.0, .* configure keys"):
            reached(closed, everywhere)
        enough: list[dict[str, Any]] = [{"keys": [{"tenant": "a", "key": "k"}]}, {"listen": {"open": True}}]
        for one in enough:
            assert reached(parse({**ENGINES, **one}), everywhere)


def test_a_socket_of_the_file_system_has_a_name(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        assert url_of(sock) == f"unix:{path}" and reached(parse(ENGINES), sock)


def test_the_url_of_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert url_of(sock) == f"http://127.0.0.1:{port}" and url_of(sock, tls=True) == f"https://127.0.0.1:{port}"
