"""Each special case of an engine or a device has its rule, its label and its test: here, one after the other."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from proxy.energy import seen, serving
from proxy.energy.attribution import Attribution
from proxy.energy.cpu_part import CpuTime
from proxy.energy.prior import Coefficients, prior
from proxy.energy.share import Settled
from proxy.energy.work import Progress

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
GPU, OTHER_GPU, CPU = "h1/gpu:0", "h1/gpu:1", "h1/cpu:0"


@dataclass
class Machine:
    """Devices that draw a steady power, engines that say what a test tells them to, and time that goes in tenths."""

    engines: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"e1": (GPU,)})
    power_w: dict[str, float] = field(default_factory=lambda: {GPU: 100.0})
    steps_s: dict[str, float] = field(default_factory=dict)  # engine -> steps a second, where it counts them
    says_tokens: bool = False
    cached: float | None = None  # what the engine's counter of cached tokens stands at
    cpu_s: dict[str, float | None] = field(default_factory=dict)  # engine -> CPU-seconds a second, of 1.0 in use
    now: float = 1000.0
    _ticks: int = 0

    def __post_init__(self) -> None:
        self.attribution = Attribution()
        self.raw_uj = dict.fromkeys(self.power_w, 0)
        self.made = dict.fromkeys(self.engines, 0.0)
        self.steps = dict.fromkeys(self.engines, 0.0)
        self.used_s = dict.fromkeys(self.engines, 0.0)
        self.attempts: list[Progress] = []
        self.settled: list[Settled] = []
        for name, devices in self.engines.items():
            self.attribution.add_engine(name, devices, PRICES)
        self.read()

    def read(self) -> None:
        for name, own_s in self.cpu_s.items():
            self.used_s[name] += (own_s or 0.0) * 0.1
            own = None if own_s is None else self.used_s[name]
            self.attribution.cpu(CpuTime(name, self.now, own, self.now))
        for name in self.engines:
            steps = self.steps[name] if name in self.steps_s else None
            tokens = self.made[name] if self.says_tokens else None
            self.attribution.engine(name, self.now, steps, tokens, self.cached)
        for device, raw_uj in self.raw_uj.items():
            self.attribution.reading(device, self.now, raw_uj)
        self.attribution.mark(self.now)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            for device, power_w in self.power_w.items():
                self.raw_uj[device] += round(power_w * 1e5)
            for name, rate in self.steps_s.items():
                self.steps[name] += rate * 0.1
            self.read()
            self._ticks += 1
            if self._ticks % 10 == 0:
                self.settled += self.attribution.settle(self.now)

    def start(self, engine: str = "", prompt: int = 100, streamed: bool = True) -> Progress:
        progress = Progress(f"r{len(self.attempts)}", 1, engine or next(iter(self.engines)), self.now, prompt, streamed)
        self.attempts.append(progress)
        self.attribution.start(progress)
        return progress

    def relay(self, progress: Progress, frames: int) -> None:
        progress.first = progress.first or self.now
        progress.frames += frames

    def end(self, progress: Progress, prompt: int, output: int, cached: int | None = None) -> None:
        progress.ended, progress.prompt_tokens, progress.output_tokens = self.now, prompt, output
        progress.cached_tokens = cached

    def decode(self, seconds: float) -> None:
        """One request after the other, two seconds each, at the prior's pace."""
        for _ in range(round(seconds / 2)):
            progress = self.start()
            for _ in range(20):
                self.relay(progress, 22)
                self.run(0.1)
            self.end(progress, 100, progress.frames)

    def finish(self) -> None:
        """Let everything settle; the books of every device must balance then."""
        self.run(7.0)
        open_uj = self.attribution.open_uj()
        for device, uj in self.attribution.counter_uj().items():
            assert uj == open_uj[device] + sum(w.delta_uj for w in self.settled if w.device == device)

    def uj(self, progress: Progress, device: str | None = None) -> int:
        return sum(s.uj for w in self.settled if device in (None, w.device) for s in w.shares if s.progress is progress)

    def part_uj(self, part: str, device: str) -> int:
        return sum(getattr(window, f"{part}_uj") for window in self.settled if window.device == device)

    def says(self, engine: str = "e1") -> Any:
        method = self.attribution.method(engine, self.now)
        assert method is not None
        return method


