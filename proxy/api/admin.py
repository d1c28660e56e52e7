"""What an operator may tell a running gateway."""

from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from proxy.api.energy import EnergyRoute
from proxy.config import ConfigError
from proxy.refusal import Refusal

Authorize = Callable[[Request], None]
"""Raises Refusal for a caller who may not."""


class Reloaded(BaseModel):
    changes: str


def loopback_only(request: Request) -> None:
    """Who is on this machine may. Raises Refusal (403)."""
    host = request.client.host if request.client else ""
    try:
        local = ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        local = False
    if not local:
        raise Refusal(403, "without an admin key this is for callers on the gateway's own machine", "not_allowed")


def router(reload: Callable[[], Awaitable[str]], authorize: Authorize = loopback_only) -> APIRouter:
    """The `/admin` paths. `reload` reads the configuration again, says what changed, or raises ConfigError."""

    def allowed(request: Request) -> None:
        authorize(request)

    api = APIRouter(prefix="/admin", tags=["admin"], route_class=EnergyRoute, dependencies=[Depends(allowed)])

    @api.post("/reload", summary="Read the configuration file again; no request is dropped")
    async def reload_configuration() -> Reloaded:
        try:
            return Reloaded(changes=await reload())
        except ConfigError as error:
            raise Refusal(422, str(error), "invalid_configuration") from None

    return api
