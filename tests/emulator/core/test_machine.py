"""Virtual time: the same whatever the caller's steps, nothing lost, and what each request sees."""

from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.core.machine import Machine, Observed
from emulator.core.prompt import Text, output_of
from emulator.core.request import Event, Finished, Preempted, Refused, Request, Started, Tokens
from emulator.core.settings import EngineSettings
from emulator.core.step import StepWork

Build = Callable[..., Machine]
PROPERTY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


def counters(machine: Machine) -> tuple:
    s = machine.scheduler
    tokens = (s.prompt_tokens, s.generation_tokens, s.prefix_queries, s.prefix_hits)
    return (*tokens, s.clock, s.preemptions, s.iteration_tokens, s.cache.free, s.waiting, len(s.running))


def told(events: list[Event]) -> list[Event]:
    """Without the tokens, which are told of as often as the caller asks."""
    return [event for event in events if not isinstance(event, Tokens)]


def step_by_step(machine: Machine) -> Iterator[Event]:
    while (at := machine.next_at()) is not None:
        yield from machine.advance(at)


def to_the_end(machine: Machine) -> list[Event]:
    events: list[Event] = []
    while machine.next_at() is not None:
        events += machine.run(inf)
    return events


@given(data=st.data())
@PROPERTY
def test_one_by_one_or_all_at_once_is_the_same(data: st.DataObject, any_workload: Any, make_card: Any) -> None:
    workload = data.draw(any_workload)
    cards = [make_card(curved=0.001) for _ in range(4)]
    at_once, singly, pieces, watched = (workload.machine(card) for card in cards)
    watched.observer = lambda step: None
    expected = to_the_end(at_once)

    seen = list(step_by_step(singly))
    cut: list[Event] = []
    at = 0.0
    while pieces.next_at() is not None:
        at = max(at, pieces.next_at() or 0) + data.draw(st.sampled_from([0.001, 0.0333, 0.5, 5.0]))
        cut += pieces.advance(at)
    looked = to_the_end(watched)

    for machine, events in ((singly, seen), (pieces, cut), (watched, looked)):
        assert told(events) == told(expected)
        assert counters(machine) == counters(at_once)
    for card in cards[1:]:
        assert card.worked_s == pytest.approx(cards[0].worked_s, rel=1e-9)
    assert cards[1].energy_j == pytest.approx(cards[0].energy_j, rel=1e-9)


@given(data=st.data())
@PROPERTY
def test_everyone_gets_an_end_and_all_blocks_come_back(data: st.DataObject, any_workload: Any, make_card: Any) -> None:
    workload = data.draw(any_workload)
    machine = workload.machine(make_card())
    events = to_the_end(machine)
    ends = [event for event in events if isinstance(event, Finished | Refused)]
    assert sorted(end.request_id for end in ends) == sorted(request.id for _, request in workload.requests)
    requests = {request.id: request for _, request in workload.requests}
    tokens = dict.fromkeys(requests, 0)
    for event in events:
        if isinstance(event, Tokens):
            tokens[event.request_id] += event.count
    for end in ends:
        if isinstance(end, Finished):
            request = requests[end.request_id]
            room = workload.settings.max_model_len - end.usage.prompt
            assert end.usage.output == tokens[request.id]
            if end.reason == "length":
                assert end.usage.output == min(request.max_tokens, room)
            assert end.usage.cached < end.usage.prompt and end.usage.cached % workload.settings.block_size == 0
            times = [end.arrived_at, end.started_at, end.first_token_at, end.at]
            known = [at for at in times if at is not None]
            assert known == sorted(known)
    scheduler = machine.scheduler
    assert scheduler.generation_tokens == sum(tokens.values())
    assert scheduler.cache.usage == 0 and scheduler.cache.free == workload.settings.kv_blocks
    assert not scheduler.running and not scheduler.waiting
    assert scheduler.prefix_hits <= scheduler.prefix_queries


