"""Who may call what: the API groups that are on, and the scopes of the caller's token."""

from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse

from emulator.zeusd.token import ApiGroup, BadToken, Claims, read

_OPEN = ("/discover", "/time")


def group_of(path: str) -> ApiGroup | None:
    """The group that a path belongs to, and which a token for it must have as a scope; None for the others."""
    if path.startswith(("/gpu/set_", "/gpu/reset_")):
        return ApiGroup.GPU_CONTROL
    if path.startswith("/gpu/"):
        return ApiGroup.GPU_READ
    return ApiGroup.CPU_READ if path.startswith("/cpu/") else None


@dataclass(frozen=True)
class Access:
    """The rules of one daemon; without a key nobody has to show a token."""

    groups: Sequence[ApiGroup]
    key: bytes | None = None

    def __post_init__(self) -> None:
        if self.key == b"":
            raise ValueError("the signing key is empty; give some bytes, or None for no tokens")

    def check(self, request: Request, now: float) -> Claims | JSONResponse | None:
        """The caller's claims, None where none are asked for, or the refusal. `now` is in Unix seconds."""
        path = request.url.path
        group = group_of(path)
        if group is not None and group not in self.groups:
            return error(404, f"API group '{group}' is not enabled on this server.")
        if self.key is None:
            closed = path.startswith("/auth/")
            return error(404, "Authentication is not enabled on this server.") if closed else None
        if path in _OPEN:
            return None
        token = request.headers.get("authorization", "")
        if not token.startswith("Bearer ") or not token.isascii():
            return _unknown("Authentication required. Provide an Authorization: Bearer <token> header.")
        try:
            claims = read(self.key, token.removeprefix("Bearer "), now)
        except BadToken as bad:
            return _unknown(str(bad))
        if group is not None and group not in claims.scopes:
            scopes = ", ".join(f"'{scope}'" for scope in claims.scopes)
            return error(403, f"Token for user '{claims.sub}' lacks required scope '{group}'. Token scopes: [{scopes}]")
        return claims


def error(status: int, message: str) -> JSONResponse:
    """The daemon's JSON form of one error."""
    return JSONResponse({"error": message}, status)


def _unknown(message: str) -> JSONResponse:
    refusal = error(401, message)
    refusal.headers["WWW-Authenticate"] = 'Bearer realm="zeusd"'
    return refusal
