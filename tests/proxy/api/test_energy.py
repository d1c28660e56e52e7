import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from proxy.api.energy import DeviceBooks, router
from proxy.energy.floor import Floor
from proxy.energy.ledger import Ledger
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.records import (
    AttemptRecord,
    Batch,
    DeviceRecord,
    EnergyRecord,
    Outcome,
    Quality,
    RequestRecord,
    RunRecord,
    WindowRecord,
)
from proxy.energy.views import Moved, Views
from proxy.refusal import Refusal

RUN = RunRecord("u1", "default", "r1", "search", 100.0, 104.0, "open")
REQUEST = RequestRecord(
    *("q1", "u1", "query", "query-1", '["q0"]', '{"run":"X-Workflow-Id"}', "/v1/completions", 100.0, "m", 0),
    *(104.0, 200, Outcome.OK, 30, 10, 8, "engine"),
)
ATTEMPT = AttemptRecord("q1", 1, "e1", 100.0, 100.0, 101.0, 104.0, 200, Outcome.OK)
ENERGY = EnergyRecord("q1", 1, "h1/gpu:0", Quality.ATTRIBUTED, "gpu", 3_000_001, 0, 2_000_000, 4_000_000)
WINDOW = WindowRecord("h1/gpu:0", 103, Quality.MEASURED, 3_000_001, 500_000, 0, 7)
DEVICE = DeviceRecord("h1/gpu:0", "gpu", "H200", Quality.MEASURED, 3_500_008, 9_000_000, 104.0)
WORTH = {"joules_wasted": 0.0, "wasted_by_reason": {}, "saved_joules": 0.0, "saved_quality": None}
WHOLE = Batch([RUN], [REQUEST], [ATTEMPT], [ENERGY], [WINDOW], [DEVICE])


@dataclass
class Gateway:
    """A gateway's live side whose every answer the test chooses."""

    ledger: Ledger
    open_uj: dict[str, dict[str, int]] = field(default_factory=dict)
    in_flight: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    devices: dict[str, DeviceBooks] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)
    floors: dict[str, Floor] = field(default_factory=dict)
    commit: asyncio.Event = field(default_factory=asyncio.Event)

    def books(self) -> Mapping[str, DeviceBooks]:
        return self.devices

    def provisional_uj(self, tenant: str, run: str) -> tuple[int, dict[str, int]]:
        by_request = self.open_uj.get(run, {})
        return sum(by_request.values()), by_request

    def unsettled(self, tenant: str, run: str) -> set[str]:
        return self.in_flight.get((tenant, run), set())

    def close_run(self, tenant: str, run: str) -> bool:
        return (tenant, run) in self.in_flight

    def views(self) -> Views:
        moved = {
            name: Moved("attributed", one.workflow_uj, one.idle_uj, one.foreign_uj, one.gap_uj)
            for name, one in self.devices.items()
        }
        return Views(moved, self.floors, {"h1": 1.5}, {"e1": "h1"})

    def why_unknown(self, engine: str) -> str | None:
        return self.withheld.get(engine)

    async def committed(self) -> None:
        await self.commit.wait()

    def tenant_of(self, request: Request) -> str | None:
        if not self.keys:
            return None
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key not in self.keys:
            raise Refusal(401, "no such key", "invalid_api_key")
        return self.keys[key]

    def engines(self) -> list[dict[str, Any]]:
        state = {"up": True, "in_flight": 2, "queued": 1, "limit": None, "devices": ["h1/gpu:0"], "sample": None}
        return [{"name": name, "kind": "vllm", "url": "http://gpu1:8000", **state} for name in ("e1", "e2")]


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    yield Gateway(ledger)
    ledger.close()


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.include_router(router(LedgerReader(gateway.ledger.path), gateway))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        yield client


