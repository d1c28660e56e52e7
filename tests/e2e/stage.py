"""The processes of a test on stage: engines and gateways, started, asked and ended over real sockets."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
import yaml
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

T = TypeVar("T")
HERE = Path(__file__).parent
HAND_OVER = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""
COMPONENTS = ("workflow_j", "open_j", "idle_j", "foreign_j", "gap_j")


def until(probe: Callable[[], T | None], within_s: float = 30.0, every_s: float = 0.05) -> T:
    """The first answer of `probe` that is true. Raises AssertionError when none comes in time."""
    deadline = time.monotonic() + within_s
    while True:
        if found := probe():
            return found
        assert time.monotonic() < deadline, f"still {found!r} after {within_s:g} s"
        time.sleep(every_s)


# With E2E_ENGINE=emulated the engines of the tests are emulated ones; a test that must script its engine, or look into
# it, is then skipped (`make test-emulated`).
EMULATED = os.environ.get("E2E_ENGINE") == "emulated"


class Engine:
    """A stub engine in its own process; `url` has no `/v1`."""

    def __init__(self, model: str, step_ms: float, port: int = 0) -> None:
        self.model = model
        command = [sys.executable, str(HERE / "stub_engine.py"), model, str(step_ms), str(port)]
        if EMULATED:
            port = port or free_port()
            command = [sys.executable, "-m", "joulegate", "emulate", "--served-model-name", model]
            command += ["--gpu", "a100-40g", "--model", "llama-2-7b", "--port", str(port), "--zeusd-port", "0"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        if not EMULATED:
            port = int(self._process.stdout.readline())
        self.url = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.url, timeout=10)
        if EMULATED:
            until(self._listens)

    def _listens(self) -> bool:
        with suppress(httpx.TransportError):
            return self._http.get("/health").is_success
        return False

    def script(self, **how: Any) -> None:
        """How every request without a script of its own is served from now on (see `stub_engine.Script`)."""
        scripted()
        self._http.post("/stub", json=how).raise_for_status()

    def log(self, **headers: str) -> list[dict[str, Any]]:
        """The requests that arrived, in their order; those with these headers alone (`_` for `-` in a name)."""
        scripted()
        wanted = {name.replace("_", "-"): value for name, value in headers.items()}
        log = self._http.get("/stub").json()
        return [served for served in log if wanted.items() <= served["headers"].items()]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self._http.close()
        self.kill()


def scripted() -> None:
    """Skip the test where engines are emulated: it needs one that does as it is told."""
    if EMULATED:
        pytest.skip("needs the engine that can be scripted")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Gateway:
    """A gateway in its own process, with its ledger and its state in `folder`."""

    def __init__(
        self,
        config: Mapping[str, Any],
        folder: Path,
        env: Mapping[str, str] | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        """`listener` is handed over as systemd hands a socket over."""
        self.folder, self._listener = folder, listener
        self.verify: ssl.SSLContext | bool = True  # whom to trust, should it speak TLS
        self.flags: tuple[str, ...] = ()  # of `joulegate serve`
        self.file = folder / "joulegate.yaml"
        own = {"listen": {"host": "127.0.0.1", "port": 0}, "ledger": {"path": str(folder / "ledger.sqlite")}}
        self._settings = {name: config.get(name, default) for name, default in own.items()}
        self.configure(config)
        self.env = {**environment(folder), **(env or {})}
        self.url = ""

    def start(self, ready: bool = True) -> "Gateway":
        """Start it and wait until it listens, and, with `ready`, until an engine is up."""
        self._out, self._err = self.folder / "out.txt", self.folder / "err.txt"
        command = [sys.executable, "-m", "joulegate", "serve", *self.flags, "-c", str(self.file)]
        fds: tuple[int, ...] = ()
        if self._listener is not None:
            fds = (self._listener.fileno(),)
            command = [sys.executable, "-c", HAND_OVER, str(fds[0]), *command]
        with self._out.open("w") as out, self._err.open("a") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env=self.env, cwd=self.folder, pass_fds=fds
            )
        self.http = httpx.Client(timeout=60, verify=self.verify)
        self.url = until(self._listens_at, 60)
        self.http.base_url = self.url
        if ready:
            until(lambda: self.http.get("/readyz").status_code == 200)
        return self

    def _listens_at(self) -> str | None:
        assert self.process.poll() is None, f"the gateway ended with {self.process.returncode}:\n{self.log()}"
        for line in self._out.read_text().splitlines():
            if " listens on " in line and "/v1 in front of" in line:
                return line.partition(" listens on ")[2].partition("/v1 ")[0]
        return None

    def said(self) -> str:
        """What it printed on its standard output."""
        return self._out.read_text()

    def log(self) -> str:
        return self._err.read_text()

    def stop(self) -> None:
        """End it as an operator does; it must end well and have nothing to regret."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(40) == 0, self.log()
        self.http.close()
        assert "Traceback" not in self.log(), self.log()

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write another configuration, with what was given to all of them; the gateway is not told."""
        self.file.write_text(yaml.safe_dump(self._settings | dict(config)))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.http.close()

    # Asking it ------------------------------------------------------------------------------------------------------

    def openai(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def chat(self, headers: Mapping[str, str] | None = None, **body: Any) -> httpx.Response:
        """One chat completion, whole or as the bytes of a stream, whatever its status."""
        return self.http.post("/v1/chat/completions", json=chat_body(**body), headers=headers)

    def get(self, path: str, key: str | None = None) -> Any:
        reply = self.http.get(path, headers={"authorization": f"Bearer {key}"} if key else {})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def run(self, run_id: str, **parameters: str) -> dict[str, Any]:
        """A run with settled figures."""

        def settled() -> dict[str, Any] | None:
            reply = self.http.get(f"/energy/runs/{run_id}", params={"wait": "10", **parameters})
            found = reply.json()
            return found if reply.status_code == 200 and found["settled"] else None

        return until(settled, 40)

    def request(self, reply: httpx.Response) -> dict[str, Any]:
        """The settled figures of the request behind a reply."""
        return self.request_of_id(reply.headers["x-joulegate-request-id"])

    def request_of_id(self, request_id: str) -> dict[str, Any]:
        def settled() -> dict[str, Any] | None:
            reply = self.http.get(f"/energy/requests/{request_id}")
            return reply.json() if reply.status_code == 200 and reply.json()["settled"] else None

        return until(settled, 40)

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of `/metrics`, by its name and labels."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of that name with these labels."""
        return sum(v for (found, has), v in self.metrics().items() if found == name and has >= labels.items())

    def balance(self) -> dict[str, dict[str, Any]]:
        return self.get("/energy/balance")

    def ledger(self) -> dict[str, Any]:
        """What `joulegate energy --json` says."""
        done = joulegate("energy", "-c", str(self.file), "--json", env=self.env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def idle(self) -> bool:
        """Whether nothing is queued or in flight."""
        return all(
            not engine["in_flight"] and not engine["queued"] for engine in self.get("/energy/engines")["engines"]
        )


def chat_body(model: str | None = "stub-7b", content: str = "how many joules is that", **body: Any) -> dict[str, Any]:
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": content}], **body}


def uj(joules: float) -> int:
    """Joules of a JSON answer as the whole microjoules that they came from."""
    return round(joules * 1e6)


def residual_uj(books: Mapping[str, Any]) -> int:
    """What the parts leave of a device's counter, by our own sum."""
    return uj(books["counter_j"]) - sum(uj(books[name] or 0.0) for name in COMPONENTS)


def environment(folder: Path) -> dict[str, str]:
    """Ours, without what would lead a gateway elsewhere; its state goes into `folder`."""
    foreign = ("JOULEGATE_", "ZEUSD_", "CUDA_", "NVML_", "OPENAI_", "XDG_STATE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "XDG_STATE_HOME": str(folder / "state"), "COLUMNS": "200"}


def joulegate(*arguments: str, env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    """One command of the command line, to its end."""
    command = [sys.executable, "-m", "joulegate", *arguments]
    return subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def running(gateway: Gateway, ready: bool = True) -> Iterator[Gateway]:
    """The gateway started, and afterwards stopped with its good end asserted."""
    try:
        yield gateway.start(ready)
    except BaseException:
        if hasattr(gateway, "process"):
            gateway.kill()
        raise
    gateway.stop()
