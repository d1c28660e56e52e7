import pytest

from joulegate.compare import same_kind
from joulegate.regress import PASSED, REGRESSED, UNDECIDED, judge, share_of
from loadgen.campaign.comparison import differences
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.rows import Row

M = "joules_per_token"


def rows(*values: float | None, status: str = "ok", measure: str = M, quality: str = "attributed") -> list[Row]:
    return [
        Row("c", "c", "c", repeat, status, quality=quality, measures={measure: value})
        for repeat, value in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        (rows(1, 2, 3), rows(1.0, 2.0, 3.0), PASSED),
        (rows(1, 2, 3), rows(1.04, 2.08, 3.12), PASSED),
        (rows(1, 2, 3), rows(1.1, 2.21, 3.3), REGRESSED),
        (rows(1, 2, 3), rows(0.5, 1.0, 1.5), PASSED),
        (rows(1, 2, 3), rows(1.4, 1.8, 3.4), UNDECIDED),
        (rows(1), rows(1.2), UNDECIDED),
        (rows(1, 2, 3), rows(None, status="infeasible"), REGRESSED),
        (rows(1, 2, 3), rows(1, 2, 3, status="invalid"), REGRESSED),
        (rows(None, status="infeasible"), rows(1, 2, 3), PASSED),
    ],
)
def test_the_exit_status(before: list[Row], after: list[Row], status: int) -> None:
    found, lines = judge(differences(before, after, [M]), 0.05)
    assert found == status and bool(lines) is (status != PASSED)


def test_less_throughput_is_a_regression() -> None:
    name = "throughput_tokens_s"
    found = differences(rows(10, 20, 30, measure=name), rows(9, 18.1, 27, measure=name), [name])
    assert judge(found, 0.05)[0] == REGRESSED and judge(found, 0.2)[0] == PASSED


def test_shares() -> None:
    assert (share_of("5%"), share_of("0.05"), share_of("0")) == (0.05, 0.05, 0.0)
    for wrong in ("five", "-1%", "inf", "nan"):
        with pytest.raises(CampaignError, match="a share such as 5%"):
            share_of(wrong)


def test_a_model_is_not_held_against_a_machine() -> None:
    same_kind(rows(1), rows(2))
    with pytest.raises(CampaignError, match="one is emulated and the other is not"):
        same_kind(rows(1), rows(2, quality="emulated"))
