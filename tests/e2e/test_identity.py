"""Whose a request is, by what the client sends: the highest level that says something wins."""

from collections.abc import Iterator
from typing import Any

import pytest
from stage import Engine, Gateway, chat_body, running, until

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN = {"x-workflow-id": "own-1", "x-workflow-name": "own", "x-workflow-step": "s", "x-workflow-node": "n"}
# From the most trusted to the least: headers, further body, and the run and workflow that they name.
LEVELS: list[tuple[dict[str, str], dict[str, Any], str, str]] = [
    (OWN, {}, "own-1", "own"),
    ({"helicone-session-id": "tool-1", "helicone-session-name": "tool"}, {}, "tool-1", "tool"),
    ({}, {"metadata": {"workflow_id": "body-1", "workflow_name": "body"}}, "body-1", "body"),
    ({"baggage": "workflow.id=bag%2D1,workflow.name=bag;p=1"}, {}, "bag-1", "bag"),
    ({"traceparent": TRACE}, {}, TRACE[3:35], "unnamed"),
]


def test_each_level_names_the_run(gateway: Gateway) -> None:
    replies = [gateway.chat(headers, max_tokens=1, **body) for headers, body, *_ in LEVELS]
    for reply, (*_, run, workflow) in zip(replies, LEVELS, strict=True):
        found = known(gateway, reply)
        assert (found["run"], found["workflow"]) == (run, workflow)
        assert "run" in found["identified_by"]


def test_the_highest_level_wins_field_by_field(gateway: Gateway) -> None:
    headers: dict[str, str] = {}
    body: dict[str, Any] = {}
    for more, further, *_ in reversed(LEVELS):
        headers, body = headers | more, body | further
    headers["x-workflow-id"] = "own-2"
    del headers["x-workflow-name"]
    found = known(gateway, gateway.chat(headers, max_tokens=1, **body))
    assert (found["run"], found["workflow"], found["step"], found["node"]) == ("own-2", "tool", "s", "n")
    assert found["identified_by"] == {
        "run": "x-workflow-id",
        "step": "x-workflow-step",
        "node": "x-workflow-node",
        "workflow": "helicone-session-name",
    }


def test_who_says_nothing_is_a_run_of_its_own(gateway: Gateway) -> None:
    found = known(gateway, gateway.chat(max_tokens=1))
    assert (found["run"], found["workflow"], found["identified_by"]) == (found["id"], "ungrouped", {})


def test_parents_are_kept_in_their_order(gateway: Gateway) -> None:
    headers = {"x-workflow-id": "dag", "x-workflow-node": "join", "x-workflow-parent": "chunk-2, chunk-1"}
    found = known(gateway, gateway.chat(headers, max_tokens=1))
    assert (found["node"], found["parents"]) == ("join", ["chunk-2", "chunk-1"])


@pytest.mark.parametrize("header", ["x-workflow-id", "x-workflow-name", "x-workflow-step", "x-workflow-parent"])
@pytest.mark.parametrize("value", ["x" * 10_000, "caf\xe9".encode("latin-1")], ids=["10 kB", "not ASCII"])
def test_our_own_headers_must_be_good(gateway: Gateway, header: str, value: Any) -> None:
    reply = gateway.http.post("/v1/chat/completions", json=chat_body(), headers={header: value})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (
        400,
        "invalid_request_error",
        "invalid_workflow_header",
    )
    assert header in error["message"] and len(error["message"]) < 200


def test_bad_ones_of_other_tools_are_passed_over(gateway: Gateway, engine: Engine) -> None:
    headers = {"x-session-id": "x" * 10_000, "x-run-id": "next-best", "baggage": ";;=,=,%%%"}
    reply = gateway.chat(headers, max_tokens=1, metadata={"workflow_id": "y" * 10_000})
    assert reply.status_code == 200
    assert known(gateway, reply)["run"] == "next-best"
    (served,) = engine.log(x_request_id=reply.headers["x-joulegate-request-id"])
    assert served["headers"]["x-session-id"] == "x" * 10_000, "whose it is, is for others to judge"


@pytest.fixture(scope="module")
def keyed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with two tenants."""
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "b.key").write_text("key-of-b\n")
    keys = [{"tenant": "a", "key": "key-of-a"}, {"tenant": "b", "key_file": str(folder / "b.key"), "report": True}]
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    with running(Gateway({"engines": engines, "keys": keys}, folder)) as gateway:
        yield gateway


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer key-of-{tenant}"}


def test_the_same_id_of_two_tenants_is_two_runs(keyed: Gateway) -> None:
    for tenant, tokens in (("a", 3), ("b", 5)):
        reply = keyed.chat({"x-workflow-id": "same", "x-workflow-final": "true", **bearer(tenant)}, max_tokens=tokens)
        assert reply.status_code == 200
    for tenant, tokens in (("a", 3), ("b", 5)):
        found = keyed.http.get("/energy/runs/same?wait=10", headers=bearer(tenant)).json()
        assert (found["tenant"], [r["output_tokens"] for r in found["requests"]]) == (tenant, [tokens])
        workflows = keyed.get("/energy/workflows", f"key-of-{tenant}")["workflows"]
        assert [(row["tenant"], row["output_tokens"]) for row in workflows] == [(tenant, tokens)]


def test_no_tenant_sees_anothers_figures(keyed: Gateway) -> None:
    reply = keyed.chat({"x-workflow-id": "secret", **bearer("a")}, max_tokens=1)
    keyed.http.get("/energy/runs/secret?wait=10", headers=bearer("a")).raise_for_status()
    request = f"/energy/requests/{reply.headers['x-joulegate-request-id']}"
    for path, status in (("/energy/runs/secret", 404), (request, 404), ("/energy/workflows?tenant=a", 403)):
        refused = keyed.http.get(path, headers=bearer("b"))
        assert (refused.status_code, "message" in refused.json()["error"]) == (status, True)


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/energy/workflows", "/energy/balance"])
def test_without_the_right_key_nothing_is_said(keyed: Gateway, path: str, headers: dict[str, str]) -> None:
    method = "POST" if "chat" in path else "GET"
    reply = keyed.http.request(method, path, headers=headers, json=chat_body() if method == "POST" else None)
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")


def test_the_key_never_goes_upstream(keyed: Gateway, engine: Engine) -> None:
    for headers in (bearer("a"), {"x-api-key": "key-of-a"}):
        reply = keyed.chat(headers, max_tokens=1)
        (served,) = engine.log(x_request_id=reply.headers["x-joulegate-request-id"])
        assert "key-of-a" not in str(served)


def test_a_keys_own_wish_for_reports_is_granted(keyed: Gateway) -> None:
    assert "energy" in keyed.chat(bearer("b"), max_tokens=1).json()
    assert "energy" not in keyed.chat(bearer("a"), max_tokens=1).json()


def known(gateway: Gateway, reply: Any) -> dict[str, Any]:
    """The request behind a reply, as soon as the ledger has it."""

    def found() -> Any:
        got = gateway.http.get(f"/energy/requests/{reply.headers['x-joulegate-request-id']}")
        return got.json() if got.status_code == 200 else None

    return until(found)
