"""The real ParrotServe on this machine: its ServeCore, and its `openai` engine, whose calls end at our egress."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.processes import Process, StartError, free_port

LAUNCH = Path(__file__).with_name("launch.py")
START_S = 60.0


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout of microsoft/ParrotServe, and a Python that has what it needs (tests/parrot/requirements.txt)."""

    src: Path
    python: Path


@dataclass(frozen=True, slots=True)
class Real:
    """A running ServeCore with its engine, which calls `egress_port` with a key."""

    url: str
    egress_port: int
    core: Process
    engine: Process

    def lives(self) -> bool:
        return self.core.alive() and self.engine.alive()


@contextmanager
def real_parrot(checkout: Checkout, folder: Path, egress_port: int, key: str) -> Iterator[Real]:
    """Raises StartError where it does not come up."""
    port, engine_port = free_port(), free_port()
    where = {"host": "127.0.0.1", "port": port}
    processes: list[Process] = []
    try:
        core_config = {**where, "session_life_span": 600, "global_scheduler": {"max_queue_size": 2048}}
        processes.append(_start(checkout, "core", folder, core_config, port))
        url = f"http://127.0.0.1:{port}"
        wait(lambda: answers(f"{url}/openapi.json"), processes[0])
        engine_config = {
            "engine_name": "egress",
            "engine_type": "openai",
            "model": "any",
            "random_seed": 0,
            "host": "127.0.0.1",
            "port": engine_port,
            "tasks_capacity": 256,
            "serve_core": where,
            "instance": {"api_key": key, "api_endpoint": "chat", "base_url": f"http://127.0.0.1:{egress_port}/v1"},
            "scheduler": {"max_batch_size": 256, "max_num_batched_tokens": 1, "max_total_tokens": 1},
        }
        processes.append(_start(checkout, "engine", folder, engine_config, engine_port))
        wait(lambda: answers(f"http://127.0.0.1:{engine_port}/ping", "POST"), processes[1])
        yield Real(url, egress_port, *processes)
    finally:
        for process in processes:
            process.stop()


def wait(probe: Callable[[], bool], process: Process) -> None:
    """Until a process answers. Raises StartError."""
    until = time.monotonic() + START_S
    while not probe():
        if not process.alive() or time.monotonic() > until:
            raise StartError(f"{process.name} does not come up: {process.last_words()}")
        time.sleep(0.1)


def answers(url: str, method: str = "GET") -> bool:
    with suppress(httpx.TransportError):
        return httpx.request(method, url, timeout=2).status_code < 500
    return False


def _start(checkout: Checkout, part: str, folder: Path, config: Mapping[str, Any], port: int) -> Process:
    file = folder / f"{part}.json"
    file.write_text(json.dumps(config))
    switches = {"SIMULATE_NETWORK_LATENCY_PRT": "0", "SIMULATE_NETWORK_LATENCY_FS": "0"}
    env = {**os.environ, "PYTHONPATH": str(checkout.src), **switches}
    command = [str(checkout.python), str(LAUNCH), part, "--config_path", str(file), "--release_mode"]
    return Process(f"parrot's {part}", command, port, folder / f"{part}.log", env)
