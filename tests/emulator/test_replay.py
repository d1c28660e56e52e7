import pytest

from emulator.core.presets import GpuPreset, ModelPreset
from emulator.core.prompt import Text
from emulator.replay import Answer, Call, Gate, Replay, Sleep, Task


@pytest.fixture
def replay(h200: GpuPreset, model: ModelPreset) -> Replay:
    return Replay(h200, model)


def test_calls_answer_one_after_the_other(replay: Replay) -> None:
    answers: list[Answer] = []

    def client() -> Task:
        for name in ("first", "second"):
            answers.append((yield Call([Text(name, 64)], 10)))

    replay.run(client())
    first, second = answers
    assert (first.prompt_tokens, first.output_tokens) == (64, 10)
    assert second.sent_at == first.at
    assert first.sent_at < first.first_token_at < first.at
    assert replay.now == second.at


def test_a_prefix_is_cached(replay: Replay) -> None:
    answers: list[Answer] = []

    def client(name: str) -> Task:
        answers.append((yield Call([Text("head", 320), Text(name, 5)], 1)))

    replay.run(client("a"))
    replay.run(client("b"))
    assert [answer.cached_tokens for answer in answers] == [0, 320]


def test_a_list_is_gathered(replay: Replay) -> None:
    ended: list[tuple[str, float]] = []

    def sleeper(seconds: float) -> Task:
        yield Sleep(seconds)
        ended.append(("sleeper", replay.now))

    def parent() -> Task:
        yield [sleeper(2), sleeper(1)]
        ended.append(("parent", replay.now))

    replay.run(parent())
    assert ended == [("sleeper", 1), ("sleeper", 2), ("parent", 2)]


def test_a_gate_lets_so_many_in(replay: Replay) -> None:
    gate = Gate(2)
    spans: list[tuple[int, float, float]] = []

    def client(number: int) -> Task:
        yield gate
        start = replay.now
        yield Sleep(1)
        spans.append((number, start, replay.now))
        replay.leave(gate)

    replay.run(*(client(number) for number in range(5)))
    assert spans == [(0, 0, 1), (1, 0, 1), (2, 1, 2), (3, 1, 2), (4, 2, 3)]
    assert gate.places == 2


def test_rest_costs_idle_power_and_the_counter_moves_every_100_ms(replay: Replay) -> None:
    assert replay.counter_moves() == pytest.approx(12.3)
    assert replay.now == pytest.approx(0.1)
    replay.rest(0.25)
    assert replay.counter_moves() == pytest.approx(36.9)
    assert replay.now == pytest.approx(0.3)


def test_a_refused_call_is_said(replay: Replay) -> None:
    def client() -> Task:
        yield Call([Text("long", 4096)], 1)

    with pytest.raises(ValueError, match="refuses a call: too_long"):
        replay.run(client())
