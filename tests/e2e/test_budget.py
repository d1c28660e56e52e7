"""Budgets in joules: a runaway agent is stopped, in flight or at its next request, and stays so.

How soon is told by joules: a GPU that draws so many watts shows by what it spent beyond a budget how long that took.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI, RateLimitError
from stage import Engine, Gateway, joulegate, running, uj, until

pytestmark = pytest.mark.scripted  # the engine's pace is part of each story

GPU = "local/gpu:0"
WITHIN_S = 2.0
AGENT = {"x-workflow-id": "agent-1", "x-workflow-name": "agent"}
SLOW_MS = 50


def before(engine: Engine, **more: Any) -> dict[str, Any]:
    return {"engines": [{"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]}], **more}


def of_run(engine: Engine, joules: float, **more: Any) -> dict[str, Any]:
    return before(engine, workflows={"agent": {"budget": {"run": joules, **more}}})


def of_key(engine: Engine, **budget: Any) -> dict[str, Any]:
    return before(engine, keys=[{"tenant": "acme", "key": "sk-acme", "budget": budget}], admin={"key": "sk-admin"})


def code(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["error"]["code"]


def run_away(gateway: Gateway, headers: dict[str, str], **body: Any) -> tuple[int, httpx.Response]:
    """Ask and ask again; how many answers came before the refusal, and the refusal."""
    for answers in range(1000):
        reply = gateway.chat(headers, **body)
        if reply.status_code != 200:
            return answers, reply
    raise AssertionError("nobody stops it")


def test_a_runaway_agent_is_stopped(make_gateway: Callable[..., Gateway], make_engine: Any, nvml: Any) -> None:
    watts, budget_j = 400, 300
    nvml.set_power_w(0, watts)
    engine: Engine = make_engine()
    gateway = make_gateway(of_run(engine, budget_j), env=nvml.env)
    answers, refused = run_away(gateway, AGENT, max_tokens=20)
    assert answers > 0 and code(refused) == (429, "run_budget_spent")
    assert "retry-after" not in refused.headers and refused.headers["x-joulegate-budget-left"] == "0"
    served = len(engine.log())
    assert [code(gateway.chat({**AGENT, **more}))[1] for more in ({}, {"x-workflow-budget": "1e6"})] == [
        "run_budget_spent"
    ] * 2
    assert len(engine.log()) == served == answers, "nothing of it reaches an engine any more"
    assert gateway.chat({**AGENT, "x-workflow-id": "agent-2"}, max_tokens=1).status_code == 200

    with pytest.raises(RateLimitError) as error:
        OpenAI(base_url=f"{gateway.url}/v1", api_key="none").chat.completions.create(
            model="stub-7b", messages=[{"role": "user", "content": "go on"}], extra_headers=AGENT
        )
    assert error.value.code == "run_budget_spent"
    action = {"tenant": "default", "period": "run"}
    assert gateway.metric("joulegate_budget_actions_total", action="refused", **action) == 4, "it is not tried again"
    assert gateway.metric("joulegate_budget_actions_total", action="spent", **action) == 1

    run = gateway.run("agent-1")
    assert len(run["requests"]) == answers, "what was refused at the door is no request of the run"
    assert 0.8 * budget_j <= run["joules"] <= budget_j + WITHIN_S * watts
    (warned,) = [line for line in gateway.log().splitlines() if "what comes now is refused" in line]
    assert "a run of tenant default has spent " in warned and "agent" not in warned


def test_a_run_is_over_budget_in_its_next_segment_and_after_a_crash(engine: Engine, nvml: Any, tmp_path: Path) -> None:
    nvml.set_power_w(0, 400)
    gateway = Gateway(of_run(engine, 200), tmp_path, nvml.env).start()
    run_away(gateway, AGENT, max_tokens=20)
    gateway.http.post("/energy/runs/agent-1/close").raise_for_status()
    assert gateway.run("agent-1")["joules"] > 200 * 0.8
    until(lambda: gateway.run("agent-1")["state"] == "final")
    assert code(gateway.chat(AGENT)) == (429, "run_budget_spent")
    gateway.kill()
    with running(gateway):
        assert code(gateway.chat(AGENT)) == (429, "run_budget_spent")


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_in_flight_is_ended_where_the_budget_says_stop(
    make_gateway: Callable[..., Gateway], make_engine: Any, nvml: Any, stream: bool
) -> None:
    """Tokens cost far more here than the prices say, so that the cap on the answer does not save the budget.

    A call that waits for the answer of the first is ended with it.
    """
    watts, budget_j = 700, 400
    nvml.set_power_w(0, watts)
    engine: Engine = make_engine(step_ms=SLOW_MS)
    gateway = make_gateway(of_run(engine, budget_j, stop=True), env=nvml.env)
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(gateway.chat, {**AGENT, "x-workflow-node": "b"}, content="{{node:a}}")
        reply = gateway.chat({**AGENT, "x-workflow-node": "a"}, max_tokens=100_000, stream=stream)
    assert code(held.result()) == (429, "run_budget_spent")
    if stream:
        assert reply.status_code == 200
        frames = [line for line in reply.text.splitlines() if line]
        last = json.loads(frames[-1].removeprefix("data: "))["error"]
        assert last["code"] == "run_budget_spent" and last["type"] == "rate_limit_error" and len(frames) > 2
    else:
        assert code(reply) == (429, "run_budget_spent")
    (served,) = until(lambda: [one for one in engine.log() if one["ended"]])
    assert served["end"] == "closed" and served["body"]["max_tokens"] > 2 * served["tokens"]
    request = gateway.request(reply)
    assert (request["outcome"], request["code"]) == ("refused", 429)
    assert 0.8 * budget_j <= request["joules"] <= budget_j + WITHIN_S * watts
    assert request["wasted_by_reason"] == {"stopped": request["joules"]}
    wasted = gateway.metric("joulegate_waste_joules_total", workflow="agent", reason="stopped")
    assert uj(wasted) == uj(request["joules"])
    assert gateway.metric("joulegate_gate_in_flight") == 0


def test_without_stop_it_may_end_and_what_stands_in_the_queue_is_refused(
    make_gateway: Callable[..., Gateway], make_engine: Any, nvml: Any
) -> None:
    nvml.set_power_w(0, 700)
    engine: Engine = make_engine(step_ms=SLOW_MS)
    gateway = make_gateway({**of_run(engine, 300), "limits": {"in_flight": 1}}, env=nvml.env)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(gateway.chat, AGENT, max_tokens=40, stream=True)
        until(lambda: engine.log())
        second = pool.submit(gateway.chat, AGENT, max_tokens=40)
    assert first.result().text.count('"content":"') == 41 and "data: [DONE]" in first.result().text
    assert code(second.result()) == (429, "run_budget_spent")
    assert len(engine.log()) == 1
    run = gateway.run("agent-1")
    assert [request["outcome"] for request in run["requests"]] == ["ok", "refused"]
    assert run["joules_wasted"] == 0.0


def test_answers_are_shorter_when_little_is_left(
    make_gateway: Callable[..., Gateway], make_engine: Any, nvml: Any
) -> None:
    nvml.set_power_w(0, 400)
    engine: Engine = make_engine()
    gateway = make_gateway(of_run(engine, 100_000, warn=0.001, cap_tokens=7), env=nvml.env)
    first = gateway.chat(AGENT, max_tokens=200)
    assert float(first.headers["x-joulegate-budget-left"]) == 100_000 and "x-joulegate-max-tokens" not in first.headers
    until(lambda: gateway.run("agent-1")["joules"] > 100)
    left = [float(first.headers["x-joulegate-budget-left"])]
    for asked, given in [({"max_tokens": 60}, 7), ({}, 7), ({"max_tokens": 3}, None)]:
        reply = gateway.chat(AGENT, **asked)
        assert reply.headers.get("x-joulegate-max-tokens") == (str(given) if given else None)
        assert reply.json()["usage"]["completion_tokens"] == given or asked.get("max_tokens")
        left.append(float(reply.headers["x-joulegate-budget-left"]))
    assert left[0] - 100 > left[1] >= left[2] >= left[3] > 90_000
    assert gateway.metric("joulegate_budget_actions_total", period="run", action="capped") == 2
    assert gateway.metric("joulegate_budget_actions_total", period="run", action="low") == 1

    # The client's own is lower; what is left of it pays for fewer tokens, by the prior's 2 J a step.
    poor = gateway.chat({**AGENT, "x-workflow-id": "poor", "x-workflow-budget": "20"}, max_tokens=60)
    assert 1 <= int(poor.headers["x-joulegate-max-tokens"]) <= 10
    assert float(poor.headers["x-joulegate-budget-left"]) == 20


def test_a_keys_budget_survives_a_kill_and_opens_with_another(engine: Engine, nvml: Any, tmp_path: Path) -> None:
    nvml.set_power_w(0, 400)
    gateway = Gateway(of_key(engine, month=250), tmp_path, nvml.env).start()
    key, admin = {"authorization": "Bearer sk-acme"}, {"authorization": "Bearer sk-admin"}
    answers, refused = run_away(gateway, key, max_tokens=20)
    assert answers > 0 and code(refused) == (429, "budget_spent")
    now = datetime.now(UTC)
    opens = now.replace(year=now.year + now.month // 12, month=now.month % 12 + 1, day=1, hour=0, minute=0, second=0)
    assert int(refused.headers["retry-after"]) == pytest.approx((opens - now).total_seconds(), abs=30)
    assert refused.headers["x-should-retry"] == "false"

    def booked() -> float:
        rows = gateway.get("/energy/workflows", "sk-admin")["workflows"]
        return sum(row["joules"] or 0.0 for row in rows)

    until(lambda: booked() > 250)
    gateway.kill()
    with running(gateway):
        assert code(gateway.chat(key)) == (429, "budget_spent"), "at once, from what the ledger says"
        metrics = gateway.http.get("/metrics", headers=admin).text
        assert 'joulegate_budget_joules{period="month",tenant="acme"} 250.0' in metrics
        gateway.configure(of_key(engine, month=100_000))
        gateway.http.post("/admin/reload", headers=admin).raise_for_status()
        assert gateway.chat(key, max_tokens=1).status_code == 200


def test_a_budget_needs_a_counter(tmp_path: Path, engine: Engine, make_gateway: Callable[..., Gateway]) -> None:
    away = {"hosts": {"away": {"zeusd": "127.0.0.1:1"}}}
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    blind = Gateway({**away, "engines": engines, "workflows": {"agent": {"budget": {"run": 5}}}}, tmp_path)
    done = joulegate("serve", "-c", str(blind.file), env=blind.env)
    assert done.returncode != 0 and "a budget needs a counter" in done.stderr and "Traceback" not in done.stderr
    gateway = make_gateway({**away, "engines": engines})
    refused = gateway.chat({**AGENT, "x-workflow-budget": "5"})
    assert code(refused) == (400, "budget_not_possible")
    for bad in ("0", "-1", "nan", "inf", "much"):
        assert code(gateway.chat({**AGENT, "x-workflow-budget": bad})) == (400, "invalid_workflow_header")


def test_estimated_joules_count_and_that_is_said(make_gateway: Callable[..., Gateway], engine: Engine) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    gateway = make_gateway({"engines": engines, "workflows": {"agent": {"budget": {"run": 0.5}}}})
    if {books["quality"] for books in gateway.balance().values()} != {"estimated"}:
        pytest.skip("this machine has a counter")
    assert "budgets count estimated joules: they are as right as these" in gateway.said()
    _, refused = run_away(gateway, AGENT, max_tokens=20)
    assert code(refused) == (429, "run_budget_spent")


def test_no_budget_is_in_nobodys_way(gateway: Gateway) -> None:
    reply = gateway.chat(max_tokens=1)
    assert reply.status_code == 200 and "x-joulegate-budget-left" not in reply.headers
