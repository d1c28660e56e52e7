from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest

from emulator.zeusd.token import LEEWAY_S, ApiGroup, BadToken, Claims, issue, read

KEY = b"a key of thirty-two bytes and so"
BOTH = (ApiGroup.GPU_READ, ApiGroup.CPU_READ)


def test_what_is_issued_can_be_read() -> None:
    assert read(KEY, issue(KEY, "ada", BOTH), now=2e9) == Claims("ada", BOTH, None)
    assert read(KEY, issue(KEY, "ada", BOTH, exp=2_000_000_000), now=1e9) == Claims("ada", BOTH, 2_000_000_000)


def test_a_token_of_the_standard_is_understood() -> None:
    """RFC 7515, appendix A.1: its signature holds, and its claims are none of zeusd's."""
    key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow=="
    token = (
        "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9"
        ".eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
        ".dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"
    )
    with pytest.raises(BadToken, match=r"^Invalid token: JSON error: 'sub'"):
        read(urlsafe_b64decode(key), token, now=0)


def test_a_token_ends_a_minute_after_its_time() -> None:
    token = issue(KEY, "ada", BOTH, exp=1000)
    assert read(KEY, token, now=1000 + LEEWAY_S).sub == "ada"
    with pytest.raises(BadToken, match=r"^Token has expired\.$"):
        read(KEY, token, now=1001 + LEEWAY_S)


def encoded(text: str) -> str:
    return urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "InvalidToken"),
        ("a.b", "InvalidToken"),
        ("a.b.c.d", "InvalidToken"),
        ("!!!!!.b.c", "Base64 error"),
        (f"{encoded('no json')}.b.c", "JSON error"),
        (f"{encoded('[' * 50_000)}.b.c", "JSON error"),
        (f"{encoded('[]')}.b.c", "InvalidAlgorithm"),
        (f"{encoded('{}')}.b.c", "InvalidAlgorithm"),
        (f'{encoded("""{"alg":"none"}""")}.{encoded("""{"sub":"ada","scopes":[]}""")}.', "InvalidAlgorithm"),
        (issue(b"another key", "ada", BOTH), "InvalidSignature"),
        (issue(KEY, "ada", BOTH)[:-1] + "é", "InvalidSignature"),
        (issue(KEY, "ada", ["root"]), "JSON error: 'root' is not a valid ApiGroup"),  # pyright: ignore[reportArgumentType]
        (issue(KEY, None, BOTH), "JSON error"),  # pyright: ignore[reportArgumentType]
        (issue(KEY, "ada", BOTH, "soon"), "JSON error"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_another_token_is_refused(token: str, says: str) -> None:
    with pytest.raises(BadToken) as bad:
        read(KEY, token, now=0)
    assert str(bad.value).startswith(f"Invalid token: {says}")


def test_a_changed_claim_breaks_the_signature() -> None:
    head, _, signature = issue(KEY, "ada", [ApiGroup.GPU_READ]).split(".")
    claims = encoded('{"sub":"ada","scopes":["gpu-control"]}')
    with pytest.raises(BadToken, match="InvalidSignature"):
        read(KEY, f"{head}.{claims}.{signature}", now=0)