async def test_a_settled_run(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(replace(WHOLE, runs=[RUN._replace(state="final")]))
    reply = await client.get("/energy/runs/r1?wait=5")
    assert reply.status_code == 200
    run = reply.json()
    assert run.pop("requests") == [
        {
            "id": "q1",
            "step": "query",
            "node": "query-1",
            "parents": ["q0"],
            "identified_by": {"run": "X-Workflow-Id"},
            "model": "m",
            "path": "/v1/completions",
            "engine": "e1",
            "attempts": 1,
            "outcome": "ok",
            "code": 200,
            "stream": False,
            "received": 100.0,
            "held_s": 0.0,
            "queued_s": 0.0,
            "duration_s": 4.0,
            "ttft_s": 1.0,
            "prompt_tokens": 30,
            "cached_tokens": 10,
            "output_tokens": 8,
            "usage": "engine",
            "settled": True,
            "joules": 3.000001,
            "joules_low": 2.0,
            "joules_high": 4.0,
            "quality": "attributed",
            **WORTH,
            "open_joules": 0.0,
            "provisional": False,
            "why_unknown": None,
            "active_joules": None,
            "full_joules": None,
            "by_component": {"gpu": 3.000001},
            "by_phase": {"prefill": 3.000001, "decode": 0.0},
        }
    ]
    assert run == {
        "run": "r1",
        "tenant": "default",
        "workflow": "search",
        "segment": 1,
        "state": "final",
        "settled": True,
        "opened": 100.0,
        "ended": 104.0,
        "duration_s": 4.0,
        "joules": 3.000001,
        "joules_low": 2.0,
        "joules_high": 4.0,
        "quality": "attributed",
        **WORTH,
        "open_joules": 0.0,
        "provisional": False,
        "why_unknown": None,
        "active_joules": None,
        "full_joules": None,
        "by_step": {"query": {"requests": 1, "joules": 3.000001, "output_tokens": 8}},
        "dag": {
            "critical_path": ["query-1"],
            "critical_path_s": 4.0,
            "critical_path_joules": 3.000001,
            "nodes": {"query-1": {"step": "query", "parents": [], "seconds": 4.0, "slack_s": 0.0, "joules": 3.000001}},
        },
    }


async def test_what_is_not_settled_is_beside_the_joules_and_marked(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(WHOLE)
    gateway.in_flight["default", "r1"] = {"q1"}
    gateway.open_uj["r1"] = {"q1": 1_500_000, "q2": 250_000}
    run = (await client.get("/energy/runs/r1")).json()
    assert (run["settled"], run["joules"], run["open_joules"], run["provisional"]) == (False, 3.000001, 1.75, True)
    assert run["requests"][0]["open_joules"] == 1.5 and run["requests"][0]["provisional"] is True
    request = (await client.get("/energy/requests/q1")).json()
    assert (request["run"], request["workflow"], request["open_joules"]) == ("r1", "search", 1.5)


async def test_joules_are_seen_above_the_floor_and_with_the_whole_machine(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    gateway.ledger.write(WHOLE)
    gateway.devices["h1/gpu:0"] = DeviceBooks(60, 30, 0, 20, 5, 5, True, Quality.MEASURED)
    gateway.floors["h1/gpu:0"] = Floor.of({"watts": 100.0, "workflow_uj": 30.0, "active_uj": 15.0})
    run = (await client.get("/energy/runs/r1")).json()
    request = (await client.get("/energy/requests/q1")).json()
    (workflow,) = (await client.get("/energy/workflows")).json()["workflows"]
    for figures in (run, run["requests"][0], request, workflow):
        assert figures["joules"] == 3.000001
        assert figures["active_joules"] == pytest.approx(3.000001 / 2, abs=1e-6)
        assert figures["full_joules"] == pytest.approx(3.000001 * 1.5 * 60 / 35, abs=1e-6)


async def test_joules_that_cannot_be_known_are_null_with_a_reason(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(replace(WHOLE, energy=[]))
    gateway.withheld["e1"] = "h1/gpu:0 is split by MIG"
    run = (await client.get("/energy/runs/r1")).json()
    request = (await client.get("/energy/requests/q1")).json()
    for figures in (run, run["requests"][0], request):
        assert figures["joules"] is None and figures["why_unknown"] == "h1/gpu:0 is split by MIG"


async def test_wait_answers_with_the_figures_of_the_commit_that_settles(
    gateway: Gateway, client: httpx.AsyncClient
) -> None:
    gateway.ledger.write(WHOLE)
    gateway.in_flight["default", "r1"] = {"q1"}
    asked = asyncio.create_task(client.get("/energy/runs/r1?wait=20"))
    await asyncio.sleep(0.05)
    assert not asked.done()
    gateway.ledger.write(Batch(energy=[ENERGY._replace(prefill_uj=0, decode_uj=7_000_000)]))
    gateway.in_flight.clear()
    gateway.commit.set()
    run = (await asked).json()
    assert run["settled"] is True and run["joules"] == 10.000001


async def test_wait_ends_with_what_is_known(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(WHOLE)
    gateway.in_flight["default", "r1"] = {"q1"}
    run = (await client.get("/energy/runs/r1?wait=0.05")).json()
    assert run["settled"] is False and run["joules"] == 3.000001


async def test_a_run_that_has_not_reached_the_ledger_is_waited_for(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.in_flight["default", "r1"] = {"q1"}
    asked = asyncio.create_task(client.get("/energy/runs/r1"))
    await asyncio.sleep(0.05)
    assert not asked.done()
    gateway.ledger.write(WHOLE)
    gateway.commit.set()
    assert (await asked).json()["settled"] is False


async def test_unknown_ids_are_openai_errors(client: httpx.AsyncClient) -> None:
    for reply, code in [
        (await client.get("/energy/runs/nope?wait=5"), "run_not_found"),
        (await client.post("/energy/runs/nope/close"), "run_not_found"),
        (await client.get("/energy/requests/nope"), "request_not_found"),
    ]:
        assert reply.status_code == 404
        error = reply.json()["error"]
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, code)
        assert "'nope'" in error["message"]


@pytest.mark.parametrize("query", ["runs/r1?wait=31", "runs/r1?wait=soon", "runs?limit=0", "runs?since=yesterday"])
async def test_bad_parameters_are_openai_errors(client: httpx.AsyncClient, query: str) -> None:
    reply = await client.get(f"/energy/{query}")
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "invalid_parameter"
    assert query.partition("?")[2].partition("=")[0] in reply.json()["error"]["message"]


async def test_an_unusable_ledger_is_a_503(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.path.unlink()
    reply = await client.get("/energy/workflows")
    assert reply.status_code == 503 and reply.json()["error"]["code"] == "ledger_unavailable"


async def test_runs_and_workflows_are_listed(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(WHOLE)
    gateway.ledger.write(Batch([RUN._replace(uid="u2", run="r2", workflow="chat", opened=200.0, ended=201.0)]))
    listed = (await client.get("/energy/runs", params={"workflow": "search", "since": 50})).json()["runs"]
    assert [(run["run"], run["requests"], run["joules"], run["output_tokens"]) for run in listed] == [
        ("r1", 1, 3.000001, 8)
    ]
    assert [run["run"] for run in (await client.get("/energy/runs?since=150")).json()["runs"]] == ["r2"]
    search, chat = (await client.get("/energy/workflows")).json()["workflows"]
    assert (search["workflow"], search["runs"], search["joules_per_run"]) == ("search", 1, 3.000001)
    assert chat["quality"] is None and chat["joules"] is None and chat["joules_per_run"] is None
    assert search["by_step"] == {"query": {"requests": 1, "joules": 3.000001, "output_tokens": 8}}


async def test_ids_with_slashes_and_spaces(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(replace(WHOLE, runs=[RUN._replace(run="team a/run 1/close")]))
    gateway.in_flight["default", "team a/run 1/close"] = {"q1"}
    reply = await client.get("/energy/runs/team%20a%2Frun%201%2Fclose")
    assert reply.json()["run"] == "team a/run 1/close"
    closed = await client.post("/energy/runs/team%20a%2Frun%201%2Fclose/close")
    assert closed.json() == {"run": "team a/run 1/close", "tenant": "default", "state": "open"}


async def test_closing_a_run_twice_says_its_state(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(replace(WHOLE, runs=[RUN._replace(state="final")]))
    reply = await client.post("/energy/runs/r1/close")
    assert reply.status_code == 200 and reply.json()["state"] == "final"


async def test_a_run_is_open_until_it_is_final(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(replace(WHOLE, runs=[RUN._replace(state="closed")]))
    assert (await client.get("/energy/runs/r1")).json()["state"] == "open"
    assert (await client.get("/energy/runs")).json()["runs"][0]["state"] == "open"
    assert (await client.post("/energy/runs/r1/close")).json()["state"] == "open"


async def test_what_no_counter_saw_is_null_in_every_answer(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(Batch([RUN], [REQUEST], [ATTEMPT]))
    run = (await client.get("/energy/runs/r1")).json()
    listed = (await client.get("/energy/runs")).json()["runs"][0]
    request = (await client.get("/energy/requests/q1")).json()
    workflow = (await client.get("/energy/workflows")).json()["workflows"][0]
    for figures in (run, run["requests"][0], listed, request, workflow):
        assert [figures[key] for key in ("joules", "joules_low", "joules_high", "quality")] == [None] * 4
    assert run["by_step"]["query"]["joules"] is None and run["settled"] is True
    assert [workflow[f"joules_{of}"] for of in ("per_run", "per_output_token", "wasted")] == [None] * 3


@pytest.mark.parametrize(
    ("method", "path"), [("DELETE", "runs"), ("POST", "runs/r1"), ("PUT", "workflows"), ("POST", "balance")]
)
async def test_a_wrong_method_is_an_openai_error(client: httpx.AsyncClient, method: str, path: str) -> None:
    reply = await client.request(method, f"/energy/{path}")
    assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
    error = reply.json()["error"]
    assert error == {
        "message": f"this path does not take {method}",
        "type": "invalid_request_error",
        "param": None,
        "code": "method_not_allowed",
    }


async def test_a_key_sees_its_own_tenant_alone(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.keys = {"ka": "a", "kb": "b"}
    gateway.ledger.write(replace(WHOLE, runs=[RUN._replace(tenant="a")]))
    gateway.ledger.write(Batch([RUN._replace(uid="u2", tenant="b", opened=200.0, ended=200.0)]))
    assert (await client.get("/energy/workflows")).status_code == 401
    as_a, as_b = ({"Authorization": f"Bearer {key}"} for key in gateway.keys)
    for headers, tenant in [(as_a, "a"), (as_b, "b")]:
        assert (await client.get("/energy/runs/r1", headers=headers)).json()["tenant"] == tenant
        listed = (await client.get("/energy/runs", headers=headers)).json()["runs"]
        assert [run["tenant"] for run in listed] == [tenant]
    assert (await client.get("/energy/requests/q1", headers=as_a)).status_code == 200
    assert (await client.get("/energy/requests/q1", headers=as_b)).status_code == 404
    assert (await client.get("/energy/runs?tenant=a", headers=as_b)).status_code == 403


async def test_one_run_id_of_two_tenants_without_keys(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(replace(WHOLE, runs=[RUN._replace(tenant="a")]))
    gateway.ledger.write(Batch([RUN._replace(uid="u2", tenant="b", opened=200.0, ended=200.0)]))
    assert (await client.get("/energy/runs/r1")).json()["tenant"] == "b"
    assert (await client.get("/energy/runs/r1?tenant=a")).json()["tenant"] == "a"


async def test_engines_have_their_state_and_what_they_cost(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(WHOLE)
    gateway.ledger.write(Batch(attempts=[ATTEMPT._replace(n=2, engine="gone")], energy=[ENERGY._replace(attempt=2)]))
    e1, e2, gone = (await client.get("/energy/engines")).json()["engines"]
    assert (e1["name"], e1["up"], e1["in_flight"], e1["by_component"]) == ("e1", True, 2, {"gpu": 3.000001})
    assert (e2["name"], e2["joules"], e2["quality"]) == ("e2", None, None)
    assert (gone["name"], gone["up"], gone["joules"]) == ("gone", None, 3.000001)


async def test_the_balance_is_exact_and_says_what_is_missing(gateway: Gateway, client: httpx.AsyncClient) -> None:
    gateway.ledger.write(WHOLE)
    parts = LedgerReader(gateway.ledger.path).parts()["h1/gpu:0"]
    books = DeviceBooks(3_500_010, open_uj=2, foreign_known=False, quality=Quality.MEASURED, **parts._asdict())
    wrong = replace(books, counter_uj=3_500_011, foreign_known=True)
    was_known = replace(books, foreign_uj=5, idle_uj=499_995)
    gateway.devices = {"h1/gpu:0": books, "h1/gpu:1": wrong, "h1/gpu:2": was_known}
    balance = (await client.get("/energy/balance")).json()
    assert balance["h1/gpu:0"] == {
        "counter_j": 3.50001,
        "workflow_j": 3.000001,
        "open_j": 0.000002,
        "idle_j": 0.5,
        "foreign_j": None,
        "gap_j": 0.000007,
        "residual_j": 0.0,
        "quality": "measured",
    }
    assert (balance["h1/gpu:1"]["residual_j"], balance["h1/gpu:1"]["foreign_j"]) == (0.000001, 0.0)
    assert balance["h1/gpu:2"]["foreign_j"] == 0.000005  # known once: it stays in the sum, so it is shown


async def test_openapi_describes_the_answers(client: httpx.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert set(paths) == {
        "/energy/workflows",
        "/energy/runs",
        "/energy/runs/{run_id}",
        "/energy/runs/{run_id}/close",
        "/energy/requests/{request_id}",
        "/energy/engines",
        "/energy/balance",
    }
    schema = paths["/energy/runs/{run_id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/Run")
