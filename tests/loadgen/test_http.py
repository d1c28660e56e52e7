"""The driver over HTTP, in this process, against the stub."""

import json
import time
from collections import Counter
from typing import Any

import gevent
import pytest

from loadgen import collect, http
from loadgen.answer import AnswerError
from loadgen.arrivals import Arrivals, Closed, Poisson
from loadgen.client import Target
from loadgen.coding import Coding
from loadgen.http import Drive, Listeners, run
from loadgen.record import RequestRecord, Result
from loadgen.request import Request
from loadgen.schedule import Load, Schedule, Stream
from loadgen.summarize import Summarize
from loadgen.workload import Workload


def load(workload: Workload, arrivals: Arrivals, runs: int | None = None, seconds: float | None = None) -> Load:
    return Load((Stream((workload,), arrivals, runs),), seed=3, seconds=seconds)


def test_a_closed_load_is_told_request_by_request(served: Any) -> None:
    work = load(Coding.small(), Closed(2), 3)
    result = run(work, Target(url=served.url, key="sk-x", cache_salt="repeat 1", body={"priority": 3}))
    planned = [call.node for number in range(3) for call in Schedule(work).plan(http.Start(0, number, 0.0)).calls]
    assert Counter(request.node for request in result.requests) == Counter(planned)
    assert [one.outcome for one in result.runs] == ["ok"] * 3
    ended = {(request.run, request.node): request.ended_s for request in result.requests}
    for request in result.requests:
        assert request.intended_s == max(
            (ended[request.run, node] for node in request.parents), default=request.intended_s
        )
        assert request.intended_s <= request.started_s < (request.first_s or 0) <= request.ended_s
        assert len(request.gaps_s) == 2 and request.output_tokens == 3
        assert request.prompt_tokens and request.cached_tokens == request.prompt_tokens // 2
    assert {one.run for one in result.runs} == set(served.runs())
    for arrival in served.arrivals:
        assert arrival.headers["Authorization"] == "Bearer sk-x"
        assert (arrival.body["cache_salt"], arrival.body["priority"]) == ("repeat 1", 3)
        assert arrival.body["model"] == "first-model" and arrival.body["stream_options"] == {"include_usage": True}
    assert result.load.cache_salt == "repeat 1" and not result.load.exact_lengths
    assert any("no energy books" in note for note in result.load.facts["notes"])
    assert all(request.energy is None for request in result.requests)


def test_open_runs_begin_when_they_are_due(served: Any) -> None:
    served.delay_s = 0.3
    work = load(Request.small(), Poisson(40), seconds=0.5)
    result = run(work, Target(url=served.url))
    assert sorted((one.number, one.intended_s) for one in result.runs) == [
        (start.number, start.at_s) for start in Schedule(work).arrivals()
    ]
    assert all(request.latency_s >= 0.3 for request in result.requests)
    assert result.load.window_s[1] <= 0.5 < result.load.seconds


def test_users_and_arrivals_go_side_by_side(served: Any) -> None:
    streams = (Stream((Summarize.small(),), Closed(2, over_s=0.1), 3), Stream((Request.small(),), Poisson(50), 4))
    result = run(Load(streams, seed=1), Target(url=served.url, stream=False, run_name="mine"))
    assert Counter(one.stream for one in result.runs) == {0: 3, 1: 4}
    assert {one.workflow for one in result.runs} == {"mine"}
    assert all(request.first_s is None and not request.gaps_s for request in result.requests)
    assert all(request.output_tokens == 3 for request in result.requests)


