"""What attribution learnt, in a small file beside the ledger: without it every start would begin from the priors.

Nothing in it is an account of anything. A file that is missing, broken or of another machine costs what it knew, and no
joule.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from proxy.energy.floor import Floor

log = logging.getLogger("joulegate.learnt")

_VERSION = 1


@dataclass(frozen=True, slots=True)
class Learnt:
    """Fits by engine (`fit.Fit.state`) and floors by device."""

    engines: dict[str, dict[str, Any]] = field(default_factory=dict)
    floors: dict[str, Floor] = field(default_factory=dict)


def beside(ledger: Path) -> Path:
    """The file that goes with a ledger."""
    return ledger.with_name(f"{ledger.name}.learnt.json")


def read(path: Path) -> Learnt:
    """What the file says; nothing where there is none or it cannot be understood, which is then logged."""
    try:
        said = orjson.loads(path.read_bytes())
        if said["version"] != _VERSION:
            raise ValueError(f"version {said['version']!r} is not {_VERSION}")
        return Learnt(dict(said["engines"]), {name: Floor.of(state) for name, state in said["floors"].items()})
    except FileNotFoundError:
        return Learnt()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be used (%s): prices are learnt anew", path, error)
        return Learnt()


def encode(learnt: Learnt) -> bytes:
    """The file's content, as of now."""
    floors = {name: floor.state() for name, floor in learnt.floors.items()}
    return orjson.dumps({"version": _VERSION, "engines": learnt.engines, "floors": floors})


def write(path: Path, content: bytes) -> None:
    """Replace the file. One that cannot be written is logged, and costs nothing now."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error)
