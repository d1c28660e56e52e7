"""The one configuration model: a YAML file, overlaid by `JOULEGATE_*` environment variables.

Every key is checked; an unknown one is an error that names the nearest right one. Every secret can be given inline or
as `<name>_file`, the path of a file that holds it.
"""

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from ipaddress import ip_address
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from platformdirs import user_state_path
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from proxy import faults
from proxy.budget import Period, Terms
from proxy.energy.retention import Retention

log = logging.getLogger("joulegate.config")

Seconds = Annotated[float, Field(gt=0)]
Joules = Annotated[float, Field(ge=1e-6, le=1e12)]  # whole microjoules, as the ledger's integers hold them
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]


class Relative(NamedTuple):
    """So many times what it takes with nobody else there."""

    times: float


def _target(value: Any) -> float | Relative:
    text = str(value).strip()
    relative = re.fullmatch(r"(.+?)\s*x\s+isolated", text)
    try:
        number = float(relative[1] if relative else text)
    except ValueError:
        number = 0.0
    if isinstance(value, bool) or not 0 < number < inf:
        raise ValueError('must be seconds, more than 0, or a multiple as in "5x isolated"')
    return Relative(number) if relative else number


Target = Annotated[float | Relative, PlainValidator(_target)]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line a person can act on."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Strict):
    """The listener's certificate chain and its private key, PEM files both."""

    certificate: Path
    key: Path