@given(data=st.data())
@PROPERTY
def test_limits_hold_in_every_step(data: st.DataObject, any_workload: Any, make_card: Any) -> None:
    workload = data.draw(any_workload)
    card, steps = make_card(curved=0.002), []
    machine = workload.machine(card, observer=steps.append)
    usages = []
    for _ in step_by_step(machine):
        usages.append(machine.scheduler.cache.usage)
    for step in steps:
        work = sum(step.parts.values(), StepWork())
        assert work.prefill_tokens + work.decode_sequences <= workload.settings.max_num_batched_tokens
        assert 0 < len(step.parts) <= workload.settings.max_num_seqs
        assert step.seconds == pytest.approx(card.step(work).seconds, rel=1e-3)
        assert step.joules == pytest.approx(card.step(work).joules, rel=1e-3)
    assert all(0 <= usage <= 1 for usage in usages)
    assert card.worked_s == pytest.approx(sum(step.seconds for step in steps), rel=1e-9)
    assert sum(step.joules for step in steps) + 100 * card.rested_s == pytest.approx(card.energy_j, rel=1e-9)


def test_alone_a_request_takes_one_step_a_token(machine: Build, card: Any) -> None:
    engine = machine()
    engine.submit(Request("r", [Text("p", 100)], 5), at=1.0)
    events = engine.advance(inf)
    assert [type(event) for event in events] == [Started, Tokens, Finished]
    finished = events[-1]
    assert isinstance(finished, Finished) and finished.usage.output == 5
    prefill = card.step(StepWork(1, 100, 5050, 100)).seconds
    decodes = [
        card.step(StepWork(decode_sequences=1, decode_context=context)).seconds for context in (101, 102, 103, 104)
    ]
    assert finished.first_token_at == pytest.approx(1 + prefill)
    assert finished.at == pytest.approx(1 + prefill + sum(decodes))
    assert card.rested_s == pytest.approx(1.0)
    assert engine.scheduler.iteration_tokens == {101: 1, 1: 4}
    assert engine.next_at() is None


def test_a_shell_that_wakes_at_each_step_sees_each_token(machine: Build) -> None:
    engine = machine()
    engine.submit(Request("r", [Text("p", 100)], 4), at=0.0)
    seen = [event for event in step_by_step(engine) if isinstance(event, Tokens)]
    assert [event.count for event in seen] == [1, 1, 1, 1]
    assert [event.at for event in seen] == sorted({event.at for event in seen})


def test_who_arrives_during_a_step_waits_for_its_end(machine: Build) -> None:
    engine = machine()
    engine.submit(Request("first", [Text("p", 1000)], 50), at=0.0)
    engine.advance(0.001)
    end = engine.next_at()
    assert end and end > 0.1
    engine.submit(Request("second", [Text("q", 10)], 1), at=0.05)
    started = [event for event in engine.advance(0.5) if isinstance(event, Started)]
    assert [event.request_id for event in started] == ["second"] and started[0].at == end


def test_the_server_before_the_engine_takes_requests_one_by_one(machine: Build) -> None:
    engine = machine(request_s=0.003, prompt_token_s=1e-5, output_s=0.25)
    for number in range(4):
        engine.submit(Request(f"r{number}", [Text(number, 100)], 1), at=0.0)
    events = engine.advance(inf)
    started = [event.at for event in events if isinstance(event, Started)]
    assert started[0] == pytest.approx(0.004)
    first = next(event for event in events if isinstance(event, Finished))
    assert first.at - started[0] - 0.25 == pytest.approx(0.025, rel=0.1)  # the step is not longer for it
    assert len(set(started)) == 2  # the others came while the first was computed


