"""Writes a trace of what attribution sees (`trace` has its form), to be attributed again offline. No prompts, ever.

Lines are made in memory by the event loop and written once a second in a thread of their own, up to a bound on the
file. What fails here is said once and ends the recording, never a request.
"""

import asyncio
import gzip
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import orjson

from proxy.energy.sources import Reading
from proxy.energy.work import Progress
from proxy.engines.interface import EngineSample

log = logging.getLogger("joulegate.record")

FLUSH_S = 1.0
WAITING = 200_000  # lines in memory: more than the disk can be behind in any good second


class Recorder:
    """One file. A former one of that name is kept as NAME.1. Raises OSError when it cannot be opened."""

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path, self._most_bytes = path, most_bytes
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.replace(path.with_name(path.name + ".1"))
        self._raw: IO[bytes] = path.open("wb")
        zipped = path.suffix == ".gz"
        self._file: IO[bytes] | gzip.GzipFile = gzip.GzipFile(fileobj=self._raw, mode="wb") if zipped else self._raw
        self._lines: list[dict[str, Any]] = []
        self._said: dict[str, tuple[str, str]] = {}
        self._writing = ThreadPoolExecutor(1, "record")
        self.recording = True

    def counters(self, readings: Iterable[Reading], samples: Mapping[str, Sequence[tuple[str, EngineSample]]]) -> None:
        """A round of readings; `samples`: for each device its engines, with what their counters said last."""
        for reading in readings:
            line = {
                "kind": "counter",
                "t": round(reading.t, 4),
                "energy_mj": reading.energy_uj / 1000,
                "device": reading.device,
            }
            for engine, sample in samples.get(reading.device, ()):
                told = {
                    "engine": engine,
                    "engine_t": round(sample.t, 4),
                    "steps": sample.steps,
                    "prompt": sample.prompt_tokens,
                    "gen": sample.output_tokens,
                    "running": sample.running,
                    "cached": sample.cached_tokens,
                }
                self._add(line | told)

    def engine(self, name: str, gpu: str, model: str) -> None:
        """Say what an engine runs on, and what it serves; once, and again when that changes."""
        if self._said.get(name) != (gpu, model):
            self._said[name] = gpu, model
            self._add({"kind": "engine", "engine": name, "gpu": gpu, "model": model})

    def attempt(self, progress: Progress, workflow: str) -> None:
        """An attempt has ended."""
        if progress.ticks is not None:
            self._add({"kind": "request", "cls": workflow, "progress": progress})

    async def write_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while self.recording:
            await asyncio.sleep(FLUSH_S)
            await loop.run_in_executor(self._writing, self._write)

    async def close(self) -> None:
        """Write what is left, and the end of the file."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writing, self._write)
        await loop.run_in_executor(self._writing, self._close)
        self._writing.shutdown()

    def _add(self, line: dict[str, Any]) -> None:
        if self.recording:
            self._lines.append(line)
            if len(self._lines) > WAITING:
                self._stop(f"{self._path}: the disk is too slow")

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        if not self.recording:
            return
        try:
            self._file.write(b"".join(orjson.dumps(_plain(line)) + b"\n" for line in lines))
            self._file.flush()
            self._raw.flush()
        except OSError as error:
            self._stop(f"{self._path} cannot be written: {error.strerror or error}")
            return
        if self._raw.tell() >= self._most_bytes:
            self._stop(f"{self._path} has reached its {self._most_bytes / 1e6:g} MB (energy.record_mb)")

    def _stop(self, why: str) -> None:
        self.recording = False
        self._lines = []
        log.warning("%s; nothing more is recorded", why)

    def _close(self) -> None:
        try:
            self._file.close()
            self._raw.close()
        except OSError as error:
            log.warning("%s could not be closed: %s", self._path, error.strerror or error)


def _plain(line: dict[str, Any]) -> dict[str, Any]:
    """A line as it is written; what an attempt's holds is put together here, off the event loop."""
    progress: Progress | None = line.get("progress")
    if progress is None:
        return line
    name = progress.request_id if progress.attempt == 1 else f"{progress.request_id}#{progress.attempt}"
    prompt = progress.prompt_guess if progress.prompt_tokens is None else progress.prompt_tokens
    return {
        "kind": "request",
        "cls": line["cls"],
        "id": name,
        "engine": progress.engine,
        "stream": progress.streamed,
        "t0": round(progress.dispatched, 4),
        "first": None if progress.first is None else round(progress.first, 4),
        "end": None if progress.ended is None else round(progress.ended, 4),
        "prompt": prompt,
        "cached": progress.cached_tokens,
        "out": progress.output_tokens,
        "ticks": [round(tick, 4) for tick in progress.ticks or ()],
    }
