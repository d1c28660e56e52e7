"""The policy that acts: limits in flight, ceilings on answers, watts on a GPU, and everything set back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import psutil
import pytest
from stage import Engine, Gateway, chat_body, joulegate, until

GPU = "local/gpu:0"


def static(engine: Engine, **table: Any) -> dict[str, Any]:
    engines = [{"name": "e1", "kind": "vllm", "url": engine.url}]
    return {"engines": engines, "policy": {"name": "static", **table}}


@pytest.fixture
def limited(make_gateway: Callable[..., Gateway], make_engine: Callable[..., Engine]) -> tuple[Gateway, Engine]:
    engine = make_engine()
    return make_gateway(static(engine, in_flight={"narrow": 1}, max_tokens={"short": 6})), engine


def most_at_once(log: list[dict[str, Any]]) -> int:
    """How many requests the engine had at the same time, at most."""
    events = [(served["began"], 1) for served in log] + [(served["ended"], -1) for served in log]
    return max(accumulate(change for _, change in sorted(events)))


def test_limits_and_ceilings(limited: tuple[Gateway, Engine]) -> None:
    gateway, engine = limited

    def ask(workflow: str) -> int:
        return gateway.chat({"x-workflow-name": workflow}, max_tokens=30, stream=True).status_code

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(ask, ["narrow", "wide"] * 5)) == {200}
    assert most_at_once(engine.log(x_workflow_name="narrow")) == 1
    assert most_at_once(engine.log(x_workflow_name="wide")) > 1, "a workflow without a limit is not held up"
    assert gateway.metric("joulegate_gate_limit", engine="e1", workflow="narrow") == 1
    assert gateway.metric("joulegate_queue_wait_seconds_count", workflow="narrow") == 5

    shown = gateway.get("/energy/policy")
    assert (shown["policy"], shown["standing"], shown["reason"]) == ("static", "acting", "static table")
    assert shown["decision"] == {"in_flight": {"narrow": 1}, "max_tokens": {"short": 6}}
    assert shown["history"][0]["reason"] == "static table"
    until(lambda: gateway.get("/energy/policy")["workflows"].get("narrow", {}).get("requests_per_s"))
    told = joulegate("policy", "--url", gateway.url, env=gateway.env)
    assert told.returncode == 0 and "policy static: acting" in told.stdout and "static table" in told.stdout

    for given, arrives, said in [({"max_tokens": 50}, 6, "6"), ({}, 6, "6"), ({"max_tokens": 4}, 4, None)]:
        reply = gateway.chat({"x-workflow-name": "short"}, **given)
        assert reply.json()["usage"]["completion_tokens"] == arrives
        assert reply.headers.get("x-joulegate-max-tokens") == said
        (served,) = engine.log(x_request_id=reply.headers["x-joulegate-request-id"])
        assert served["body"] == chat_body(max_tokens=arrives)
    reply = gateway.chat({"x-workflow-name": "short"}, max_completion_tokens=50)
    (served,) = engine.log(x_request_id=reply.headers["x-joulegate-request-id"])
    assert served["body"] == chat_body(max_completion_tokens=6)
    body = {"model": "stub-7b", "input": "one", "max_output_tokens": 50}
    reply = gateway.http.post("/v1/responses", json=body, headers={"x-workflow-name": "short"})
    assert (reply.json()["usage"]["output_tokens"], reply.headers["x-joulegate-max-tokens"]) == (6, "6")


def test_a_power_limit_holds_while_the_gateway_runs(
    make_gateway: Callable[..., Gateway], engine: Engine, nvml: Any
) -> None:
    nvml.set_limit_w(0, 650)
    nvml.set_power_w(0, 600)
    gateway = make_gateway(static(engine, power_limit_w={GPU: 300}), env=nvml.env)
    until(lambda: nvml.limit_w() == 300)
    # The counter shows it, not only the setting.
    until(lambda: gateway.metric("joulegate_power_watts", host="local", device="gpu:0") == pytest.approx(300, rel=0.1))
    (setting,) = gateway.get("/energy/policy")["devices"][GPU]["settings"]
    assert (setting["what"], setting["wanted"], setting["enforced"]) == ("power limit", 300, 300)
    gateway.stop()
    assert nvml.limit_w() == 650


def test_after_a_kill_the_watchdog_sets_it_back(
    make_gateway: Callable[..., Gateway], engine: Engine, nvml: Any
) -> None:
    nvml.set_limit_w(0, 650)
    gateway = make_gateway(static(engine, power_limit_w={GPU: 300}), env=nvml.env)
    until(lambda: nvml.limit_w() == 300)
    assert "held by a running process" in joulegate("restore", env=gateway.env).stdout
    gateway.kill()
    until(lambda: nvml.limit_w() == 650)
    until(lambda: f"{GPU}: power limit set back to 650 W, from 300 W" in gateway.log())
    assert joulegate("restore", env=gateway.env).returncode == 0


def test_where_the_watchdog_dies_too_the_next_start_sets_it_back(
    make_gateway: Callable[..., Gateway], engine: Engine, nvml: Any
) -> None:
    gateway = make_gateway(static(engine, power_limit_w={GPU: 300}), env=nvml.env)
    until(lambda: nvml.limit_w() == 300)
    (watchdog,) = psutil.Process(gateway.process.pid).children()
    watchdog.kill()
    gateway.kill()
    assert nvml.limit_w() == 300
    again = make_gateway(static(engine), env={**nvml.env, "XDG_STATE_HOME": gateway.env["XDG_STATE_HOME"]})
    assert nvml.limit_w() == 700
    assert f"{GPU}: power limit set back to 700 W, from 300 W" in again.said()


def test_without_the_privilege_it_says_so_once_and_goes_on(
    make_gateway: Callable[..., Gateway], engine: Engine, nvml: Any
) -> None:
    nvml.privileged = False
    gateway = make_gateway(static(engine, power_limit_w={GPU: 300}, in_flight={"narrow": 1}), env=nvml.env)
    assert gateway.chat(max_tokens=1).status_code == 200
    until(lambda: gateway.metric("joulegate_gate_limit", workflow="narrow") == 1)
    assert (nvml.limit_w(), nvml.writes()) == (700, 0)
    assert gateway.log().count("not allowed to set power limits") == 1


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    make_gateway: Callable[..., Gateway], engine: Engine, nvml: Any
) -> None:
    table = static(engine, power_limit_w={GPU: 300}, max_tokens={"short": 6}, dry_run=True)
    gateway = make_gateway(table, env=nvml.env)
    reply = gateway.chat({"x-workflow-name": "short"}, max_tokens=12)
    assert reply.json()["usage"]["completion_tokens"] == 12
    shown = gateway.get("/energy/policy")
    assert (shown["standing"], shown["decision"], nvml.writes()) == ("dry_run", {}, 0)
    assert shown["history"][0]["decision"]["power_limit_w"] == {GPU: 300}
