import asyncio
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from policies.interface import Decision, Policy, Release, Signals
from proxy.config import Config, EngineConfig, parse
from proxy.control import loop
from proxy.control.actuator import Actuator
from proxy.control.devices import Devices
from proxy.control.history import Standing
from proxy.control.knobs import SM_CLOCK, Knobs
from proxy.control.learner import Learner, Served
from proxy.control.loop import Control
from proxy.control.sharing import Sharing
from proxy.control.signals import Senses
from proxy.energy.attribution import Attribution
from proxy.energy.meter import Meter
from proxy.energy.receipts import Book
from proxy.engines.openai import OpenAI
from proxy.forward import Forward
from proxy.gate import Gate, Ticket
from proxy.route import Lane
from proxy.telemetry.metrics import Metrics
from proxy.upstream import Upstream

GPU = "h1/gpu:0"
TABLE = Decision({"search": 2}, max_tokens={"search": 100}, power_limit_w={GPU: 400.0}, reason="a table")
Step = Callable[[Signals, Any], tuple[Decision, Any]]


@dataclass
class Clock:
    t: float = 1000.0

    def now(self) -> float:
        self.t += 0.001
        return self.t


@dataclass
class Scripted:
    """A policy that does what each of its steps says, and remembers what it was given."""

    script: list[Step]
    seen: list[tuple[Signals, Any]] = field(default_factory=list)

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        self.seen.append((signals, state))
        return self.script[min(len(self.seen), len(self.script)) - 1](signals, state)


@dataclass
class Stage:
    """A control with a gate, ceilings and a GPU to act on."""

    control: Control
    policy: Scripted
    lane: Lane
    forward: SimpleNamespace
    knob: Any
    clock_knob: Any
    settings: list[tuple[str, str]]
    clock: Clock
    metrics: Metrics

    def holds(self, decision: Decision) -> bool:
        return (
            dict(self.lane.gate.limits) == decision.in_flight
            and dict(self.lane.gate.release) == decision.release
            and self.forward.max_tokens == decision.max_tokens
            and self.forward.priority == decision.priority
            and self.knob.limit_w == decision.power_limit_w.get(GPU, 700.0)
        )

    async def steps(self, count: int, seconds: float = 1.0) -> None:
        for _ in range(count):
            self.clock.t += seconds
            await self.control.step()

    def setbacks(self) -> dict[str, int]:
        return {reason: count for (_, reason), count in self.metrics.policy_setbacks.totals.items() if count}


def config(policy: dict[str, Any] | None = None, **parts: Any) -> Config:
    engine = {"name": "e1", "kind": "openai", "url": "http://127.0.0.1:9"}
    return parse({"engines": [engine], "policy": {"name": "scripted", **(policy or {})}, **parts})


def make_lane(name: str = "e1") -> Lane:
    engine = OpenAI(EngineConfig(name=name, kind="openai", url="http://127.0.0.1:9", devices=(GPU,)))
    return Lane(engine, cast(Upstream, None), Gate(10), up=True)


@pytest.fixture
def stage(make_knob: Callable[..., Any], path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stage]:
    def make(*script: Step, policy: dict[str, Any] | None = None, **parts: Any) -> Stage:
        clock, settings = Clock(), []
        monkeypatch.setattr(loop, "clock", clock)
        monkeypatch.setattr(loop, "DECIDE_S", 30)  # the machine may be busy; tests of being late say otherwise
        lane, power, sm_clock = make_lane(), make_knob(), make_knob(1980.0)
        forward = SimpleNamespace(max_tokens={}, priority={}, arrivals=None)
        meter = SimpleNamespace(power_w={GPU: 321.0}, counter_uj=lambda: {GPU: int(clock.t * 300e6)})
        attribution, metrics = Attribution(), Metrics("0")
        attribution.add_engine("e1", (), cast(Any, SimpleNamespace()), fit=cast(Any, SimpleNamespace(prices=object)))
        scripted = Scripted(list(script))
        control = Control(
            cast(Policy, scripted),
            config({"dwell": 1e-6} | (policy or {}), **parts),
            [lane],
            cast(Forward, forward),
            Book(str, lambda workflow, step: step),
            cast(Meter, meter),
            metrics,
            Senses(attribution, metrics.itl_seconds, Learner(clock.t), Sharing()),
            Devices(
                Knobs({GPU: power}, {GPU: sm_clock}),
                Actuator({GPU: power}, path),
                Actuator({GPU: sm_clock}, path.with_name("clocks.json"), quantity=SM_CLOCK),
            ),
            lambda device, t, setting: settings.append((device, setting)),
        )
        return Stage(control, scripted, lane, forward, power, sm_clock, settings, clock, metrics)

    return make


def says(decision: Decision, state: Any = None) -> Step:
    return lambda signals, before: (decision, state)


def fails(signals: Signals, state: Any) -> tuple[Decision, Any]:
    raise RuntimeError("division of spoils by zero")


