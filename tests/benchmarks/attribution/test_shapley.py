"""The yardstick itself: the axioms that define Shapley's values, on the emulated H200's cost of a step."""

from dataclasses import fields
from functools import reduce
from itertools import permutations
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.attribution import shapley as module
from benchmarks.attribution.shapley import Card, Prefix, shapley
from emulator.core.gpu import Gpu
from emulator.core.presets import load_gpu, load_model
from emulator.core.scheduler import chunk_work
from emulator.core.step import StepWork

RNG = np.random.default_rng(1)
PRESET, MODEL = load_gpu("h200"), load_model("llama-2-7b")


def decode(context: int) -> StepWork:
    return StepWork(decode_sequences=1, decode_context=context)


def card(limit_w: float = 700.0, highest_mhz: int | None = None) -> Card:
    gpu = Gpu(PRESET.card, PRESET.factors, MODEL.shape)
    gpu.power_limit_w = limit_w
    gpu.sm_clock_range_mhz = (210, highest_mhz) if highest_mhz else None
    return Card(gpu)


def worth(card: Card, parts: list[StepWork], prefixes: list[Prefix], headroom_j: float) -> float:
    """By the emulator's own cost of a step."""
    work = reduce(add, parts)
    work.decode_shared = sum(prefix.tokens * (len(prefix.readers) - 1) for prefix in prefixes)
    card.gpu._headroom_j = headroom_j
    return card.gpu.step(work).joules


PARTS = st.lists(
    st.one_of(
        st.integers(100, 4000).map(decode),
        st.tuples(st.integers(0, 3000), st.integers(1, 4000)).map(lambda chunk: chunk_work(*chunk)),
    ),
    min_size=1,
    max_size=6,
)
CARDS = st.builds(card, st.sampled_from([250.0, 400.0, 700.0]), st.sampled_from([None, 700, 1300]))


@settings(deadline=None, max_examples=60)
@given(CARDS, PARTS, st.floats(0, 20))
def test_what_all_pay_is_what_the_step_took(card: Card, parts: list[StepWork], headroom_j: float) -> None:
    values = shapley(card, parts, [], headroom_j, RNG)
    assert values.joules.sum() == pytest.approx(worth(card, parts, [], headroom_j), rel=1e-9)
    assert values.joules.min() > 0


@settings(deadline=None, max_examples=30)
@given(CARDS, st.lists(st.integers(100, 4000).map(decode), min_size=2, max_size=4), st.floats(0, 20))
def test_it_is_the_mean_gain_over_all_orders_of_coming(card: Card, decodes: list[StepWork], headroom_j: float) -> None:
    parts = [*decodes, chunk_work(0, 700)]
    means = np.zeros(len(parts))
    orders = list(permutations(range(len(parts))))
    for order in orders:
        before = 0.0
        for came in range(1, len(order) + 1):
            after = worth(card, [parts[n] for n in order[:came]], [], headroom_j)
            means[order[came - 1]] += (after - before) / len(orders)
            before = after
    assert shapley(card, parts, [], headroom_j, RNG).joules == pytest.approx(means, rel=1e-9)


def test_equal_requests_pay_the_same() -> None:
    values = shapley(card(), [decode(1000), chunk_work(0, 2000), decode(1000)], [], 5.0, RNG).joules
    assert values[0] == pytest.approx(values[2], rel=1e-12) and values[1] > 5 * values[0]


@pytest.mark.parametrize("sharing", [False, True])
def test_where_nothing_is_bent_the_closed_form_is_exact(sharing: bool) -> None:
    parts = [decode(3000 + 10 * n) for n in range(6)]
    prefixes = [Prefix(2992, (0, 1, 2, 3)), Prefix(128, (1, 2))] if sharing else []
    values = shapley(card(), parts, prefixes, 0.0, RNG)
    assert not values.bent
    table = np.array([[getattr(part, f.name) for part in parts] for f in fields(StepWork)], float)
    assert values.joules == pytest.approx(module._enumerated(card(), table, prefixes, 0.0), rel=1e-9)
    assert values.joules.sum() == pytest.approx(worth(card(), parts, prefixes, 0.0), rel=1e-9)


def test_a_prefix_is_paid_by_its_readers_alone() -> None:
    parts = [decode(3000)] * 3
    apart, shared = (shapley(card(), parts, prefixes, 0.0, RNG).joules for prefixes in ([], [Prefix(2992, (0, 1))]))
    assert shared[2] == pytest.approx(apart[2], rel=1e-9) and shared[0] == shared[1] < 0.95 * apart[0]


@pytest.mark.parametrize("limit_w", [300.0, 700.0])
def test_drawn_orders_come_near_to_all_of_them(limit_w: float) -> None:
    parts = [*(decode(500 + 300 * n) for n in range(8)), chunk_work(0, 300), chunk_work(0, 2000)]
    prefixes = [Prefix(480, (0, 1, 2, 3))]
    table = np.array([[getattr(part, f.name) for part in parts] for f in fields(StepWork)], float)
    exact = module._enumerated(card(limit_w), table, prefixes, 3.0)
    straight, base_j, _ = card(limit_w).closed_form(module._columns(parts), prefixes)
    drawn, error_j = module._sampled(card(limit_w), table, prefixes, 3.0, straight, base_j, np.random.default_rng(2))
    assert drawn.sum() == pytest.approx(exact.sum(), rel=1e-9)
    assert np.abs(drawn - exact).max() < 5 * error_j.max() < 0.05 * exact.sum()


def test_a_large_step_is_drawn_and_says_how_well() -> None:
    parts = [*(decode(1000 + 10 * n) for n in range(30)), chunk_work(0, 3000)]
    values = shapley(card(), parts, [], 4.0, RNG)
    assert values.bent and 0 < values.error_j.max() < 0.02
    assert values.joules.sum() == pytest.approx(worth(card(), parts, [], 4.0), rel=1e-9)
