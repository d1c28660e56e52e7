import pickle
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.energy import serving
from proxy.energy.attribution import Attribution
from proxy.energy.foreign import RECENT_S
from proxy.energy.prior import Coefficients
from proxy.energy.records import Phase
from proxy.energy.share import Settled, plan
from proxy.energy.windows import GAP_S
from proxy.energy.work import Progress

PRICES = Coefficients(2.0, 0.0165, 0.025, 0.00007, 0.0046, 0.000025, 1.25, "test")
GPU = "h1/gpu:0"
ENGINES = {"e1": ("h1/gpu:0", "h1/cpu:0"), "e2": ("h1/gpu:0",), "e3": ()}
DEVICES: tuple[str, ...] = ("h1/gpu:0", "h1/cpu:0", "h2/gpu:0")


# A small world to attribute in ----------------------------------------------------------------------------------------


@dataclass
class World:
    """An attribution and what it settled, with a device that draws a steady 100 W unless told otherwise."""

    devices: tuple[str, ...] = (GPU,)
    engines: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"e1": (GPU,)})
    now: float = 1000.0
    settled: list[Settled] = field(default_factory=list)
    made: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # engine -> output tokens it counts
    steps: dict[str, float] | None = None  # engine -> steps, where it has that counter

    def __post_init__(self) -> None:
        self.attribution = Attribution()
        self.raw_uj = dict.fromkeys(self.devices, 5_000_000)
        self.attempts: list[Progress] = []
        self.says = dict.fromkeys(self.engines, False)  # whether the engine has counters
        for name, devices in self.engines.items():
            self.attribution.add_engine(name, devices, PRICES)
        self.read()

    def read(self) -> None:
        for device in self.devices:
            self.attribution.reading(device, self.now, self.raw_uj[device])
        for name in self.engines:
            if self.says[name]:
                steps = self.steps.get(name, 0.0) if self.steps is not None else None
                self.attribution.engine(name, self.now, steps, self.made[name])
        self.attribution.mark(self.now)

    def run(self, seconds: float, power_w: float = 100.0, step_s: float = 0.1) -> None:
        for _ in range(round(seconds / step_s)):
            self.now += step_s
            for device in self.devices:
                self.raw_uj[device] += round(power_w * step_s * 1e6)
            self.read()
            self.settled += list(self.attribution.settle(self.now))

    def start(self, engine: str = "e1", prompt: int = 100, streamed: bool = True) -> Progress:
        progress = Progress(f"r{len(self.attempts)}", 1, engine, self.now, prompt, streamed)
        self.attempts.append(progress)
        self.attribution.start(progress)
        return progress

    def relay(self, progress: Progress, tokens: int) -> None:
        """The engine makes tokens of an attempt, each of them a frame."""
        self.made[progress.engine] += tokens
        progress.first = progress.first or self.now
        progress.frames += tokens

    def end(self, progress: Progress, prompt: int | None = None, output: int | None = None) -> None:
        progress.prompt_tokens, progress.output_tokens, progress.ended = prompt, output, self.now

    def uj(self, progress: Progress, device: str | None = None) -> int:
        return sum(s.uj for w in self.settled if device in (None, w.device) for s in w.shares if s.progress is progress)

    def part(self, name: str) -> int:
        return sum(getattr(window, f"{name}_uj") for window in self.settled)

    def check(self) -> None:
        """Every counter equals what was settled and what is open; windows follow each other without a hole."""
        edges: dict[str, float] = {}
        sums: dict[str, int] = defaultdict(int)
        for window in self.settled:
            assert edges.setdefault(window.device, window.t0) == window.t0
            edges[window.device] = window.t1
            assert min(window.idle_uj, window.foreign_uj, window.gap_uj) >= 0
            for share in window.shares:
                assert 0 <= share.low_uj <= share.uj <= share.high_uj
            shares_uj = sum(share.uj for share in window.shares)
            sums[window.device] += shares_uj + window.idle_uj + window.foreign_uj + window.gap_uj
        open_uj = self.attribution.open_uj()
        for device, counter_uj in self.attribution.counter_uj().items():
            assert counter_uj == sums[device] + open_uj[device]

    def finish(self) -> None:
        for progress in self.attempts:
            if progress.ended is None:
                self.end(progress)
        self.run(12.0, power_w=0.0, step_s=0.5)
        self.now += 5.0  # an engine that fell silent holds its windows that long
        self.settled += list(self.attribution.settle(self.now))
        self.check()
        assert not any(self.attribution.open_uj().values())
        assert all(self.attribution.is_settled(progress) for progress in self.attempts)


