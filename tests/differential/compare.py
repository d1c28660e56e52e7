"""Whether an engine did in a script what vLLM did."""

from collections.abc import Mapping
from typing import Any

from shape import differences


def same(expected: Mapping[str, Any], found: Mapping[str, Any], exported: frozenset[str]) -> None:
    """Raises AssertionError with the differences; of counters, only those in `exported` are compared.

    What an error says to a human is left out: which error it is, is not.
    """
    moved = {name: by for name, by in expected["moved"].items() if name.partition("{")[0] in exported}
    expected, found = _wordless({**expected, "moved": moved}), _wordless(found)
    if "kinds" in found:  # which of them a burst brings is chance
        expected["kinds"] = [kind for kind in expected["kinds"] if kind in found["kinds"]]
    unlike = "\n".join(differences(expected, found))
    assert not unlike, f"unlike vLLM:\n{unlike}"


def _wordless(told: Mapping[str, Any]) -> dict[str, Any]:
    several = "kinds" if "kinds" in told else "replies"
    replies = [{name: each for name, each in reply.items() if name != "message"} for reply in told[several]]
    return {**told, several: replies}