# Steps and tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps_s", "label"), [(None, "inferred"), (200.0, "counted"), (50.0, "counted")])
def test_without_a_step_counter_tokens_tell_the_steps_and_the_label_says_so(steps_s: float | None, label: str) -> None:
    """Who got most was in every step. A counter that moves more seldom tells of several tokens a step."""
    machine = Machine(steps_s={} if steps_s is None else {"e1": steps_s})
    teacher = machine.start()
    for _ in range(300):
        machine.relay(teacher, 20)
        machine.run(0.1)
    machine.end(teacher, 100, 6000)
    machine.run(1.0)
    slow, fast = machine.start(), machine.start()
    for _ in range(20):
        machine.relay(slow, 2)
        machine.relay(fast, 20)
        machine.run(0.1)
    for progress in (slow, fast):
        machine.end(progress, 100, progress.frames)
    machine.finish()
    says = machine.says()
    assert says.steps == label
    steps = 400 * (steps_s or 200.0) / 200.0
    parts = [n / (40 + steps) * steps * says.step_j for n in (40, steps)]
    joules = [j + n * (says.output_j + says.context_j * (100 + n / 2)) for j, n in zip(parts, (40, 400), strict=True)]
    expected = [j / sum(joules) for j in joules]
    assert [machine.uj(one) / 200e6 for one in (slow, fast)] == pytest.approx(expected, rel=0.1)


def test_a_step_counter_that_fell_silent_is_no_longer_counted_on() -> None:
    machine = Machine(steps_s={"e1": 100.0})
    machine.run(1.0)
    assert machine.says().steps == "counted"
    machine.steps_s.clear()
    machine.run(11.0)
    assert machine.says().steps == "inferred"


