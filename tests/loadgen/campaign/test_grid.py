from loadgen.campaign.definition import Campaign
from loadgen.campaign.grid import cells, trials


def test_every_combination_is_there_once_even_if_two_sweeps_need_it(campaign: Campaign) -> None:
    assert [cell.key for cell in cells(campaign)] == [
        "short in_flight=1 output_tokens=20 users=2",
        "short in_flight=2 output_tokens=20 users=2",
        "summarize+short in_flight=1 output_tokens=20 users=2",
        "summarize+short in_flight=2 output_tokens=20 users=2",
        "short in_flight=4 output_tokens=20 users=2",
    ]
    assert cells(campaign)[2].parts == ("summarize", "short") and cells(campaign)[0].get("gpu") is None


def test_each_repeat_has_all_cells_in_an_order_of_its_own_that_is_always_the_same(campaign: Campaign) -> None:
    order = trials(campaign)
    blocks = [[trial.cell for trial in order if trial.repeat == repeat] for repeat in (1, 2, 3)]
    assert [trial.repeat for trial in order] == sorted(trial.repeat for trial in order)
    assert all(set(block) == set(cells(campaign)) and len(block) == 5 for block in blocks)
    assert blocks[0] != blocks[1] or blocks[1] != blocks[2]
    assert order == trials(campaign)
    assert order[:5] == trials(campaign.model_copy(update={"repeats": 9}))[:5]
