import hashlib
from pathlib import Path

import orjson
import pytest

from proxy.config import Admin, ConfigError, Key
from proxy.keys import Caller, Keys
from proxy.quota import Quota
from proxy.refusal import Refusal


def bearer(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()} if key else {}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    return Keys([Key(tenant="acme", key="sk-acme"), Key(tenant="lab", key_file=file, report=True)])


def test_without_keys_everybody_is_the_default_tenant() -> None:
    keys = Keys([])
    assert not keys
    assert keys.caller({b"authorization": b"Bearer whatever"}) == Caller("default")


PAGES = [b"https://evil.example", b"http://127.0.0.1.evil.example", b"null", b"http://[", b"http://\xff", b"http://"]


@pytest.mark.parametrize("origin", PAGES)
def test_without_keys_no_page_from_elsewhere_is_served(origin: bytes) -> None:
    page, closed, open_ = {b"origin": origin}, Keys([]), Keys([], to_all=True)
    for refused in (closed.caller, closed.require_admin, closed.tenant, Keys([], Admin(key="sk-1")).caller):
        with pytest.raises(Refusal, match="no web page") as refusal:
            refused(page)
        assert (refusal.value.status, refusal.value.code) == (403, "origin_not_allowed")
    assert not closed.is_admin(page)
    assert open_.is_admin(page) and open_.caller(page) == Caller("default")
    open_.require_admin(page)


@pytest.mark.parametrize(
    "origin", [b"http://localhost:3000", b"https://[::1]:8443", b"http://a.localhost", b"vscode-webview://1"]
)
def test_pages_and_programs_of_this_machine_are(origin: bytes) -> None:
    assert Keys([]).caller({b"origin": origin}) == Caller("default")
    assert Keys([]).is_admin({b"origin": origin})


def test_a_page_with_a_key_is_its_tenant(keys: Keys) -> None:
    assert keys.caller({b"origin": PAGES[0], **bearer("sk-acme")}).tenant == "acme"


