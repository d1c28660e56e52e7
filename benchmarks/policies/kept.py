"""What was computed already, on disk: a file a part of the benchmark, whole or not there, and valid for its code alone.

A run that is broken off, or one after a change of some files, computes what is missing and nothing else.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT

_TRIALS = (
    *("emulator/core/**/*", "emulator/presets/**/*", "emulator/*.py", "loadgen/*.py", "loadgen/texts/**/*"),
    *("benchmarks/sim.py", *(f"benchmarks/policies/{name}.py" for name in ("cells", "parts", "trial", "work"))),
    *("proxy/gate.py", "proxy/expected.py", "proxy/energy/prior*"),
    *("policies/interface.py", "policies/static.py", "policies/observe.py"),
)
_ORACLES = (*_TRIALS, "benchmarks/policies/oracle.py")
_POLICIES = (
    *_TRIALS,
    *(f"benchmarks/policies/{name}.py" for name in ("change", "front", "observing")),
    *("policies/*.py", "proxy/control/learner.py"),
)


@dataclass(frozen=True)
class Part:
    """`work(*arguments)` gives what JSON can hold. `code` is a digest of the files that it depends on."""

    name: str
    code: str
    work: Callable[..., Any]
    arguments: tuple[Any, ...]


class Kept:
    """A folder of parts. Made where it is missing; a part of other code is as good as none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, part: Part) -> bool:
        return self._held(part) is not None

    def read(self, part: Part) -> Any:
        """Raises KeyError for a part that was not kept."""
        if (held := self._held(part)) is None:
            raise KeyError(f"{part.name} has not been computed by this code")
        return held["found"]

    def keep(self, part: Part, found: Any) -> None:
        file = self._file(part)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps({"code": part.code, "found": found}))
        unfinished.replace(file)

    def _held(self, part: Part) -> dict[str, Any] | None:
        file = self._file(part)
        held = json.loads(file.read_text()) if file.exists() else None
        return held if held is not None and held["code"] == part.code else None

    def _file(self, part: Part) -> Path:
        return self._folder / f"{part.name.replace(' ', '_')}.json"


def complete(parts: Iterable[Part], kept: Kept, pool: Executor, told: Callable[[Part], None]) -> None:
    """Compute those that are missing, the first ones first; `told` hears of each as soon as it is there.

    One that fails stops no other: its error is raised in the end.
    """
    waiting: dict[Future[Any], Part] = {}
    failed: BaseException | None = None
    for part in parts:
        if kept.has(part):
            told(part)
        else:
            waiting[pool.submit(part.work, *part.arguments)] = part
    for done in as_completed(waiting):
        if (error := done.exception()) is None:
            kept.keep(waiting[done], done.result())
            told(waiting[done])
        else:
            failed = error
    if failed is not None:
        raise failed


@cache
def of_oracles() -> str:
    """A digest of what fixed settings run through, and how they are found."""
    return _digest(_ORACLES)


@cache
def of_policies() -> str:
    """A digest of what policies run through."""
    return _digest(_POLICIES)


def _digest(patterns: Iterable[str]) -> str:
    files = sorted({file for pattern in patterns for file in ROOT.glob(pattern) if file.is_file()})
    found = hashlib.sha256()
    for file in files:
        if "__pycache__" not in file.parts:
            found.update(f"{file.relative_to(ROOT)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
