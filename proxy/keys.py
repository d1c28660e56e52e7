"""Whose a request is and what it may see. Without keys everybody is the tenant `default`, but for web pages."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from proxy.budget import Terms
from proxy.config import Admin, ConfigError, Key
from proxy.loopback import is_here
from proxy.quota import Bucket, Quota
from proxy.refusal import Refusal

Headers = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `models` are those that the key may use, None for all; `quota` is shared by all its requests.

    `budget` counts what the whole tenant spends.
    """

    tenant: str
    report: bool = False
    models: frozenset[str] | None = None
    quota: Quota | None = field(default=None, compare=False)
    budget: Terms | None = None

    def may_use(self, model: str) -> bool:
        return self.models is None or model in self.models


ANYONE = Caller("default")


class Keys:
    """Looks keys up by their SHA-256.

    The time of a look-up depends on the digest alone, and who does not know a key cannot steer its digest towards one
    that is stored: it tells nothing, as a comparison in constant time does, and takes no longer with a thousand keys.
    """

    def __init__(self, keys: Sequence[Key], admin: Admin | None = None, to_all: bool = False) -> None:
        """With no keys, web pages from elsewhere are served only if everything is open `to_all`.

        Raises ConfigError for a key that is empty, cannot be read, or is given twice.
        """
        self._to_all = to_all
        self._admin = admin.digest() if admin else None
        self._callers: dict[bytes, Caller] = {}
        for key in keys:
            digest = key.digest()
            if digest == self._admin or digest in self._callers:
                raise ConfigError(f"{key.whose} is somebody else's too: give each its own")
            self._callers[digest] = _caller(key)

    def carry_on(self, before: "Keys") -> None:
        """Let each key have used already what it had used of its allowance in an earlier configuration."""
        for digest, caller in self._callers.items():
            was = before._callers.get(digest)
            if was is not None and was.quota is not None and caller.quota is not None:
                was.quota.change(caller.quota)
                self._callers[digest] = replace(caller, quota=was.quota)

    def __bool__(self) -> bool:
        return bool(self._callers)

    @property
    def budgets(self) -> list[tuple[str, Terms]]:
        """The budgets of all keys, each with its tenant."""
        return [(caller.tenant, caller.budget) for caller in self._callers.values() if caller.budget is not None]

    @property
    def are_none(self) -> bool:
        """There is no key at all, so everybody may do everything."""
        return not self._callers and self._admin is None

    @property
    def nobody_is_admin(self) -> bool:
        """Tenants have keys but nobody has the admin's, so what is the admin's alone is closed."""
        return bool(self._callers) and self._admin is None

    def caller(self, headers: Headers) -> Caller:
        """Who sends a request to an engine. Raises Refusal: 401 without a key, 403 with the admin's or for a page."""
        if b"origin" in headers:
            self._check_page(headers)
        if self.are_none:
            return ANYONE
        token = _token(headers)
        digest = _digest(token)
        if self._is_admins(digest):
            raise Refusal(403, "The admin key sends no requests: use a tenant's.", "admin_key")
        if not self._callers:
            return ANYONE
        caller = self._callers.get(digest)
        if caller is None:
            raise _unknown(token)
        return caller

    def is_admin(self, headers: Headers) -> bool:
        """Whether the caller may see everything: with the admin key, or where there is no key at all."""
        if self._admin is None:
            return not self._callers and (self._to_all or not _is_page_elsewhere(headers))
        return self._is_admins(_digest(_token(headers)))

    def _check_page(self, headers: Headers) -> None:
        if not self._callers and not self._to_all and _is_page_elsewhere(headers):
            what = "Without keys no web page from elsewhere is served: configure keys, or say listen.open: true."
            raise Refusal(403, what, "origin_not_allowed")

    def _is_admins(self, digest: bytes) -> bool:
        return self._admin is not None and hmac.compare_digest(digest, self._admin)

    def tenant(self, headers: Headers) -> str | None:
        """Whose figures the caller may see; None is everybody's. Raises Refusal (401)."""
        return None if self.is_admin(headers) else self.caller(headers).tenant

    def require_admin(self, headers: Headers) -> None:
        """Raises Refusal: 401 without a key that we know, 403 with a tenant's or for a page."""
        if self.is_admin(headers):
            return
        self._check_page(headers)
        token = _token(headers)
        if _digest(token) not in self._callers:
            raise _unknown(token)
        hint = "none is configured" if self._admin is None else "this is a tenant's"
        raise Refusal(403, f"This takes the admin key; {hint}.", "admin_only")


def _is_page_elsewhere(headers: Headers) -> bool:
    """Whether a browser sends it for a page that is not of this machine.

    Whoever visits a page is inside: it could have the loopback's gateway work for it, and a name that it makes point
    here lets it read the answers. A browser says so in `origin`, and a page cannot keep it from that.
    """
    origin = headers.get(b"origin")
    if origin is None:
        return False
    try:
        parts = urlsplit(origin.decode("ascii"))
        host = parts.hostname or ""
    except ValueError:
        return True
    if parts.scheme not in ("http", "https"):
        return origin == b"null"  # others are programs
    return not is_here(host)


def _caller(key: Key) -> Caller:
    quota = Quota(
        requests=Bucket(key.requests_per_minute) if key.requests_per_minute else None,
        tokens=Bucket(key.tokens_per_minute) if key.tokens_per_minute else None,
        most_in_flight=key.in_flight,
    )
    budget = key.budget.terms() if key.budget else None
    return Caller(key.tenant, key.report, frozenset(key.models) or None, quota, budget)


def _token(headers: Headers) -> bytes:
    given = headers.get(b"authorization", b"")
    return (given[7:] if given[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")).strip()


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _unknown(token: bytes) -> Refusal:
    what = "Incorrect API key provided." if token else "No API key provided: send it as 'Authorization: Bearer KEY'."
    return Refusal(401, what, "invalid_api_key")
