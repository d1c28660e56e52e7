"""The tokens of zeusd: JSON Web Tokens signed with HMAC-SHA256 (RFC 7515, RFC 7519), issued and read."""

import binascii
import hmac
import json
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LEEWAY_S = 60  # for how long the daemon's library lets an expired token pass


class ApiGroup(StrEnum):
    """What a daemon serves and a token allows."""

    GPU_CONTROL = "gpu-control"
    GPU_READ = "gpu-read"
    CPU_READ = "cpu-read"


@dataclass(frozen=True, slots=True)
class Claims:
    """Who bears a token, what it allows, and until which Unix second; None for ever."""

    sub: str
    scopes: tuple[ApiGroup, ...]
    exp: int | None = None


class BadToken(Exception):
    """A token that is none, was signed by another, or has expired; the message is the daemon's."""


def issue(key: bytes, sub: str, scopes: Sequence[ApiGroup], exp: int | None = None) -> str:
    """A token for `sub`, good until the Unix second `exp`."""
    claims = {"sub": sub, "scopes": list(scopes)} | ({} if exp is None else {"exp": exp})
    message = ".".join(_encoded(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "HS256"}, claims))
    return f"{message}.{_encoded(_signature(key, message))}"


def read(key: bytes, token: str, now: float) -> Claims:
    """The claims of a token. Raises BadToken; `now` is in Unix seconds."""
    try:
        message, signature = token.rsplit(".", 1)
        head, body = message.split(".")
    except ValueError:
        raise BadToken("Invalid token: InvalidToken") from None
    header = _decoded_json(head)
    if not isinstance(header, dict) or header.get("alg") != "HS256":
        raise BadToken("Invalid token: InvalidAlgorithm")
    if not hmac.compare_digest(_encoded(_signature(key, message)).encode(), signature.encode()):
        raise BadToken("Invalid token: InvalidSignature")
    claims = _claims(_decoded_json(body))
    if claims.exp is not None and claims.exp < now - LEEWAY_S:
        raise BadToken("Token has expired.")
    return claims


def _claims(body: Any) -> Claims:
    try:
        sub, scopes, exp = body["sub"], tuple(ApiGroup(scope) for scope in body["scopes"]), body.get("exp")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadToken(f"Invalid token: JSON error: {error}") from None
    if not isinstance(sub, str) or not (exp is None or type(exp) is int):
        raise BadToken("Invalid token: JSON error: sub is not a string, or exp not a number")
    return Claims(sub, scopes, exp)


def _signature(key: bytes, message: str) -> bytes:
    return hmac.digest(key, message.encode(), "sha256")


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded_json(text: str) -> Any:
    try:
        return json.loads(b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except binascii.Error as error:
        raise BadToken(f"Invalid token: Base64 error: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadToken(f"Invalid token: JSON error: {error}") from None
