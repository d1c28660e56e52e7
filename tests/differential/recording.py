"""What real vLLM did, kept beside the tests: one file a group of scripts, and one of its metrics."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recorded"


def load(group: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{group}.json").read_text())


def save(group: str, told: Mapping[str, Any]) -> None:
    """Write it so that a change of one reply is a change of one line."""
    scripts = [f"{_line(name)}: {_entry(entry)}" for name, entry in told.items()]
    (FOLDER / f"{group}.json").write_text("{\n" + ",\n".join(scripts) + "\n}\n")


def _entry(entry: Mapping[str, Any]) -> str:
    several = next((name for name in ("replies", "kinds") if name in entry), None)
    if several is None:
        return _line(entry)
    replies = ",\n  ".join(_line(reply) for reply in entry[several])
    rest = "".join(f', "{name}": {_line(value)}' for name, value in entry.items() if name != several)
    return f'{{"{several}": [\n  {replies}]{rest}}}'


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
