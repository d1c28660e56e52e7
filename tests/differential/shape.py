"""What of an answer must be the same on two engines, and where two of them differ.

A shape is JSON in which every value is its type, but for those whose value is the contract: which role, which reason,
which error, and how many tokens where the prompt was given as token ids.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

CONTRACT = frozenset({"object", "role", "finish_reason", "stop_reason", "index", "code", "type", "param", "model"})
OUTPUT_TOKENS = frozenset({"completion_tokens", "max_model_len"})
PROMPT_TOKENS = frozenset({"prompt_tokens", "total_tokens", "cached_tokens", "count"})
CLASS = re.compile(r"\.[A-Z]\w+")  # pydantic names the branches of a union after vLLM's own classes
NAMED = "chatcmpl-", "cmpl-", "modelperm-"


def shape(value: Any, exact: bool, key: str = "") -> Any:
    """The shape of a JSON value; `exact`: prompts were token ids."""
    if isinstance(value, Mapping):
        return {name: shape(each, exact, name) for name, each in sorted(value.items())}
    if isinstance(value, list):
        shapes = [shape(each, exact) for each in value]
        same = len(shapes) > 1 and all(each == shapes[0] for each in shapes) and not isinstance(value[0], Mapping)
        return [shapes[0], "…"] if same else shapes
    if key == "param" and isinstance(value, str):
        return CLASS.sub("", value)
    if value is None or isinstance(value, bool) or key in CONTRACT or key in OUTPUT_TOKENS:
        return value
    if key in PROMPT_TOKENS and exact:
        return value
    if key == "id":
        return next((f"<{prefix}…>" for prefix in NAMED if str(value).startswith(prefix)), f"<{value}>")
    return f"<{type(value).__name__}>"


def differences(expected: Any, found: Any, at: str = "") -> Iterator[str]:
    """Where two JSON values part, a line each."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for name in sorted(expected.keys() | found.keys()):
            here = f"{at}.{name}".lstrip(".")
            if name not in found:
                yield f"{here}: missing (vLLM: {expected[name]!r})"
            elif name not in expected:
                yield f"{here}: {found[name]!r}, which vLLM does not have"
            else:
                yield from differences(expected[name], found[name], here)
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for n, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from differences(one, other, f"{at}[{n}]")
    elif expected != found or type(expected) is not type(found):
        yield f"{at}: {found!r}, but vLLM: {expected!r}"