async def test_a_decision_reaches_gates_requests_and_gpus(stage: Callable[..., Stage]) -> None:
    whole = Decision({"search": 2}, {"e1": 3}, priority={"search": 1}, max_tokens={"search": 100})
    here = stage(says(whole), says(Decision(reason="nothing any more")), limits={"in_flight": 5})
    await here.control.step()
    assert here.holds(whole) and here.lane.gate.limit == 3, "the narrower of the two"
    await here.steps(1)
    assert here.holds(Decision()) and here.lane.gate.limit == 5, "what is not named is set back"


async def test_nobody_is_held_beyond_his_patience(stage: Callable[..., Stage]) -> None:
    rules = {name: Release(10.0, 1.0) for name in ("patient", "hasty", "unknown")} | {
        "grouped": Release(9, 0, "prefix")
    }
    here = stage(
        says(Decision(release=rules)),
        workflows={"patient": {"patience": 3}, "hasty": {}, "grouped": {}},
    )
    await here.control.step()
    assert dict(here.lane.gate.release) == {"patient": Release(3.0, 1.0), "grouped": Release(0.0, 0, "prefix")}


async def test_attribution_is_told_what_the_device_works_under(stage: Callable[..., Stage]) -> None:
    both = Decision(power_limit_w={GPU: 400.0}, sm_clock_mhz={GPU: 600.0})
    refused = Decision(power_limit_w={GPU: 9000.0})
    here = stage(says(TABLE), says(TABLE), says(both), says(refused), says(Decision()), policy={"allow_clocks": True})
    here.knob.ceiling_w = 381.0
    for told in ([(GPU, "380 W")], [], [(GPU, "380 W 600 MHz")], [(GPU, "380 W")], [(GPU, "")]):
        here.settings.clear()
        await here.steps(1)
        assert here.settings == told, "what is enforced, where it is new: nothing for what was refused"


async def test_clocks_are_left_alone_until_that_is_allowed(stage: Callable[..., Stage]) -> None:
    here = stage(says(Decision(sm_clock_mhz={GPU: 600.0})))
    await here.control.step()
    assert here.clock_knob.written_w == []
    assert ["policy.allow_clocks" in one.reason for one in here.control.devices.applied] == [True]
    here.control.configure(here.control._policy, config({"allow_clocks": True}))
    await here.steps(1)
    assert here.clock_knob.written_w == [600.0]


async def test_a_wider_gate_lets_in_who_waits(stage: Callable[..., Stage]) -> None:
    here = stage(says(Decision({"search": 0})), says(Decision({"search": 1})))
    await here.control.step()
    ticket = Ticket("search")
    waiting = asyncio.create_task(here.lane.admit(ticket, 60))
    await asyncio.sleep(0)
    assert not waiting.done()
    await here.control.step()
    await waiting
    assert ticket.released


