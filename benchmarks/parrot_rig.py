"""A ServeCore before an emulated GPU host, and a gateway before both: what `benchmarks/parrot.py` measures.

The engine is there twice: by its own name, and behind Parrot, whose `openai` engine comes back through the gateway's
egress. With a checkout of ParrotServe the real one is started (see `docs/parrot.md` for what it needs), else the
stand-in of the tests, which has its interface, laziness and order, and not its speed.
"""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.processes import ROOT, Process, StartError, free_port
from benchmarks.rehearsal import GPU, MODEL

READY_S = 60.0
SETTLES_S = 10.0
PARROT = ROOT / "tests" / "parrot"
MODELS = {"vllm": MODEL, "parrot": f"parrot/{MODEL}"}
KEY_BYTES = 16


@dataclass(frozen=True)
class Source:
    """A checkout of microsoft/ParrotServe, and a Python that has what it needs."""

    checkout: Path
    python: Path

    @classmethod
    def of_environment(cls) -> "Source | None":
        """What $PARROT_SRC and $PARROT_PYTHON say; None without the first."""
        checkout = os.environ.get("PARROT_SRC")
        return cls(Path(checkout), Path(os.environ.get("PARROT_PYTHON", sys.executable))) if checkout else None


@dataclass
class Rig:
    """All of it running; `core` says which ServeCore. `restart_engine` gives the host another batch size."""

    folder: Path
    core: str
    url: str
    _start_host: Callable[[int], Process]
    _host: Process
    max_num_seqs: int
    _processes: list[Process] = field(default_factory=list)
    _began_s: float = field(default_factory=time.monotonic)

    def restart_engine(self, max_num_seqs: int) -> None:
        """Nothing may be in flight."""
        if max_num_seqs == self.max_num_seqs:
            return
        self._host.stop()
        self._host, self.max_num_seqs = self._start_host(max_num_seqs), max_num_seqs
        self.wait()

    def wait(self) -> None:
        """Until both ways answer and their joules are known. Raises StartError.

        The counters of a host that was started anew begin anew, and the gateway takes some seconds to trust them.
        """
        for model in MODELS.values():
            _until(
                lambda model=model: self._is_metered(model), self._everything(), f"{model} to answer, with its joules"
            )

    def cpu_shares(self) -> dict[str, float]:
        """Of one core of this very machine, by process, since all of it runs: nothing that the emulated host knows."""
        seconds = time.monotonic() - self._began_s
        return {one.name: round(one.cpu_ns() / 1e9 / seconds, 3) for one in self._processes}

    def stop_host(self) -> None:
        self._host.stop()

    def _is_metered(self, model: str) -> bool:
        run = f"rig-{secrets.token_hex(8)}"
        body = {"model": model, "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 64}
        headers = {"X-Workflow-Id": run, "X-Workflow-Name": "rig", "X-Workflow-Final": "true"}
        if httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers).status_code != 200:
            return False
        until = time.monotonic() + SETTLES_S
        while time.monotonic() < until:
            found = httpx.get(f"{self.url}/energy/runs/{run}")
            if found.status_code == 200 and found.json()["settled"]:
                return all(request["joules"] is not None for request in found.json()["requests"])
            time.sleep(0.2)
        return False

    def _everything(self) -> list[Process]:
        return [*self._processes, self._host]


