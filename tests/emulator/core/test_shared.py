"""What sequences of a step read in common is known, and only as long as they do."""

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.core.machine import Machine
from emulator.core.prompt import Text
from emulator.core.request import Request

HEAD = Text("head", 320)


def over_time(machine: Machine, *requests: Request) -> list[int]:
    """Tokens shared, as they change, while requests come 50 ms apart and end."""
    for number, request in enumerate(requests):
        machine.submit(request, 0.05 * number)
    seen = [0]
    for tick in range(1, 200):
        machine.advance(0.01 * tick)
        if machine.scheduler.shared_tokens() != seen[-1]:
            seen.append(machine.scheduler.shared_tokens())
    assert not machine.scheduler.running
    return seen


def reader(number: int, tokens: int) -> Request:
    return Request(str(number), (HEAD, Text(number, 20)), tokens)


def test_a_second_and_a_third_reader_count_as_long_as_they_read(machine: Callable[..., Machine]) -> None:
    assert over_time(machine(), reader(0, 200), reader(1, 100), reader(2, 20)) == [0, 320, 640, 320, 0]


def test_the_first_reader_may_be_the_first_to_go(machine: Callable[..., Machine]) -> None:
    assert over_time(machine(), reader(0, 20), reader(1, 100)) == [0, 320, 0]


def test_own_prompts_share_nothing(machine: Callable[..., Machine]) -> None:
    assert over_time(machine(), *(Request(str(n), (Text(n, 340),), 64) for n in range(3))) == [0]


def test_nothing_is_shared_without_prefix_caching(machine: Callable[..., Machine]) -> None:
    assert over_time(machine(enable_prefix_caching=False), reader(0, 64), reader(1, 64)) == [0]


def test_a_step_costs_what_its_sharing_makes_of_it(machine: Callable[..., Machine], card) -> None:
    asked = []
    step = card.step
    card.step = lambda work: asked.append(work) or step(work)
    over_time(machine(), reader(0, 200), reader(1, 100))
    together = [work for work in asked if work.decode_sequences == 2 and not work.prefill_tokens]
    assert together and all(abs(work.decode_shared - 320) <= 64 for work in together)
    assert all(not work.decode_shared for work in asked if work.decode_sequences == 1 and not work.prefill_tokens)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_when_all_have_ended_nothing_is_shared_any_more(any_workload, make_card, data: st.DataObject) -> None:
    machine = data.draw(any_workload).machine(make_card())
    machine.advance(1e4)
    assert not machine.scheduler.running
    assert machine.scheduler._shared_blocks == 0
