"""What an engine is to the gateway: an address, headers, and how to read its own counters.

A kind of engine is one file and one entry point in the group `joulegate.engines`: a callable of one `EngineConfig`.
"""

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from proxy.config import ConfigError, EngineConfig


class EngineError(ConfigError):
    """An engine that could not be started; the message is one line and holds the engine's own reason."""


@dataclass(frozen=True, slots=True)
class EngineSample:
    """One reading of an engine's own counters; None where the engine does not say.

    Steps and tokens are cumulative since the engine's start; the others are of the moment. When within a request a
    counter moves differs by kind and is said there.
    """

    t: float  # Unix seconds
    steps: float | None = None
    prompt_tokens: float | None = None  # cached ones included, as in an OpenAI usage
    cached_tokens: float | None = None
    output_tokens: float | None = None
    running: float | None = None  # requests
    waiting: float | None = None  # requests
    kv_usage: float | None = None  # 0..1

    def __bool__(self) -> bool:
        """Whether the engine said anything at all."""
        known = (self.steps, self.prompt_tokens, self.cached_tokens, self.output_tokens)
        return any(value is not None for value in (*known, self.running, self.waiting, self.kv_usage))


class Engine(Protocol):
    """One serving endpoint. `url` has no path of the API and no slash at its end; it is final once `start` returned.

    One that also says `schedules_nodes = True` is given named calls before their nodes have answered, and its lane's
    connections take them by `send_node` (see `proxy.nodes.hold`).
    """

    kind: str
    name: str
    url: str
    models: tuple[str, ...]  # names to serve it under; empty: ask the engine
    devices: tuple[str, ...]  # as configured; the gateway fills in a default
    local: bool  # runs on this host
    health_paths: tuple[str, ...]  # tried in order
    metrics_path: str | None
    headers: dict[str, str]  # sent upstream with every request
    works_for: str | None  # another engine, which does its work and whose devices and counters are its own

    def parse(self, t: float, body: bytes) -> EngineSample | None:
        """What the engine's metrics say at Unix time `t`; None when they say nothing. Never raises on any bytes."""
        ...

    async def start(self) -> None:
        """Bring up what the gateway itself owns of this engine. Raises ConfigError with one line when that fails."""
        ...

    async def stop(self) -> None:
        """End what `start` began; harmless when nothing was started."""
        ...


def schedules_nodes(engine: Engine) -> bool:
    """Whether an engine sees to it by itself that a named call waits for the nodes that it names."""
    return getattr(engine, "schedules_nodes", False)


def load_engine(config: EngineConfig) -> Engine:
    """The engine of the configured kind. Raises ConfigError for an unknown kind or one that cannot be loaded."""
    kinds = {point.name: point for point in entry_points(group="joulegate.engines")}
    if config.kind not in kinds:
        known = ", ".join(sorted(kinds))
        raise ConfigError(f"engine {config.name}: unknown kind {config.kind!r}; known kinds: {known}")
    point = kinds[config.kind]
    try:
        build = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"engine {config.name}: kind {config.kind} ({point.value}) cannot load: {error}") from error
    return build(config)
