import pytest

from loadgen.campaign.definition import Campaign
from loadgen.campaign.grid import Cell, Trial, cells
from loadgen.campaign.trial import Infeasible, NotPossibleHere, host_of, load_of, salt_of, virtually
from loadgen.schedule import Schedule, Start


def cell(workload: str, **settings: int | float | str | bool | None) -> Cell:
    return Cell(workload, tuple(sorted(settings.items())))


def test_a_trial_has_the_load_that_the_campaign_says(campaign: Campaign) -> None:
    load = load_of(campaign, Trial(cells(campaign)[2], 1))
    one, other = (stream.workloads[0] for stream in load.streams)
    assert (one.name, other.name) == ("summarize", "search")
    assert [stream.runs for stream in load.streams] == [2, 4]  # 2 users with 1 and 2 runs each
    assert getattr(other, "queries") == (2, 3) and getattr(one, "output_tokens") == 20  # noqa: B009


def test_cells_of_a_repeat_have_the_same_runs_and_those_of_another_have_not(campaign: Campaign) -> None:
    first, second = cells(campaign)[:2]
    plans = [
        Schedule(load_of(campaign, trial)).plan(Start(0, 0, 0.0))
        for trial in (Trial(first, 1), Trial(second, 1), Trial(first, 2))
    ]
    assert plans[0] == plans[1] != plans[2]
    salts = {salt_of(campaign, Trial(one, repeat)) for one in (first, second) for repeat in (1, 2)}
    assert len(salts) == 4 and all(salt.isalnum() and len(salt) <= 128 for salt in salts)  # as vLLM wants them


def test_knobs_reach_the_host_and_what_is_not_turned_stays(campaign: Campaign) -> None:
    host = host_of(cell("search", max_num_seqs=4, power_limit_w=300, gpu="h100", in_flight=None))
    assert (host.max_num_seqs, host.power_limit_w, host.gpu, host.in_flight) == (4, 300, "h100", None)
    assert host.max_num_batched_tokens == 8192 and host.model == "llama-2-7b"


def test_arrivals_take_the_place_of_users(campaign: Campaign) -> None:
    load = load_of(campaign, Trial(cell("coding", users=3, arrivals="poisson:0.5"), 1))
    assert load.describe()["streams"][0]["arrivals"] == {"kind": "poisson", "runs_s": 0.5}
    assert load.streams[0].runs == 3


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"model": "llama-2-70b"}, Infeasible, "out of memory: llama-2-70b"),
        ({"engine": "parrot"}, NotPossibleHere, "no engine 'parrot'"),
        ({"mode": "nodes"}, NotPossibleHere, "no gateway that could fill answers in"),
        ({"policy": "static"}, NotPossibleHere, "no gateway"),
        ({"power_limit_w": 50}, NotPossibleHere, "a power limit is"),
        ({"gpu": "h900"}, NotPossibleHere, "h900"),
        ({"input_tokens": 7}, NotPossibleHere, "system_tokens must be within"),
        ({"users": 1.5}, NotPossibleHere, "users must be a whole number, got 1.5"),
    ],
)
def test_what_cannot_be_is_told_apart(campaign: Campaign, settings, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        virtually(campaign, Trial(cell("short", **settings), 1))


def test_a_trial_in_virtual_time_repeats(campaign: Campaign) -> None:
    trial = Trial(cells(campaign)[0], 1)
    result = virtually(campaign, trial)
    assert result == virtually(campaign, trial) and len(result.runs) == 4
    assert result.load.cache_salt == salt_of(campaign, Trial(cells(campaign)[0], 1))
