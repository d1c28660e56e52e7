"""What a new configuration changes, and what of it a running gateway cannot take."""

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.config import Config, ConfigError, EngineConfig

FIXED = ("listen", "hosts", "ledger", "energy")  # sockets, counters and books are opened once


@dataclass(frozen=True, slots=True)
class Changes:
    """The engines by what becomes of them, and the other parts of the configuration that differ."""

    added: tuple[EngineConfig, ...]
    changed: tuple[EngineConfig, ...]
    removed: tuple[str, ...]
    parts: tuple[str, ...]

    def __str__(self) -> str:
        said = [f"engine {engine.name} added" for engine in self.added]
        said += [f"engine {engine.name} changed" for engine in self.changed]
        said += [f"engine {name} removed" for name in self.removed]
        said += [f"{part} changed" for part in self.parts]
        return "; ".join(said) or "nothing changed"


def changes(old: Config, new: Config) -> Changes:
    """What is different. Raises ConfigError, a line for each fault, for what needs a restart."""
    faults = [
        f"{part}: cannot be changed while the gateway runs; restart it for that, or set it back"
        for part in FIXED
        if getattr(old, part) != getattr(new, part)
    ]
    before = _by_name(old)
    for engine in new.engines:
        if (was := before.get(engine.name)) is not None and was.devices != engine.devices:
            faults.append(
                f"engine {engine.name}: its devices cannot be changed while the gateway runs; give it another name"
            )
    if faults:
        raise ConfigError("\n".join(faults))
    after = _by_name(new)
    parts = [part for part in Config.model_fields if part not in (*FIXED, "engines")]
    return Changes(
        added=tuple(engine for engine in new.engines if engine.name not in before),
        changed=tuple(engine for engine in new.engines if before.get(engine.name, engine) != engine),
        removed=tuple(name for name in before if name not in after),
        parts=tuple(part for part in parts if getattr(old, part) != getattr(new, part)),
    )


def _by_name(config: Config) -> Mapping[str, EngineConfig]:
    return {engine.name: engine for engine in config.engines}
