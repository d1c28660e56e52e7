"""What a run cost, as the gateway's ledger says it, and the few calls that fetch it."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlsplit

from joulegate.tagging import Origin


class EnergyUnavailable(RuntimeError):
    """A run's figures cannot be had; the message says why and what to do."""


class NotYet(EnergyUnavailable):
    """The gateway cannot say for the moment, and asks to be asked again."""


@dataclass(frozen=True)
class RequestEnergy:
    """What one request cost. None is: not known, or not yet.

    `joules_low` and `joules_high` say what another split of the devices' totals would have given this request. They
    say nothing of how right these totals are.
    """

    id: str
    step: str | None
    node: str | None
    engine: str | None
    joules: float | None
    joules_low: float | None
    joules_high: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    quality: str | None
    outcome: str | None

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> Self:
        return cls(
            id=str(request["id"]),
            step=request.get("step"),
            node=request.get("node"),
            engine=request.get("engine"),
            joules=_joules(request["joules"]),
            joules_low=_joules(request["joules_low"]),
            joules_high=_joules(request["joules_high"]),
            prompt_tokens=request.get("prompt_tokens"),
            cached_tokens=request.get("cached_tokens"),
            output_tokens=request.get("output_tokens"),
            quality=request["quality"],
            outcome=request["outcome"],
        )


@dataclass(frozen=True)
class Report:
    """What a run cost so far (`state` "open") or in all ("final"). Energies are joules.

    `quality` is "attributed" (a share of what a counter measured), "estimated" (no counter) or "emulated". It and the
    energies are None where no counter and no estimate saw the work: that is not 0 J; `why_unknown` says more.
    `critical_path` names the calls that the run's latency hangs on, where calls say what they follow from, and
    `critical_path_s` is what these took.
    """

    run: str
    workflow: str
    segment: int
    state: str
    settled: bool
    duration_s: float | None
    joules: float | None
    joules_low: float | None
    joules_high: float | None
    quality: str | None
    requests: tuple[RequestEnergy, ...]
    by_step: Mapping[str, float | None]
    critical_path: tuple[str, ...] = ()
    critical_path_s: float | None = None
    reason: str | None = None  # why no joule is known, as the gateway says it

    @property
    def final(self) -> bool:
        return self.state == "final"

    def why_unknown(self) -> str:
        """Why a settled report without joules has none, in a line for people."""
        if self.reason is not None:
            return f"the energy of run {self.run} is not known: {self.reason}"
        engines = sorted({request.engine for request in self.requests if request.engine is not None})
        if not engines:
            return f"the energy of run {self.run} is not known: none of its requests reached an engine"
        return (
            f"the energy of run {self.run} is not known: no counter saw what engine {' or '.join(engines)} did; "
            "name its devices in the gateway's configuration (devices: [host/gpu:0])"
        )

    @classmethod
    def parse(cls, run: Mapping[str, Any]) -> Self:
        """Read the gateway's JSON. Raises KeyError, TypeError or ValueError where it is not a run's."""
        dag = run.get("dag") or {}
        return cls(
            run=str(run["run"]),
            workflow=str(run["workflow"]),
            segment=int(run["segment"]),
            state=str(run["state"]),
            settled=bool(run["settled"]),
            duration_s=run.get("duration_s"),
            joules=_joules(run["joules"]),
            joules_low=_joules(run["joules_low"]),
            joules_high=_joules(run["joules_high"]),
            quality=run["quality"],
            requests=tuple(RequestEnergy.parse(request) for request in run["requests"]),
            by_step={step: _joules(share["joules"]) for step, share in run["by_step"].items()},
            critical_path=tuple(dag.get("critical_path", ())),
            critical_path_s=dag.get("critical_path_s"),
            reason=run.get("why_unknown"),
        )


def _joules(figure: Any) -> float | None:
    return None if figure is None else float(figure)


@dataclass(frozen=True)
class Gateway:
    """The gateway's JSON API. It is spoken to directly: without proxies, and redirects are not followed."""

    url: str
    origin: Origin

    @classmethod
    def at(cls, url: str) -> Self:
        """Take the gateway's own URL or the base URL that OpenAI clients use. Raises ValueError for another."""
        base = url.strip().rstrip("/").removesuffix("/v1")
        parts = urlsplit(base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the gateway's url must look like http://127.0.0.1:8080, not {url!r}")
        return cls(base, Origin.of(parts.scheme, parts.hostname, parts.port))

    def close_run(self, run_id: str, authorization: str | None, timeout_s: float) -> None:
        """Say that nothing more of the run will come. Raises EnergyUnavailable where the gateway did not take it."""
        status, body = self._ask("POST", f"/energy/runs/{quote(run_id, safe='')}/close", authorization, timeout_s)
        if status >= 400 and status != 404:  # a run without a call is unknown there, and needs no closing
            raise self._refusal(status, body)

    def report(self, run_id: str, authorization: str | None, wait_s: int) -> Report | None:
        """Fetch a run's figures, waiting up to `wait_s` for settled ones; None where the gateway knows no such run.

        Raises EnergyUnavailable, and NotYet where asking again helps.
        """
        path = f"/energy/runs/{quote(run_id, safe='')}?wait={wait_s}"
        status, body = self._ask("GET", path, authorization, timeout_s=wait_s + 5)
        if status == 404:
            return None
        if status != 200:
            raise self._refusal(status, body)
        try:
            return Report.parse(json.loads(body))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise EnergyUnavailable(f"{self.url} answered something that is no run's report ({error!r})") from error

    def _ask(self, method: str, path: str, authorization: str | None, timeout_s: float) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        connect = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = connect(parts.hostname or "", parts.port, timeout=timeout_s)
        try:
            headers = {"Authorization": authorization} if authorization else {}
            connection.request(method, parts.path + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise EnergyUnavailable(
                f"no answer from the gateway at {self.url} ({error!r}): "
                "is it running (`joulegate serve`)? Another address goes into url= or JOULEGATE_URL"
            ) from error
        finally:
            connection.close()

    def _refusal(self, status: int, body: bytes) -> EnergyUnavailable:
        if status in (401, 403):
            return EnergyUnavailable(
                f"{self.url} refused the key ({status}): give the one that the calls were made with "
                "as key= or JOULEGATE_KEY"
            )
        kind = NotYet if status == 503 else EnergyUnavailable
        return kind(f"{self.url} answered {status}: {body[:200].decode(errors='replace')}")
