"""Texts of the user's own in place of those that ship: documents to summarize, queries to ask.

A folder gives one text a `.txt` or `.md` file, in the order of their names; a `.jsonl` file the string in `text` (or
else in `prompt`) of each line; any other file one text a line.
"""

import json
from functools import cache
from pathlib import Path


class OwnTextsError(ValueError):
    """Texts that cannot be used: one line that names the place."""


@cache
def texts_of(path: str) -> tuple[str, ...]:
    """The texts at `path`, without empty ones. Raises OwnTextsError where there are none."""
    place = Path(path)
    try:
        if place.is_dir():
            files = sorted(file for file in place.iterdir() if file.suffix in (".txt", ".md"))
            found = [file.read_text(encoding="utf-8") for file in files]
        else:
            found = place.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OwnTextsError(f"{path} cannot be read: {error}") from None
    if place.suffix == ".jsonl":
        found = [_text(line, f"{path}, line {number}") for number, line in enumerate(found, start=1) if line.strip()]
    kept = tuple(text.strip() for text in found if text.strip())
    if not kept:
        raise OwnTextsError(
            f"{path} holds no text: a folder of .txt or .md files, a .jsonl or a file of lines would do"
        )
    return kept


def _text(line: str, place: str) -> str:
    try:
        fields = json.loads(line)
    except ValueError:
        raise OwnTextsError(f"{place} is not JSON") from None
    for name in ("text", "prompt"):
        if isinstance(fields, dict) and isinstance(fields.get(name), str):
            return fields[name]
    raise OwnTextsError(f"{place} has no string in 'text' or 'prompt'")