# Any history ----------------------------------------------------------------------------------------------------------

EVENTS = st.one_of(
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0, 3.0, 7.0, 60.0])),
    st.tuples(st.just("read"), st.sampled_from(DEVICES), st.sampled_from([-1, 0, 1, 7, 10**5, 10**7])),
    st.tuples(st.just("read"), st.sampled_from(DEVICES), st.sampled_from([10**5, 10**7])),
    st.tuples(st.just("read all")),
    st.tuples(st.just("jump"), st.floats(-30, 30)),
    st.tuples(st.just("engine"), st.sampled_from(list(ENGINES)), st.sampled_from([None, -1, 0, 3, 50]), st.booleans()),
    st.tuples(st.just("start"), st.sampled_from(list(ENGINES)), st.booleans(), st.integers(0, 3000)),
    st.tuples(st.just("frames"), st.integers(0, 9), st.integers(1, 40)),
    st.tuples(st.just("end"), st.integers(0, 9), st.booleans(), st.integers(0, 500)),
    st.tuples(st.just("mark")),
    st.tuples(st.just("settle")),
)


def apply(world: World, counters: dict[str, list[float]], event: tuple[Any, ...]) -> None:
    running = [progress for progress in world.attempts if progress.ended is None]
    match event:
        case "pass", seconds:
            world.now += seconds
        case "read", device, -1:
            world.raw_uj[device] = 17
            world.attribution.reading(device, world.now, world.raw_uj[device])
        case "read", device, moved:
            world.raw_uj[device] += moved
            world.attribution.reading(device, world.now, world.raw_uj[device])
        case ("read all",):
            world.read()
        case "jump", seconds:  # one reading with a time that is wrong
            world.attribution.reading(DEVICES[0], world.now + seconds, world.raw_uj[DEVICES[0]])
        case "engine", name, moved, has_tokens:
            steps, tokens = counters[name]
            counters[name] = [0.0, 0.0] if moved == -1 else [steps + (moved or 0), tokens + 3 * (moved or 0)]
            world.attribution.engine(
                name, world.now, None if moved is None else counters[name][0], counters[name][1] if has_tokens else None
            )
        case "start", name, streamed, prompt:
            world.start(name, prompt, streamed)
        case "frames", index, count if index < len(running) and running[index].streamed:
            world.relay(running[index], count)
        case "end", index, has_usage, output if index < len(running):
            usage = (running[index].prompt_guess, output) if has_usage else (None, None)
            world.end(running[index], *usage)
        case ("mark",):
            world.attribution.mark(world.now)
        case ("settle",):
            world.settled += list(world.attribution.settle(world.now))
        case _:
            pass


@settings(max_examples=250, deadline=None)
@given(st.lists(EVENTS, min_size=5, max_size=80))
def test_every_microjoule_is_booked_once_whatever_happens(events: list[tuple[Any, ...]]) -> None:
    world = World(DEVICES, dict(ENGINES))
    counters = {name: [0.0, 0.0] for name in ENGINES}
    moved_uj, last = dict.fromkeys(DEVICES, 0), dict(world.attribution.raw())
    for event in events:
        apply(world, counters, event)
        for progress in world.attempts:
            assert world.attribution.provisional_uj(progress, world.now) >= 0
        for device, (raw_uj, t) in world.attribution.raw().items():
            moved_uj[device] += max(0, raw_uj - last[device][0])
            last[device] = (raw_uj, t)
        world.check()
    assert world.attribution.counter_uj() == moved_uj
    world.now += 31  # past any reading from the future
    world.finish()


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, min_size=5, max_size=80))
def test_what_is_settled_stays_settled(events: list[tuple[Any, ...]]) -> None:
    """A receipt is handed over and forgotten once it is settled: no joule may come after that."""
    world = World(DEVICES, dict(ENGINES))
    counters = {name: [0.0, 0.0] for name in ENGINES}
    gone: set[int] = set()
    for event in [*events, ("pass", 7.0), ("read all",), ("settle",), ("pass", 7.0), ("settle",)]:
        before = len(world.settled)
        apply(world, counters, event)
        for window in world.settled[before:]:
            assert not gone & {id(share.progress) for share in window.shares}
        if event == ("settle",):
            gone |= {id(progress) for progress in world.attempts if world.attribution.is_settled(progress)}
            assert all(world.attribution.is_settled(p) for p in world.attempts if id(p) in gone)