@contextmanager
def rig(folder: Path, source: Source | None, max_num_seqs: int = 8) -> Iterator[Rig]:
    """Raises StartError where something does not come up; its last words are in it."""
    folder.mkdir(parents=True, exist_ok=True)
    key, egress, port, zeusd, core = secrets.token_hex(KEY_BYTES), *(free_port() for _ in range(4))

    def host(max_num_seqs: int) -> Process:
        ones = ("--gpu", GPU, "--model", MODEL, "--port", str(port), "--zeusd-port", str(zeusd))
        command = [sys.executable, "-u", "-m", "joulegate", "emulate", *ones, "--max-num-seqs", str(max_num_seqs)]
        started = Process("the emulated host", command, port, folder / "host.log", dict(os.environ))
        _until(lambda: _get(f"http://127.0.0.1:{port}/health"), [started], "the emulated host")
        return started

    with ExitStack() as stack:
        processes: list[Process] = []

        def start(process: Process, url: str) -> None:
            stack.callback(process.stop)
            processes.append(process)
            _until(lambda: _get(url), processes, process.name)

        base_url = f"http://127.0.0.1:{egress}/v1"
        if source is None:
            named = "a stand-in of the tests (tests/parrot/fake_core.py)"
            command = [sys.executable, str(PARROT / "fake_core.py"), str(core), base_url, key]
            start(Process("ServeCore", command, core, folder / "core.log", dict(os.environ)), _nowhere(core))
        else:
            named = "ParrotServe (SIMULATE_NETWORK_LATENCY_PRT=0)"
            for part, at, config in real(core, free_port(), base_url, key):
                start(launched(part, at, config, folder, source), _nowhere(at))
        first = host(max_num_seqs)
        gateway_port = free_port()
        (folder / "joulegate.yaml").write_text(
            yaml.safe_dump(configuration(folder, gateway_port, port, zeusd, core, egress, key))
        )
        serve = [sys.executable, "-m", "joulegate", "serve", "-c", str(folder / "joulegate.yaml")]
        url = f"http://127.0.0.1:{gateway_port}"
        made = Rig(folder, named, url, host, first, max_num_seqs, processes)
        stack.callback(made.stop_host)
        log = folder / "gateway.log"
        start(Process("the gateway", serve, gateway_port, log, dict(os.environ)), f"{url}/healthz")
        made.wait()
        yield made


def configuration(folder: Path, port: int, engine: int, zeusd: int, core: int, egress: int, key: str) -> dict[str, Any]:
    """One emulated card with its engine, and Parrot before the same engine."""
    devices = [f"emulated/{unit}:0" for unit in ("gpu", "cpu", "dram")]
    at = "http://127.0.0.1"
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "hosts": {"emulated": {"zeusd": f"127.0.0.1:{zeusd}"}},
        "engines": [
            {"name": "vllm", "kind": "vllm", "url": f"{at}:{engine}", "devices": devices, "models": [MODEL]},
            {
                "name": "parrot",
                "kind": "parrot",
                "url": f"{at}:{core}",
                "egress": {"engine": "vllm", "port": egress, "key": key},
            },
        ],
        "ledger": {"path": str(folder / "ledger.sqlite")},
    }


def real(core: int, engine: int, base_url: str, key: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """ServeCore's and its `openai` engine's configuration."""
    where = {"host": "127.0.0.1", "port": core}
    yield "core", core, {**where, "session_life_span": 600, "global_scheduler": {"max_queue_size": 2048}}
    yield (
        "engine",
        engine,
        {
            "host": "127.0.0.1",
            "port": engine,
            "model": "any",
            "engine_name": "egress",
            "engine_type": "openai",
            "random_seed": 0,
            "tasks_capacity": 256,
            "serve_core": where,
            "instance": {"api_key": key, "api_endpoint": "chat", "base_url": base_url},
            "scheduler": {"max_batch_size": 256, "max_num_batched_tokens": 10**8, "max_total_tokens": 10**8},
        },
    )


def launched(part: str, port: int, config: dict[str, Any], folder: Path, source: Source) -> Process:
    file = folder / f"{part}.json"
    file.write_text(json.dumps(config))
    latency = {"SIMULATE_NETWORK_LATENCY_PRT": "0", "SIMULATE_NETWORK_LATENCY_FS": "0"}
    env = {**os.environ, "PYTHONPATH": str(source.checkout), **latency}
    command = [str(source.python), str(PARROT / "launch.py"), part, "--config_path", str(file), "--release_mode"]
    return Process(f"ParrotServe's {part}", command, port, folder / f"{part}.log", env)


def _nowhere(port: int) -> str:
    """A page that a server does not have; any answer says that it is there."""
    return f"http://127.0.0.1:{port}/nowhere"


def _get(url: str) -> bool:
    return httpx.get(url).status_code < 500


def _until(there: Callable[[], bool], processes: list[Process], what: str) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if dead := next((one for one in processes if not one.alive()), None):
            raise StartError(f"waiting for {what}: {dead.name} ended: {dead.last_words()}")
        try:
            if there():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise StartError(f"{what} did not come up within {READY_S:g} s")
