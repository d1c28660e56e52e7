from collections.abc import Callable
from typing import Any, cast

import pytest

from policies.interface import DeviceSignals, Release, Signals
from proxy.config import EngineConfig, Workflow
from proxy.control.learner import Learner, Served
from proxy.control.sharing import Sharing
from proxy.control.signals import Senses
from proxy.energy.attribution import Attribution
from proxy.energy.floor import Floor
from proxy.energy.prior import Coefficients
from proxy.engines.interface import EngineSample
from proxy.engines.openai import OpenAI
from proxy.gate import Gate, Ticket
from proxy.route import Lane
from proxy.telemetry.metrics import Itl, Metrics

GPUS = ("h1/gpu:0", "h1/gpu:1")
PRICES = Coefficients(2.0, 0.016, 0.025, 0.00007, step_s=0.01, prompt_s=0.0001, spread=1.25, source="test")


def make_lane(name: str, devices: tuple[str, ...] = ()) -> Lane:
    engine = OpenAI(EngineConfig(name=name, kind="openai", url="http://127.0.0.1:9", devices=devices))
    return Lane(engine, cast(Any, None), Gate(10), up=True)


@pytest.fixture
def senses() -> Callable[..., Senses]:
    def make(attribution: Attribution | None = None, metrics: Metrics | None = None) -> Senses:
        itl = (metrics or Metrics("0")).itl_seconds
        return Senses(attribution or Attribution(), itl, Learner(0.0), Sharing())

    return make


async def look(senses: Senses, now: float, *lanes: Lane, **workflows: Workflow) -> Signals:
    return await senses.signals(now, lanes, workflows, {GPUS[0]: DeviceSignals(power_w=250.0)})


async def test_gates_and_engines_are_as_they_are(senses: Callable[..., Senses]) -> None:
    busy, quiet = make_lane("busy"), make_lane("quiet")
    busy.gate.set_rules(None, {"search": 1, "coding": 3}, {"patient": Release(9.0)}, 0.0)
    for t, workflow in enumerate(("search", "search", "other", "patient", "search")):
        busy.gate.arrive(Ticket(workflow), float(t))
    busy.sample = EngineSample(1.0, running=2.0, waiting=0.0, kv_usage=0.5)
    quiet.up = False
    signals = await look(senses(), 7.0, busy, quiet)
    assert signals.now == 7.0 and signals.devices[GPUS[0]].power_w == 250.0
    seen = {
        name: (q.in_flight, q.queued, q.oldest_s, q.mean_age_s) for name, q in signals.engines["busy"].queues.items()
    }
    assert seen["search"] == (1, 2, 6.0, 4.5)
    assert seen["other"] == (1, 0, 0.0, 0.0) and seen["coding"] == (0, 0, 0.0, 0.0)
    assert seen["patient"] == (0, 1, 4.0, 4.0)
    assert (signals.engines["busy"].running, signals.engines["busy"].kv_usage) == (2.0, 0.5)
    assert not signals.engines["quiet"].up and signals.engines["quiet"].running is None


async def test_the_prefix_cache_is_judged_by_its_last_minute(senses: Callable[..., Senses]) -> None:
    lane, own = make_lane("e1"), senses()
    rates = []
    for second in range(100):
        hits = 10.0 * second if second < 30 else 300.0 + 90.0 * (second - 30)
        lane.sample = EngineSample(float(second), prompt_tokens=100.0 * second, cached_tokens=hits)
        rates.append((await look(own, float(second), lane)).engines["e1"].prefix_hit_rate)
    assert rates[0] is None and rates[29] == pytest.approx(0.1) and rates[99] == pytest.approx(0.9)


async def test_prices_are_of_all_devices_that_are_alike(senses: Callable[..., Senses]) -> None:
    attribution, lane = Attribution(), make_lane("e1", GPUS)
    attribution.add_engine("e1", (*GPUS, "h1/cpu:0"), PRICES)
    own = senses(attribution)
    prices = (await look(own, 1.0, lane)).engines["e1"].prices
    assert prices is not None and prices.rest_w is None, "nobody has seen it rest"
    assert (prices.step_j, prices.output_j, prices.step_s, prices.spread) == (4.0, 0.05, 0.01, 1.25)
    for name in (*GPUS, "h1/cpu:0"):
        attribution.floors[name] = Floor.of({"watts": 80.0, "workflow_uj": 0, "active_uj": 0})
    prices = (await look(own, 2.0, lane)).engines["e1"].prices
    assert prices is not None and prices.rest_w == 160.0, "the processor is no part of these prices"
    assert (await look(own, 2.0, make_lane("unknown"))).engines["unknown"].prices is None


async def test_a_workflow_is_all_that_is_known_of_it(senses: Callable[..., Senses]) -> None:
    own = senses()
    search = Workflow.model_validate({"patience": 3, "slo": {"ttft_p95": "4x isolated", "run_p95": 30}})
    for t in (10.0, 20.0):
        own.learner.arrived(f"q{t}", f"r{t}", "search", t, 60, t)
        own.learner.ended(f"q{t}", Served(t, t + 1, t + 1.5, t + 3, 100, 31), last=True)
    own.learner.arrived("live", "r", "search", 50.0, 60, 50.0)
    own.learner.arrived("q", "r2", "unknown", 50.0, 60, 50.0)
    seen = (await look(own, 55.0, search=search, idle=Workflow())).workflows
    assert set(seen) == {"search", "idle", "unknown"}
    of = seen["search"]
    assert (of.objective.patience_s, of.objective.ttft_p95_s, of.objective.run_p95_s) == (3.0, 4 * 1.5, 30.0)
    assert (of.ttft_p95_s, of.wait_p95_s, of.served_s, of.depth) == (1.5, 1.0, 2.0, 1.0)
    assert of.slack_s == 30 - 5 - 2.0 and seen["unknown"].slack_s is None
    assert seen["idle"].requests_per_s == 0.0


async def test_the_time_between_tokens_is_of_all_engines(senses: Callable[..., Senses]) -> None:
    metrics = Metrics("0")
    own = senses(metrics=metrics)
    for engine in ("e1", "e2"):
        metrics.itl_seconds.series(("search", engine))  # there before anything is counted
    own.learner.arrived("q", "r", "search", 0.0, 60, 0.0)
    assert (await look(own, 0.0)).workflows["search"].itl_p95_s is None
    for engine, seconds in (("e1", 0.012), ("e2", 0.05)):
        itl = Itl()
        for _ in range(10):
            itl.observe(seconds)
        metrics.itl_flush("search", engine, itl)
    found = (await look(own, 1.0)).workflows["search"].itl_p95_s
    assert found is not None and 0.04 < found <= 0.06, "within the bucket of the slower half"