def test_nothing_is_remembered_of_what_is_settled() -> None:
    """As many requests again leave no more behind, whether or not an engine has devices."""
    sizes = []
    world = World((GPU,), {"e1": (GPU,), "far": ()}, steps=defaultdict(float))
    world.says = {"e1": True, "far": True}
    for _ in range(3):
        for _ in range(20):
            world.steps = {"e1": world.now, "far": world.now}
            both = [world.start("e1"), world.start("far")]
            for progress in both:
                world.relay(progress, 5)
            world.run(0.5)
            for progress in both:
                world.end(progress, 100, 5)
        world.run(7.0)
        world.attribution.floors.clear()  # which keep some idle windows for good
        sizes.append(len(pickle.dumps(world.attribution)))
    assert max(sizes) - min(sizes) < 200


# What becomes of the joules -------------------------------------------------------------------------------------------


def test_nothing_in_flight_is_idle() -> None:
    world = World()
    world.run(3.0)
    world.finish()
    assert world.part("idle") == world.attribution.counter_uj()[GPU]


def test_the_time_before_dispatch_and_after_the_end_is_idle() -> None:
    world = World()
    world.run(1.0)
    world.now += 0.5
    progress = world.start()
    world.now += 0.2
    world.end(progress, 100, 10)
    world.now += 0.3
    world.raw_uj[GPU] += 10_000_000
    world.read()
    world.finish()
    assert world.uj(progress) == pytest.approx(2_000_000, abs=1)


def test_requests_inside_of_another_do_not_make_the_idle_time_shorter() -> None:
    world = World()
    begins, ends = (0.0, 0.1, 0.3), (0.6, 0.2, 0.5)
    for begin, end in zip(begins, ends, strict=True):
        world.start().dispatched = 1000.0 + begin
        world.attempts[-1].ended = 1000.0 + end
    world.run(1.0, step_s=1.0)
    world.finish()
    assert sum(map(world.uj, world.attempts)) == pytest.approx(60_000_000, abs=2)


def test_an_only_request_has_all_of_its_time() -> None:
    world = World()
    progress = world.start()
    world.run(1.0)
    world.relay(progress, 10)
    world.run(2.0)
    world.end(progress, 100, 10)
    world.finish()
    assert world.uj(progress) == pytest.approx(300_000_000, abs=1)
    phases = {s.phase: s.uj for w in world.settled for s in w.shares}
    assert set(phases) == {Phase.PREFILL, Phase.DECODE}


@pytest.mark.parametrize("streamed", [True, False])
def test_equal_requests_get_equal_shares(streamed: bool) -> None:
    world = World()
    three = [world.start(streamed=streamed) for _ in range(3)]
    for _ in range(10):
        if streamed:
            for progress in three:
                world.relay(progress, 4)
        world.run(0.37, power_w=77.7, step_s=0.037)
    for progress in three:
        world.end(progress, 100, 40)
    world.finish()
    for window in world.settled:
        for phase in Phase:
            shares = [share.uj for share in window.shares if share.phase is phase]
            assert not shares or max(shares) - min(shares) <= 1
    assert world.uj(three[0]) == pytest.approx(world.uj(three[2]), rel=1e-5)


