"""The JSON API under `/energy`: what the ledger knows, and what is still open in the gateway."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from proxy.api import answers
from proxy.energy.ledger_file import LedgerError
from proxy.energy.ledger_reader import LedgerReader
from proxy.energy.records import Quality
from proxy.energy.views import Views
from proxy.refusal import Refusal

MAX_WAIT_S = 30.0
_FIRST_COMMIT_S = 3.0  # how long a run that only the gateway knows yet may take to reach the ledger
_UNNAMED_TENANT = "default"


@dataclass(frozen=True, slots=True)
class DeviceBooks:
    """A device's books at one moment, in microjoules; `open_uj` is read but not yet committed as one of the others."""

    counter_uj: int  # what the counter moved, from its raw readings and independent of the parts
    workflow_uj: int
    open_uj: int
    idle_uj: int
    foreign_uj: int
    gap_uj: int
    foreign_known: bool
    quality: Quality

    @property
    def residual_uj(self) -> int:
        """What the parts do not explain: 0, or the books are wrong."""
        return self.counter_uj - (self.workflow_uj + self.open_uj + self.idle_uj + self.foreign_uj + self.gap_uj)


class Live(Protocol):
    """What only the running gateway knows. All but `committed` answer at once, on the event loop."""

    def books(self) -> Mapping[str, DeviceBooks]:
        """Every device's books, all of one moment: committed parts, open ones and counter fit together."""
        ...

    def provisional_uj(self, tenant: str, run: str) -> tuple[int, dict[str, int]]:
        """Predicted microjoules that are not settled: of the run, and of each of its requests by id."""
        ...

    def unsettled(self, tenant: str, run: str) -> set[str]:
        """Ids of the run's requests that are in flight or have a joule that is not committed; none of an unknown run.

        What the ledger had of any other of its requests, before this was asked, it will have for good.
        """
        ...

    def close_run(self, tenant: str, run: str) -> bool:
        """Take no more requests into this segment of the run. False where no such run is open."""
        ...

    def views(self) -> Views:
        """What busy joules are above the loaded idle, and with all that the machine took for them."""
        ...

    def why_unknown(self, engine: str) -> str | None:
        """Why the joules of this engine's requests are not known; None where they are."""
        ...

    async def committed(self) -> None:
        """Return when the ledger commits the next time."""
        ...

    def tenant_of(self, request: Request) -> str | None:
        """Whose figures the caller may see; null for all tenants'. Raises Refusal for a caller without a key."""
        ...

    def engines(self) -> list[dict[str, Any]]:
        """The engines now: name, kind, url, up, breaker, in_flight, queued, limit, devices, sample."""
        ...


