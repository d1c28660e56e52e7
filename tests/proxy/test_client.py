"""The client's end of an exchange: what it is told when an answer breaks off."""

import pytest

from proxy.client import Client, Message
from proxy.refusal import Refusal


class Told:
    """A client of ours; `bytes` is the body that it got."""

    def __init__(self) -> None:
        self.bytes = b""
        self.client = Client({"method": "POST", "path": "/v1/completions", "headers": []}, self._nothing, self._take)

    async def _nothing(self) -> Message:
        raise AssertionError("nothing is asked of it here")

    async def _take(self, message: Message) -> None:
        self.bytes += message.get("body", b"")


async def test_the_id_is_ours_and_what_an_engine_sets_twice_stays_twice() -> None:
    heads: list[Message] = []

    async def take(message: Message) -> None:
        heads.append(message)

    client = Client({"method": "POST", "path": "/v1/completions", "headers": []}, Told()._nothing, take)
    client.extra.append((b"x-joulegate-request-id", b"ours"))
    cookies = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    await client.start(200, [(b"x-joulegate-request-id", b"forged"), (b"keep-alive", b"timeout=5"), *cookies], 2)
    assert heads[0]["headers"] == [*cookies, (b"content-length", b"2"), (b"x-joulegate-request-id", b"ours")]


def test_of_what_was_sent_twice_the_first_counts_and_of_a_list_all() -> None:
    sent = [
        (b"baggage", b"a=1"),
        (b"authorization", b"Bearer a"),
        (b"baggage", b"b=2"),
        (b"authorization", b"Bearer b"),
    ]
    scope = {"method": "POST", "path": "/", "headers": [*sent, (b"baggage", b"a=1"), (b"x-workflow-id", b"r")]}
    told = Told()
    headers = Client(scope, told._nothing, told._take).headers
    assert headers == {b"baggage": b"a=1, b=2, a=1", b"authorization": b"Bearer a", b"x-workflow-id": b"r"}


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
async def test_after_whole_frames_an_error_is_one_more(end: bytes) -> None:
    told, refusal = Told(), Refusal(502, "it broke off", "engine_failed")
    await told.client.start(200, [], None)
    await told.client.send(b"data: {}" + end, more=True)
    await told.client.refuse(refusal)
    assert told.bytes == b"data: {}" + end + b"data: " + refusal.body() + b"\n\n"


async def test_a_reply_that_has_no_room_for_words_ends_without() -> None:
    async def take(message: Message) -> None:
        if message.get("body") != b"{}":
            raise RuntimeError("the body has more bytes than its content-length")

    client = Client({"method": "POST", "path": "/v1/completions", "headers": []}, Told()._nothing, take)
    client.began = True
    await client.send(b"{}", more=True)
    await client.refuse(Refusal(503, "the gateway is shutting down", "shutting_down"))


@pytest.mark.parametrize("begun", [b'data: {"choi', b"data: {}\n", b": keep-alive\r\n"])
async def test_an_error_is_no_rest_of_a_frame_that_was_begun(begun: bytes) -> None:
    told, refusal = Told(), Refusal(502, "it broke off", "engine_failed")
    await told.client.start(200, [], None)
    await told.client.send(begun, more=True)
    await told.client.refuse(refusal)
    before, _, last = told.bytes.removesuffix(b"\n\n").rpartition(b"\n\n")
    assert last == b"data: " + refusal.body() and before.startswith(begun.rstrip())
