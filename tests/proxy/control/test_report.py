import json
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest

from policies.interface import Decision, DeviceSignals, EngineSignals, QueueSignals, Release, Signals, WorkflowSignals
from proxy.api.policy import PolicyReport
from proxy.control.actuator import Applied, Effect
from proxy.control.history import History, Measured, Standing
from proxy.control.knobs import POWER
from proxy.control.learner import Served
from proxy.control.report import report

GPU = "h1/gpu:0"


def control() -> Any:
    decision = Decision(release={"search": Release(3.0, inf)}, reason="company", reasons={"release/search": "it pays"})
    history = History()
    history.add(90.0, Standing.ACTING, Decision())
    history.add(95.0, Standing.ACTING, decision)
    history.measured["company"] = Measured(10.0, 5_000_000, 4, 3, 6.0, 400)
    device = DeviceSignals(power_w=300.0, throttle=frozenset({"sw_power_cap", "gpu_idle"}))
    return SimpleNamespace(
        policy="company",
        standing=Standing.ACTING,
        guard=SimpleNamespace(why=""),
        decision=decision,
        history=history,
        signals=Signals(
            100.0,
            {"search": WorkflowSignals(requests_per_s=2.0)},
            {"e1": EngineSignals(True, {"search": QueueSignals(1, 2)})},
            {GPU: device},
        ),
        devices=SimpleNamespace(
            applied=[
                Applied(GPU, POWER, 400.0, 390.0, Effect.KEPT),
                Applied("h9/gpu:0", POWER, 1, None, Effect.REFUSED),
            ],
            notes={GPU: "it never binds"},
        ),
        served_since=lambda t: [Served(t, t + 1.0, t + 1.1, t + 2), Served(t, t + 1.001, t + 1.1, t + 2)],
    )


def test_everything_is_told_and_fits_the_api() -> None:
    told = report(cast(Any, control()), {("company", "objective"): 2, ("company", "late"): 0})
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    PolicyReport.model_validate(told)
    rule = told["decision"]["release"]["search"]
    assert (rule["hold_s"], rule["join_s"]) == (3.0, None)
    assert (told["reason"], told["reasons"], told["why"]) == ("company", {"release/search": "it pays"}, None)
    assert [entry["t"] for entry in told["history"]] == [95.0, 90.0]
    assert told["groups"] == {"count": 1, "mean_size": 2.0, "largest": 2, "mean_wait_s": pytest.approx(1.0005)}
    assert told["setbacks"] == {"company: objective": 2}
    assert told["measured"]["company"]["joules_per_request"] == 1.25


def test_devices_are_shown_with_what_was_set_and_seen() -> None:
    devices = report(cast(Any, control()), {})["devices"]
    assert devices[GPU]["throttle"] == ["gpu_idle", "sw_power_cap"] and devices[GPU]["note"] == "it never binds"
    (setting,) = devices[GPU]["settings"]
    assert setting == {
        "what": "power limit",
        "unit": "W",
        "wanted": 400.0,
        "enforced": 390.0,
        "effect": "kept",
        "reason": None,
    }
    assert devices["h9/gpu:0"]["settings"][0]["effect"] == "refused", "one that nobody has seen, too"


def test_before_the_first_look_there_is_little_to_tell() -> None:
    early = control()
    early.signals = None
    told = report(cast(Any, early), {})
    assert (told["now"], told["workflows"], told["engines"]) == (0.0, {}, {})
    PolicyReport.model_validate(told)
