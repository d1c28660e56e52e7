"""Processes for the real ParrotServe, where there is one (`make test-parrot`), with a gateway and engines beside it."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

HERE = Path(__file__).parent
KEY = "0123456789abcdef0123"
SRC, PYTHON = os.environ.get("PARROT_SRC"), os.environ.get("PARROT_PYTHON", sys.executable)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"joulegate_parrot_{path.stem}", path)
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STAGE: Any = _load(HERE.parent / "e2e" / "stage.py")
FAKE: Any = _load(HERE / "fake_core.py")


@dataclass
class Real:
    """A running ServeCore with its `openai` engine, which calls `egress_port`."""

    folder: Path
    url: str
    egress_port: int
    core: "subprocess.Popen[bytes]"
    engine: "subprocess.Popen[bytes]"

    def lives(self) -> bool:
        return self.core.poll() is None and self.engine.poll() is None

    def log(self) -> str:
        return "".join((self.folder / f"{part}.log").read_text() for part in ("core", "engine"))


def _start(part: str, folder: Path, config: Mapping[str, Any]) -> "subprocess.Popen[bytes]":
    (folder / f"{part}.json").write_text(json.dumps(config))
    env = {
        **os.environ,
        "PYTHONPATH": str(SRC),
        "SIMULATE_NETWORK_LATENCY_PRT": "0",
        "SIMULATE_NETWORK_LATENCY_FS": "0",
    }
    command = [PYTHON, str(HERE / "launch.py"), part, "--config_path", f"{part}.json", "--release_mode"]
    with (folder / f"{part}.log").open("wb") as log:
        return subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)


def _answers(url: str, method: str = "GET") -> bool:
    with suppress(httpx.TransportError):
        return httpx.request(method, url, timeout=2).status_code < 500
    return False


@contextmanager
def real_parrot(folder: Path, egress_port: int) -> Iterator[Real]:
    port, engine_port = STAGE.free_port(), STAGE.free_port()
    where = {"host": "127.0.0.1", "port": port}
    core = _start("core", folder, {**where, "session_life_span": 600, "global_scheduler": {"max_queue_size": 2048}})
    processes = [core]
    try:
        url = f"http://127.0.0.1:{port}"
        STAGE.until(lambda: _answers(f"{url}/openapi.json"))
        engine_config = {
            "model": "any",
            "engine_name": "egress",
            "engine_type": "openai",
            "random_seed": 0,
            "host": "127.0.0.1",
            "port": engine_port,
            "tasks_capacity": 256,
            "serve_core": where,
            "instance": {"api_key": KEY, "api_endpoint": "chat", "base_url": f"http://127.0.0.1:{egress_port}/v1"},
            "scheduler": {"max_batch_size": 256, "max_num_batched_tokens": 1, "max_total_tokens": 1},
        }
        processes.append(_start("engine", folder, engine_config))
        STAGE.until(lambda: _answers(f"http://127.0.0.1:{engine_port}/ping", "POST"))
        yield Real(folder, url, egress_port, *processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@dataclass
class Emulated:
    """An emulated GPU host's engine, which serves `m`, and its counters."""

    url: str
    zeusd: str
    process: "subprocess.Popen[bytes]"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def emulated_host(folder: Path) -> Iterator[Emulated]:
    port, zeusd_port = STAGE.free_port(), STAGE.free_port()
    command = [sys.executable, "-m", "joulegate", "emulate", "--served-model-name", "m", "--gpu", "a100-40g"]
    command += ["--model", "llama-2-7b", "--port", str(port), "--zeusd-port", str(zeusd_port)]
    with (folder / "emulate.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    host = Emulated(f"http://127.0.0.1:{port}", f"127.0.0.1:{zeusd_port}", process)
    try:
        STAGE.until(lambda: _answers(f"{host.url}/health"))
        yield host
    finally:
        host.close()


@pytest.fixture(scope="session")
def src() -> str:
    """The checkout of ParrotServe; without one a test is skipped."""
    if not SRC:
        pytest.skip("PARROT_SRC names no checkout of microsoft/ParrotServe")
    return SRC


@dataclass
class World:
    """Parrot, `engine` behind the egress (a `stage.Engine`, or an emulated one), and the gateway before both."""

    parrot: Real
    gateway: Any
    engine: Any
    model: str


MakeWorld = Callable[..., World]


@pytest.fixture(scope="module")
def make_world(src: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeWorld]:
    """`make_world(emulated=True)`."""
    with ExitStack() as stack:

        def make(emulated: bool) -> World:
            folder = tmp_path_factory.mktemp("parrot")
            engine = stack.enter_context(emulated_host(folder)) if emulated else STAGE.Engine("m", step_ms=5)
            stack.callback(engine.close)
            parrot = stack.enter_context(real_parrot(folder, STAGE.free_port()))
            egress = {"engine": "e1", "port": parrot.egress_port, "key": KEY}
            behind = {"name": "e1", "kind": "vllm", "url": engine.url, "devices": ["h1/gpu:0"] if emulated else []}
            config: dict[str, Any] = {
                "engines": [behind, {"name": "parrot", "kind": "parrot", "url": parrot.url, "egress": egress}]
            }
            if emulated:
                config["hosts"] = {"h1": {"zeusd": engine.zeusd}}
            gateway = stack.enter_context(STAGE.running(STAGE.Gateway(config, folder)))
            STAGE.until(lambda: gateway.get("/readyz")["engines"]["parrot"])
            return World(parrot, gateway, engine, "parrot/m")

        yield make


@pytest.fixture(scope="module")
def stage() -> Any:
    return STAGE


@pytest.fixture
def locustfile() -> str:
    return str(HERE.parents[1] / "loadgen" / "locustfile.py")


@pytest.fixture(scope="session")
def fake() -> Any:
    return FAKE


@pytest.fixture(scope="session")
def start_real(src: str) -> Any:
    return real_parrot
