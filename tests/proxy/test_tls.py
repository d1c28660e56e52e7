import ssl
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization as how

from proxy.config import ConfigError, EngineTls, Tls
from proxy.tls import engine_context, listener_context

AUTHORITY = trustme.CA()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A chain and its key, the key of another, an authority, and files that are none of these."""
    leaf, other = AUTHORITY.issue_cert("127.0.0.1"), AUTHORITY.issue_cert("127.0.0.1")
    content = {
        "chain": leaf.cert_chain_pems[0].bytes(),
        "key": leaf.private_key_pem.bytes(),
        "other": other.private_key_pem.bytes(),
        "both": leaf.private_key_and_cert_chain_pem.bytes(),
        "ca": AUTHORITY.cert_pem.bytes(),
        "text": b"no PEM",
    }
    files = {name: tmp_path / name for name in content}
    for name, path in files.items():
        path.write_bytes(content[name])
    return {**files, "none": tmp_path / "none"}


def test_a_listener_takes_nothing_older_than_tls_1_2(files: dict[str, Path]) -> None:
    context = listener_context(Tls(certificate=files["chain"], key=files["key"]))
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_an_engine_is_verified_unless_told_otherwise(files: dict[str, Path]) -> None:
    context = engine_context(EngineTls(), "e1")
    assert context.check_hostname and context.verify_mode is ssl.CERT_REQUIRED
    assert engine_context(EngineTls(ca=files["ca"]), "e1").cert_store_stats()["x509_ca"] == 1
    context = engine_context(EngineTls(verify=False, certificate=files["both"]), "e1")
    assert not context.check_hostname and context.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("chain", "key", "says"),
    [
        ("none", "key", "listen.tls.certificate: {none} cannot be read: No such file or directory"),
        ("chain", "none", "listen.tls.key: {none} cannot be read: No such file or directory"),
        ("chain", "other", "listen.tls: {other} is not the key of {chain}"),
        ("text", "key", "listen.tls: {text} and {key} are not a certificate chain and a key in PEM"),
        ("chain", "text", "listen.tls: {chain} and {text} are not a certificate chain and a key in PEM"),
    ],
)
def test_a_listeners_file_that_is_no_good_is_named(files: dict[str, Path], chain: str, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        listener_context(Tls(certificate=files[chain], key=files[key]))
    assert str(error.value) == says.format(**files)


@pytest.mark.parametrize(
    ("tls", "says"),
    [
        ({"ca": "none"}, "engine e1: tls.ca: {none} cannot be read: No such file or directory"),
        ({"ca": "text"}, "engine e1: tls.ca: {text} holds no certificate in PEM"),
        ({"certificate": "none"}, "engine e1: tls.certificate: {none} cannot be read: No such file or directory"),
        ({"certificate": "chain"}, "engine e1: tls: {chain} are not a certificate chain and a key in PEM"),
        ({"certificate": "chain", "key": "other"}, "engine e1: tls: {other} is not the key of {chain}"),
    ],
)
def test_an_engines_file_that_is_no_good_is_named(files: dict[str, Path], tls: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        engine_context(EngineTls.model_validate({name: files[file] for name, file in tls.items()}), "e1")
    assert str(error.value) == says.format(**files)


def test_a_key_with_a_password_is_refused_without_asking_for_it(files: dict[str, Path], tmp_path: Path) -> None:
    key = how.load_pem_private_key(files["key"].read_bytes(), None)
    locked = tmp_path / "locked.key"
    password = how.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(how.Encoding.PEM, how.PrivateFormat.PKCS8, password))
    with pytest.raises(ConfigError, match="has a password; give a key without one"):
        listener_context(Tls(certificate=files["chain"], key=locked))
