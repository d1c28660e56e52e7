"""`/energy/policy`: every decision explained."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from proxy.api.energy import EnergyRoute


class Measured(BaseModel):
    """What all engines' devices spent while one policy, or the default, held; idle time and its joules included."""

    seconds: float
    joules: float
    requests: int
    requests_held: int
    output_tokens: int
    joules_per_request: float | None
    joules_per_output_token: float | None
    mean_wait_s: float | None


class Groups(BaseModel):
    """Who left the gate together in the last minute, of those that were held there and have ended."""

    count: int
    mean_size: float | None
    largest: int | None
    mean_wait_s: float | None


class Entry(BaseModel):
    """A decision for as long as it stayed about the same; `preview` is its worth in watts by the fitted prices."""

    t: float
    last: float
    times: int
    standing: str
    why: str | None
    reason: str
    reasons: dict[str, str]
    decision: dict[str, Any]
    preview: dict[str, Any] | None


class PolicyReport(BaseModel):
    """The policy, who holds the gateway (`standing`), what is in force and why, what it knows, and what was measured.

    `measured` is by policy; `observe` stands for the default, whoever brought it about. Loads differ between the times
    that it compares, so it is an indication and no experiment.
    """

    policy: str
    standing: str
    why: str | None
    now: float
    reason: str
    reasons: dict[str, str]
    decision: dict[str, Any]
    workflows: dict[str, dict[str, Any]]
    engines: dict[str, dict[str, Any]]
    devices: dict[str, dict[str, Any]]
    groups: Groups
    measured: dict[str, Measured]
    setbacks: dict[str, int]
    history: list[Entry]


def router(report: Callable[[], dict[str, Any]]) -> APIRouter:
    api = APIRouter(prefix="/energy", tags=["policy"], route_class=EnergyRoute)

    @api.get("/policy", summary="The last decisions, their reasons, and what was measured under them")
    async def policy() -> PolicyReport:
        return PolicyReport.model_validate(report())

    return api
