"""TLS contexts from the files that the configuration names: for our listener, and towards engines."""

import ssl
from pathlib import Path

from proxy.config import Config, ConfigError, EngineTls, Tls


def listener_context(tls: Tls) -> ssl.SSLContext:
    """What the listener shows its clients, with Python's own choice of protocols. Raises ConfigError."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    _load_chain(context, tls.certificate, tls.key, "listen.tls")
    return context


def check_tls(config: Config) -> None:
    """Raises ConfigError for an engine's TLS files that cannot be used."""
    for engine in config.engines:
        if engine.tls is not None:
            engine_context(engine.tls, engine.name)


def engine_context(tls: EngineTls, engine: str) -> ssl.SSLContext:
    """How we meet an engine. Raises ConfigError."""
    where = f"engine {engine}: tls"
    if tls.ca is not None:
        _must_be_readable(tls.ca, f"{where}.ca")
    try:
        context = ssl.create_default_context(cafile=tls.ca)
    except ssl.SSLError:
        raise ConfigError(f"{where}.ca: {tls.ca} holds no certificate in PEM") from None
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate is not None:
        _load_chain(context, tls.certificate, tls.key, where)
    return context


def _load_chain(context: ssl.SSLContext, certificate: Path, key: Path | None, where: str) -> None:
    _must_be_readable(certificate, f"{where}.certificate")
    if key is not None:
        _must_be_readable(key, f"{where}.key")

    def no_password() -> str:
        raise ConfigError(f"{where}.key: {key or certificate} has a password; give a key without one")

    try:
        context.load_cert_chain(certificate, key, no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{where}: {key} is not the key of {certificate}") from None
        files = f"{certificate} and {key}" if key else f"{certificate}"
        raise ConfigError(f"{where}: {files} are not a certificate chain and a key in PEM") from None


def _must_be_readable(path: Path, what: str) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{what}: {path} cannot be read: {error.strerror}") from None
