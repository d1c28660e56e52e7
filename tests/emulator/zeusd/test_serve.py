import socket
from pathlib import Path

import pytest

from emulator.zeusd.serve import listener


def test_any_port_and_a_given_one() -> None:
    with listener("127.0.0.1:0") as first:
        assert first.getsockname()[1] > 0
        with pytest.raises(OSError, match="in use"):
            listener(f"127.0.0.1:{first.getsockname()[1]}")


@pytest.mark.parametrize("address", ["4938", "localhost", "localhost:http", ":4938", ""])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="give host:port, or the path of a socket"):
        listener(address)


def test_a_dead_socket_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "zeusd.sock"
    listener(str(path)).close()
    assert path.is_socket()
    with listener(str(path), 0o660), pytest.raises(FileExistsError, match="somebody listens"):
        assert path.stat().st_mode & 0o777 == 0o660
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))
        listener(str(path))
    path.unlink()
    path.write_text("a file")
    with pytest.raises(FileExistsError, match="is no socket"):
        listener(str(path))
    assert path.read_text() == "a file"
