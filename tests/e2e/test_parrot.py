"""Plain OpenAI clients on Parrot: the real gateway, a ServeCore of our own, and the engine behind the egress."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest
from stage import Engine, Gateway, chat_body, free_port, residual_uj, running, until

CORE = Path(__file__).parents[1] / "parrot" / "fake_core.py"
KEY = "0123456789abcdef0123"
MODEL = "parrot/stub-7b"
GPU = "local/gpu:0"


@pytest.fixture(scope="module")
def parrot(
    tmp_path_factory: pytest.TempPathFactory, nvml_library: Path, nvml_play: ModuleType
) -> Iterator[SimpleNamespace]:
    """`gateway` before `engine` (as `e1`) and before Parrot, whose calls end at the same engine; a measured GPU."""
    engine, port = Engine("stub-7b", step_ms=5), free_port()
    url = f"http://127.0.0.1:{port}/v1"
    core = subprocess.Popen([sys.executable, str(CORE), "0", url, KEY], stdout=subprocess.PIPE, text=True)
    assert core.stdout
    engines: list[dict[str, Any]] = [
        {"name": "parrot", "kind": "parrot", "url": core.stdout.readline().strip()},
        {"name": "e1", "kind": "vllm", "url": engine.url, "devices": [GPU]},
    ]
    engines[0]["egress"] = {"engine": "e1", "port": port, "key": KEY}
    folder = tmp_path_factory.mktemp("parrot")
    play = nvml_play.NvmlPlay(nvml_library, folder / "nvml.state")
    play.set_power_w(0, 300)
    try:
        with running(Gateway({"engines": engines}, folder, play.env)) as gateway:
            until(lambda: MODEL in [entry["id"] for entry in gateway.get("/v1/models")["data"]])
            yield SimpleNamespace(gateway=gateway, engine=engine, core=core, engines=engines)
        assert core.poll() is None, "Parrot outlives the gateway"
    finally:
        core.kill()
        core.wait()
        engine.close()


def chat(parrot: Any, run: str, **body: Any) -> httpx.Response:
    return parrot.gateway.chat({"X-Workflow-Id": run, "X-Workflow-Name": "chain"}, model=MODEL, **body)


def test_a_chain_changes_nothing_but_the_model_name(parrot: Any) -> None:
    run, client = "chain-1", parrot.gateway.openai()
    summary = ""
    for n in range(3):
        said = [{"role": "system", "content": "Sum up."}, {"role": "user", "content": f"{summary} part {n}"}]
        headers = {"X-Workflow-Id": run, "X-Workflow-Step": f"step-{n}"}
        reply = client.chat.completions.create(model=MODEL, messages=said, max_tokens=4, extra_headers=headers)
        summary = str(reply.choices[0].message.content)
        assert summary == "joule " * 4 and reply.usage.completion_tokens == 4
    log = [served for served in parrot.engine.log() if served["headers"].get("x-workflow-id") == run]
    assert [served["body"]["messages"][0]["role"] for served in log] == ["system"] * 3
    assert [served["body"]["model"] for served in log] == ["stub-7b"] * 3
    assert summary in log[2]["body"]["messages"][1]["content"]
    found = parrot.gateway.run(run)
    assert [request["engine"] for request in found["requests"]] == ["parrot"] * 3
    assert [request["output_tokens"] for request in found["requests"]] == [4] * 3
    assert {request["usage"] for request in found["requests"]} == {"engine"}
    assert found["joules"] > 0 and found["quality"] == "attributed"


def test_a_stream_is_emulated_and_its_tokens_are_the_engines(parrot: Any) -> None:
    stream = chat(parrot, "stream-1", stream=True, max_tokens=6)
    assert stream.headers["x-joulegate-stream"] == "emulated"
    assert stream.text.count('"content":"joule') == 1 and stream.text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in stream.text, "nobody asked for it"
    request = parrot.gateway.request(stream)
    assert request["output_tokens"] == 6 and request["usage"] == "engine" and request["stream"]
    assert 0 < request["ttft_s"] <= request["duration_s"]


def test_the_engines_work_is_the_requests_and_nobody_elses(parrot: Any) -> None:
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda n: chat(parrot, f"many-{n}", stream=n % 2 == 0, max_tokens=20), range(20)))
    assert [reply.status_code for reply in replies] == [200] * 20
    for reply in replies:
        assert parrot.gateway.request(reply)["joules"] > 0
    books = parrot.gateway.balance()[GPU]
    assert books["foreign_j"] == 0 and abs(residual_uj(books)) <= 1


def ask_all(parrot: Any, run: str, calls: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, httpx.Response]:
    """Named calls of one run, all sent at once: by their names, what each says and what else is in its body."""

    def ask(name: str) -> httpx.Response:
        content, body = calls[name]
        headers = {"X-Workflow-Id": run, "X-Workflow-Node": name, "X-Workflow-Step": name.partition("-")[0]}
        return parrot.gateway.chat(headers, **{"model": MODEL, "content": content, "max_tokens": 3, **body})

    with ThreadPoolExecutor(len(calls)) as pool:
        return dict(zip(calls, pool.map(ask, calls), strict=True))


def test_named_calls_become_parrots_graph(parrot: Any) -> None:
    coders = {f"coder-{n}": (f"part {n} of {{{{node:architect}}}}", {}) for n in range(2)}
    calls = {"reviewer": ("{{node:coder-0}} and {{node:coder-1}}", {}), **coders, "architect": ("design", {})}
    replies = ask_all(parrot, "coding-1", calls)
    assert [reply.status_code for reply in replies.values()] == [200] * 4
    log = {one["headers"]["x-workflow-node"]: one["body"] for one in parrot.engine.log(x_workflow_id="coding-1")}
    assert log["coder-1"]["messages"][0]["content"] == "part 1 of joule joule joule "
    assert log["reviewer"]["messages"][0]["content"] == "joule joule joule  and joule joule joule "
    dag = parrot.gateway.run("coding-1")["dag"]
    assert dag["critical_path"][0] == "architect" and dag["critical_path"][-1] == "reviewer"


def test_a_graph_may_have_calls_on_both(parrot: Any) -> None:
    direct = {"model": "stub-7b"}
    calls = {"c": ("after {{node:b}}", direct), "b": ("after {{node:a}}", {}), "a": ("one", direct)}
    replies = ask_all(parrot, "mixed-1", calls)
    assert [reply.status_code for reply in replies.values()] == [200] * 3
    said = [one["body"]["messages"][0]["content"] for one in parrot.engine.log(x_workflow_id="mixed-1")]
    assert said == ["one", "after joule joule joule ", "after joule joule joule "]
    engines = {one["node"]: one["engine"] for one in parrot.gateway.run("mixed-1")["requests"]}
    assert engines == {"a": "e1", "b": "parrot", "c": "e1"}


def test_a_graph_passes_a_gate_that_lets_one_in_at_a_time(parrot: Any) -> None:
    gateway = parrot.gateway

    def limits() -> set[int | None]:
        return {engine["limit"] for engine in gateway.get("/energy/engines")["engines"]}

    for limit in (1, None):
        gateway.configure({"engines": parrot.engines, "limits": {"in_flight": limit}})
        gateway.http.post("/admin/reload").raise_for_status()
        until(lambda limit=limit: limits() == {limit})
        calls = {"c": ("{{node:a}} {{node:b}}", {}), "b": ("{{node:a}}", {}), "a": ("one", {})}
        replies = ask_all(parrot, f"narrow-{limit}", calls)
        assert [reply.status_code for reply in replies.values()] == [200] * 3


def test_who_follows_from_a_failed_call_gets_a_424(parrot: Any) -> None:
    calls = {"c": ("{{node:b}}", {}), "b": ("{{node:a}}", {}), "a": ("one", {"stub": {"refuse": 500}})}
    replies = ask_all(parrot, "failing-1", calls)
    assert {name: reply.status_code for name, reply in replies.items()} == {"a": 502, "b": 424, "c": 424}
    assert len(parrot.engine.log(x_workflow_id="failing-1")) == 1 and parrot.core.poll() is None


def test_what_cannot_pass_is_refused_before_the_engine(parrot: Any) -> None:
    for body in ({"n": 2}, {"logprobs": True}, {"response_format": {"type": "json_object"}}):
        reply = chat(parrot, "refused", **body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, next(iter(body)))
    reply = parrot.gateway.http.post("/v1/embeddings", json={"model": MODEL, "input": "x"})
    assert reply.status_code == 400 and "cannot pass Parrot" in reply.json()["error"]["message"]
    assert not [one for one in parrot.engine.log() if one["headers"].get("x-workflow-id") == "refused"]


def test_failures_of_the_engine_are_told_and_parrot_lives(parrot: Any) -> None:
    replies = {status: chat(parrot, "fails", stub={"refuse": status}) for status in (400, 500)}
    assert [reply.status_code for reply in replies.values()] == [400, 502]
    assert chat(parrot, "fails", stub={"die_at_once": True}).status_code == 502
    assert chat(parrot, "fails", stub={"die_after": 2}, stream=True, max_tokens=5).status_code == 502
    assert chat(parrot, "fails", max_tokens=2).status_code == 200
    assert parrot.core.poll() is None


def test_a_client_that_leaves_stops_the_engine(parrot: Any) -> None:
    with pytest.raises(httpx.ReadTimeout):
        parrot.gateway.http.post(
            "/v1/chat/completions",
            json=chat_body(model=MODEL, max_tokens=5000),
            headers={"x-request-id": "leaver"},
            timeout=0.5,
        )
    [served] = until(lambda: [one for one in parrot.engine.log(x_request_id="leaver") if one["ended"]])
    assert served["end"] == "closed"
    assert parrot.core.poll() is None
