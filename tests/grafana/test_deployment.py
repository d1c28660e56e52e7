"""The container files cannot be run here; what they name must exist, and what they configure must load."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from policies.static import Static
from proxy.config import (
    Admin,
    Config,
    EngineConfig,
    EngineTls,
    Host,
    Key,
    Limits,
    Listen,
    Slo,
    Tls,
    Workflow,
    load,
    parse,
)

ROOT = Path(__file__).parents[2]


def instructions(name: str) -> list[list[str]]:
    """The Dockerfile's instructions as words, of one kind."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [shlex.split(line, comments=True)[1:] for line in text.splitlines() if line.startswith(name + " ")]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())


def copied() -> list[str]:
    """What the Dockerfile takes from the tree."""
    words = [copy for copy in instructions("COPY") if not any(word.startswith("--from=") for word in copy)]
    return [source for copy in words for source in [word for word in copy if not word.startswith("--")][:-1]]


@pytest.mark.parametrize("source", copied())
def test_what_the_image_copies_exists_and_reaches_the_builder(source: str) -> None:
    assert (ROOT / source).exists(), f"{source} is missing"
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in let_through and f"!{source}" in let_through


def test_the_image_holds_every_package_of_the_wheel() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    packages = re.findall(r'"(\w+)"', re.findall(r"^packages = \[(.*)\]", project, re.MULTILINE)[0])
    assert packages and set(packages) <= set(copied())


def test_the_image_runs_unprivileged_and_keeps_its_ledger_in_the_volume(monkeypatch: pytest.MonkeyPatch) -> None:
    assert instructions("USER") == [["joulegate"]]
    ((volume,),) = instructions("VOLUME")
    environment = dict(word.split("=", 1) for env in instructions("ENV") for word in env if word != "\\")
    for name in ("XDG_STATE_HOME", "JOULEGATE_LISTEN__HOST", "JOULEGATE_LISTEN__OPEN", "JOULEGATE_LISTEN__PORT"):
        monkeypatch.setenv(name, environment[name])
    config = load(ROOT / "joulegate.example.yaml")
    assert config.ledger.path.parent == Path(volume)
    assert config.listen.host == "0.0.0.0"
    assert instructions("EXPOSE") == [[str(config.listen.port)]]


def test_what_compose_mounts_exists(compose: dict[str, Any]) -> None:
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", ())]
    assert len(mounts) >= 6
    for mount in mounts:
        source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"], mount


def test_compose_publishes_on_the_loopback_alone(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert len(ports) == 3 and all(port.startswith("127.0.0.1:") for port in ports)


def test_prometheus_and_grafana_find_each_other_in_compose(compose: dict[str, Any]) -> None:
    scrape = yaml.safe_load((ROOT / "grafana/prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"][0].split(":")[0] in compose["services"]
    assert "--enable-feature=exemplar-storage" in compose["services"]["prometheus"]["command"]
    grafana = compose["services"]["grafana"]
    assert grafana["environment"]["PROMETHEUS_URL"].split("/")[2].split(":")[0] in compose["services"]
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in grafana["volumes"]}
    provider = yaml.safe_load((ROOT / "grafana/provisioning/dashboards/joulegate.yaml").read_text())["providers"][0]
    assert (ROOT / mounted[provider["options"]["path"]] / "joulegate.json").exists()
    source = (ROOT / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    variables = set(re.findall(r"(?<!\$)\$\{(\w+)\}", source))
    assert variables and variables <= set(grafana["environment"])


def test_the_example_loads() -> None:
    config = load(ROOT / "joulegate.example.yaml")
    assert [engine.name for engine in config.engines] == ["e1"]
    defaults = parse({"engines": [{"name": "e1", "kind": "openai", "url": "http://x"}]})
    assert (config.limits, config.energy, config.listen) == (defaults.limits, defaults.energy, defaults.listen)


@pytest.mark.parametrize(
    "model", [Config, Listen, Tls, Host, EngineConfig, EngineTls, Slo, Workflow, Key, Admin, Limits]
)
def test_the_example_shows_every_key(model: type[BaseModel]) -> None:
    example = (ROOT / "joulegate.example.yaml").read_text()
    missing = {name for name in model.model_fields if not re.search(rf"\b{name}(_file)?:", example)}
    assert not missing


@pytest.mark.parametrize(
    ("start", "instead_of"),
    [
        ("  # gpu1:", ""),
        ("  # - name: far", ""),
        ("  # - name: small", ""),
        ("  # name: static", "  name: observe\n"),
        ("# keys:", "keys: []\n"),
        ("# admin:", ""),
        ("  # tls:", ""),
        ("  # path: /var", ""),
        ("    # cpu_watts:", ""),
        ("  # in_flight: 64", ""),
    ],
)
def test_what_the_example_comments_out_is_right_too(start: str, instead_of: str) -> None:
    """Each commented block, put in force on its own, is accepted and makes a difference."""
    example = (ROOT / "joulegate.example.yaml").read_text()
    assert instead_of in example
    lines = example.replace(instead_of, "", 1).splitlines() if instead_of else example.splitlines()
    mark = start[: start.index("#") + 2]
    first = next(index for index, line in enumerate(lines) if line.startswith(start))
    for index in range(first, len(lines)):
        if not lines[index].startswith(mark):
            break
        lines[index] = lines[index].replace("# ", "", 1)
    config = parse(yaml.safe_load("\n".join(lines)))
    assert config != load(ROOT / "joulegate.example.yaml")
    if config.policy.name == "static":
        assert Static.model_validate(config.policy.options()).power_limit_w
