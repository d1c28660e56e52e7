import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from policies.interface import Decision, Policy, Signals
from proxy.config import EngineConfig
from proxy.control import loop
from proxy.control.actuator import PowerActuator
from proxy.control.loop import Control
from proxy.control.signals import observe
from proxy.energy.meter import Meter
from proxy.engines.interface import EngineSample
from proxy.engines.openai import OpenAI
from proxy.forward import Forward
from proxy.gate import Gate, Ticket
from proxy.route import Lane
from proxy.upstream import Upstream

GPU = "h1/gpu:0"
TABLE = Decision({"search": 2}, max_tokens={"search": 100}, power_limit_w={GPU: 400.0}, reason="a table")


@dataclass
class Scripted:
    """A policy that does what each of its steps says, and remembers what it was given."""

    script: list[Callable[[Signals, Any], tuple[Decision, Any]]]
    seen: list[tuple[Signals, Any]] = field(default_factory=list)

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        self.seen.append((signals, state))
        return self.script[min(len(self.seen), len(self.script)) - 1](signals, state)


@dataclass
class Stage:
    """A control with a gate, ceilings and a GPU to act on."""

    control: Control
    lane: Lane
    forward: SimpleNamespace
    knob: Any
    settings: list[tuple[str, str]]

    def holds(self, decision: Decision) -> bool:
        return (
            dict(self.lane.gate.limits) == decision.in_flight
            and self.forward.max_tokens == decision.max_tokens
            and self.knob.limit_w == decision.power_limit_w.get(GPU, 700.0)
        )


def make_lane(name: str = "e1") -> Lane:
    engine = OpenAI(EngineConfig(name=name, kind="openai", url="http://127.0.0.1:9"))
    return Lane(engine, cast(Upstream, None), Gate(10), up=True)


@pytest.fixture
def stage(make_knob: Callable[..., Any], path: Path) -> Callable[..., Stage]:
    def make(*script: Callable[[Signals, Any], Any], limit: int | None = None) -> Stage:
        lane, knob = make_lane(), make_knob()
        forward, meter = SimpleNamespace(max_tokens={}), SimpleNamespace(power_w={GPU: 321.0})
        actuator = PowerActuator({GPU: knob}, path, dwell_s=0.0)
        settings: list[tuple[str, str]] = []
        control = Control(
            cast(Policy, Scripted(list(script))),
            [lane],
            cast(Forward, forward),
            cast(Meter, meter),
            actuator,
            limit,
            setting=lambda device, t, setting: settings.append((device, setting)),
        )
        return Stage(control, lane, forward, knob, settings)

    return make


def says(decision: Decision, state: Any = None) -> Callable[[Signals, Any], tuple[Decision, Any]]:
    return lambda signals, before: (decision, state)


def fails(signals: Signals, state: Any) -> tuple[Decision, Any]:
    raise RuntimeError("division of spoils by zero")


async def test_a_decision_reaches_gates_ceilings_and_gpus(stage: Callable[..., Stage]) -> None:
    here = stage(says(TABLE), says(Decision(reason="nothing any more")), limit=5)
    await here.control.step()
    assert here.holds(TABLE) and here.control.decision is TABLE and here.lane.gate.limit == 5
    await here.control.step()
    assert here.holds(Decision()) and here.lane.gate.limit == 5, "what is not named is set back"


async def test_attribution_is_told_what_the_device_works_under(stage: Callable[..., Stage]) -> None:
    here = stage(says(TABLE), says(TABLE), says(Decision(power_limit_w={GPU: 9000.0})), says(Decision()))
    here.knob.ceiling_w = 381.0
    for told in ([(GPU, "380 W")], [(GPU, "380 W")], [], [(GPU, "")]):
        here.settings.clear()
        await here.control.step()
        assert here.settings == told, "what is enforced, nothing for what was refused, and what was found"


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
    policy = cast(Scripted, here.control._policy)
    for _ in range(3):
        await here.control.step()
    assert [json.dumps(state) for _, state in policy.seen] == ["null", '{"n": 1}', '{"n": 2}']
    first, second, _ = (signals for signals, _ in policy.seen)
    assert first.devices[GPU].power_w == 321.0 and first.devices[GPU].power_limit_w is None
    assert second.devices[GPU].power_limit_w == 400.0, "what the hardware enforces"
    assert second.now > first.now


@pytest.mark.parametrize(
    "bad",
    [fails, lambda signals, state: None, lambda signals, state: ("not a decision", 1), lambda signals, state: 1 / 0],
)
async def test_a_policy_that_fails_changes_nothing(
    stage: Callable[..., Stage], bad: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    here = stage(says(TABLE, "kept"), bad, says(TABLE))
    await here.control.step()
    await here.control.step()
    assert here.holds(TABLE) and here.control.decision is TABLE
    assert "the policy failed" in caplog.text
    await here.control.step()
    assert cast(Scripted, here.control._policy).seen[2][1] == "kept"


async def test_a_policy_that_fails_at_once_stops_nobody(stage: Callable[..., Stage]) -> None:
    here = stage(fails)
    await here.control.step()
    assert here.holds(Decision())


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
    await here.control.step()
    await here.control.step()
    policy = cast(Scripted, here.control._policy)
    assert len(policy.seen) == 2, "one that still thinks is not asked again"
    assert here.holds(TABLE)
    let_go.set()
    await asyncio.to_thread(returned.wait, 30)
    monkeypatch.setattr(loop, "DECIDE_S", 30)
    while len(policy.seen) < 3:
        await here.control.step()
        await asyncio.sleep(0)
    assert here.holds(TABLE) and policy.seen[2][1] == "kept"


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
    while here.control.decision is not TABLE:
        await here.control.step()
        await asyncio.sleep(0)
    assert here.holds(TABLE) and complaints == []


async def test_the_loop_goes_on_after_a_failure(stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "PERIOD_S", 0.0)
    here = stage(fails, says(TABLE))
    running = asyncio.create_task(here.control.run_forever())
    while here.control.decision is not TABLE:
        await asyncio.wait([running], timeout=0.001)
        assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def test_signals_say_what_gates_and_engines_are_like() -> None:
    busy, quiet = make_lane("busy"), make_lane("quiet")
    busy.gate.set_limits(None, {"search": 1, "coding": 3})
    for workflow in ("search", "search", "other"):
        busy.gate.arrive(Ticket(workflow))
    busy.sample = EngineSample(1.0, running=2.0, waiting=0.0, kv_usage=0.5)
    quiet.up = False
    signals = observe(7.0, [busy, quiet], {GPU: 250.0}, {"h1/gpu:1": 300.0})
    assert signals.now == 7.0
    flying = {name: (seen.in_flight, seen.queued) for name, seen in signals.engines["busy"].queues.items()}
    assert flying == {"search": (1, 1), "other": (1, 0), "coding": (0, 0)}
    assert (signals.engines["busy"].running, signals.engines["busy"].kv_usage) == (2.0, 0.5)
    assert not signals.engines["quiet"].up and signals.engines["quiet"].running is None
    assert (signals.devices[GPU].power_w, signals.devices[GPU].power_limit_w) == (250.0, None)
    assert (signals.devices["h1/gpu:1"].power_w, signals.devices["h1/gpu:1"].power_limit_w) == (None, 300.0)
