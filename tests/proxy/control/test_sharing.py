from typing import Any

import pytest

from proxy.control.sharing import EVERY_S, Sharing


def prompt(text: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}]}


def test_what_prompts_begin_with_together_is_their_sharing() -> None:
    sharing, head = Sharing(), "s" * 3 * 256
    for n in range(100):
        sharing.look("search", "t", prompt(head + f"{n:04d}" * 64), n * EVERY_S)
        sharing.look("coding", "t", prompt(f"{n:04d}" * 256), n * EVERY_S)
    assert sharing.part("search") == pytest.approx(0.75)  # three blocks of four
    assert sharing.part("coding") == 0.0
    assert sharing.part("nobody") is None


def test_the_beginning_that_is_shared_is_a_number() -> None:
    sharing, head = Sharing(), "s" * 3 * 256
    bodies = [prompt(head + f"{n:04d}" * 64) for n in range(20)]
    assert sharing.prefix("search", "t", bodies[0]) == 0, "nothing is known yet"
    for n, body in enumerate(bodies):
        sharing.look("search", "t", body, n * EVERY_S)
    (number,) = {sharing.prefix("search", "t", body) for body in bodies}
    assert number and sharing.prefix("search", "t", prompt("another " * 200)) != number
    assert sharing.prefix("search", "other tenant", bodies[0]) != number
    assert sharing.prefix("search", "t", prompt("short")) == 0


def test_prompts_are_looked_at_now_and_then() -> None:
    sharing = Sharing()
    sharing.look("search", "t", prompt("a" * 1024), 0.0)
    sharing.look("search", "t", prompt("a" * 1024), EVERY_S / 2)
    assert sharing.part("search") is None
    sharing.look("search", "t", prompt("a" * 1024), EVERY_S)
    assert sharing.part("search") == 1.0


@pytest.mark.parametrize("body", [{}, {"messages": 3}, {"prompt": None}, {"messages": [{}], "tools": [1]}])
def test_any_body_will_do(body: dict[str, Any]) -> None:
    sharing = Sharing()
    for n in range(3):
        sharing.look("search", "t", body, float(n))
    assert sharing.part("search") == 0.0 and sharing.prefix("search", "t", body) == 0