class EnergyRoute(APIRoute):
    """Every error of these paths leaves as an OpenAI error object."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        refusal = Refusal(405, f"this path does not take {scope['method']}", "method_not_allowed")
        allow = {"allow": ", ".join(sorted(self.methods or ()))}
        await Response(refusal.body(), refusal.status, allow, "application/json")(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except Refusal as refusal:
                return _answer(refusal)
            except RequestValidationError as invalid:
                fault = invalid.errors()[0]
                return _answer(Refusal(400, f"{fault['loc'][-1]}: {fault['msg']}", "invalid_parameter"))
            except LedgerError as error:
                return _answer(Refusal(503, str(error), "ledger_unavailable"))

        return answer


def _answer(refusal: Refusal) -> Response:
    return Response(refusal.body(), refusal.status, dict(refusal.text_headers()), "application/json")


Tenant = Annotated[str | None, Query(description="one tenant's figures only")]


def router(reader: LedgerReader, live: Live) -> APIRouter:
    """The `/energy` paths over a ledger and the gateway that writes it."""
    api = APIRouter(prefix="/energy", tags=["energy"], route_class=EnergyRoute)

    def scope(request: Request, asked: str | None) -> str | None:
        own = live.tenant_of(request)
        if own is not None and asked not in (None, own):
            raise Refusal(403, f"this key sees the figures of tenant {own!r} alone", "tenant_not_allowed")
        return own or asked

    async def newest(tenant: str | None, run_id: str) -> dict[str, Any] | None:
        """The run as committed. What is settled is asked before the figures are read, so that these are all there."""
        found = await asyncio.to_thread(reader.run, tenant, run_id)
        if found is None:
            return None
        unsettled = live.unsettled(found["tenant"], run_id)
        if settled := {one["id"] for one in found["requests"]} - unsettled:
            found = await asyncio.to_thread(reader.run, found["tenant"], run_id)
            if found is None:
                return None
        requests = [one | {"settled": one["id"] in settled} for one in found["requests"]]
        complete = not unsettled and all(one["settled"] for one in requests)
        return found | {"requests": requests, "settled": complete}

    @api.get("/workflows", summary="Totals of every workflow")
    async def workflows(request: Request, tenant: Tenant = None) -> answers.Workflows:
        rows, views = await asyncio.to_thread(reader.workflows, scope(request, tenant)), live.views()
        seen = [row | views.of_engines(row["by_engine"]) for row in rows]
        return answers.Workflows.model_validate({"workflows": seen})

    @api.get("/runs", summary="Runs opened since a Unix time, newest first")
    async def runs(
        request: Request,
        workflow: str | None = None,
        since: float | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        tenant: Tenant = None,
    ) -> answers.Runs:
        rows = await asyncio.to_thread(reader.runs, scope(request, tenant), workflow, since, limit)
        return answers.Runs.model_validate({"runs": rows})

    @api.get("/runs/{run_id:path}", summary="One run with its requests; `wait` seconds for settled figures")
    async def run(
        request: Request,
        run_id: str,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S)] = 0.0,
        tenant: Tenant = None,
    ) -> answers.Run:
        whose = scope(request, tenant)
        clock = asyncio.get_running_loop().time
        begun = clock()
        while True:
            unknown = not live.unsettled(whose or _UNNAMED_TENANT, run_id)
            found = await newest(whose, run_id)
            if found is None and unknown:
                raise Refusal(404, f"no run {run_id!r} is known", "run_not_found")
            left_s = begun + max(wait, 0.0 if found else _FIRST_COMMIT_S) - clock()
            if (found and found["settled"]) or left_s <= 0:
                break
            try:
                await asyncio.wait_for(live.committed(), left_s)
            except TimeoutError:
                continue
        if found is None:
            raise Refusal(503, f"run {run_id!r} has not reached the ledger yet; ask again", "ledger_behind")
        return answers.Run.model_validate(found | _open(live, found))

    @api.post("/runs/{run_id:path}/close", summary="Say that a run is complete")
    async def close(request: Request, run_id: str, tenant: Tenant = None) -> answers.Closed:
        whose = scope(request, tenant)
        found = await asyncio.to_thread(reader.run, whose, run_id)
        owner = found["tenant"] if found else whose or _UNNAMED_TENANT
        if live.close_run(owner, run_id):  # final it becomes with its last joule
            return answers.Closed(run=run_id, tenant=owner, state="open")
        if found is None:
            raise Refusal(404, f"no run {run_id!r} is known", "run_not_found")
        return answers.Closed(run=run_id, tenant=owner, state=found["state"])

    @api.get("/requests/{request_id:path}", summary="What one request cost")
    async def one_request(request: Request, request_id: str, tenant: Tenant = None) -> answers.RequestAlone:
        whose = scope(request, tenant)
        found = await asyncio.to_thread(reader.request, request_id)
        if found is None or whose not in (None, found["tenant"]):
            raise Refusal(404, f"no request {request_id!r} is known", "request_not_found")
        settled = request_id not in live.unsettled(found["tenant"], found["run"])
        if settled:  # asked before the figures are read, so that these are all there
            found = await asyncio.to_thread(reader.request, request_id) or found
        _, open_uj = live.provisional_uj(found["tenant"], found["run"])
        state = {"settled": settled, **_provisional(open_uj.get(request_id, 0)), **_why_unknown(live, [found])}
        return answers.RequestAlone.model_validate(found | state | live.views().of_places(found["by_place"]))

    @api.get("/engines", summary="The engines, and what their requests have cost")
    async def engines(request: Request) -> answers.Engines:
        scope(request, None)
        costs = await asyncio.to_thread(reader.engines)
        unknown = {"joules": None, "joules_low": None, "joules_high": None, "quality": None, "by_component": {}}
        now = {engine["name"]: engine for engine in live.engines()}
        rows = [
            {"name": name} | now.get(name, {}) | costs.get(name, unknown)
            for name in [*now, *sorted(costs.keys() - now)]
        ]
        return answers.Engines.model_validate({"engines": rows})

    @api.get("/balance", summary="Per device: what became of its counter, to the microjoule")
    async def balance(request: Request) -> dict[str, answers.Balance]:
        scope(request, None)
        return {device: _balance(books) for device, books in live.books().items()}

    return api


def _open(live: Live, run: dict[str, Any]) -> dict[str, Any]:
    """What is predicted for a run and for each of its requests, beside what is settled."""
    total_uj, by_request = (0, {}) if run["settled"] else live.provisional_uj(run["tenant"], run["run"])
    views, places = live.views(), Counter[tuple[str, str]]()
    requests: list[dict[str, Any]] = []
    for request in run["requests"]:
        places.update(request["by_place"])
        beside = _provisional(by_request.get(request["id"], 0)) | _why_unknown(live, [request])
        requests.append(request | beside | views.of_places(request["by_place"]))
    beside = _provisional(total_uj) | _why_unknown(live, run["requests"]) | views.of_places(places)
    return {"requests": requests, **beside}


def _why_unknown(live: Live, requests: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Why no joule is known of any of these requests, where the engine of one of them says so."""
    if any(request["joules"] is not None for request in requests):
        return {"why_unknown": None}
    engines = dict.fromkeys(request["engine"] for request in requests if request["engine"] is not None)
    return {"why_unknown": next(filter(None, map(live.why_unknown, engines)), None)}


def _provisional(open_uj: int) -> dict[str, Any]:
    return {"open_joules": open_uj / 1e6, "provisional": open_uj > 0}


def _balance(books: DeviceBooks) -> answers.Balance:
    nothing_foreign = not books.foreign_known and books.foreign_uj == 0
    return answers.Balance(
        counter_j=books.counter_uj / 1e6,
        workflow_j=books.workflow_uj / 1e6,
        open_j=books.open_uj / 1e6,
        idle_j=books.idle_uj / 1e6,
        foreign_j=None if nothing_foreign else books.foreign_uj / 1e6,
        gap_j=books.gap_uj / 1e6,
        residual_j=books.residual_uj / 1e6,
        quality=books.quality,
    )
