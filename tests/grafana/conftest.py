"""A real Prometheus that scrapes a real page of metrics, every second."""

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import pytest
import yaml

from grafana.queries import ask, unanswered
from proxy.energy.records import Outcome, Quality, WindowRecord
from proxy.telemetry.metrics import EnergyDelta, Gauges, Itl, Metrics
from proxy.telemetry.policy import PolicyGauges

ROOT = Path(__file__).parents[2]
SCRAPES = 6
WORKFLOWS = {"search": "query", "coding": "architect"}


def assert_panels_answer(
    prometheus_url: str, dashboard: Path, range_s: int = 60, may_be_empty: frozenset[str] = frozenset()
) -> None:
    """Every query of every panel gives a number, but for the panels whose titles are in `may_be_empty`."""
    silent = unanswered(prometheus_url, dashboard, rate_interval="5s", range_s=range_s)
    wrong = [f"{target.panel}: {target.expr}" for target in silent if target.panel not in may_be_empty]
    assert not wrong, "no data for\n" + "\n".join(wrong)


@contextmanager
def prometheus_of(metrics_url: str, folder: Path) -> Iterator[str]:
    """The shipped configuration, with another target and a second's rhythm; yields Prometheus' URL."""
    settings = yaml.safe_load((ROOT / "grafana/prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    (job,) = settings["scrape_configs"]
    job["static_configs"] = [{"targets": [urlsplit(metrics_url).netloc]}]
    job["metrics_path"] = urlsplit(metrics_url).path
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    shutil.copy(ROOT / "grafana/rules.yml", folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"),
                *(f"--storage.tsdb.path={folder / 'data'}", "--enable-feature=exemplar-storage"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        wait_for_scrapes(f"http://{address}", process, folder / "prometheus.log")
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(20)


def wait_for_scrapes(prometheus_url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            seen = ask(prometheus_url, "query", query="count_over_time(joulegate_build_info[5m])")["result"]
        except (URLError, ConnectionError):
            seen = []
        if seen and int(seen[0]["value"][1]) >= SCRAPES:
            return
        time.sleep(0.2)
    raise AssertionError(f"Prometheus has not scraped {SCRAPES} times:\n{log.read_text()[-3000:]}")


class Traffic:
    """A gateway's owner in small: every page that is asked for finds one more second of work in the books."""

    def __init__(self) -> None:
        self.metrics = Metrics("0.1.0")
        self.metrics.policy_born("company", ["raised"])
        self.second = 0

    def page(self, accept: str) -> tuple[bytes, str]:
        self.second += 1
        for index, (workflow, step) in enumerate(WORKFLOWS.items(), start=1):
            self.work(workflow, step, index)
        self.metrics.gauges = Gauges(
            power_w={("h1/gpu:0", Quality.MEASURED): 310.0, ("h1/cpu:0", Quality.ESTIMATED): 40.0},
            sample_age_s={"h1/gpu:0": 0.05, "h1/cpu:0": 0.08},
            in_flight={("e1", workflow): 3 for workflow in WORKFLOWS},
            queued={("e1", workflow): 1 for workflow in WORKFLOWS},
            limit={("e1", "search"): 4},
            engine_up={"e1": True},
            breaker={"e1": "closed"},
            policy=PolicyGauges(
                *("company", "acting", ("acting", "replaced")),
                held={("e1", workflow): 2 for workflow in WORKFLOWS},
                hold_s={"search": 3.0},
                objective_s={("search", "ttft"): 2.0},
                power_limit_w={"h1/gpu:0": 400.0},
                sm_clock_mhz={"h1/gpu:0": 1500.0},
            ),
        )
        return self.metrics.render(accept)

    def work(self, workflow: str, step: str, index: int) -> None:
        gpu_uj, cpu_uj, now = 120_000_000 * index, 15_000_000 * index, time.time()
        who = ("default", workflow, step, "e1")
        self.metrics.wasted(workflow, "cancelled", cpu_uj)
        self.metrics.saved(workflow, Quality.ATTRIBUTED, cpu_uj)
        self.metrics.apply(
            [
                EnergyDelta(*who, "gpu", Quality.ATTRIBUTED, gpu_uj),
                EnergyDelta(*who, "cpu", Quality.ESTIMATED, cpu_uj),
            ],
            [
                WindowRecord("h1/gpu:0", self.second, Quality.MEASURED, gpu_uj, 30_000_000, 1_000_000, 0),
                WindowRecord("h1/cpu:0", self.second, Quality.ESTIMATED, cpu_uj, 5_000_000, 0, 0),
            ],
        )
        self.metrics.tokens("default", workflow, step, prompt=3100, cached=3000, output=200)
        self.metrics.request_done("default", workflow, "e1", "llama", 200, Outcome.OK, 0.9)
        self.metrics.ttft(workflow, "e1", 0.2)
        self.metrics.queue_wait(workflow, "e1", 0.05)
        itl = Itl()
        for _ in range(20):
            itl.observe(0.03)
        self.metrics.itl_flush(workflow, "e1", itl)
        self.metrics.run_done(workflow, f"{workflow}-{self.second}", gpu_uj + cpu_uj, 4.5, now)


@contextmanager
def served(traffic: Traffic) -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, content_type = traffic.page(self.headers.get("Accept", ""))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """pytest's output is not the place for access logs."""

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="session")
def prometheus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if shutil.which("prometheus") is None:
        pytest.skip("Prometheus is not installed (apt install prometheus)")
    with served(Traffic()) as metrics_url, prometheus_of(metrics_url, tmp_path_factory.mktemp("prometheus")) as url:
        yield url


@pytest.fixture(scope="session")
def panels_answer() -> Callable[..., None]:
    return assert_panels_answer