def test_energy_is_on_the_card_as_far_as_a_step_has_come(machine: Build, card: Any) -> None:
    engine = machine()
    engine.submit(Request("r", [Text("p", 4000)], 1), at=1.0)
    engine.advance(1.0)
    engine.advance(1.2)
    assert card.worked_s == pytest.approx(0.2)
    assert card.energy_j == pytest.approx(100 + 350 * 0.2)
    engine.advance(inf)
    assert card.energy_j == pytest.approx(100 + card.step(StepWork(1, 4000, 4000 * 4001 // 2, 4000)).joules)


def test_a_power_limit_holds_from_the_next_step_on(machine: Build, card: Any) -> None:
    engine = machine()
    engine.submit(Request("r", [Text("p", 16)], 1000), at=0.0)
    engine.advance(1.0)
    under_way = engine.next_at()
    card.power_limit_w = 350.0
    assert engine.next_at() == under_way
    engine.advance(under_way or 0)
    slow = card.step(StepWork(decode_sequences=1, decode_context=16 + engine.scheduler.generation_tokens)).seconds
    assert (engine.next_at() or 0) - (under_way or 0) == pytest.approx(slow, rel=1e-6)


def test_two_cards_go_at_the_pace_of_the_slower_one(make_card: Any) -> None:
    fast, slow = make_card(), make_card(power_limit_w=350.0)
    engine = Machine(EngineSettings(kv_blocks=100, max_model_len=1000), [fast, slow])
    engine.submit(Request("r", [Text("p", 16)], 20), at=0.0)
    engine.advance(inf)
    assert fast.worked_s == slow.worked_s
    own = fast.worked_s / 2  # it is twice as fast, and then waits at 100 W
    assert fast.energy_j == pytest.approx(350 * own + 100 * own)
    assert slow.energy_j == pytest.approx(175 * slow.worked_s)


@pytest.mark.parametrize(
    ("at", "started", "output"), [(0.001, False, 0), (0.05, True, 0), (0.3, True, 0), (0.65, True, 6)]
)
def test_cancelled_in_any_state(machine: Build, at: float, started: bool, output: int) -> None:
    """In the server, while its prompt is computed in the first of two chunks, in the second, while it decodes."""
    engine = machine(request_s=0.01, max_num_batched_tokens=1500)
    engine.submit(Request("gone", [Text("p", 2500)], 500), at=0.0)
    engine.cancel("gone", at)
    events = engine.advance(inf)
    end = events[-1]
    assert isinstance(end, Finished) and end.reason == "abort"
    assert (end.started_at is not None) == started
    assert bool(end.usage.output) == bool(output)
    assert end.usage.output == sum(event.count for event in events if isinstance(event, Tokens))
    assert engine.scheduler.cache.usage == 0 and engine.next_at() is None


def test_cancelled_while_waiting_leaves_the_others_in_order(machine: Build) -> None:
    engine = machine(max_num_seqs=1)
    for number in range(4):
        engine.submit(Request(f"r{number}", [Text(number, 10)], 50), at=0.0)
    engine.cancel("r1", 0.1)
    engine.cancel("nobody", 0.2)
    ends = [event for event in engine.advance(inf) if isinstance(event, Finished)]
    assert [end.request_id for end in ends] == ["r1", "r0", "r2", "r3"]
    engine.cancel("r0", 100.0)
    assert engine.advance(101.0) == []


def test_what_is_cancelled_can_be_found_in_the_cache(machine: Build) -> None:
    engine = machine()
    engine.submit(Request("gone", [Text("p", 640)], 500), at=0.0)
    engine.cancel("gone", 1.0)
    engine.submit(Request("next", [Text("p", 641)], 1), at=2.0)
    started = [event for event in engine.advance(inf) if isinstance(event, Started)]
    assert started[1].cached_tokens == 640


def test_a_later_prompt_finds_what_was_generated(machine: Build) -> None:
    engine = machine()
    engine.submit(Request("turn1", [Text("p", 100)], 100), at=0.0)
    engine.submit(Request("turn2", [Text("p", 100), output_of("turn1", 100), Text("q", 9)], 1), at=5.0)
    engine.submit(Request("ids1", list(range(100)), 60, output_ids=list(range(500, 600))), at=6.0)
    engine.submit(Request("ids2", [*range(100), *range(500, 560), 7], 1), at=9.0)
    started = {event.request_id: event.cached_tokens for event in engine.advance(inf) if isinstance(event, Started)}
    # the last token was never computed: 199 and 159 tokens are in the cache
    assert started == {"turn1": 0, "turn2": 192, "ids1": 0, "ids2": 144}


def test_too_many_are_refused_and_so_is_what_can_never_fit(machine: Build) -> None:
    engine = machine(max_num_queued_reqs=2, max_num_seqs=1)
    for number in range(3):
        engine.submit(Request(f"r{number}", [Text(number, 10)], 20), at=0.0)
    engine.submit(Request("long", [Text("long", 4096)], 1), at=0.0)
    refused = {event.request_id: event.reason for event in engine.run(inf) if isinstance(event, Refused)}
    assert refused == {"r2": "queue_full", "long": "too_long"}
    finished = [event.request_id for event in engine.advance(inf) if isinstance(event, Finished)]
    assert finished == ["r0", "r1"]


def test_the_context_of_the_model_ends_an_answer(machine: Build) -> None:
    engine = machine(max_model_len=128)
    engine.submit(Request("r", [Text("p", 100)], 1000), at=0.0)
    end = engine.advance(inf)[-1]
    assert isinstance(end, Finished) and end.usage.output == 28


def test_run_comes_back_when_somebody_is_done(machine: Build) -> None:
    engine = machine()
    engine.submit(Request("long", [Text("p", 10)], 100), at=0.0)
    engine.submit(Request("short", [Text("q", 10)], 10), at=0.0)
    events = engine.run(inf)
    end = events[-1]
    assert isinstance(end, Finished) and end.request_id == "short"
    engine.submit(Request("next", [Text("r", 10)], 10), at=end.at)
    end = engine.run(inf)[-1]
    assert isinstance(end, Finished) and end.request_id == "next"


def test_time_does_not_go_back_and_ids_are_used_once(machine: Build) -> None:
    engine = machine()
    engine.advance(2.0)
    with pytest.raises(ValueError, match=r"cannot arrive at 1\.0 s: the machine is at 2\.0 s"):
        engine.submit(Request("r", [1, 2], 1), at=1.0)
    with pytest.raises(ValueError, match="cannot be cancelled"):
        engine.cancel("r", at=1.0)
    engine.submit(Request("r", [1, 2], 1), at=3.0)
    with pytest.raises(ValueError, match="ids are used once"):
        engine.submit(Request("r", [1, 2], 1), at=3.0)


def test_preemption_is_told_and_computed_again(machine: Build) -> None:
    engine = machine(kv_blocks=10, max_model_len=160)
    engine.submit(Request("first", [Text("p", 60)], 60), at=0.0)
    engine.submit(Request("second", [Text("q", 60)], 60), at=0.0)
    events = engine.advance(inf)
    assert [event.request_id for event in events if isinstance(event, Preempted)] == ["second"]
    ends = {event.request_id: event for event in events if isinstance(event, Finished)}
    assert ends["first"].at < ends["second"].at
    assert ends["second"].usage.output == 60 and engine.scheduler.preemptions == 1
    assert engine.scheduler.prompt_tokens == 120  # a prompt counts once
    assert engine.scheduler.prefix_queries == 120


def test_the_observer_sees_each_request_in_each_step(machine: Build) -> None:
    steps: list[Observed] = []
    engine = machine(max_num_batched_tokens=256)
    engine.observer = steps.append
    engine.submit(Request("a", [Text("p", 300)], 2), at=0.0)
    engine.submit(Request("b", [Text("q", 10)], 2), at=0.0)
    engine.advance(inf)
    assert [step.parts for step in steps] == [
        {"a": StepWork(1, 256, 256 * 257 // 2, 256)},
        {"a": StepWork(1, 44, 44 * 256 + 44 * 45 // 2, 300), "b": StepWork(1, 10, 55, 10)},
        {"a": StepWork(decode_sequences=1, decode_context=301), "b": StepWork(decode_sequences=1, decode_context=11)},
    ]