def test_the_shares_follow_the_formula() -> None:
    world = with_counters(steps={"e1": 0.0})
    short, long = world.start(prompt=0), world.start(prompt=5000)
    world.relay(short, 1)
    world.relay(long, 1)
    world.run(1.0, step_s=1.0)
    short.frames, long.frames, world.steps = 21, 21, {"e1": 20.0}
    world.run(1.0, step_s=1.0)
    world.end(short, 0, 21)
    world.end(long, 5000, 21)
    world.finish()
    # In the second window 20 steps are shared by two, and their 20 tokens have 1 to 21 before them, and a prompt.
    window = next(window for window in world.settled if window.t0 == 1001.0)
    decode = {share.progress: share.uj for share in window.shares if share.phase is Phase.DECODE}
    short_j, long_j = (20.0 + 0.025 * 20 + 0.00007 * 20 * (prompt + 11) for prompt in (0, 5000))
    assert decode[short] / decode[long] == pytest.approx(short_j / long_j, rel=1e-6)


def test_steps_are_paid_by_those_that_took_part_in_them() -> None:
    """One decodes all the time, one waits inside of the engine, one has its prompt computed in a single step."""
    world = with_counters(steps={"e1": 0.0})
    decoding, waiting, prefilling = world.start(prompt=0), world.start(prompt=0), world.start(prompt=0)
    for _ in range(10):
        world.relay(decoding, 20)
        assert world.steps is not None
        world.steps["e1"] += 20
        world.run(0.1)
    world.relay(prefilling, 1)
    for progress in world.attempts:
        world.end(progress, 0, progress.frames)
    world.finish()
    assert world.uj(waiting) + world.uj(prefilling) < 0.03 * world.uj(decoding)
    assert world.uj(prefilling) > 0


def test_who_came_for_the_end_of_a_window_pays_for_its_end_alone() -> None:
    world = with_counters(steps={"e1": 0.0})
    alone = world.start(prompt=0)
    for tick in range(10):
        if tick == 5:
            world.start(prompt=0)
        for progress in world.attempts:
            world.relay(progress, 20)
        assert world.steps is not None
        world.steps["e1"] += 20
        world.run(0.1, power_w=500)
    for progress in world.attempts:
        world.end(progress, 0, progress.frames)
    world.finish()
    first = next(window for window in world.settled if window.shares)
    assert first.t1 - first.t0 == pytest.approx(0.5), "settled together"
    assert world.uj(alone) / 1e6 == pytest.approx(500 * 0.75, rel=0.05)


def test_several_tokens_a_step_do_not_make_more_steps() -> None:
    """One gets three tokens of every step and the other one: both take part in all of them."""
    world = with_counters(steps={"e1": 0.0})
    fast, slow = world.start(prompt=0), world.start(prompt=0)
    for _ in range(300):
        world.relay(fast, 30)
        world.relay(slow, 10)
        world.made["e1"] += 40
        assert world.steps is not None
        world.steps["e1"] += 10
        world.run(0.1)
    for progress in world.attempts:
        world.end(progress, 0, progress.frames)
    world.finish()
    late = [window for window in world.settled if window.shares][-20:]
    fast_uj, slow_uj = (sum(s.uj for w in late for s in w.shares if s.progress is one) for one in (fast, slow))
    # 10 J of steps each, and 3 and 1 tokens a step with 9 and 3 thousand tokens before them at the end.
    assert slow_uj / fast_uj > 0.35


def test_a_cancelled_attempt_keeps_its_joules() -> None:
    world = World()
    stream, whole = world.start(), world.start(streamed=False)
    world.run(1.0)
    world.relay(stream, 200)
    world.run(1.0)
    world.end(stream)
    world.end(whole)
    world.finish()
    assert world.uj(stream) > 20_000_000 and world.uj(whole) > 20_000_000
    assert world.uj(stream) + world.uj(whole) == pytest.approx(200_000_000, abs=1)


