"""vLLM's behaviour, case by case: who runs, who waits, who is found in the cache, who is preempted."""

from math import inf
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.core.machine import Machine
from emulator.core.prompt import Text
from emulator.core.request import Finished, Preempted, Request, Started
from emulator.core.scheduler import Scheduler
from emulator.core.sequence import Sequence
from emulator.core.settings import EngineSettings


def cached(engine: Machine) -> list[int]:
    return [event.cached_tokens for event in engine.advance(inf) if isinstance(event, Started)]


def order(engine: Machine, kind: type) -> list[str]:
    return [event.request_id for event in engine.advance(inf) if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("block_size", "prompt", "again", "expected"),
    [
        (16, [Text("p", 640)], [Text("p", 640)], 624),  # the last token is computed, and so its whole block
        (16, [Text("p", 641)], [Text("p", 641)], 640),
        (32, [Text("p", 640), Text("a", 5)], [Text("p", 640), Text("b", 50)], 640),
        (16, [Text("p", 650)], [Text("p", 650), Text("b", 50)], 640),  # of the unfinished block nothing is found
        (16, [Text("p", 10)], [Text("p", 10)], 0),
        (16, list(range(64)), [*range(63), 7], 48),
    ],
)
def test_what_a_prompt_finds_of_an_earlier_one(
    machine: Any, block_size: int, prompt: list, again: list, expected: int
) -> None:
    engine = machine(block_size=block_size)
    engine.submit(Request("first", prompt, 1), at=0.0)
    engine.submit(Request("again", again, 1), at=5.0)
    assert cached(engine) == [0, expected]
    counted = engine.scheduler
    lengths = [sum(text.tokens for text in p) if isinstance(p[0], Text) else len(p) for p in (prompt, again)]
    assert (counted.prefix_queries, counted.prefix_hits) == (sum(lengths), expected)


def test_another_salt_or_no_caching_finds_nothing(machine: Any) -> None:
    engine = machine()
    for number, salt in enumerate((None, "tenant", "tenant")):
        engine.submit(Request(f"r{number}", [Text("p", 100)], 1, cache_salt=salt), at=float(number))
    assert cached(engine) == [0, 0, 96]
    engine = machine(enable_prefix_caching=False)
    for number in range(2):
        engine.submit(Request(f"r{number}", [Text("p", 100)], 1), at=float(number))
    assert cached(engine) == [0, 0] and engine.scheduler.cache.usage == 0


def test_what_is_computed_in_the_same_step_is_found(machine: Any) -> None:
    engine = machine()
    for number in range(3):
        engine.submit(Request(f"r{number}", [Text("head", 3000), Text(number, 40)], 1), at=0.0)
    assert cached(engine) == [0, 2992, 2992]
    assert engine.scheduler.clock == 1


def test_the_least_recently_used_blocks_are_forgotten_first(machine: Any) -> None:
    engine = machine(kv_blocks=30, max_model_len=480)
    for at, name in enumerate(["a", "b", "a", "c", "b", "a"]):
        engine.submit(Request(f"r{at}", [Text(name, 176)], 1), at=float(at))
    # 11 blocks each. The second a finds ten and fills the last one anew, so c takes seven unused ones, a's first last
    # one, and three from the end of b; then b takes back three, from the end of a.
    assert cached(engine) == [0, 0, 160, 0, 128, 128]


def test_prompts_are_computed_in_chunks_beside_those_that_decode(machine: Any) -> None:
    steps = []
    engine = machine(max_num_batched_tokens=100, max_num_seqs=100)
    engine.observer = steps.append
    engine.submit(Request("short", [Text("p", 10)], 10), at=0.0)
    engine.submit(Request("long", [Text("q", 250)], 2), at=0.001)
    engine.advance(inf)
    shapes = [[(work.prefill_tokens, work.decode_sequences) for work in step.parts.values()] for step in steps]
    assert shapes[:5] == [[(10, 0)], [(99, 0), (0, 1)], [(99, 0), (0, 1)], [(52, 0), (0, 1)], [(0, 1), (0, 1)]]
    assert engine.scheduler.iteration_tokens == {11: 1, 1: 2 + 5, 252: 1, 2: 1}


def test_first_come_first_served_waits_even_where_a_later_one_would_fit(machine: Any) -> None:
    engine = machine(kv_blocks=20, max_model_len=320)
    engine.submit(Request("runs", [Text("p", 160)], 20), at=0.0)
    engine.submit(Request("big", [Text("q", 200)], 2), at=0.01)
    engine.submit(Request("small", [Text("r", 10)], 2), at=0.02)
    assert order(engine, Started) == ["runs", "big", "small"]


def test_lower_priority_values_go_first_and_the_highest_is_preempted(machine: Any) -> None:
    engine = machine(policy="priority", max_num_seqs=1)
    engine.submit(Request("runs", [Text("p", 10)], 20), at=0.0)
    for number, priority in enumerate((5, -1, 5, 0)):
        engine.submit(Request(f"p{priority}-{number}", [Text(number, 10)], 2, priority=priority), at=0.01)
    assert order(engine, Started) == ["runs", "p-1-1", "p0-3", "p5-0", "p5-2"]

    engine = machine(policy="priority", kv_blocks=12, max_model_len=160)
    for number, priority in enumerate((1, 2, 0)):
        engine.submit(Request(f"r{number}", [Text(number, 60)], 60, priority=priority), at=0.0)
    assert order(engine, Preempted)[0] == "r1"


