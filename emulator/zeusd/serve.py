"""The daemon on a TCP port or a Unix socket."""

import os
import socket
import stat
from pathlib import Path

import uvicorn

from emulator.server.serve import Server
from emulator.zeusd.app import Zeusd


def listener(address: str, socket_mode: int = 0o600) -> socket.socket:
    """A listening socket at `host:port` (0 for any port), or at a path, where a dead socket is replaced.

    Raises OSError where it cannot be had, also for a path at which somebody listens, or which is no socket.
    """
    if not address.startswith("/"):
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(
                f"{address!r} is no address; give host:port, or the path of a socket, as in /run/zeusd.sock"
            )
        bare = host.strip("[]")
        return socket.create_server((bare, int(port)), family=socket.AF_INET6 if ":" in bare else socket.AF_INET)
    path = Path(address)
    if path.exists():
        _clear(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~socket_mode)  # so that it never stands open for a moment
    try:
        listening.bind(address)
    finally:
        os.umask(before)
    listening.listen(128)
    return listening


def server(daemon: Zeusd) -> Server:
    """A server for `serve(sockets=[listener(...)])` in the caller's event loop, until its `should_exit` is set; a
    stream that is still open ends a second later."""
    return Server(
        uvicorn.Config(
            daemon,
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at any more. Raises FileExistsError for anything else."""
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise FileExistsError(f"{path} is there already, and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise FileExistsError(f"somebody listens at {path} already")
