import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.energy import record
from proxy.energy.record import Recorder
from proxy.energy.sources import Reading
from proxy.energy.trace import WHOLE, read_trace
from proxy.energy.work import Progress
from proxy.engines.interface import EngineSample

GPU = "local/gpu:0"
SAMPLE = EngineSample(9.93, steps=5, prompt_tokens=70, cached_tokens=16, output_tokens=12, running=2, waiting=0)


def ended(**fields: Any) -> Progress:
    usage = {"prompt_tokens": 40, "cached_tokens": 16, "output_tokens": 3}
    given: dict[str, Any] = {"first": 9.5, "ended": 11.0, "frames": 2, "ticks": [9.5, 10.12345678]}
    given |= usage | fields
    return Progress("req_1", given.pop("attempt", 1), "e1", 9.0, 99, **given)


def recorded(path: Path, tell: Callable[[Recorder], None], most_bytes: int = 10**7) -> Recorder:
    async def run() -> Recorder:
        recorder = Recorder(path, most_bytes)
        tell(recorder)
        await recorder.close()
        return recorder

    return asyncio.run(run())


@pytest.mark.parametrize("name", ["t.jsonl", "deep/t.jsonl.gz"])
def test_what_is_recorded_can_be_read(tmp_path: Path, name: str) -> None:
    def tell(recorder: Recorder) -> None:
        for _ in range(2):
            recorder.engine("e1", "NVIDIA H200", "llama-2-7b")
        recorder.counters([Reading(GPU, 10.0, 5_500)], {GPU: [("e1", SAMPLE)]})
        recorder.attempt(ended(), "search")
        recorder.attempt(ended(attempt=2, first=None, ticks=[], output_tokens=None, prompt_tokens=None), "search")

    recorded(tmp_path / name, tell)
    trace = read_trace(tmp_path / name)
    assert trace.engines == {"e1": ("NVIDIA H200", "llama-2-7b")}
    scenario = trace.scenarios[WHOLE]
    (line,) = scenario.counters
    assert line == (10.0, 5_500, GPU, "e1", 5, 12, 16, 9.93)
    first, second = scenario.served
    assert (first.id, first.cls, first.t0, first.first, first.end) == ("req_1", "search", 9.0, 9.5, 11.0)
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens) == (40, 16, 3)
    assert first.ticks == [9.5, 10.1235] and first.streamed
    assert (second.id, second.prompt_tokens, second.output_tokens, second.first) == ("req_1#2", 99, None, None)


def test_a_line_has_the_fields_that_were_promised(tmp_path: Path) -> None:
    def tell(recorder: Recorder) -> None:
        recorder.counters([Reading(GPU, 10.0, 5_500)], {GPU: [("e1", SAMPLE)]})
        recorder.attempt(ended(), "search")

    recorded(tmp_path / "t.jsonl", tell)
    counter, request = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    assert counter.items() >= {"kind": "counter", "t": 10.0, "energy_mj": 5.5, "steps": 5, "prompt": 70}.items()
    assert counter.items() >= {"gen": 12, "running": 2, "cached": 16}.items()
    keys = {"kind", "cls", "id", "t0", "first", "end", "prompt", "cached", "out", "ticks"}
    assert request["kind"] == "request" and keys <= set(request)


def test_a_device_without_an_engine_is_not_recorded_and_one_of_two_engines_has_two_lines(tmp_path: Path) -> None:
    def tell(recorder: Recorder) -> None:
        readings = [Reading(GPU, 10.0, 5_500), Reading("local/cpu:0", 10.0, 7)]
        recorder.counters(readings, {GPU: [("e1", SAMPLE), ("e2", EngineSample(10.0))]})

    recorded(tmp_path / "t.jsonl", tell)
    lines = read_trace(tmp_path / "t.jsonl").scenarios[WHOLE].counters
    assert [(line.device, line.engine, line.steps) for line in lines] == [(GPU, "e1", 5), (GPU, "e2", None)]


def test_who_was_not_recorded_from_its_start_is_left_out(tmp_path: Path) -> None:
    recorded(tmp_path / "t.jsonl", lambda recorder: recorder.attempt(ended(ticks=None), "search"))
    assert (tmp_path / "t.jsonl").read_bytes() == b""


def test_a_former_recording_is_kept_aside(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("before")
    recorded(tmp_path / "t.jsonl", lambda recorder: recorder.attempt(ended(), "search"))
    assert (tmp_path / "t.jsonl.1").read_text() == "before" and "search" in (tmp_path / "t.jsonl").read_text()


def test_the_file_ends_at_its_bound(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        recorder = Recorder(tmp_path / "t.jsonl", 2000)
        for n in range(5):
            recorder.counters(
                [Reading(GPU, 10.0 + k / 10, k) for k in range(10 * n, 10 * n + 10)], {GPU: [("e", SAMPLE)]}
            )
            recorder._write()
        assert not recorder.recording
        await recorder.close()

    asyncio.run(run())
    assert len(caplog.records) == 1 and "has reached its 0.002 MB" in caplog.text
    assert len(read_trace(tmp_path / "t.jsonl").scenarios[WHOLE].counters) == 20


def test_a_disk_that_fails_ends_the_recording_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(recorder: Recorder) -> None:
        class Full:
            def write(self, _: bytes) -> int:
                raise OSError(28, "No space left on device")

            def close(self) -> None:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(recorder, "_file", Full())
        recorder.attempt(ended(), "search")
        recorder._write()
        recorder.attempt(ended(), "search")
        assert not recorder.recording and not recorder._lines

    recorded(tmp_path / "t.jsonl", tell)
    assert caplog.text.count("nothing more is recorded") == 1


def test_a_disk_that_is_too_slow_fills_no_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "WAITING", 10)

    def tell(recorder: Recorder) -> None:
        for _ in range(100):
            recorder.attempt(ended(), "search")
        assert not recorder._lines

    recorded(tmp_path / "t.jsonl", tell)
    assert "the disk is too slow" in caplog.text


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    async def run() -> bytes:
        recorder = Recorder(tmp_path / "t.jsonl.gz", 10**7)
        recorder.counters([Reading(GPU, 10.0, 5_500)], {GPU: [("e1", SAMPLE)]})
        recorder._write()
        kept = (tmp_path / "t.jsonl.gz").read_bytes()
        await recorder.close()
        return kept

    (tmp_path / "killed.gz").write_bytes(asyncio.run(run()))
    assert len(read_trace(tmp_path / "killed.gz").scenarios[WHOLE].counters) == 1
