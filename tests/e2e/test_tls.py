"""TLS for the listener and towards engines."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
import trustme
from nameless_engine import NamelessEngine
from openai import OpenAI
from stage import Engine, Gateway, joulegate, running, until


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    """A certificate for 127.0.0.1 and its key, as files."""
    leaf = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    key.write_bytes(leaf.private_key_pem.bytes())
    return {"certificate": str(chain), "key": str(key)}


@pytest.fixture
def ca(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return str(tmp_path / "ca.pem")


@pytest.mark.scripted
def test_the_listener_speaks_tls(tmp_path: Path, engine: Engine, certificate: dict[str, str], ca: str) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    gateway = Gateway({"engines": engines, "listen": {"port": 0, "tls": certificate}}, tmp_path)
    gateway.verify = ssl.create_default_context(cafile=ca)
    with running(gateway):
        assert gateway.url.startswith("https://")
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", http_client=trusting(ca))
        stream = client.completions.create(model="stub-7b", prompt="x", max_tokens=3, stream=True)
        assert "".join(part.choices[0].text for part in stream) == "joule " * 3
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{gateway.url}/healthz")
        with pytest.raises(httpx.HTTPError):
            httpx.get(gateway.url.replace("https", "http") + "/healthz")
        old = ssl.create_default_context(cafile=ca)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(f"{gateway.url}/healthz", verify=old).status_code == 200


def trusting(ca: str) -> Any:
    return httpx2.Client(verify=ssl.create_default_context(cafile=ca))


@pytest.mark.parametrize("asks_for_ours", [False, True])
def test_engines_behind_tls(
    make_gateway: Callable[..., Gateway],
    authority: trustme.CA,
    certificate: dict[str, str],
    ca: str,
    asks_for_ours: bool,
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    context.load_cert_chain(certificate["certificate"], certificate["key"])
    context.verify_mode = ssl.CERT_REQUIRED if asks_for_ours else ssl.CERT_NONE

    own = certificate if asks_for_ours else {}
    trust = {"good": {"ca": ca, **own}, "lax": {"verify": False, **own}, "stranger": own}
    trust |= {"silent": {"ca": ca}} if asks_for_ours else {}
    with NamelessEngine(context) as url:
        engines = [
            {"name": name, "kind": "openai", "url": url, "models": [name], "tls": tls} for name, tls in trust.items()
        ]
        gateway = make_gateway({"engines": engines})
        up = {name: name in ("good", "lax") for name in trust}
        until(lambda: gateway.get("/readyz")["engines"] == up)
        for name in trust:
            assert gateway.chat(model=name).status_code in ((200,) if up[name] else (502, 503))


def test_a_listener_whose_files_are_no_good(tmp_path: Path, engine: Engine, certificate: dict[str, str]) -> None:
    engines = [{"name": "e1", "kind": "openai", "url": engine.url}]
    listen = {"port": 0, "tls": {**certificate, "key": str(tmp_path / "none")}}
    gateway = Gateway({"engines": engines, "listen": listen}, tmp_path)
    for command in (("check", str(gateway.file)), ("serve", "-c", str(gateway.file))):
        done = joulegate(*command, env=gateway.env)
        assert done.returncode == 1
        (said,) = done.stderr.splitlines()
        assert said.endswith(f"listen.tls.key: {tmp_path}/none cannot be read: No such file or directory")
