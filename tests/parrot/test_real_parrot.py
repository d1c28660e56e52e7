"""The gateway before the real ParrotServe, whose `openai` engine goes through the egress to ours."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def world(make_world: Any) -> Any:
    """Before an emulated GPU host's engine."""
    return make_world(emulated=True)


@pytest.fixture(scope="module")
def scripted(make_world: Any) -> Any:
    """Before an engine that fails when it is told to."""
    return make_world(emulated=False)


def ask(world: Any, run: str, content: str = "hello", step: str = "one", **body: Any) -> httpx.Response:
    headers = {"X-Workflow-Id": run, "X-Workflow-Name": "parrots", "X-Workflow-Step": step}
    said = {"model": world.model, "messages": [SYSTEM, {"role": "user", "content": content}], "max_tokens": 8, **body}
    return world.gateway.http.post("/v1/chat/completions", json=said, headers=headers)


def text(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def test_a_chain_of_a_plain_client_has_its_answers_usage_and_receipts(world: Any) -> None:
    client, said = world.gateway.openai(), ""
    for n in range(3):
        reply = client.chat.completions.create(
            model=world.model,
            messages=[SYSTEM, {"role": "user", "content": f"{said} part {n}"}],
            max_tokens=8,
            extra_headers={"X-Workflow-Id": "chain", "X-Workflow-Step": f"step-{n}"},
        )
        said = reply.choices[0].message.content
        assert said and reply.usage.completion_tokens == 8 and reply.choices[0].finish_reason == "length"
    found = world.gateway.run("chain")
    assert [one["step"] for one in found["requests"]] == ["step-0", "step-1", "step-2"]
    assert {(one["engine"], one["usage"], one["outcome"]) for one in found["requests"]} == {("parrot", "engine", "ok")}
    prompts = [one["prompt_tokens"] for one in found["requests"]]
    assert prompts[0] < prompts[1] and found["joules"] > 0


def test_a_map_reduce_runs_its_maps_together(world: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda n: text(ask(world, "reduce", f"part {n}", "map")), range(4)))
    assert text(ask(world, "reduce", " ".join(parts), "reduce"))
    found = world.gateway.run("reduce")
    assert [one["step"] for one in found["requests"]] == ["map"] * 4 + ["reduce"]
    assert found["requests"][4]["prompt_tokens"] > max(one["prompt_tokens"] for one in found["requests"][:4])


def ask_all(world: Any, run: str, calls: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, httpx.Response]:
    """Named calls of one run, all sent at once: by their names, what each says and what else is in its body."""

    def one(name: str) -> httpx.Response:
        content, body = calls[name]
        headers = {"X-Workflow-Id": run, "X-Workflow-Node": name, "X-Workflow-Step": name.partition("-")[0]}
        said = {"model": world.model, "messages": [SYSTEM, {"role": "user", "content": content}], "max_tokens": 8}
        return world.gateway.http.post("/v1/chat/completions", json={**said, **body}, headers=headers)

    with ThreadPoolExecutor(len(calls)) as pool:
        return dict(zip(calls, pool.map(one, calls), strict=True))


CODING: dict[str, tuple[str, dict[str, Any]]] = {
    "reviser": ("revise {{node:coder-0}} {{node:coder-1}} after {{node:reviewer}}", {}),
    "reviewer": ("review {{node:coder-0}} {{node:coder-1}}", {}),
    "coder-1": ("code part 1 of {{node:architect}}", {}),
    "coder-0": ("code part 0 of {{node:architect}}", {}),
    "architect": ("design it", {}),
}


def test_the_coding_graph_sent_at_once(world: Any) -> None:
    replies = ask_all(world, "coding", CODING)
    assert all(text(reply) for reply in replies.values())
    found = world.gateway.run("coding")
    assert {one["step"] for one in found["requests"]} == {"architect", "coder", "reviewer", "reviser"}
    assert found["dag"]["critical_path"][0] == "architect" and found["dag"]["critical_path"][-1] == "reviser"
    prompts = {one["node"]: one["prompt_tokens"] for one in found["requests"]}
    assert prompts["architect"] < prompts["coder-0"] < prompts["reviewer"] < prompts["reviser"]


def test_twenty_graphs_at_once(world: Any) -> None:
    with ThreadPoolExecutor(20) as pool:
        runs = list(pool.map(lambda n: ask_all(world, f"graph-{n}", CODING), range(20)))
    assert all(text(reply) for replies in runs for reply in replies.values())
    assert world.parrot.lives()


