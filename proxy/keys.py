"""Whose a request is: the tenant behind a key. Without keys everybody is `default`."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxy.config import ConfigError, Key
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
        """Raises ConfigError for a key that is empty or cannot be read."""
        self._callers: dict[bytes, Caller] = {}
        for key in keys:
            if not (secret := key.secret().strip()):
                raise ConfigError(f"the key of tenant {key.tenant} is empty: anybody would have it")
            self._callers[_digest(secret.encode())] = Caller(key.tenant, key.report)

    def __bool__(self) -> bool:
        return bool(self._callers)

    def caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        """The caller behind the request's key. Raises Refusal (401)."""
        if not self._callers:
            return ANYONE
        given = headers.get(b"authorization", b"")
        token = (given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")).strip()
        caller = self._callers.get(_digest(token))
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
