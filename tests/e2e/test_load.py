"""A load over HTTP through a gateway, at an engine that does not exist: what the driver tells is what the books say."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from stage import Gateway, environment, uj, until

from loadgen import collect
from loadgen.arrivals import Closed, Poisson
from loadgen.client import Target
from loadgen.coding import Coding
from loadgen.http import run
from loadgen.recorded import recorded_runs
from loadgen.schedule import Load, Stream
from loadgen.search import Search

COMMAND = ("-u", "-m", "joulegate", "emulate", "--gpu", "h200", "--port", "0", "--zeusd-port", "0")


@pytest.fixture
def emulated(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The configuration that a gateway needs for a host that does not exist."""
    said = tmp_path / "emulate.txt"
    with said.open("w") as out:
        process = subprocess.Popen([sys.executable, *COMMAND], stdout=out, stderr=out, env=environment(tmp_path))
    until(lambda: said.read_text().endswith("}\n"))
    text = said.read_text()
    yield yaml.safe_load(text[text.index("hosts: ") :])
    process.terminate()
    process.wait(20)


def test_totals_of_a_load_are_those_of_the_ledger_and_of_prometheus(
    make_gateway: Callable[..., Gateway], emulated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "SETTLED_AFTER_S", 1.0)
    gateway = make_gateway(emulated)
    streams = (Stream((Coding.small(),), Closed(2), 3), Stream((Search.small(),), Poisson(6.0), 4))
    result = run(Load(streams, seed=1), Target(url=gateway.url, exact=True, cache_salt="one"))

    assert result.load.exact_lengths and {one.outcome for one in result.runs} == {"ok"}
    assert all(request.output_tokens == request.max_tokens for request in result.requests)
    known = {row["workflow"]: row for row in gateway.get("/energy/workflows")["workflows"]}
    assert known.keys() == {"coding", "search"}
    for workflow, row in known.items():
        requests = [request for request in result.requests if request.workflow == workflow]
        assert row["requests"] == len(requests) and row["runs"] == {"coding": 3, "search": 4}[workflow]
        for count in ("prompt_tokens", "cached_tokens", "output_tokens"):
            assert row[count] == sum(getattr(request, count) for request in requests)
        assert uj(row["joules"]) == sum(uj(request.energy.joules) for request in requests if request.energy) > 0
        assert all(request.energy and request.energy.quality == "emulated" for request in requests)

    page = httpx.get(f"{gateway.url}/metrics").text
    counted: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            counted[sample.name] += sample.value  # pyright: ignore[reportArgumentType]
    assert counted["joulegate_requests_total"] == len(result.requests)
    joules = sum(request.energy.joules for request in result.requests if request.energy)
    assert counted["joulegate_workflow_energy_joules_total"] == pytest.approx(joules, abs=1e-5)
    seen = {sample.component for sample in result.samples}
    assert seen == {"gpu", "cpu", "dram"} and all(sample.quality == "emulated" for sample in result.samples)

    again = recorded_runs(str(gateway.folder / "ledger.sqlite"))
    assert Counter(one.workflow for one in again) == {"coding": 3, "search": 4}
    assert sum(len(one.calls) for one in again) == len(result.requests)
    reviewers = [one for recorded in again for one in recorded.calls if one.call.step == "reviewer"]
    assert reviewers and all(len(one.waits_for) == 2 for one in reviewers)