def test_the_engine_gets_the_texts_that_parrot_fed(scripted: Any) -> None:
    calls: Any = {"b": ("then {{node:a}}", {}), "a": ("one", {"max_tokens": 2})}
    assert all(text(reply) for reply in ask_all(scripted, "fed", calls).values())
    log = {one["headers"]["x-workflow-node"]: one["body"] for one in scripted.engine.log(x_workflow_id="fed")}
    assert log["b"]["messages"] == [SYSTEM, {"role": "user", "content": "then joule joule "}]


def test_who_follows_from_a_failed_step_gets_a_424_and_parrot_lives(scripted: Any) -> None:
    calls: Any = {**CODING, "architect": ("design it", {"stub": {"refuse": 500}})}
    replies = ask_all(scripted, "coding-fails", calls)
    assert {name: reply.status_code for name, reply in replies.items()} == {
        **dict.fromkeys(CODING, 424),
        "architect": 502,
    }
    assert len(scripted.engine.log(x_workflow_id="coding-fails")) == 1
    assert all(text(reply) for reply in ask_all(scripted, "coding-well", CODING).values())
    assert scripted.parrot.lives()


def test_the_four_workloads_of_the_load_generator(world: Any, locustfile: str) -> None:
    command = [sys.executable, "-m", "locust", "-f", locustfile, "--headless", "-u", "4", "-r", "4", "--only-summary"]
    command += ["--workload", "all", "--size", "small", "--max-runs", "4", "--exact-lengths", "--host"]
    done = subprocess.run([*command, world.gateway.url, "--model", world.model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert all(f"WORKFLOW {name}" in said for name in ("summarize", "search", "coding", "composite"))
    workflows = {one["workflow"]: one for one in world.gateway.get("/energy/workflows")["workflows"]}
    for name in ("summarize", "search", "coding", "composite"):
        assert workflows[name]["joules"] > 0 and workflows[name]["quality"] == "emulated"
    books = world.gateway.balance()["h1/gpu:0"]
    assert books["foreign_j"] == 0 and abs(books["residual_j"]) < 1e-6
    assert world.parrot.lives()


def test_streams_and_completions_pass(world: Any) -> None:
    stream = ask(world, "stream", stream=True)
    assert stream.headers["x-joulegate-stream"] == "emulated" and stream.text.endswith("data: [DONE]\n\n")
    request = world.gateway.request(stream)
    assert request["output_tokens"] == 8 and 0 < request["ttft_s"] <= request["duration_s"]
    said = {"model": world.model, "prompt": "say", "max_tokens": 3}
    assert world.gateway.http.post("/v1/completions", json=said).json()["usage"]["completion_tokens"] == 3


def test_twenty_runs_at_once(world: Any) -> None:
    def run(n: int) -> list[str]:
        return [text(ask(world, f"at-once-{n}", f"run {n} step {step}")) for step in range(2)]

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(run, range(20)))
    assert all(len(pair) == 2 and all(pair) for pair in answers)
    for n in range(20):
        requests = world.gateway.run(f"at-once-{n}")["requests"]
        assert [one["output_tokens"] for one in requests] == [8, 8]
    assert world.parrot.lives()


def test_a_failing_step_is_a_502_and_parrot_lives(scripted: Any) -> None:
    for status, told in ((400, 400), (429, 429), (500, 502), (503, 502)):
        assert ask(scripted, "fails", stub={"refuse": status}).status_code == told
    assert ask(scripted, "fails", stub={"die_at_once": True}).status_code == 502
    assert ask(scripted, "fails", stub={"die_after": 2}, stream=True).status_code == 502
    assert text(ask(scripted, "fails")) == "joule " * 8
    assert scripted.parrot.lives()


def test_a_client_that_leaves_stops_the_engine_and_parrot_lives(scripted: Any, stage: Any) -> None:
    headers = {"x-request-id": "leaver"}
    said = {"model": scripted.model, "messages": [SYSTEM], "max_tokens": 5000}
    with pytest.raises(httpx.ReadTimeout):
        scripted.gateway.http.post("/v1/chat/completions", json=said, headers=headers, timeout=0.5)
    [served] = stage.until(lambda: [one for one in scripted.engine.log(x_request_id="leaver") if one["ended"]])
    assert served["end"] == "closed"
    assert text(ask(scripted, "after")) and scripted.parrot.lives()


def test_roles_and_parameters_are_the_clients(scripted: Any) -> None:
    text(ask(scripted, "roles", "{{answer}} and {{in_0}}", seed=4, stop=["END"], top_p=0.5))
    [served] = [one for one in scripted.engine.log() if one["headers"].get("x-workflow-id") == "roles"]
    assert served["body"] == {
        "model": "m",
        "messages": [SYSTEM, {"role": "user", "content": "{{answer}} and {{in_0}}"}],
        "max_tokens": 8,
        "seed": 4,
        "stop": ["END"],
        "top_p": 0.5,
    }


def test_the_engine_killed_and_back(scripted: Any, stage: Any) -> None:
    port = scripted.engine.port
    scripted.engine.kill()
    assert ask(scripted, "killed").status_code in (502, 503)
    stage.until(lambda: not scripted.gateway.http.get("/readyz").json()["engines"]["parrot"])
    scripted.engine = stage.Engine("m", step_ms=5, port=port)
    try:
        stage.until(lambda: scripted.gateway.http.get("/readyz").json()["engines"]["parrot"])
        assert text(ask(scripted, "killed")) and scripted.parrot.lives()
    finally:
        scripted.engine.kill()


async def behaviour(url: str) -> list[Any]:
    """What a ServeCore answers to what a careless client sends: statuses, fields, and what it says of errors."""
    seen: list[Any] = []
    # A connection for each: after an error of its own making it closes the one on which it said so.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=5, limits=limits) as http:

        async def tell(method: str, path: str, body: Any = None) -> Any:
            reply = await (http.request(method, path) if body is None else http.request(method, path, json=body))
            try:
                said = reply.json()
            except ValueError:
                said = reply.text
            known = sorted(said) if isinstance(said, dict) else said
            error = said["error"] if isinstance(said, dict) and "error" in said else ""
            seen.append((method, path.split("/")[2], reply.status_code, known, "Session" in error, "Unknown" in error))
            return said

        await tell("POST", "/v1/session")
        session = await tell("POST", "/v1/session", {})
        own = {"session_id": session["session_id"], "session_auth": session["session_auth"]}
        await tell("GET", "/v1/semantic_var/none")
        await tell("GET", "/v1/semantic_var/none", {**own, "criteria": "throughput"})
        await tell("GET", "/v1/semantic_var/none", {"session_id": 99, "criteria": "throughput"})

        def call(template: str, *parameters: Any, **more: Any) -> Any:
            how = {"func_name": "f", "model_type": "text", "cache_prefix": False, **more}
            return {**own, "template": template, "parameters": list(parameters), **how}

        given: Any = {"name": "a", "is_output": False, "value": "x"}
        out: Any = {"name": "b", "is_output": True, "sampling_config": {}}
        found = await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", given, out))
        seen.append([(sorted(one), one["is_output"], one["parameter_name"]) for one in found["param_info"]])
        seen.append(found["request_id"])
        await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", given, {**out, "sampling_config": {"seed": 1}}))
        await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", given, {**out, "seed": 1}))
        await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", given))
        await tell("POST", "/v1/semantic_call", call("{{b}}", out))
        await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", {"name": "a", "is_output": False}, out))
        await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", given, given, out))
        found = await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", given, out))
        seen.append(found["request_id"])
        out_id = found["param_info"][1]["var_id"]
        await tell("GET", f"/v1/semantic_var/{out_id}", {**own, "criteria": "sometime"})
        await tell("DELETE", f"/v1/session/{own['session_id']}")
        await tell("DELETE", f"/v1/session/{own['session_id']}", own)
        await tell("DELETE", f"/v1/session/{own['session_id']}", own)
        await tell("POST", "/v1/semantic_call", call("{{a}}{{b}}", given, out))
        await tell("GET", f"/v1/semantic_var/{out_id}", {**own, "criteria": "throughput"})
    return seen


async def test_our_serve_core_answers_as_the_real_one(start_real: Any, fake: Any, tmp_path: Any) -> None:
    core = fake.FakeCore("http://127.0.0.1:1/v1", "x")
    try:
        ours = await behaviour(await core.start())
    finally:
        await core.stop()
    with start_real(tmp_path, 1) as real:
        theirs = await asyncio.wait_for(behaviour(real.url), 30)
    assert ours == theirs