async def test_state_goes_round_and_signals_are_fresh(stage: Callable[..., Stage]) -> None:
    here = stage(says(TABLE, {"n": 1}), says(TABLE, {"n": 2}))
    await here.steps(3)
    assert [json.dumps(state) for _, state in here.policy.seen] == ["null", '{"n": 1}', '{"n": 2}']
    first, second, _ = (signals for signals, _ in here.policy.seen)
    assert first.devices[GPU].power_w == 321.0 and first.devices[GPU].power_limit_range_w == (200.0, 700.0)
    assert second.devices[GPU].power_limit_w == 400.0, "what the hardware enforces"
    assert second.now > first.now


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (fails, "raised"),
        (lambda signals, state: 1 / 0, "raised"),
        (lambda signals, state: None, "raised"),
        (lambda signals, state: ("not a decision", 1), "not_a_decision"),
        (says(Decision({"search": cast(int, 1.5)})), "not_a_decision"),
        (says(Decision(power_limit_w={GPU: float("nan")})), "not_a_decision"),
        (says(Decision(release={"search": Release(-1.0)})), "not_a_decision"),
        (says(Decision(max_tokens=cast(Any, [3]))), "not_a_decision"),
    ],
)
async def test_a_policy_that_fails_gives_way_to_the_default_and_is_tried_again(
    stage: Callable[..., Stage], bad: Step, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    here = stage(says(TABLE, "kept"), bad, says(TABLE))
    await here.control.step()
    assert here.control.standing is Standing.ACTING
    await here.steps(1)
    assert here.holds(Decision()) and here.control.standing is Standing.REPLACED
    assert here.setbacks() == {reason: 1} and "does not hold for now" in caplog.text
    assert here.control.history.entries[-1].why
    await here.steps(9)
    assert len(here.policy.seen) == 2 and here.holds(Decision()), "it is not asked while it pauses"
    await here.steps(2)
    assert here.holds(TABLE) and here.control.standing is Standing.ACTING
    assert here.policy.seen[2][1] == ("kept" if reason == "not_a_decision" else None), "a state that fails is not kept"


async def test_one_that_fails_again_and_again_is_asked_ever_more_seldom(stage: Callable[..., Stage]) -> None:
    here = stage(fails)
    asked: list[int] = []
    for second in range(200):
        await here.steps(1)
        if len(here.policy.seen) > len(asked):
            asked.append(second)
    assert asked == [0, 10, 30, 70, 150]


async def test_a_late_decision_is_discarded(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, returned = threading.Event(), threading.Event()

    def late(signals: Signals, state: Any) -> tuple[Decision, Any]:
        let_go.wait(30)
        returned.set()
        return Decision({"search": 9}, reason="too late"), "lost"

    here = stage(says(TABLE, "kept"), late, says(TABLE))
    monkeypatch.setattr(loop, "DECIDE_S", 30)
    await here.control.step()
    monkeypatch.setattr(loop, "DECIDE_S", 0.01)
    await here.steps(1)
    assert here.holds(Decision()) and here.setbacks() == {"late": 1}
    await here.steps(1, seconds=11)
    assert len(here.policy.seen) == 2, "one that still thinks is not asked again"
    assert here.setbacks() == {"late": 2}
    let_go.set()
    await asyncio.to_thread(returned.wait, 30)
    monkeypatch.setattr(loop, "DECIDE_S", 30)
    while len(here.policy.seen) < 3:
        await here.steps(1, seconds=100)
        await asyncio.sleep(0)
    assert here.holds(TABLE) and here.policy.seen[2][1] == "kept"


async def test_one_that_fails_late_is_forgotten(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    let_go = threading.Event()

    def late(signals: Signals, state: Any) -> tuple[Decision, Any]:
        let_go.wait(30)
        raise RuntimeError("late and wrong")

    here = stage(late, says(TABLE))
    monkeypatch.setattr(loop, "DECIDE_S", 0.01)
    await here.control.step()
    let_go.set()
    monkeypatch.setattr(loop, "DECIDE_S", 30)
    while here.control.decision.reason != TABLE.reason:
        await here.steps(1, seconds=1000)
        await asyncio.sleep(0)
    assert here.holds(TABLE) and complaints == []


async def test_another_policy_begins_with_a_clean_slate(stage: Callable[..., Stage]) -> None:
    here = stage(fails)
    await here.control.step()
    other = Scripted([says(TABLE)])
    here.control.configure(cast(Policy, other), config({"dwell": 1e-6}))
    await here.steps(1)
    assert here.holds(TABLE) and other.seen[0][1] is None


async def test_an_objective_missed_under_the_policy_brings_the_default_back(stage: Callable[..., Stage]) -> None:
    here = stage(says(TABLE), policy={"dwell": 3600}, workflows={"search": {"slo": {"ttft_p95": 1.0}}})
    learner = here.control._senses.learner
    await here.steps(2)
    for n in range(5):
        t = here.clock.t
        learner.arrived(f"q{n}", f"r{n}", "search", t, 60, t)
        learner.ended(f"q{n}", Served(t, t + 2, t + 2.5, t + 3, 100, 10), last=True)
        here.clock.t += 1
    await here.control.step()
    assert here.control.standing is Standing.BACKED_OFF and here.holds(Decision())
    assert here.setbacks() == {"objective": 1}
    assert "search misses its ttft_p95: 5 of 5 are late" in here.control.guard.why
    await here.steps(11)
    assert here.control.standing is Standing.ACTING and here.forward.max_tokens == TABLE.max_tokens


async def test_a_dry_run_touches_nothing_and_writes_everything_down(stage: Callable[..., Stage]) -> None:
    here = stage(says(TABLE), policy={"dry_run": True})
    await here.steps(2)
    assert here.holds(Decision()) and here.knob.written_w == []
    (entry,) = here.control.history.entries
    assert (entry.standing, entry.decision, entry.times) == (Standing.DRY_RUN, TABLE, 2)


async def test_observe_is_told_of_no_request(stage: Callable[..., Stage]) -> None:
    here = stage(says(Decision()), policy={"name": "observe"})
    await here.steps(1)
    assert here.control._book.watcher is None and here.forward.arrivals is None
    here.control.configure(here.control._policy, config())
    first = here.control._book.watcher
    assert first is here.forward.arrivals is not None
    here.control.configure(here.control._policy, config(limits={"in_flight": 9}))
    assert here.control._book.watcher is first
    for name in ("observe", "scripted"):
        here.control.configure(here.control._policy, config({"name": name}))
    assert here.control._book.watcher is not first, "what came in between would never be seen to end"


async def test_what_is_measured_goes_to_whoever_held_the_gateway(stage: Callable[..., Stage]) -> None:
    here = stage(says(TABLE))
    await here.steps(4)
    here.metrics.requests.add(("default", "search", "e1", "m", "200", "ok"), 6)
    here.metrics.requests.add(("default", "search", "e1", "m", "500", "failed"), 6)
    await here.steps(1)
    (measured,) = here.control.history.measured.values()
    assert measured.requests == 6 and measured.seconds == pytest.approx(4, abs=0.1)
    assert measured.shown()["joules_per_request"] == pytest.approx(4 * 300 / 6, rel=0.02)


async def test_the_loop_goes_on_after_a_failure(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PERIOD_S", 0.0)
    here = stage(fails, says(TABLE))
    running = asyncio.create_task(here.control.run_forever())
    while here.control.decision.reason != TABLE.reason:
        here.clock.t += 5
        await asyncio.wait([running], timeout=0.001)
        assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