def test_who_is_preempted_finds_what_is_left_of_its_blocks(machine: Any) -> None:
    engine = machine(kv_blocks=40, max_model_len=640)
    engine.submit(Request("first", [Text("p", 304)], 200), at=0.0)
    engine.submit(Request("second", [Text("q", 304)], 200), at=0.0)
    steps = []
    engine.observer = steps.append
    ends = [event for event in engine.advance(inf) if isinstance(event, Finished)]
    assert engine.scheduler.preemptions == 1 and [end.usage.output for end in ends] == [200, 200]
    recomputed = [step.parts["second"].prefill_tokens for step in steps if "second" in step.parts][1:]
    assert 0 < sum(recomputed) < 304 + 30
    assert all(end.usage.cached == 0 for end in ends)


def test_a_lower_limit_drains_and_a_higher_one_admits(machine: Any) -> None:
    engine = machine()
    for number in range(8):
        engine.submit(Request(f"r{number}", [Text(number, 10)], 40), at=0.0)
    engine.advance(0.1)
    assert len(engine.scheduler.running) == 8
    engine.scheduler.max_active_seqs = 2
    for number in range(8, 16):
        engine.submit(Request(f"r{number}", [Text(number, 10)], 40), at=0.1)
    engine.advance(0.12)
    assert (len(engine.scheduler.running), engine.scheduler.waiting) == (8, 8)
    at, most = 0.0, 0
    while len(engine.scheduler.running) > 2:
        at = engine.next_at() or at
        engine.advance(at)
    for _ in range(100):
        engine.advance(engine.next_at() or at)
        most = max(most, len(engine.scheduler.running))
    assert most == 2 and engine.scheduler.preemptions == 0
    engine.scheduler.max_active_seqs = 100
    engine.advance((engine.next_at() or at) + 0.01)
    assert engine.scheduler.waiting == 0


def test_a_limit_of_none_holds_everything_until_it_is_raised(machine: Any) -> None:
    engine = machine()
    engine.scheduler.max_active_seqs = 0
    engine.submit(Request("r", [Text("p", 10)], 1), at=0.0)
    assert engine.advance(1.0) == [] and engine.next_at() is None and engine.scheduler.waiting == 1
    engine.scheduler.max_active_seqs = 1
    assert order(engine, Started) == ["r"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_equal_requests_are_served_in_the_order_of_arrival(data: st.DataObject, make_card: Any) -> None:
    """No one starves: under fcfs nobody starts before somebody who came earlier."""
    tokens = data.draw(st.integers(1, 60))
    small = EngineSettings(
        kv_blocks=data.draw(st.integers(10, 40)),
        max_model_len=160,
        max_num_seqs=data.draw(st.integers(1, 5)),
        max_num_batched_tokens=data.draw(st.integers(5, 80)),
    )
    engine = Machine(small, [make_card()])
    ids = [f"r{number}" for number in range(12)]
    for number, name in enumerate(ids):
        engine.submit(Request(name, [Text(number, tokens)], 30), at=0.01 * number)
    events = engine.advance(inf)
    assert [event.request_id for event in events if isinstance(event, Started)] == ids
    assert [event.request_id for event in events if isinstance(event, Finished)] == ids


@settings(deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(2, 60)), min_size=1, max_size=6))
def test_as_many_steps_are_alike_as_blocks_and_ends_allow(lengths: list[tuple[int, int]]) -> None:
    small = EngineSettings(kv_blocks=32, max_model_len=512, max_num_batched_tokens=512)
    scheduler = Scheduler(small)
    for number, (tokens, outputs) in enumerate(lengths):
        request = Request(f"r{number}", [Text(number, tokens)], outputs)
        scheduler.add(Sequence(request, 0.0, (number,), small.block_size))
    step = scheduler.schedule()
    assert step
    scheduler.complete(step)
    while (step := scheduler.schedule()) and not step.chunks and not step.preempted:
        alike = scheduler.steady()
        assert alike >= 1
        free = scheduler.cache.free
        finished = scheduler.decode(alike)
        wanted = sum(
            -(-sequence.in_cache(scheduler.clock) // 16) - -(-(sequence.in_cache(scheduler.clock) - alike) // 16)
            for sequence in scheduler.running
        )
        first = sum((sequence.in_cache(scheduler.clock) - alike) % 16 == 0 for sequence in scheduler.running)
        assert free - scheduler.cache.free == wanted - first  # the first step's were taken when it was made
        if not finished:
            clock_wants = sum(sequence.in_cache(scheduler.clock) % 16 == 0 for sequence in scheduler.running)
            assert clock_wants > scheduler.cache.free
        for sequence in finished:
            scheduler.remove(sequence)
