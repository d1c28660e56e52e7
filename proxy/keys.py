"""Whose a request is: the tenant behind a key. Without keys everybody is `default`."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.config import Key
from proxy.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the tenant, and whether every reply should carry its energy."""

    tenant: str
    report: bool = False


ANYONE = Caller("default")


class Keys:
    """Looks keys up by their digest, so that neither content nor length shows in the time it takes."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._callers = {_digest(key.secret().encode()): Caller(key.tenant, key.report) for key in keys}

    def __bool__(self) -> bool:
        return bool(self._callers)

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """The caller behind the request's key. Raises Refusal (401)."""
        if not self._callers:
            return ANYONE
        given = headers.get(b"authorization", b"")
        token = given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        caller = self._callers.get(_digest(token.strip()))
        if caller is None:
            what = (
                "Incorrect API key provided."
                if token
                else "No API key provided: send it as 'Authorization: Bearer KEY'."
            )
            raise Refusal(401, what, "invalid_api_key")
        return caller


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