class EngineTls(Strict):
    """Whom an https engine must be signed by (`ca`; default: the system's), and the certificate that we show it."""

    ca: Path | None = None
    verify: bool = True
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def parts_fit_together(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("a key is of no use without its certificate")
        if self.ca is not None and not self.verify:
            raise ValueError("with verify: false nobody looks at ca; leave one of them out")
        return self


class Listen(Strict):
    """Where the gateway listens. Port 0 takes a free one; `open` lets everybody in who can reach it."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    open: bool = False
    tls: Tls | None = None

    def is_loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class Host(Strict):
    """A machine with counters: read here (`local`) or through its `zeusd`. Wattages are for estimates alone."""

    local: bool = False
    zeusd: str | None = None
    pue: Annotated[float, Field(ge=1)] = 1.0
    cpu_watts: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def one_way_to_read(self) -> Self:
        if self.local and self.zeusd:
            raise ValueError("give either local: true or zeusd, not both")
        return self


class EgressConfig(Strict):
    """Where Parrot's own engine comes back to the gateway, and by which configured engine it is then served.

    The key is what Parrot's engine must give as its `api_key`.
    """

    engine: Name
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8090
    key: str | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def has_a_key(self) -> Self:
        if (self.key is None) == (self.key_file is None):
            raise ValueError("an egress needs a key, which Parrot's engine gives as its api_key: key or key_file")
        return self

    def secret(self) -> str:
        """The key. Raises ConfigError where it cannot be read, or can be guessed."""
        secret = read_secret(self.key, self.key_file) or ""
        if len(secret) < 16:
            raise ConfigError(f"the egress's key has {len(secret)} characters; 16 or more cannot be guessed")
        return secret


class EngineConfig(Strict):
    """One serving endpoint. `embedded` starts a small model inside the gateway's host and needs no url.

    `priority` says that it honours a request's `priority` (vLLM started with --scheduling-policy priority): others
    refuse a request that has one.
    """

    name: Name
    kind: str
    url: str = ""
    devices: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    api_key: str | None = None
    api_key_file: Path | None = None
    tls: EngineTls | None = None
    priority: bool = False
    egress: EgressConfig | None = None
    model_path: Path | None = None
    slots: Annotated[int, Field(ge=1, le=256)] = 4
    context: Annotated[int, Field(ge=128)] = 2048
    threads: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def url_is_given_where_needed(self) -> Self:
        if self.kind == "embedded":
            return self
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"engine {self.name}: url must begin with http:// or https://, not {self.url!r}")
        if self.model_path is not None:
            raise ValueError(f"engine {self.name}: model_path is for kind embedded alone")
        if self.egress is not None and self.kind != "parrot":
            raise ValueError(f"engine {self.name}: egress is for kind parrot alone")
        if self.egress is not None and self.devices:
            raise ValueError(
                f"engine {self.name}: its devices are those of engine {self.egress.engine}; name them there"
            )
        if self.tls is not None and not self.url.startswith("https://"):
            raise ValueError(f"engine {self.name}: tls needs an https url, not {self.url!r}")
        return self

    def secret(self) -> str | None:
        return read_secret(self.api_key, self.api_key_file)


class Slo(Strict):
    """Service-level objective: seconds, or so many times what it takes alone ("5x isolated")."""

    ttft_p95: Target | None = None
    itl_p95: Target | None = None
    run_p95: Target | None = None


class IsolatedTimes(Strict):
    """Seconds that a first token, the next ones and a run take alone; what is not given is measured."""

    ttft: Seconds | None = None
    itl: Seconds | None = None
    run: Seconds | None = None


class Budget(Strict):
    """What a budget does as it runs out: from the part `warn` on it is said, and answers are capped.

    `cap_tokens` is how long an answer may then be at most; `stop` ends requests in flight when it is spent.
    """

    warn: Annotated[float, Field(gt=0, le=1)] = 0.8
    cap_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: bool = False

    def with_limits(self, **limits_j: float | None) -> Terms:
        limits_uj = {Period(name): round(joules * 1e6) for name, joules in limits_j.items() if joules is not None}
        return Terms(limits_uj, self.warn, self.cap_tokens, self.stop)


class KeyBudget(Budget):
    """Joules that the tenant of a key may spend in an hour, a day, a month (of the calendar, UTC)."""

    hour: Joules | None = None
    day: Joules | None = None
    month: Joules | None = None

    @model_validator(mode="after")
    def limits_something(self) -> Self:
        if self.hour is self.day is self.month is None:
            raise ValueError("a budget needs a limit: give hour, day or month, in joules")
        return self

    def terms(self) -> Terms:
        return self.with_limits(hour=self.hour, day=self.day, month=self.month)


class RunBudget(Budget):
    """Joules that one run may spend."""

    run: Joules

    def terms(self) -> Terms:
        return self.with_limits(run=self.run)


class Workflow(Strict):
    """What is known of a workflow: its steps, objective, patience and quiet time (seconds), and a run's budget."""

    steps: tuple[str, ...] = ()
    slo: Slo = Slo()
    isolated: IsolatedTimes = IsolatedTimes()
    patience: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    quiet: Seconds = 60.0
    budget: RunBudget | None = None


class PolicyConfig(BaseModel):
    """The policy's name; keys beside these are the policy's own and are checked by it.

    `dry_run` applies nothing and says what would have been; `allow_clocks` lets SM clocks be set, which can only be
    reset afterwards, not set back to what they were; `dwell` is how many seconds a GPU's setting is kept at least.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str = "observe"
    dry_run: bool = False
    allow_clocks: bool = False
    dwell: Seconds = 10.0

    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Secret(Strict):
    """One key: inline, in a file, or as the hash that `joulegate key` prints beside a new one."""

    key: str | None = None
    key_file: Path | None = None
    key_hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-fA-F]{64}$")] | None = None

    @property
    def whose(self) -> str:
        return "the admin key"

    @model_validator(mode="after")
    def one_secret(self) -> Self:
        if sum(given is not None for given in (self.key, self.key_file, self.key_hash)) != 1:
            raise ValueError(f"{self.whose}: give either key, key_file or key_hash")
        return self

    def digest(self) -> bytes:
        """SHA-256 of the key. Raises ConfigError for one that is empty or cannot be read."""
        if self.key_hash is not None:
            return bytes.fromhex(self.key_hash.removeprefix("sha256:"))
        secret = (read_secret(self.key, self.key_file) or "").strip()
        if not secret:
            raise ConfigError(f"{self.whose} is empty: anybody would have it")
        return hashlib.sha256(secret.encode()).digest()


class Key(Secret):
    """A client's key and what it may do. `report` puts energy into every reply of this key, without the header.

    No `models` means all; tokens are those of prompt and answer together.
    """

    tenant: Name
    models: tuple[str, ...] = ()
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    in_flight: Annotated[int, Field(ge=1)] | None = None
    budget: KeyBudget | None = None
    report: bool = False

    @property
    def whose(self) -> str:
        return f"the key of tenant {self.tenant}"


class Admin(Secret):
    """The key that sees all tenants and the machine. It sends no requests."""


class LedgerConfig(Strict):
    """Where the ledger lies (the folder is made when missing), how long it keeps what (days; null for good), and how
    many requests may wait in memory while it cannot be written."""

    path: Path = Field(default_factory=lambda: user_state_path("joulegate") / "ledger.sqlite")
    buffer_requests: Annotated[int, Field(ge=0)] = 50_000
    retain_days: Annotated[float, Field(gt=0)] | None = 90.0
    retain_windows_days: Annotated[float, Field(gt=0)] | None = 7.0

    def retention(self) -> Retention:
        return Retention(self.retain_days, self.retain_windows_days)


class EnergyConfig(Strict):
    """How counters are read: seconds between readings, and how long a window may wait for its requests' usage.

    `record` is a file for a trace of what attribution sees, gzipped where its name says so, of `record_mb` at most.
    """

    interval: Seconds = 0.097  # out of step with counters that move every 0.1 s, so that their beat shows
    settle: Seconds = 5.0
    record: Path | None = None
    record_mb: Annotated[float, Field(gt=0)] = 256.0


class Limits(Strict):
    """What the gateway accepts and how long it waits (bytes, requests, seconds)."""

    body_bytes: Annotated[int, Field(ge=1024)] = 32 * 2**20
    header_bytes: Annotated[int, Field(ge=1024)] = 32 * 2**10  # with 32 for each header, as HTTP/2 counts
    header_seconds: Seconds = 30.0
    json_depth: Annotated[int, Field(ge=8, le=200)] = 64  # orjson reads 1024 levels but writes only 254
    queue: Annotated[int, Field(ge=0)] = 1024
    queue_seconds: Seconds = 300.0
    connect_seconds: Seconds = 5.0
    first_byte_seconds: Seconds = 600.0
    idle_seconds: Seconds = 300.0
    total_seconds: Seconds = 3600.0
    node_seconds: Seconds = 600.0
    node_bytes: Annotated[int, Field(ge=1024)] = 4 * 2**20  # of the outputs of one run's nodes
    nodes_held: Annotated[int, Field(ge=0)] = 1024  # calls that wait for nodes at once
    drain_seconds: Seconds = 30.0
    announce_seconds: Annotated[float, Field(ge=0)] = 0.0
    in_flight: Annotated[int, Field(ge=1)] | None = None
    workflows: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=1)] = 20
    paths: tuple[str, ...] = ()  # further paths to forward, beside the OpenAI ones

    @model_validator(mode="after")
    def paths_are_whole(self) -> Self:
        if partial := [path for path in self.paths if not path.startswith("/")]:
            raise ValueError(f"paths must begin with /, as in '/rerank', not {partial[0]!r}")
        return self


class Routing(Strict):
    """Which of several engines of one model a request goes to."""

    affinity: Literal["none", "session", "prefix"] = "none"
    slack: Annotated[int, Field(ge=1)] = 8
    entries: Annotated[int, Field(ge=1)] = 100_000


class BreakerConfig(Strict):
    """When an engine that keeps failing is taken out, and for how many seconds at first and at most."""

    failures: Annotated[int, Field(ge=1)] = 5
    open_seconds: Seconds = 5.0
    longest_seconds: Seconds = 60.0
    probes: Annotated[int, Field(ge=1)] = 1


class Config(BaseSettings):
    """Everything a gateway needs to know."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=faults.PREFIX, env_nested_delimiter="__", env_ignore_empty=True
    )
    listen: Listen = Listen()
    hosts: dict[Name, Host] = {}
    engines: tuple[EngineConfig, ...] = Field(min_length=1)
    workflows: dict[Name, Workflow] = {}
    policy: PolicyConfig = PolicyConfig()
    keys: tuple[Key, ...] = ()
    admin: Admin | None = None
    ledger: LedgerConfig = Field(default_factory=LedgerConfig)
    energy: EnergyConfig = EnergyConfig()
    limits: Limits = Limits()
    routing: Routing = Routing()
    breaker: BreakerConfig = BreakerConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @model_validator(mode="after")
    def parts_fit_together(self) -> Self:
        names = [engine.name for engine in self.engines]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two engines are called {sorted(twice)[0]}")
        hosts = self.known_hosts()
        kinds = {engine.name: engine.kind for engine in self.engines}
        for engine in self.engines:
            if engine.egress is not None and kinds.get(engine.egress.engine, "parrot") == "parrot":
                others = ", ".join(name for name, kind in kinds.items() if kind != "parrot") or "none"
                raise ValueError(
                    f"engine {engine.name}: egress.engine {engine.egress.engine!r} is no other engine; known: {others}"
                )
            for device in engine.devices:
                host, slash, unit = device.partition("/")
                if not slash or unit.partition(":")[0] not in ("gpu", "cpu", "dram", "soc"):
                    raise ValueError(f"engine {engine.name}: device {device!r} is not of the form host/gpu:0")
                if host not in hosts:
                    known = ", ".join(hosts)
                    raise ValueError(f"engine {engine.name}: device {device!r} is on an unknown host; known: {known}")
        if not (self.keys or self.listen.open or self.listen.is_loopback()):
            raise ValueError(
                f"listen.host {self.listen.host!r} can be reached from other machines and there are no keys: "
                "configure keys, or say listen.open: true to let everybody in"
            )
        return self

    def run_budgets(self) -> dict[str, Terms]:
        """What a run of each workflow may spend."""
        return {name: workflow.budget.terms() for name, workflow in self.workflows.items() if workflow.budget}

    def known_hosts(self) -> Mapping[str, Host]:
        """The configured hosts, or the one host `local` that needs no configuration."""
        return self.hosts or {"local": Host(local=True)}


