"""Any endpoint that speaks the OpenAI API and tells nothing of itself; the other kinds build on it."""

from urllib.parse import urlsplit

from proxy.config import ConfigError, EngineConfig
from proxy.engines.interface import EngineSample
from proxy.loopback import is_here


class OpenAI:
    """An OpenAI-compatible endpoint. It has no counters, so nobody can tell work that came past the gateway."""

    kind: str = "openai"
    health_paths: tuple[str, ...] = ("/v1/models", "/health")
    metrics_path: str | None = None
    works_for: str | None = None

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError for an url without a host or a secret that cannot be read."""
        self.name = config.name
        self.url = config.url.rstrip("/").removesuffix("/v1").rstrip("/")
        self.models = config.models
        self.devices = config.devices
        self.local = is_loopback(config.name, config.url)
        secret = config.secret()
        self.headers: dict[str, str] = {"Authorization": f"Bearer {secret}"} if secret else {}

    def parse(self, t: float, body: bytes) -> EngineSample | None:
        return None

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


def is_loopback(engine: str, url: str) -> bool:
    """Whether an engine's url leads to this host. Raises ConfigError for one without a host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"engine {engine}: url {url!r}: {error}") from None
    if not host:
        raise ConfigError(f"engine {engine}: url {url!r} has no host")
    return is_here(host)
