from typing import Any

import pytest

from policies.interface import Decision, Release, Signals
from policies.load import load_policy
from policies.observe import Observe
from policies.static import Static

pytestmark = pytest.mark.usefixtures("registered")

TABLE: dict[str, Any] = {
    "in_flight": {"search": 4},
    "engine_in_flight": {"e1": 8},
    "release": {"search": {"hold_s": 3, "join_s": float("inf")}},
    "priority": {"search": -1},
    "max_tokens": {"search": 200},
    "power_limit_w": {"h1/gpu:0": 400},
    "sm_clock_mhz": {"h1/gpu:0": 1200},
}


def test_observe_touches_nothing() -> None:
    policy = load_policy("observe", {})
    assert isinstance(policy, Observe)
    decision, state = policy.decide(Signals(now=1.0), None)
    assert decision == Decision(reason=decision.reason) and decision.reason and state is None


def test_static_gives_its_table_and_nothing_else() -> None:
    policy = load_policy("static", TABLE)
    assert isinstance(policy, Static)
    decision, state = policy.decide(Signals(now=1.0), None)
    assert decision == Decision(
        {"search": 4},
        {"e1": 8},
        {"search": Release(3.0, float("inf"))},
        {"search": -1},
        {"search": 200},
        {"h1/gpu:0": 400.0},
        {"h1/gpu:0": 1200.0},
        "static table",
    )
    assert policy.decide(Signals(now=2.0), state) == (decision, None)


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"unknown policy 'statc', did you mean 'static'\?; known: .*observe, .*static"
    ):
        load_policy("statc", {})


@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        (
            "static",
            {"in_fligth": {}},
            r"unknown option 'in_fligth', did you mean 'in_flight'\?; known: engine_in_flight, in_fl",
        ),
        ("observe", {"in_flight": {}}, r"policy observe: unknown option 'in_flight'; it has no options"),
        ("static", {"in_flight": {"search": 0}}, r"in_flight\.search: .*greater than or equal to 1 \(got 0\)"),
        ("static", {"in_flight": {"search": True}}, r"in_flight\.search: .*valid integer \(got True\)"),
        ("static", {"max_tokens": {"search": 1.5}}, r"max_tokens\.search: .*valid integer"),
        ("static", {"power_limit_w": {"h1/gpu:0": -3}}, r"power_limit_w\.h1/gpu:0: .*greater than 0 \(got -3\)"),
        ("static", {"power_limit_w": {"h1/gpu:0": float("nan")}}, r"power_limit_w\.h1/gpu:0: "),
        ("static", {"power_limit_w": {"gpu0": 300}}, r"power_limit_w\.gpu0: .*got 'gpu0'"),
        ("static", {"release": {"search": {"hold_s": -1}}}, r"release\.search\.hold_s: .*greater than or equal to 0"),
        ("static", {"release": {"search": {"join_s": 1}}}, r"release\.search\.hold_s: Field required"),
        ("static", {"release": {"search": {"hold_s": 1, "group": "run"}}}, r"group: .*'step' or 'prefix'"),
        ("static", {"in_flight": 4}, r"policy static: in_flight: .*got 4"),
    ],
)
def test_wrong_options_are_named(policy: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_policy(policy, options)
