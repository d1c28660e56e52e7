"""HTTP over a socket that says what the test wants, packet by packet."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from loadgen import wire
from loadgen.wire import Server, WireError

OK = b"HTTP/1.1 200 OK\r\nX-Request-Id: r7\r\n"


class Scripted:
    """Answers one request after the other with the next of `answers`, a list of packets; counts its connections."""

    def __init__(self, answers: list[list[bytes]]) -> None:
        self.answers, self.connections, self.heard = answers, 0, b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while self.answers:
            connection, _ = self._socket.accept()
            self.connections += 1
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while self.answers and (heard := connection.recv(65536)):
                    self.heard += heard
                    packets = self.answers.pop(0)
                    for packet in packets:
                        connection.sendall(packet)
                    if packets[-1] == b"":  # the end of the connection
                        break

    def close(self) -> None:
        self.answers.clear()
        self._thread.join(10)
        self._socket.close()


@pytest.fixture
def scripted() -> Iterator[Callable[[list[list[bytes]]], Scripted]]:
    made: list[Scripted] = []

    def make(answers: list[list[bytes]]) -> Scripted:
        made.append(Scripted(answers))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_one_connection_serves_many_requests(scripted: Callable[..., Scripted]) -> None:
    chunked = [OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nab", b"cd\r\n", b"0\r\n\r\n"]
    stage = scripted(
        [[OK + b"Content-Length: 2\r\n\r\nhi"], chunked, [b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"]]
    )
    server = Server(stage.url + "/prefix/")
    assert server.get("/a", {"Accept": "x"}) == (200, b"hi")
    with server.send("POST", "/b", {}, b"body") as reply:
        assert reply.status == 200 and reply.headers[b"x-request-id"] == b"r7"
        assert b"".join(reply) == b"abcd"
    assert server.post("/c", {}, b"{}") == (404, b"")
    server.close()
    assert stage.connections == 1
    assert stage.heard.startswith(b"GET /prefix/a HTTP/1.1\r\nHost: 127.0.0.1:") and b"\r\n\r\nbody" in stage.heard


def test_an_old_connection_is_not_used_again(
    scripted: Callable[..., Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "IDLE_S", -1.0)
    stage = scripted([[OK + b"Content-Length: 2\r\n\r\nhi"]] * 2)
    server = Server(stage.url)
    assert [server.get("/", {}) for _ in range(2)] == [(200, b"hi")] * 2
    assert stage.connections == 2


def test_answers_without_a_length_end_with_their_connection(scripted: Callable[..., Scripted]) -> None:
    stage = scripted([[OK + b"\r\nall", b" of it", b""]])
    assert Server(stage.url).get("/", {}) == (200, b"all of it")


@pytest.mark.parametrize(
    "packets",
    [
        [OK + b"Content-Length: 9\r\n\r\nhalf", b""],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nab", b""],
        [b"HTTP/1.1 200", b""],
        [b"SSH-2.0\r\n", b""],
    ],
)
def test_half_an_answer_is_an_error(scripted: Callable[..., Scripted], packets: list[bytes]) -> None:
    with pytest.raises(WireError, match="the connection broke"):
        Server(scripted([packets]).url).get("/", {})


def test_an_answer_that_is_left_half_read_takes_its_connection_along(scripted: Callable[..., Scripted]) -> None:
    stage = scripted([[OK + b"Content-Length: 2\r\n\r\nh"], [OK + b"Content-Length: 2\r\n\r\nhi"]])
    server = Server(stage.url)
    with server.send("GET", "/", {}) as reply:
        assert next(iter(reply)) == b"h"
    assert server.get("/", {}) == (200, b"hi")
    assert stage.connections == 2


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://"])
def test_a_target_is_a_url(url: str) -> None:
    with pytest.raises(ValueError, match="must be a URL like"):
        Server(url)
