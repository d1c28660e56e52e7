"""What the calibration claims, held against the data that it is shipped with."""

from itertools import pairwise

import pytest

from benchmarks.emulator_fit import DATA, FITTED_ON, a100_search, check, gates, trials
from benchmarks.emulator_workloads import Search
from emulator.calibrate import errors
from emulator.core.presets import load_gpu


@pytest.fixture(scope="module")
def on_a100() -> list[Search]:
    return a100_search()


def test_workloads_behind_a_gate_cost_what_they_cost() -> None:
    cells = gates(load_gpu("h200"), FITTED_ON, DATA / "gate_sweep.csv")
    assert len(cells) == 20
    assert (errors(cells, "joules")["max"] or 100) <= 10
    for workload in ("search", "summarize", "coding", "composite"):
        joules = [line["joules_predicted"] for line in cells if line["workload"] == workload]
        assert joules == sorted(joules), "a narrower gate never costs less, as measured"


def test_holding_requests_back_saves_what_it_saved() -> None:
    found = trials(load_gpu("h200"))
    assert len(found) == 12
    for line in found:
        assert abs(line["ratio_predicted"] - line["ratio_measured"]) <= 0.05, line


def test_a_missed_bar_is_missed() -> None:
    lines = [{"kind": "decode", "itl_measured": 5.0, "itl_predicted": 5.5}]
    errors_of = {"mape": 9.0, "max": 11.0}
    part = {"joules": errors_of, "seconds": errors_of, "rows": lines}
    cell = {"joules_measured": 100.0, "joules_predicted": 120.0}
    ratio = {"ratio_measured": 0.7, "ratio_predicted": 0.76}
    bars = check({"calibration": part, "kept_apart": part, "gates": [cell], "coalesce": [ratio]})
    assert [bar.met for bar in bars] == [True, False, True, False, False, False, False, True, True]


def test_on_an_a100_energy_a_token_falls_with_users_and_most_from_one_to_two(on_a100: list[Search]) -> None:
    by_users = [one for one in on_a100 if (one.output_tokens, one.power_limit_w) == (200, 250)][:4]
    savings = [one.joules_token - other.joules_token for one, other in pairwise(by_users)]
    assert [one.users for one in by_users] == [1, 2, 4, 8]
    assert min(savings) > 0 and max(savings) == savings[0]


def test_on_an_a100_energy_is_nearly_linear_in_the_output(on_a100: list[Search]) -> None:
    by_length = {
        one.output_tokens: one.joules_request for one in on_a100 if one.users == 8 and one.power_limit_w == 250
    }
    slopes = [(by_length[more] - by_length[less]) / 200 for less, more in pairwise((200, 400, 600, 800))]
    assert max(slopes) < 1.2 * min(slopes)


def test_on_an_a100_a_cap_has_a_sweet_spot(on_a100: list[Search]) -> None:
    by_cap = {one.power_limit_w: one for one in on_a100 if (one.users, one.output_tokens) == (8, 400)}
    assert by_cap[150].latency_s > 1.05 * by_cap[200].latency_s
    assert by_cap[200].latency_s < 1.01 * by_cap[250].latency_s
    assert by_cap[200].joules_token < 0.95 * by_cap[250].joules_token
