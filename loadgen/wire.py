"""HTTP/1.1 as a load generator needs it: little work a request, and every piece of an answer as it comes.

Sockets are gevent's, so that thousands of requests wait in one thread, patched by Locust or not. A connection is used
again within two seconds of its last answer: servers drop idle ones after five or so, and a POST that meets this is
lost.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import httptools
from gevent import socket, ssl

IDLE_S = 2.0
CONNECT_S = 10.0
RECEIVE_BYTES = 1 << 16


class WireError(Exception):
    """No answer, or half of one; the message is one line."""


class Reply:
    """An answer whose head is there; iterating gives its body in the pieces in which it comes. Names of headers are in
    small letters. Raises WireError when the connection breaks."""

    def __init__(self, sock: socket.socket) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.done = False
        self.keep_alive = False
        self._sock = sock
        self._come: list[bytes] = []
        self.on_body = self._come.append
        self._parser = httptools.HttpResponseParser(self)
        while not self.status and not self.done:
            self._receive()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            if self._come:
                data = b"".join(self._come)
                self._come.clear()
                yield data
            if self.done:
                return
            self._receive()

    def read(self) -> bytes:
        """What is left of the body."""
        return b"".join(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self.status = status if status >= 200 else 0  # before the answer there may be a 100

    def on_message_complete(self) -> None:
        if self.status:
            self.done, self.keep_alive = True, self._parser.should_keep_alive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(RECEIVE_BYTES)
            if data:
                self._parser.feed_data(data)
                return
        except (OSError, httptools.HttpParserError) as error:
            raise WireError(f"the connection broke: {error or type(error).__name__}") from None
        # The end of the connection is the end of an answer that has no length of its own.
        if not self.status or {b"content-length", b"transfer-encoding"} & self.headers.keys():
            raise WireError("the connection broke before the answer's end")
        self.done = True


class Server:
    """One server and the connections to it. Raises ValueError for a URL that is not http:// or https://."""

    def __init__(self, url: str, timeout_s: float = 600.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the target must be a URL like http://127.0.0.1:8080, got {url!r}")
        self._host, self._timeout_s = parts.hostname, timeout_s
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._named = parts.netloc.rpartition("@")[2]
        self._idle: deque[tuple[socket.socket, float]] = deque()

    @contextmanager
    def send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Iterator[Reply]:
        """One request; its answer is to be read inside the block. Raises WireError."""
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", f"Host: {self._named}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        sock = None
        try:
            try:
                sock = self._connection()
                sock.sendall("\r\n".join((*lines, "\r\n")).encode("latin-1") + body)
            except OSError as error:
                raise WireError(f"no reply: {error or type(error).__name__}") from None
            reply = Reply(sock)
            yield reply
            if reply.done and reply.keep_alive:
                self._idle.append((sock, time.monotonic()))
                sock = None
        finally:
            if sock is not None:
                sock.close()

    def get(self, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """Status and body. Raises WireError."""
        with self.send("GET", path, headers) as reply:
            return reply.status, reply.read()

    def post(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Status and body of a POST of JSON. Raises WireError."""
        with self.send("POST", path, {**headers, "Content-Type": "application/json"}, body) as reply:
            return reply.status, reply.read()

    def close(self) -> None:
        while self._idle:
            self._idle.popleft()[0].close()

    def _connection(self) -> socket.socket:
        while self._idle and time.monotonic() - self._idle[0][1] > IDLE_S:
            self._idle.popleft()[0].close()
        if self._idle:
            return self._idle.pop()[0]
        sock = socket.create_connection((self._host, self._port), timeout=min(CONNECT_S, self._timeout_s))
        sock.settimeout(self._timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            return sock
        try:
            return self._tls.wrap_socket(sock, server_hostname=self._host)
        except OSError:
            sock.close()
            raise