def read_secret(inline: str | None, path: Path | None) -> str | None:
    """The secret itself. Raises ConfigError for a file that cannot be read."""
    if path is None:
        return inline
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"the secret file {path} cannot be read: {why}") from None


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError with every fault, one a line."""
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise ConfigError(f"{path}: not valid YAML{where}: {what}") from None
    except ValueError as error:  # bytes that are no text, a date that is none
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a configuration is a mapping with at least `engines`")
    return parse(data, str(path))


def parse(data: Mapping[str, Any], where: str = "configuration") -> Config:
    """Check a configuration given as a mapping, with the environment over it. Raises ConfigError as `load` does."""
    lines, unknown = faults.misspelt(Config, os.environ)
    lines += [f"{where}: unknown key {key!r}" for key in data if not isinstance(key, str) or key.startswith("_")]
    if unknown:
        known = ", ".join(f"{faults.PREFIX}{field.upper()}" for field in Config.model_fields)
        log.warning("not a variable of ours, and ignored: %s; known: %s", ", ".join(unknown), known)
    try:
        config = Config(**{key: value for key, value in data.items() if isinstance(key, str) and key[:1] != "_"})
    except ValidationError as error:
        lines += faults.in_file(error, Config, data, where, os.environ)
    except SettingsError as error:
        lines += faults.in_variables(Config, os.environ) or [str(error)]
    else:
        if not lines:
            return config
    raise ConfigError("\n".join(lines))
