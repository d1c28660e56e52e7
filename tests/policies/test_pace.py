from collections.abc import Callable
from dataclasses import replace

import pytest

from policies.gathering import ITL_ROOM, stream_of
from policies.interface import EngineSignals, Objective, QueueSignals, Signals, WorkflowSignals
from policies.narrow import LEAST
from policies.pace import least_for_crowd, least_for_queues, most_in_flight

Search = Callable[..., WorkflowSignals]
Make = Callable[..., Signals]
ASKED = Objective(ttft_p95_s=1.0, itl_p95_s=0.023)


@pytest.fixture
def chunks(signals: Make, search: Search) -> Signals:
    """Long prompts with short answers, 20 a second."""
    one = search(20.0, served_s=0.6, objective=ASKED, prompt_tokens=1000.0, output_tokens=50.0)
    return signals(chunks=one)


def with_queue(signals: Signals, in_flight: int, queued: int = 0, oldest_s: float = 0.0) -> Signals:
    engine = replace(signals.engines["e1"], queues={"chunks": QueueSignals(in_flight, queued, oldest_s)})
    return replace(signals, engines={"e1": engine})


@pytest.mark.parametrize("part", [0.6, 0.8, 1.0])
def test_the_objective_has_room_for_so_many_and_not_for_one_more(chunks: Signals, part: float) -> None:
    prices, one = chunks.engines["e1"].prices, chunks.workflows["chunks"]
    assert prices is not None
    stream = stream_of("chunks", one, 1, prices)

    def between_s(count: float) -> float:
        return prices.step_s + count * (stream.slower_s + stream.prompt_s / part / 50)

    most = most_in_flight(chunks, part)["e1"]
    assert between_s(most - 0.5) <= ITL_ROOM * 0.023 <= between_s(most + 0.5)


def test_a_slower_clock_has_room_for_fewer_and_never_for_fewer_than_a_few(chunks: Signals) -> None:
    assert most_in_flight(chunks, 0.6)["e1"] < most_in_flight(chunks, 1.0)["e1"]
    tight = replace(chunks.workflows["chunks"], objective=Objective(itl_p95_s=0.001))
    assert most_in_flight(replace(chunks, workflows={"chunks": tight}), 0.6) == {"e1": LEAST}


def test_without_an_objective_or_prices_nothing_is_limited(chunks: Signals, signals: Make, search: Search) -> None:
    assert most_in_flight(signals(prices=None, chunks=chunks.workflows["chunks"]), 0.6) == {}
    aimless = signals(search=search(2.0, 3.0))
    assert most_in_flight(aimless, 0.6) == {} and least_for_crowd(aimless) == 0
    down = replace(chunks, engines={"e1": EngineSignals(up=False)})
    assert most_in_flight(down, 0.6) == {} and most_in_flight(Signals(0.0), 0.6) == {}


def test_the_most_pressed_workflow_counts_and_all_of_them_interrupt(chunks: Signals, search: Search) -> None:
    alone = most_in_flight(chunks, 0.6)["e1"]
    calm = search(20.0, served_s=0.6, objective=Objective(itl_p95_s=1.0), prompt_tokens=10.0, output_tokens=50.0)
    beside = replace(chunks, workflows={**chunks.workflows, "calm": calm})
    assert most_in_flight(beside, 0.6)["e1"] > 1.5 * alone, "half of those who interrupt are short"
    hasty = replace(calm, objective=Objective(itl_p95_s=0.012))
    assert most_in_flight(replace(chunks, workflows={**chunks.workflows, "hasty": hasty}), 0.6)["e1"] < alone


def test_a_crowd_needs_the_clock_that_has_room_for_it(chunks: Signals) -> None:
    for part in (0.6, 0.8):
        crowd = with_queue(chunks, most_in_flight(chunks, part)["e1"])
        assert least_for_crowd(crowd) == pytest.approx(part, abs=0.03)
    assert least_for_crowd(with_queue(chunks, 1000)) == 1.0
    assert least_for_crowd(with_queue(chunks, 0)) < 0.6


def test_who_waits_for_a_limit_needs_a_faster_clock(chunks: Signals) -> None:
    waiting = with_queue(chunks, 10, 1, oldest_s=0.4)
    assert least_for_queues(waiting, {"e1": 10}, {}) == pytest.approx(0.8)
    assert least_for_queues(waiting, {"e1": 11}, {}) == least_for_queues(waiting, {}, {}) == 0, "nobody limits it"
    assert least_for_queues(waiting, {"e1": 10}, {"chunks": 0.4}) < 0.2, "held for so long anyway"
    assert least_for_queues(with_queue(chunks, 10, 99), {"e1": 10}, {}) == 1.0


def test_so_do_those_who_wait_in_the_engine_for_its_cache(chunks: Signals) -> None:
    def waiting(count: int, kv_usage: float) -> Signals:
        engine = replace(chunks.engines["e1"], running=30.0, waiting=float(count), kv_usage=kv_usage)
        return replace(chunks, engines={"e1": engine})

    assert least_for_queues(waiting(20, 0.99), {}, {}) == pytest.approx(0.8), "0.4 s until the last of them may go"
    assert least_for_queues(waiting(99, 0.99), {}, {}) == 1.0
    assert least_for_queues(waiting(99, 0.5), {}, {}) == 0, "their prompts are next"