@pytest.mark.parametrize("counts", [True, False])
@pytest.mark.parametrize("rate", [20, 200])  # tokens a second; by the prior it would be 217
@pytest.mark.parametrize("prompt", [10, 4000])
def test_a_long_request_costs_the_same_with_and_without_a_stream(counts: bool, rate: int, prompt: int) -> None:
    """Most of its windows settle long before its usage is known. Six do, so that tokens weigh as much as steps."""
    world = with_counters(steps={"e1": 0.0}) if counts else World()
    world.run(1.0)
    seen, unseen = ([world.start(prompt=prompt, streamed=streamed) for _ in range(6)] for streamed in (True, False))
    world.now += prompt * PRICES.prompt_s
    for _ in range(150):
        for twin in seen:
            world.relay(twin, rate // 10)
        world.made["e1"] += 6 * rate // 10
        if world.steps is not None:
            world.steps["e1"] += rate // 10
        world.run(0.1)
    for _ in range(2):
        booked = [sum(map(world.uj, twins)) for twins in (seen, unseen)]
        assert booked[1] == pytest.approx(booked[0], rel=0.15) and min(booked) > 400_000_000
        for twin in world.attempts:
            if twin.ended is None:
                world.end(twin, prompt, rate * 15)
        world.run(10.0)
    world.finish()


@settings(max_examples=30, deadline=None)
@given(
    rates=st.lists(st.integers(0, 30), min_size=60, max_size=120),
    lag=st.integers(0, 10),
    output_part=st.floats(0.3, 1.0),
)
def test_what_is_guessed_of_an_unseen_request_is_no_more_than_the_steps_that_were(
    rates: list[int], lag: int, output_part: float
) -> None:
    """The counter is heard of once a second, and later than it counts."""
    world = World()
    unseen, steps, heard = world.start(streamed=False), 0.0, [0.0]
    for tick, rate in enumerate(rates):
        steps += rate
        heard.append(steps)
        if tick % 10 == 0:
            world.attribution.engine("e1", world.now - lag / 10, heard[max(0, tick - lag)], None)
        world.run(0.1)
    guessed = unseen.marks[-1][1] if unseen.marks else 0.0
    assert guessed <= sum(rates) + 1
    world.end(unseen, 100, round(steps * output_part))
    world.finish()


def test_a_window_waits_for_its_requests_but_not_for_ever() -> None:
    world = World()
    progress = world.start()
    world.run(4.9)
    assert world.settled == [] and world.attribution.open_uj()[GPU] == pytest.approx(490_000_000)
    assert world.attribution.provisional_uj(progress, world.now) == pytest.approx(490_000_000, rel=0.01)
    world.run(5.0)
    assert world.settled and world.settled[-1].t1 == pytest.approx(world.now - 5.0, abs=0.11)
    assert not world.attribution.is_settled(progress)
    world.end(progress, 100, 0)
    world.finish()
    assert world.uj(progress) == pytest.approx(990_000_000, abs=2)


def test_what_is_open_is_predicted_once_and_settles_as_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    made: list[float] = []
    monkeypatch.setattr(serving, "plan", lambda loads, t0, *_, **o: made.append(t0) or plan(loads, t0, *_, **o))
    streams = [world.start() for _ in range(5)]
    for tick in range(30):
        for n, progress in enumerate(streams):
            world.relay(progress, 1 + n)
        world.run(0.1)
        if tick % 3 == 2:
            for progress in streams:
                world.attribution.provisional_uj(progress, world.now)
    assert len(made) == 10, "what came since somebody asked together, and once, whoever asks and how often"
    predicted = [world.attribution.provisional_uj(progress, world.now) for progress in streams]
    assert sum(predicted) == pytest.approx(world.attribution.open_uj()[GPU], abs=200)
    for n, progress in enumerate(streams):
        world.end(progress, 100, 30 * (1 + n))
    world.settled += list(world.attribution.settle(world.now))
    assert [world.uj(progress) for progress in streams] == pytest.approx(predicted, rel=0.03)
    assert [world.attribution.provisional_uj(progress, world.now) for progress in streams] == [0] * 5
    world.finish()


def test_since_the_last_window_power_goes_on_and_is_shared_evenly() -> None:
    world = World()
    first = world.start()
    world.run(1.0)
    before_uj = world.attribution.provisional_uj(first, world.now)
    world.now += 0.05
    assert world.attribution.provisional_uj(first, world.now) - before_uj == pytest.approx(5_000_000, rel=1e-6)
    second = world.start()
    world.now += 0.02
    assert world.attribution.provisional_uj(first, world.now) - before_uj == pytest.approx(3_500_000, rel=1e-6)
    assert world.attribution.provisional_uj(second, world.now) == pytest.approx(1_000_000, rel=1e-6)


def test_devices_with_the_same_windows_are_shared_by_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = tuple(f"h1/gpu:{n}" for n in range(4))
    world = World(devices, {"e1": devices})
    made: list[float] = []
    monkeypatch.setattr(serving, "plan", lambda loads, t0, *_, **o: made.append(t0) or plan(loads, t0, *_, **o))
    progress = world.start()
    world.run(2.0)
    world.end(progress, 100, 10)
    world.finish()
    assert len(made) == len(set(made))
    assert [world.uj(progress, device) for device in devices] == pytest.approx([200_000_000] * 4, abs=1)


def test_a_window_that_cannot_be_shared_is_a_gap_and_the_books_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    progress = world.start()
    world.run(1.0)
    with monkeypatch.context() as patch:
        patch.setattr(serving, "plan", fail)
        assert world.attribution.provisional_uj(progress, world.now) >= 0
        world.run(5.0)
        world.check()
        assert world.part("gap") == pytest.approx(100_000_000, abs=1)
    assert len(caplog.records) == 1 and "booked as gap" in caplog.text and "out of order" in caplog.text
    world.run(1.0)
    world.end(progress, 100, 10)
    world.finish()
    assert world.uj(progress) == pytest.approx(600_000_000, abs=1)


def fail(*_: Any, **__: Any) -> Any:
    raise ArithmeticError("out of order")


def test_who_stops_taking_what_is_settled_goes_on_later() -> None:
    world = World()
    world.run(1.0)
    progress = world.start()
    world.run(0.5)
    world.end(progress, 100, 10)
    round_ = world.attribution.settle(world.now)
    world.settled.append(next(round_))
    world.check()
    del round_
    world.run(0.2)
    world.finish()
    assert world.uj(progress) == pytest.approx(50_000_000, abs=1)


def test_two_engines_on_one_device_share_it_and_one_engine_has_all_of_its_devices() -> None:
    world = World(("h1/gpu:0", "h1/cpu:0"), {"e1": ("h1/gpu:0", "h1/cpu:0"), "e2": ("h1/gpu:0",)})
    one, two = world.start("e1"), world.start("e2")
    world.run(2.0)
    world.end(one, 100, 10)
    world.end(two, 100, 10)
    world.finish()
    assert world.uj(one, "h1/cpu:0") == pytest.approx(200_000_000, abs=1) and world.uj(two, "h1/cpu:0") == 0
    assert world.uj(one, GPU) + world.uj(two, GPU) == pytest.approx(200_000_000, abs=1)
    assert world.uj(one, GPU) == pytest.approx(world.uj(two, GPU), rel=1e-6)


# Holes ----------------------------------------------------------------------------------------------------------------


def test_a_hole_in_the_readings_is_a_gap() -> None:
    world = World()
    progress = world.start()
    world.run(1.0)
    world.now += GAP_S + 0.1
    world.raw_uj[GPU] += 70_000_000
    world.run(0.1)
    world.end(progress, 100, 10)
    world.finish()
    assert world.part("gap") == 80_000_000


def test_a_counter_that_was_reset_moved_nothing_that_is_known() -> None:
    world = World()
    world.run(1.0)
    before_uj = world.attribution.counter_uj()[GPU]
    world.raw_uj[GPU] = 3
    world.now += 0.1
    world.read()
    assert world.attribution.counter_uj()[GPU] == before_uj
    world.run(1.0)
    world.finish()
    assert world.part("gap") == 0


def test_a_lost_counter_holds_nobody_up() -> None:
    world = World()
    progress = world.start()
    world.run(1.0)
    world.end(progress, 100, 10)
    world.now += GAP_S / 2
    world.settled += list(world.attribution.settle(world.now))
    assert not world.attribution.is_settled(world.start())
    world.now += GAP_S
    world.settled += list(world.attribution.settle(world.now))
    assert world.attribution.is_settled(progress)


def test_a_counter_that_never_answered_holds_nobody_up() -> None:
    world = World((), {"e1": (GPU,), "far": ()})
    for name in ("e1", "far"):
        progress = world.start(name)
        assert not world.attribution.is_settled(progress)
        world.end(progress, 100, 10)
        assert list(world.attribution.settle(world.now)) == []
        assert world.attribution.is_settled(progress)
        assert world.attribution.provisional_uj(progress, world.now) == 0


@pytest.mark.parametrize(("last_raw_uj", "gap_uj"), [(900, 100), (1000, 0), (1001, 0), (-500, 1500)])
def test_what_was_spent_between_two_lives_of_the_gateway_is_a_gap(last_raw_uj: int, gap_uj: int) -> None:
    attribution = Attribution()
    attribution.add_engine("e1", (GPU,), PRICES)
    assert attribution.resume(GPU, 50.0, 1000, last_raw_uj) == gap_uj
    attribution.reading(GPU, 51.0, 1007)
    settled = list(attribution.settle(51.0))
    assert sum(window.gap_uj for window in settled) == gap_uj
    assert sum(window.idle_uj for window in settled) == 7
    assert attribution.counter_uj() == {GPU: gap_uj + 7}


# Work that came past the gateway --------------------------------------------------------------------------------------


def with_counters(**more: Any) -> World:
    world = World(**more)
    world.says = dict.fromkeys(world.engines, True)
    world.read()
    return world


def test_tokens_that_nobody_relayed_are_foreign() -> None:
    world = with_counters()
    world.run(2.0)
    for _ in range(4):
        world.made["e1"] += 30
        world.run(1.0, step_s=1.0)
    world.finish()
    assert world.part("foreign") == pytest.approx(400_000_000, abs=1)
    assert world.attribution.foreign_known() == {GPU: True}


def test_foreign_work_beside_ours_takes_its_part() -> None:
    world = with_counters(steps={"e1": 0.0})
    ours = world.start()
    for _ in range(40):
        world.relay(ours, 5)
        world.made["e1"] += 15
        assert world.steps is not None
        world.steps["e1"] += 5
        world.run(0.1)
    world.end(ours, 100, ours.frames)
    world.finish()
    assert 0.1 < world.part("foreign") / (world.part("foreign") + world.uj(ours)) < 0.9


def test_an_engine_without_counters_says_nothing_of_foreign_work() -> None:
    world = World()
    world.run(1.0)
    assert world.attribution.foreign_known() == {GPU: False}


def test_while_a_request_hides_its_tokens_foreign_work_is_not_known() -> None:
    world = with_counters()
    world.run(2.0)
    assert world.attribution.foreign_known() == {GPU: True}
    whole = world.start(streamed=False)
    world.run(5.0)
    assert world.attribution.foreign_known() == {GPU: True}
    world.run(RECENT_S)
    assert world.attribution.foreign_known() == {GPU: False}
    world.end(whole, 100, 10)
    world.made["e1"] += 10
    world.run(1.0)
    assert world.attribution.foreign_known() == {GPU: True}


def test_of_an_engine_that_fell_silent_foreign_work_is_not_known() -> None:
    world = with_counters()
    world.run(2.0)
    world.says["e1"] = False
    world.run(RECENT_S + 1)
    assert world.attribution.foreign_known() == {GPU: False}


def test_foreign_tokens_that_are_found_too_late_are_said(caplog: pytest.LogCaptureFixture) -> None:
    world = with_counters()
    world.run(2.0)
    whole = world.start(streamed=False)
    world.run(20.0)
    world.made["e1"] += 10 + 1000
    world.end(whole, 100, 10)
    world.run(1.0)
    world.finish()
    assert world.part("foreign") > 0, "some fall into windows that were open"
    assert len(caplog.records) == 1 and "found too late" in caplog.text


@settings(max_examples=120, deadline=None)
@given(
    late=st.booleans(),
    first_look=st.integers(0, 30),
    restart=st.none() | st.integers(0, 60),
    ahead=st.integers(0, 5),
    tokens_a_frame=st.integers(1, 2),
    plans=st.lists(
        st.tuples(
            st.integers(0, 40),  # dispatched, in ticks
            st.integers(1, 40),  # ticks until the end
            st.integers(0, 12),  # tokens a tick
            st.booleans(),  # streamed
            st.sampled_from(["ok", "ok", "cancelled"]),
        ),
        max_size=6,
    ),
)
def test_what_the_gateway_relayed_is_never_foreign(
    late: bool,
    first_look: int,
    restart: int | None,
    ahead: int,
    tokens_a_frame: int,
    plans: list[tuple[int, int, int, bool, str]],
) -> None:
    """Counters that move at once, a few tokens ahead or only at the end of a request; engines that begin anew."""
    world = World()
    running: dict[int, tuple[Progress, int]] = {}
    for tick in range(120):
        world.says["e1"] = tick >= first_look
        if tick == restart:
            world.made["e1"] = 0.0
            for progress, _ in running.values():
                world.end(progress)
            running = {}
            continue
        for index, (begin, length, rate, streamed, outcome) in enumerate(plans):
            if tick == begin:
                running[index] = (world.start(streamed=streamed), 0)
            if index not in running:
                continue
            progress, made = running[index]
            running[index] = (progress, made + rate)
            if not late:
                world.made["e1"] += rate
            if streamed and rate:
                progress.first = progress.first or world.now
                progress.frames = -(-(made + rate) // tokens_a_frame)
            if tick == begin + length:
                del running[index]
                if late:
                    world.made["e1"] += made + rate
                if outcome == "cancelled":
                    world.made["e1"] += ahead  # made before the engine noticed
                    world.end(progress)
                else:
                    world.end(progress, 100, made + rate)
        world.run(0.25, step_s=0.25)
    world.finish()
    assert world.part("foreign") == 0


def test_a_counter_that_moves_after_a_cancelled_request_is_not_foreign() -> None:
    """llama.cpp counts a request's tokens when it ends, and notices seconds later that its client went."""
    world = with_counters()
    whole = world.start(streamed=False)
    world.run(3.0)
    world.end(whole)
    world.run(2.5)
    world.made["e1"] += 300
    world.run(3.0)
    world.finish()
    assert world.part("foreign") == 0


def test_foreign_work_is_seen_again_after_a_cancelled_request() -> None:
    world = with_counters()
    whole = world.start(streamed=False)
    world.run(1.0)
    world.made["e1"] += 300
    world.end(whole)
    world.run(10.0)
    world.made["e1"] += 300
    world.run(1.0)
    world.finish()
    assert 0 < world.part("foreign") <= 20_000_000


def test_foreign_work_after_an_engine_restarted_is_seen() -> None:
    world = with_counters()
    ours = world.start()
    world.relay(ours, 500)
    world.run(1.0)
    world.end(ours, 100, 500)
    world.run(8.0)
    world.made["e1"] = 0.0
    world.run(1.0)
    assert world.part("foreign") == 0
    world.made["e1"] = 400.0
    world.run(1.0)
    world.finish()
    assert world.part("foreign") > 0


# Engines that come and go ---------------------------------------------------------------------------------------------


def in_flight(attribution: Attribution, dispatched: float) -> Progress:
    progress = Progress("r", 1, "e1", dispatched, 10)
    attribution.start(progress)
    return progress


def test_an_engine_that_takes_anothers_place_inherits_its_attempts_and_not_its_counters() -> None:
    attribution = Attribution()
    attribution.add_engine("e1", [GPU], PRICES)
    attribution.reading(GPU, 100.0, 0)
    progress = in_flight(attribution, 100.0)
    attribution.engine("e1", 100.0, 5, 900.0)
    attribution.add_engine("e1", [GPU], PRICES)
    attribution.engine("e1", 100.2, 90_000, 100_000.0)  # another engine's, which has worked for others before
    attribution.reading(GPU, 101.0, 100_000_000)
    progress.ended, progress.output_tokens = 101.0, 5
    attribution.engine("e1", 101.1, 90_001, 100_005.0)
    (window,) = attribution.settle(102.0)
    assert (sum(share.uj for share in window.shares), window.foreign_uj) == (100_000_000, 0)


def test_an_engine_is_forgotten_when_nothing_open_needs_it() -> None:
    attribution = Attribution()
    attribution.add_engine("e1", [GPU], PRICES)
    attribution.reading(GPU, 100.0, 0)
    progress = in_flight(attribution, 100.0)
    assert not attribution.remove_engine("e1")
    attribution.reading(GPU, 101.0, 100_000_000)
    progress.ended, progress.output_tokens = 100.9, 5
    assert not attribution.remove_engine("e1") and not attribution.is_settled(progress)
    attribution.reading(GPU, 102.0, 100_000_000)
    list(attribution.settle(110.0))
    assert attribution.remove_engine("e1")
    assert attribution.is_settled(progress) and attribution.provisional_uj(progress, 110.0) == 0