@pytest.mark.parametrize("tokens_a_frame", [1, 4])
@pytest.mark.parametrize("ticks_a_read", [1, 3])
def test_frames_that_hold_several_tokens_or_come_together_weigh_what_the_usage_says(
    tokens_a_frame: int, ticks_a_read: int
) -> None:
    machine = Machine()
    plain, odd = machine.start(), machine.start()
    for tick in range(36):
        if tick % ticks_a_read == ticks_a_read - 1:
            machine.relay(plain, 4 * ticks_a_read)
            machine.relay(odd, 4 * ticks_a_read // tokens_a_frame)
        machine.run(0.1)
    machine.end(plain, 100, 144)
    machine.end(odd, 100, 144)
    machine.finish()
    assert machine.uj(odd) == pytest.approx(machine.uj(plain), rel=0.01)


def test_a_request_without_a_stream_has_the_joules_of_its_time_and_usage() -> None:
    machine = Machine()
    seen, unseen = machine.start(), machine.start(streamed=False)
    for _ in range(20):
        machine.relay(seen, 10)
        machine.run(0.1)
    for progress in (seen, unseen):
        machine.end(progress, 100, 200)
    machine.finish()
    assert machine.uj(unseen) == pytest.approx(machine.uj(seen), rel=0.02)
    assert machine.uj(unseen) + machine.uj(seen) == pytest.approx(200e6, rel=1e-6)


# What was in the cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "of_two"), [("told", 3000), ("counted", 3000), ("unknown", 0)])
def test_cached_tokens_are_told_or_counted_or_taken_for_none_and_the_label_says_which(label: str, of_two: int) -> None:
    machine = Machine(cached=0.0 if label == "counted" else None)
    warm, cold = machine.start(prompt=3000), machine.start(prompt=1)
    if label == "counted":
        machine.cached = 3000.0
    machine.run(0.2)
    for progress in (warm, cold):
        machine.relay(progress, 1)
    machine.run(0.1)
    for progress in (warm, cold):
        machine.end(progress, progress.prompt_guess, 1, 3000 if label == "told" and progress is warm else None)
    machine.finish()
    assert machine.says().cached == label
    assert 3000 - warm.uncached == pytest.approx(of_two, abs=1)
    if of_two:
        assert machine.uj(warm) < 1.5 * machine.uj(cold)
    else:
        assert machine.uj(warm) > 1.3 * machine.uj(cold), "its whole prompt is taken for computed"


# Groups of devices and of engines -------------------------------------------------------------------------------------


def test_the_devices_of_an_engine_share_its_work_and_each_gives_all_of_its_joules() -> None:
    machine = Machine({"tp": (GPU, OTHER_GPU)}, {GPU: 300.0, OTHER_GPU: 240.0})
    small, large = machine.start("tp"), machine.start("tp")
    for _ in range(20):
        machine.relay(small, 1)
        machine.relay(large, 30)
        machine.run(0.1)
    machine.end(small, 100, 20)
    machine.end(large, 100, 600)
    machine.finish()
    for device, joules in ((GPU, 600), (OTHER_GPU, 480)):
        assert machine.uj(small, device) + machine.uj(large, device) == pytest.approx(joules * 1e6, rel=1e-6)
    parts = [machine.uj(small, device) / machine.uj(large, device) for device in (GPU, OTHER_GPU)]
    assert parts[0] == pytest.approx(parts[1], rel=1e-5)


def test_a_group_of_devices_teaches_the_prices_once() -> None:
    machine = Machine({"tp": (CPU, GPU, OTHER_GPU)}, {CPU: 40.0, GPU: 450.0, OTHER_GPU: 450.0}, {"tp": 217.0})
    machine.decode(30.0)
    machine.finish()
    says = machine.says("tp")
    assert says.windows == pytest.approx(60, abs=5), "half seconds of one device, and a GPU where there is one"
    assert says.prices == f"fitted on {says.windows} windows from test"
    assert 217 * says.step_j + 220 * (says.output_j + says.context_j * 320) == pytest.approx(450, rel=0.02)


def test_two_engines_on_one_gpu_pool_their_requests_and_nothing_counts_twice() -> None:
    machine = Machine({"e1": (GPU,), "e2": (GPU,)}, steps_s={"e1": 200.0, "e2": 200.0})
    attempts = [machine.start("e1"), machine.start("e2"), machine.start("e2")]
    for _ in range(20):
        for progress in attempts:
            machine.relay(progress, 5)
        machine.run(0.1)
    for progress in attempts:
        machine.end(progress, 100, 100)
    machine.finish()
    alone, first, second = map(machine.uj, attempts)
    assert alone + first + second == pytest.approx(200e6, rel=1e-6)
    assert first == pytest.approx(second, rel=1e-6)
    # Each engine reads its weights at each of its steps: whoever shares his engine pays half of that.
    assert alone == pytest.approx(2 * first, rel=0.1)


# A crowd --------------------------------------------------------------------------------------------------------------


def test_many_in_flight_are_shared_in_longer_windows_to_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that draws what its work takes."""
    figures: list[list[int]] = []
    for many in (1000, 64):
        for module in (serving, seen):
            monkeypatch.setattr(module, "MANY", many)
        machine, rng = Machine(steps_s={"e1": 40.0}), Random(1)
        running = [machine.start(prompt=rng.randint(10, 3000)) for _ in range(80)]
        for _ in range(150):
            joules = 4 * PRICES.step_j
            for index, progress in enumerate(running):
                if progress.dispatched < machine.now:
                    machine.relay(progress, 4)
                context = progress.prompt_guess + progress.frames
                joules += 4 * (PRICES.output_j + PRICES.context_j * context)
                if progress.frames > 150 + 5 * index:
                    machine.end(progress, progress.prompt_guess, progress.frames, 0)
                    running[index] = machine.start(prompt=rng.randint(10, 3000))
            joules += sum(one.prompt_guess * PRICES.prompt_j for one in running if one.dispatched == machine.now)
            machine.power_w[GPU] = 10 * joules
            machine.run(0.1)
        for progress in running:
            machine.end(progress, progress.prompt_guess, progress.frames, 0)
        machine.finish()
        figures.append([machine.uj(progress) for progress in machine.attempts])
        longest_s = max(window.t1 - window.t0 for window in machine.settled if window.shares)
        assert longest_s < 0.6 if many == 1000 else 2.4 < longest_s < 3.8
    off = [abs(crowd - few) / few for few, crowd in zip(*figures, strict=True) if few]
    assert sum(off) / len(off) < 0.02 and max(off) < 0.1


# A processor ----------------------------------------------------------------------------------------------------------


def test_an_engine_on_a_cpu_has_the_part_of_its_process_and_the_rest_is_foreign() -> None:
    machine = Machine({"e1": (CPU,)}, {CPU: 100.0}, cpu_s={"e1": 0.6})
    machine.run(1.0)
    one, two = machine.start(), machine.start()
    machine.run(2.0)
    for progress in (one, two):
        machine.end(progress, 100, 10)
    machine.run(0.1)
    assert machine.says().cpu == "process" and machine.attribution.foreign_known() == {CPU: True}
    machine.finish()
    assert machine.uj(one) == pytest.approx(60e6, rel=0.01) and machine.uj(one) == pytest.approx(machine.uj(two))
    assert machine.part_uj("foreign", CPU) == pytest.approx(80e6, rel=0.01)
    for window in machine.settled:
        for share in window.shares:
            assert share.low_uj <= share.uj <= share.high_uj


@pytest.mark.parametrize("looked", [True, False])
def test_an_engine_whose_process_is_not_known_has_all_and_what_is_foreign_is_not_known(looked: bool) -> None:
    machine = Machine({"e1": (CPU,)}, {CPU: 100.0}, says_tokens=True, cpu_s={"e1": None} if looked else {})
    progress = machine.start()
    machine.run(2.0)
    machine.end(progress, 100, 10)
    machine.run(0.1)
    assert machine.says().cpu == "whole" and machine.attribution.foreign_known() == {CPU: False}
    machine.finish()
    assert machine.uj(progress) == pytest.approx(200e6, rel=1e-6)


def test_engines_on_one_cpu_have_their_parts_and_who_is_not_known_has_what_is_left() -> None:
    machine = Machine({"e1": (CPU,), "e2": (CPU,), "e3": (CPU,)}, {CPU: 100.0}, cpu_s={"e1": 0.5, "e2": 0.2})
    attempts = [machine.start(name) for name in machine.engines]
    machine.run(2.0)
    for progress in attempts:
        machine.end(progress, 100, 10)
    machine.finish()
    assert [machine.uj(one) for one in attempts] == pytest.approx([100e6, 40e6, 60e6], rel=0.01)
    assert machine.part_uj("foreign", CPU) == 0


def test_more_cpu_time_than_there_was_gives_no_more_joules_than_there_were() -> None:
    machine = Machine({"e1": (CPU,), "e2": (CPU,)}, {CPU: 100.0}, cpu_s={"e1": 0.8, "e2": 0.8})
    attempts = [machine.start("e1"), machine.start("e2")]
    machine.run(2.0)
    for progress in attempts:
        machine.end(progress, 100, 10)
    machine.finish()
    assert [machine.uj(one) for one in attempts] == pytest.approx([100e6, 100e6], rel=0.01)


def test_cpu_time_shares_the_processor_alone_and_a_gpu_beside_it_is_the_engines() -> None:
    machine = Machine({"e1": (GPU, CPU)}, {GPU: 400.0, CPU: 100.0}, cpu_s={"e1": 0.25})
    progress = machine.start()
    machine.run(2.0)
    machine.end(progress, 100, 10)
    machine.finish()
    assert machine.uj(progress, GPU) == pytest.approx(800e6, rel=1e-6)
    assert machine.uj(progress, CPU) == pytest.approx(50e6, rel=0.01)
    assert machine.part_uj("foreign", GPU) == 0


def test_a_processor_is_idle_for_us_while_nothing_is_in_flight_whoever_else_uses_it() -> None:
    machine = Machine({"e1": (CPU,)}, {CPU: 100.0}, cpu_s={"e1": 0.0})
    machine.run(2.0)
    machine.finish()
    assert machine.part_uj("idle", CPU) == machine.attribution.counter_uj()[CPU] - machine.attribution.open_uj()[CPU]


# What cannot be shared ------------------------------------------------------------------------------------------------


def test_a_board_split_by_mig_shows_its_counter_and_no_request_has_a_figure() -> None:
    machine = Machine({"e1": (GPU, CPU), "e2": (CPU,)}, {GPU: 300.0, CPU: 100.0})
    machine.attribution.withhold(GPU, "h1/gpu:0 is split by MIG")
    sliced, whole = machine.start("e1"), machine.start("e2")
    machine.run(2.0)
    assert machine.attribution.provisional_uj(sliced, machine.now) == 0
    for progress in (sliced, whole):
        machine.end(progress, 100, 10)
    machine.finish()
    assert machine.uj(sliced) == 0 and machine.attribution.is_settled(sliced)
    assert machine.uj(whole) == pytest.approx(100e6, rel=0.01), "another engine has its share as ever"
    assert machine.part_uj("gap", GPU) == sum(w.delta_uj for w in machine.settled if w.device == GPU) > 500e6
    assert machine.part_uj("gap", CPU) == pytest.approx(100e6, rel=0.01)
    assert machine.says("e1").withheld == "h1/gpu:0 is split by MIG" and machine.says("e2").withheld is None


# Prices ---------------------------------------------------------------------------------------------------------------


def test_the_label_says_where_the_prices_come_from() -> None:
    attribution = Attribution()
    known, unknown = prior("NVIDIA H200", "meta-llama/Llama-2-7b-hf"), prior("NVIDIA B300", "gpt-9")
    attribution.add_engine("known", (GPU,), known)
    attribution.add_engine("unknown", (GPU,), unknown)
    said = {name: attribution.method(name, 0.0) for name in ("known", "unknown", "nobody")}
    assert said["nobody"] is None and said["known"] and said["unknown"]
    assert said["known"].prices.startswith("measured on one H200") and said["known"].spread == 1.25
    assert said["unknown"].prices == ("scaled from H200 x Llama-2-7B; unknown: device 'NVIDIA B300', model 'gpt-9'")
    assert (said["unknown"].spread, said["unknown"].windows, said["unknown"].steps) == (2.0, 0, "inferred")


def test_prices_that_are_told_again_and_again_leave_what_was_learnt() -> None:
    """An engine is asked for its models twice a minute."""
    machine = Machine(power_w={GPU: 450.0}, steps_s={"e1": 217.0})
    for _ in range(4):
        machine.decode(10.0)
        machine.attribution.price("e1", replace(PRICES))
    assert machine.says().windows > 50
    machine.attribution.price("e1", replace(PRICES, step_j=3.0))
    assert machine.says().windows == 0, "another model's prices are learnt anew"


def test_another_setting_of_the_clocks_switches_the_gain() -> None:
    machine = Machine(power_w={GPU: 450.0}, steps_s={"e1": 217.0})
    step_j: dict[str, list[float]] = {}
    for setting, power_w in (("", 450.0), ("300 W", 315.0), ("", 450.0), ("300 W", 315.0)):
        machine.power_w[GPU] = power_w
        machine.attribution.setting(GPU, machine.now, setting)
        machine.decode(40.0)
        step_j.setdefault(setting, []).append(machine.says().step_j)
        assert machine.says().setting == setting
    assert step_j["300 W"][-1] / step_j[""][-1] == pytest.approx(0.7, rel=0.02)
    assert step_j[""][1] == pytest.approx(step_j[""][0], rel=0.02), "each setting keeps its own"
    assert machine.says().drifts == 0
    machine.attribution.setting(GPU, machine.now, "")
    machine.run(1.0)
    assert machine.says().step_j == pytest.approx(step_j[""][1], rel=0.02), "before there was a window to learn from"


def test_a_machine_that_changes_unsaid_is_said_to_have_drifted() -> None:
    machine = Machine(power_w={GPU: 450.0}, steps_s={"e1": 217.0})
    machine.decode(80.0)
    before_j = machine.says().step_j
    machine.power_w[GPU] = 300.0
    machine.decode(80.0)
    assert machine.says().drifts == 1
    assert machine.says().step_j == pytest.approx(before_j * 300 / 450, rel=0.03)