@pytest.mark.parametrize(
    "headers",
    [
        {b"authorization": b"Bearer from-a-file"},
        {b"authorization": b"bearer  from-a-file "},
        {b"x-api-key": b"from-a-file"},
        {b"authorization": b"Basic abc", b"x-api-key": b"from-a-file"},
    ],
)
def test_a_key_names_its_tenant(keys: Keys, headers: dict[bytes, bytes]) -> None:
    assert keys and keys.caller(headers) == Caller("lab", report=True)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "No API key"),
        ({b"authorization": b"Bearer "}, "No API key"),
        ({b"authorization": b"Bearer sk-acm"}, "Incorrect"),
        ({b"authorization": b"sk-acme"}, "No API key"),
        ({b"x-api-key": b"\xff\x00"}, "Incorrect"),
    ],
)
def test_anything_else_is_refused_without_repeating_it(keys: Keys, headers: dict[bytes, bytes], says: str) -> None:
    with pytest.raises(Refusal, match=says) as refusal:
        keys.caller(headers)
    error = orjson.loads(refusal.value.body())["error"]
    assert refusal.value.status == 401
    assert (error["type"], error["code"], error["param"]) == ("authentication_error", "invalid_api_key", None)
    assert "acm" not in error["message"]


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_key_opens_no_door(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    for key in (Key(tenant="acme", key=text), Key(tenant="acme", key_file=file)):
        with pytest.raises(ConfigError, match="acme"):
            Keys([key])
    with pytest.raises(ConfigError, match="the admin key is empty"):
        Keys([], Admin(key=text))


def test_a_hash_stands_for_the_key_that_has_it() -> None:
    digest = hashlib.sha256(b"sk-acme").hexdigest()
    keys = Keys([Key(tenant="acme", key_hash=f"sha256:{digest}")])
    assert keys.caller(bearer("sk-acme")) == Caller("acme")
    with pytest.raises(Refusal, match="Incorrect"):
        keys.caller(bearer(f"sha256:{digest}"))


def test_no_two_share_a_key() -> None:
    same = Key(tenant="acme", key="sk-1"), Key(tenant="lab", key_hash=f"sha256:{hashlib.sha256(b'sk-1').hexdigest()}")
    with pytest.raises(ConfigError, match="the key of tenant lab is somebody else's too"):
        Keys(same)
    with pytest.raises(ConfigError, match="the key of tenant acme"):
        Keys(same[:1], Admin(key="sk-1"))


def test_a_key_of_few_models() -> None:
    caller = Keys([Key(tenant="acme", key="k", models=("a", "b"))]).caller(bearer("k"))
    assert caller.may_use("a") and not caller.may_use("c")
    assert Keys([Key(tenant="acme", key="k")]).caller(bearer("k")).may_use("c")


def test_two_keys_of_a_tenant_have_a_quota_each() -> None:
    keys = Keys([Key(tenant="acme", key="k1", in_flight=1), Key(tenant="acme", key="k2", in_flight=1)])
    one, other = keys.caller(bearer("k1")).quota, keys.caller(bearer("k2")).quota
    assert one and other and one is not other and keys.caller(bearer("k1")).quota is one


# What the admin's key opens ------------------------------------------------------------------------------------------


def seen(keys: Keys, headers: dict[bytes, bytes]) -> str | int | None:
    """Whose figures are shown, or the status of the refusal."""
    try:
        return keys.tenant(headers)
    except Refusal as refusal:
        return refusal.status


def admitted(keys: Keys, headers: dict[bytes, bytes]) -> int | None:
    try:
        return keys.require_admin(headers)
    except Refusal as refusal:
        return refusal.status


TENANT = [Key(tenant="acme", key="sk-acme")]
ADMIN = Admin(key="sk-admin")


@pytest.mark.parametrize(
    ("keys", "nobody", "tenant", "admin"),
    [
        (Keys([]), None, None, None),
        (Keys(TENANT), 401, "acme", 401),
        (Keys(TENANT, ADMIN), 401, "acme", None),
        (Keys([], ADMIN), "default", "default", None),
    ],
    ids=["no key at all", "keys", "keys and an admin", "an admin alone"],
)
def test_who_sees_whose_figures(keys: Keys, nobody: object, tenant: object, admin: object) -> None:
    assert [seen(keys, bearer(key)) for key in ("", "sk-acme", "sk-admin")] == [nobody, tenant, admin]


@pytest.mark.parametrize(
    ("keys", "nobody", "tenant", "admin"),
    [
        (Keys([]), None, None, None),
        (Keys(TENANT), 401, 403, 401),
        (Keys(TENANT, ADMIN), 401, 403, None),
        (Keys([], ADMIN), 401, 401, None),
    ],
    ids=["no key at all", "keys", "keys and an admin", "an admin alone"],
)
def test_who_passes_as_admin(keys: Keys, nobody: object, tenant: object, admin: object) -> None:
    assert [admitted(keys, bearer(key)) for key in ("", "sk-acme", "sk-admin")] == [nobody, tenant, admin]
    assert [keys.is_admin(bearer(key)) for key in ("", "sk-acme", "sk-admin")] == [
        status is None for status in (nobody, tenant, admin)
    ]


@pytest.mark.parametrize("keys", [Keys(TENANT, ADMIN), Keys([], ADMIN)])
def test_the_admin_key_sends_no_requests(keys: Keys) -> None:
    with pytest.raises(Refusal) as refusal:
        keys.caller(bearer("sk-admin"))
    assert (refusal.value.status, refusal.value.code) == (403, "admin_key")


def test_another_configuration_forgives_a_key_nothing() -> None:
    def used(*keys: Key) -> tuple[Keys, Quota]:
        made = Keys(keys)
        made.carry_on(before)
        quota = made.caller(bearer("sk-a")).quota
        assert quota is not None
        return made, quota

    before = Keys([Key(tenant="a", key="sk-a", requests_per_minute=1, tokens_per_minute=60)])
    entered = before.caller(bearer("sk-a")).quota
    assert entered is not None
    entered.enter(100.0)
    before, same = used(Key(tenant="b", key="sk-a", requests_per_minute=1, tokens_per_minute=60, in_flight=1))
    assert before.caller(bearer("sk-a")).tenant == "b"
    with pytest.raises(Refusal, match="1 requests in flight"):
        same.enter(130.0)
    entered.leave(120, 130.0)
    with pytest.raises(Refusal, match="1 requests a minute; try again in 30 s"):
        same.enter(130.0)
    before, wider = used(Key(tenant="b", key="sk-a", requests_per_minute=2, tokens_per_minute=60))
    with pytest.raises(Refusal, match="60 tokens a minute"):
        wider.enter(130.0)
    assert wider.requests is not None and wider.requests.wait_s(130.0) == 0


def test_where_nobody_is_admin_it_is_said() -> None:
    assert [Keys([]).nobody_is_admin, Keys(TENANT).nobody_is_admin, Keys(TENANT, ADMIN).nobody_is_admin] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("status", "kind"), [(400, "invalid_request_error"), (404, "invalid_request_error"), (429, "rate_limit_error")]
)
def test_a_refusal_is_an_openai_error_object(status: int, kind: str) -> None:
    refusal = Refusal(status, "no", "because", param="model", retry_after_s=3)
    assert orjson.loads(refusal.body()) == {
        "error": {"message": "no", "type": kind, "param": "model", "code": "because"}
    }
    assert refusal.headers() == [(b"retry-after", b"3")]
    assert Refusal(429, "no", "because", retry=False).text_headers() == {"x-should-retry": "false"}
    assert Refusal(503, "no", "because").headers() == []
