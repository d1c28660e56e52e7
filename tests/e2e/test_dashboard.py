"""The shipped dashboard, asked by a real Prometheus that scrapes the real gateway under load."""

import importlib.util
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from stage import Engine, Gateway, until

from grafana.queries import unanswered


@pytest.fixture
def scraping() -> ModuleType:
    """The module that runs Prometheus with the shipped configuration."""
    path = Path(__file__).parents[1] / "grafana/conftest.py"
    spec = importlib.util.spec_from_file_location("joulegate_e2e_scraping", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed (apt install prometheus)")
def test_every_panel_has_data(
    scraping: ModuleType,
    make_gateway: Callable[..., Gateway],
    make_engine: Callable[..., Engine],
    nvml: Any,
    tmp_path: Path,
) -> None:
    nvml.set_power_w(0, 300)
    engine = make_engine(step_ms=20)
    engines = [{"name": "e1", "kind": "vllm", "url": engine.url}]
    # A policy with a limit, since without any there is none to show.
    policy = {"name": "static", "in_flight": {"search": 2}}
    workflows = {"search": {"slo": {"ttft_p95": 20}}}
    gateway = make_gateway({"engines": engines, "policy": policy, "workflows": workflows}, env=nvml.env)
    over = threading.Event()

    def load(workflow: str) -> None:
        with httpx.Client(base_url=gateway.url, timeout=60) as http:
            while not over.is_set():
                headers = {"x-workflow-name": workflow, "x-workflow-step": "query"}
                body = {"model": "stub-7b", "prompt": "one two", "max_tokens": 10, "stream": True}
                http.post("/v1/completions", json=body, headers=headers)
                with http.stream("POST", "/v1/completions", json={**body, "max_tokens": 100_000}, headers=headers) as s:
                    next(s.iter_lines())  # and away: there is waste to show

    clients = [threading.Thread(target=load, args=(workflow,)) for workflow in ("search", "search", "coding")]
    for client in clients:
        client.start()
    try:
        until(lambda: gateway.metric("joulegate_waste_joules_total") > 0)
        until(lambda: gateway.metric("joulegate_run_energy_joules_count") > 0)
        with scraping.prometheus_of(f"{gateway.url}/metrics", tmp_path) as prometheus_url:
            with suppress(AssertionError):  # which ones are silent is worth more than that some are
                until(lambda: not asked(prometheus_url), 40, 1)
            silent = asked(prometheus_url)
    finally:
        over.set()
        for client in clients:
            client.join()
    assert silent == []


def asked(prometheus_url: str) -> list[str]:
    """The queries that gave no number."""
    silent = unanswered(prometheus_url, rate_interval="5s", range_s=60)
    return [f"{target.panel}: {target.expr}" for target in silent]