def test_a_failed_call_ends_its_run_and_what_it_has_in_flight(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_AFTER_FAILURE_S", 0.01)
    served.refused, served.delay_s = {"reviewer"}, 0.02
    result = run(load(Coding.small(), Closed(1), 2), Target(url=served.url))
    assert [one.outcome for one in result.runs] == ["failed", "failed"]
    outcomes = Counter((request.step, request.outcome) for request in result.requests)
    assert outcomes["architect", "ok"] == 2 and outcomes["reviewer", "failed"] >= 2
    assert not any(request.step == "reviser" for request in result.requests)
    assert "HTTP 500: the stub refuses" in {request.error for request in result.requests}
    assert not result.load.valid and "requests failed" in result.load.reasons[0]


def test_prompts_have_exactly_the_tokens_that_are_asked_for(served: Any) -> None:
    result = run(load(Request(60, 9), Closed(1), 2), Target(url=served.url, exact=True))
    assert [len(arrival.body["prompt"]) for arrival in served.arrivals] == [60, 60]
    assert all(arrival.body["ignore_eos"] and arrival.body["max_tokens"] == 9 for arrival in served.arrivals)
    assert result.load.exact_lengths and {request.prompt_tokens for request in result.requests} == {60}


def test_without_a_tokenizer_lengths_are_not_called_exact(served: Any) -> None:
    served.tokenizes = False
    result = run(load(Request(60, 9), Closed(1), 1), Target(url=served.url, exact=True))
    assert not result.load.exact_lengths and "messages" in served.arrivals[0].body
    assert "no exact lengths: /tokenize says HTTP 404: no tokenizer" in result.load.facts["notes"]


@pytest.mark.parametrize("exact", [True, False])
def test_a_run_is_sent_at_once_with_its_answers_named(served: Any, exact: bool) -> None:
    served.delay_s = 0.1
    work = load(Coding.small(), Closed(1), 2)
    result = run(work, Target(url=served.url, mode="nodes", exact=exact))
    assert [one.outcome for one in result.runs] == ["ok", "ok"] and not result.load.exact_lengths
    begun = {one.run: one.intended_s for one in result.runs}
    assert all(request.intended_s == begun[request.run] for request in result.requests)
    for arrival in served.arrivals:
        assert not arrival.answered and arrival.body.get("ignore_eos", False) is exact
        said = "".join(message["content"] for message in arrival.body["messages"])
        named = filter(None, arrival.headers.get("X-Workflow-Parent", "").split(","))
        assert all(f"{{{{node:{node}}}}}" in said for node in named)
    assert result.load.facts["asked"]["mode"] == "nodes"
    assert any("exact piece by piece" in note for note in result.load.facts["notes"]) is exact


def test_the_same_run_call_by_call_has_the_same_texts(served: Any) -> None:
    work = load(Summarize.small(), Closed(1), 1)
    texts: dict[str, list[str]] = {}
    for mode in ("nodes", "pasted"):
        served.arrivals.clear()
        run(work, Target(url=served.url, mode=mode, exact=True))
        by_node = {arrival.node: arrival.body["messages"] for arrival in served.arrivals}
        texts[mode] = [by_node[node][-1]["content"] for node in sorted(by_node)]
    assert len(texts["pasted"]) > 2
    filled = [texts["nodes"][0]]
    for number, text in enumerate(texts["nodes"][1:], start=1):
        filled.append(text.replace(f"{{{{node:chunk-{number}}}}}", f"answer of chunk-{number}"))
    assert filled == texts["pasted"]


def test_texts_of_exact_lengths_need_both_ways_of_a_tokenizer(served: Any) -> None:
    served.detokenizes = False
    result = run(load(Summarize.small(), Closed(1), 1), Target(url=served.url, mode="pasted", exact=True))
    assert "no exact lengths: /detokenize says HTTP 404: no tokenizer" in result.load.facts["notes"]
    with pytest.raises(ValueError, match="mode must be one of calls, pasted, nodes, got 'dag'"):
        Target(mode="dag")  # pyright: ignore[reportArgumentType]


def test_a_gateway_is_asked_for_joules_when_they_are_settled(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "SETTLED_AFTER_S", 0.02)
    monkeypatch.setattr(collect, "ASKED_AGAIN_S", 0.02)
    served.books = True
    told: list[tuple[str, float]] = []
    work = load(Summarize.small(), Closed(2), 4)
    result = run(work, Target(url=served.url), Listeners(joules=lambda *said: told.append(said)), sample_s=0.02)
    assert all(request.energy and request.energy.joules == 1.0 for request in result.requests)
    assert all(one.energy and one.energy.joules == one.requests for one in result.runs)
    assert sorted(told) == sorted(("summarize", float(one.requests)) for one in result.runs)
    last = {sample.component: sample for sample in result.samples}
    assert last["gpu"].energy_j == last["cpu"].energy_j == len(result.requests) and last["gpu"].quality == "emulated"
    assert {request.id for request in result.requests} == {f"req-{request.node}" for request in result.requests}


def test_a_generator_that_is_too_slow_makes_the_load_invalid(served: Any) -> None:
    """Every answer keeps the generator for 30 ms, and 100 requests a second are due."""

    def dawdle(_: RequestRecord) -> None:
        time.sleep(0.03)

    work = load(Request.small(), Poisson(100), 40)
    result = run(work, Target(url=served.url), Listeners(request=dawdle))
    assert len(result.runs) == 40 and not result.load.valid
    assert any("ms late" in reason for reason in result.load.reasons)


def test_what_is_cut_off_is_recorded_as_such(served: Any) -> None:
    served.delay_s = 5.0
    drive = Drive(Schedule(load(Coding.small(), Closed(1), 1)), Target(url=served.url), Listeners())
    drive.begin()
    user = gevent.spawn(drive.user, 0, 0.0)
    gevent.sleep(0.2)
    user.kill()
    result = drive.finish()
    assert [request.outcome for request in result.requests] == ["cut"] == [one.outcome for one in result.runs]


def test_a_load_without_end_keeps_its_last_requests_alone(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "LAST", 3)
    drive = Drive(Schedule(load(Request.small(), Closed(1), 5)), Target(url=served.url), Listeners(), whole=False)
    drive.begin()
    drive.all_streams()
    result = drive.finish()
    assert [request.number for request in result.requests] == [2, 3, 4] == [one.number for one in result.runs]
    assert drive.outcomes["ok"] == 5 and not any(request.gaps_s for request in result.requests)


def test_a_fault_of_ours_fails_a_run_and_hangs_nothing(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("oops")

    monkeypatch.setattr(http, "PAUSE_AFTER_FAILURE_S", 0.01)
    monkeypatch.setattr(http.Client, "ask", broken)
    result: Result = run(load(Coding.small(), Closed(1), 1), Target(url=served.url))
    assert [request.error for request in result.requests] == ["KeyError('oops')"]


def test_without_anybody_to_ask_it_says_so(served: Any) -> None:
    with pytest.raises(ValueError, match="needs an end"):
        run(load(Request.small(), Closed(1)), Target(url=served.url))
    served.models = []
    with pytest.raises(AnswerError, match="no model is listed"):
        run(load(Request.small(), Closed(1), 1), Target(url=served.url))
    with pytest.raises(AnswerError, match="no list of models: no reply"):
        run(load(Request.small(), Closed(1), 1), Target(url="http://127.0.0.1:9"))
    with pytest.raises(ValueError, match="must be a URL"):
        run(load(Request.small(), Closed(1), 1), Target(url="127.0.0.1"))
    assert json.dumps(Target(key="secret").model) and "secret" not in repr(Target(key="secret"))
