"""A recorded trace of a device's counter and of the requests it worked for: JSON lines, gzipped or not.

    {"kind": "counter", "t", "energy_mj", "steps", "prompt", "gen", "running", "cached"}    about ten times a second
    {"kind": "request", "cls", "id", "t0", "first", "end", "prompt", "cached", "out", "ticks"}    once it has ended

Times are Unix seconds: `t0` is when a request went to the engine, `first` its first token (null without a stream),
`ticks` the times of its content frames, which are scaled to `out` tokens. The engine's own counters are cumulative, as
it last told them, at `engine_t` where that is said. `scenario` splits a file into independent traces.
`device` and `engine` tell several of them apart, `stream` says whether one was asked for, and a line of the kind
"engine" says what an engine is: `gpu`, `model`.
Other fields and other kinds are passed over.
"""

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import orjson

WHOLE = "all"  # the scenario of lines that name none
_GZIP = b"\x1f\x8b"


class TraceError(ValueError):
    """A trace that cannot be used; one line that names the place and what would be right."""


class Counter(NamedTuple):
    """A device's counter and what its engine's own counters said last; `engine_t` is when, None: at `t`."""

    t: float
    energy_uj: int
    device: str
    engine: str
    steps: float | None
    output_tokens: float | None
    cached_tokens: float | None
    engine_t: float | None


class Served(NamedTuple):
    """One attempt at a request. `end` is None where nobody saw it end; token counts where nobody told them."""

    id: str
    cls: str
    engine: str
    t0: float
    first: float | None
    end: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    ticks: list[float]
    streamed: bool


@dataclass(slots=True)
class Scenario:
    """One trace, its lines in the order of time."""

    counters: list[Counter] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)

    def engines(self) -> dict[str, tuple[str, ...]]:
        """Every engine with its devices, GPUs first: prices are learnt on the first."""
        engines: dict[str, dict[str, None]] = {}
        for line in self.counters:
            engines.setdefault(line.engine, {})[line.device] = None
        for one in self.served:
            engines.setdefault(one.engine, {})
        return {name: tuple(sorted(devices, key=lambda one: "gpu" not in one)) for name, devices in engines.items()}


@dataclass(slots=True)
class Trace:
    """A whole file: its scenarios, and what the engines are, (device, model), as far as the file says."""

    scenarios: dict[str, Scenario] = field(default_factory=dict)
    engines: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_trace(path: Path) -> Trace:
    """Read a trace. A last line that was cut off is left out, and so is a line that comes twice. Raises TraceError."""
    trace, seen = Trace(), set[int]()
    lines = _lines(path)
    try:
        for number, line in lines:
            if hash(line) in seen or not line.strip():
                continue
            seen.add(hash(line))
            _take(trace, line, f"{path}, line {number}")
    except _CutOff as cut:
        if next(lines, None) is not None:
            raise TraceError(str(cut)) from None
    for scenario in trace.scenarios.values():
        scenario.counters.sort(key=lambda line: line.t)
        scenario.served.sort(key=lambda one: one.t0)
    if not any(scenario.counters for scenario in trace.scenarios.values()):
        raise TraceError(f'{path} has no counter in it: a line is {{"kind": "counter", "t": …, "energy_mj": …, …}}')
    return trace


class _CutOff(Exception):
    """A line that is no JSON: the last one of a file may be."""


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            zipped = file.peek(2)[:2] == _GZIP
            try:
                yield from enumerate(gzip.GzipFile(fileobj=file) if zipped else file, 1)
            except EOFError:  # whoever wrote it was killed
                return
    except (gzip.BadGzipFile, zlib.error) as error:
        raise TraceError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None


def _take(trace: Trace, line: bytes, place: str) -> None:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _CutOff(f"{place}: not JSON: {error}") from None
    if not isinstance(entry, dict):
        raise TraceError(f"{place}: a line of a trace is a JSON object")
    read = _Fields(entry, place)
    scenario = str(entry.get("scenario") or WHOLE)
    if entry.get("kind") == "counter":
        trace.scenarios.setdefault(scenario, Scenario()).counters.append(_counter(read))
    elif entry.get("kind") == "request":
        trace.scenarios.setdefault(scenario, Scenario()).served.append(_served(read))
    elif entry.get("kind") == "engine":
        trace.engines[read.text("engine")] = read.text("gpu"), read.text("model")


def _counter(read: "_Fields") -> Counter:
    return Counter(
        t=read.needed("t"),
        energy_uj=round(read.needed("energy_mj") * 1000),
        device=read.text("device"),
        engine=read.text("engine"),
        steps=read.number("steps"),
        output_tokens=read.number("gen"),
        cached_tokens=read.number("cached"),
        engine_t=read.number("engine_t"),
    )


def _served(read: "_Fields") -> Served:
    ticks = sorted(read.numbers("ticks"))
    first = read.number("first")
    output = read.tokens("out")
    ends = [t for t in (read.number("end"), *ticks[-1:]) if t is not None]
    return Served(
        id=read.text("id"),
        cls=read.text("cls"),
        engine=read.text("engine"),
        t0=read.needed("t0"),
        first=ticks[0] if first is None and ticks else first,
        end=max(ends) if ends else None,
        prompt_tokens=read.tokens("prompt"),
        cached_tokens=read.tokens("cached"),
        output_tokens=output,
        ticks=ticks,
        # Without a word, who had output and no first token had no stream; who had neither left before it began.
        streamed=read.flag("stream", first is not None or bool(ticks) or not output),
    )


class _Fields:
    """The fields of one line, as what they have to be."""

    def __init__(self, entry: dict[str, Any], place: str) -> None:
        self._entry, self._place = entry, place

    def number(self, name: str) -> float | None:
        value = self._entry.get(name)
        return None if value is None else self._finite(name, value)

    def needed(self, name: str) -> float:
        value = self._entry.get(name)
        if value is None:
            raise TraceError(f"{self._place}: {name!r} is missing")
        return self._finite(name, value)

    def numbers(self, name: str) -> list[float]:
        values = self._entry.get(name) or []
        if not isinstance(values, list):
            raise TraceError(f"{self._place}: {name!r} is a list of Unix seconds, not {values!r}")
        return [self._finite(name, value) for value in values]

    def tokens(self, name: str) -> int | None:
        value = self.number(name)
        return None if value is None else max(0, round(value))

    def flag(self, name: str, default: bool) -> bool:
        value = self._entry.get(name)
        return value if isinstance(value, bool) else default

    def text(self, name: str) -> str:
        value = self._entry.get(name)
        return "" if value is None else str(value)

    def _finite(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise TraceError(f"{self._place}: {name!r} is a number, not {value!r}")
        return float(value)
