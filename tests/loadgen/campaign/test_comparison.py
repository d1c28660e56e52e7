import pytest

from loadgen.campaign.comparison import differences
from loadgen.campaign.rows import Row


def rows(cell: str, measure: str, values: list[float | None], status: str = "ok", first: int = 1) -> list[Row]:
    return [
        Row(cell, "w", "w", repeat, status, "why" if status != "ok" else "", measures={measure: value})
        for repeat, value in enumerate(values, start=first)
    ]


@pytest.mark.parametrize(
    ("measure", "before", "after", "verdict"),
    [
        ("latency_s", [1.0, 2.0, 3.0], [1.1, 2.21, 3.3], "worse: +10"),
        ("latency_s", [1.0, 2.0, 3.0], [0.9, 1.81, 2.7], "better: -9"),
        ("throughput_tokens_s", [1.0, 2.0, 3.0], [1.1, 2.21, 3.3], "better: +10"),
        ("gpu_busy_share", [0.1, 0.2, 0.3], [0.2, 0.401, 0.6], "different: +100"),
        ("latency_s", [1.0, 2.0, 3.0], [1.3, 1.9, 3.1], "no difference shown: +"),
        ("latency_s", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "no difference shown: +0.0%"),
        ("latency_s", [2.0], [3.0], r"\+50.0%: one repeat, so nobody can say"),
        ("hit_rate", [0.0, 0.0], [0.0, 0.0], "both the same"),
        ("hit_rate", [0.0, 0.0], [0.5, 0.5], "values of 0 have no ratio"),
        ("latency_s", [1.0, 2.0], [None, None], "only in the first"),
    ],
)
def test_verdicts(measure: str, before: list[float | None], after: list[float | None], verdict: str) -> None:
    (found,) = differences(rows("c", measure, before), rows("c", measure, after), [measure])
    assert found.verdict.startswith(verdict.replace("\\", ""))


def test_repeats_that_both_have_are_pairs_and_others_are_not() -> None:
    before, after = rows("c", "latency_s", [10.0, 20.0, 40.0]), rows("c", "latency_s", [9.0, 18.1, 35.9])
    (paired,) = differences(before, after, ["latency_s"])
    (apart,) = differences(before, rows("c", "latency_s", [9.0, 18.1, 35.9], first=4), ["latency_s"])
    assert paired.change and paired.change.paired and paired.is_sure
    assert apart.change and not apart.change.paired and not apart.is_sure


def test_invalid_and_infeasible_repeats_do_not_count() -> None:
    before = rows("c", "latency_s", [1.0, 2.0]) + rows("c", "latency_s", [900.0], "invalid", first=3)
    (found,) = differences(before, rows("c", "latency_s", [1.0, 2.0]), ["latency_s"])
    assert found.before == 1.5 and found.change and found.change.n == 2
    (found,) = differences(before, rows("c", "latency_s", [None], "infeasible"), ["latency_s"])
    assert found.why == "only in the first; invalid: why; infeasible: why"


def test_one_of_many_is_called_chance() -> None:
    noisy = [1.0, 2.0, 3.0], [1.02, 2.06, 3.04]
    alone = differences(rows("c", "latency_s", [*noisy[0]]), rows("c", "latency_s", [*noisy[1]]), ["latency_s"])
    many = differences(
        [row for cell in "abcdefghij" for row in rows(cell, "latency_s", [*noisy[0]])],
        [row for cell in "abcdefghij" for row in rows(cell, "latency_s", [*noisy[1]])],
        ["latency_s"],
    )
    assert alone[0].is_sure and not any(one.is_sure for one in many)
    assert many[0].verdict.startswith("perhaps worse, or chance among so many: +2.")


def test_worsening_is_counted_in_the_bad_direction() -> None:
    (slow,) = differences(rows("c", "latency_s", [1.0]), rows("c", "latency_s", [1.25]), ["latency_s"])
    name = "throughput_tokens_s"
    (thin,) = differences(rows("c", name, [1.0]), rows("c", name, [0.8]), [name])
    assert slow.worsening == pytest.approx(0.25) and thin.worsening == pytest.approx(0.25)
