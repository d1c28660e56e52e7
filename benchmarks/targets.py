"""What is measured: the stub engine itself, the gateway in front of it, and the peers that are installed.

Nothing listens beyond the loopback, and no peer fetches anything.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from benchmarks.processes import ROOT, Process, StartError, free_port

MODEL = "stub"
KEY = "sk-bench-0123456789"
GATEWAY = "joulegate"
DIRECT = "direct"
ROUTER = "vllm-router"
LITELLM = "litellm"
NGINX = "nginx"
START_S = 90.0
PEERS = ROOT / ".venv-peers"

_FOREIGN = ("JOULEGATE_", "ZEUSD_", "OPENAI_", "STUB_", "XDG_STATE", "LITELLM_")


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of server: the command that runs it on a port, and its version. `absent` says why it cannot be run."""

    name: str
    command: Callable[[int, int, Path], list[str]]  # its port, the engine's port, a folder for its files
    version: Callable[[], str]
    absent: Callable[[], str | None] = lambda: None
    env: Mapping[str, str] | None = None


def start(target: Target, engine_port: int, folder: Path) -> Process:
    """Run a target until a request passes through it, its files in a new place under `folder`. Raises StartError.

    `engine_port` is where the stub engine listens; the stub itself has no use for it.
    """
    home = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=folder))
    port = free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    env |= {"XDG_STATE_HOME": str(home), "COLUMNS": "200", **(target.env or {})}
    process = Process(target.name, target.command(port, engine_port, home), port, home / "log.txt", env)
    try:
        _wait_until_up(process)
    except BaseException:
        process.stop()
        raise
    return process


def _wait_until_up(process: Process) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "up?"}], "max_tokens": 1}
    deadline, said = time.monotonic() + START_S, "no answer"
    with httpx.Client(headers={"authorization": f"Bearer {KEY}"}, timeout=5, trust_env=False) as client:
        while time.monotonic() < deadline:
            if not process.alive():
                raise StartError(f"{process.name} ended at once: {process.last_words()}")
            try:
                reply = client.post(f"http://127.0.0.1:{process.port}/v1/chat/completions", json=body)
                if reply.status_code == 200:
                    return
                said = f"status {reply.status_code}"
            except httpx.TransportError as error:
                said = str(error)
            time.sleep(0.1)
    raise StartError(f"{process.name} was not up after {START_S:g} s ({said}): {process.last_words()}")


def _stub(port: int, _: int, __: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.stub_engine", str(port)]


def _gateway(port: int, engine_port: int, folder: Path) -> list[str]:
    config = {
        "listen": {"host": "127.0.0.1", "port": port},
        "engines": [{"name": "e1", "kind": "vllm", "url": f"http://127.0.0.1:{engine_port}", "models": [MODEL]}],
        "workflows": {"bench": {"steps": ["ask"]}},
        "keys": [{"tenant": "bench", "key": KEY}],
        "ledger": {"path": str(folder / "ledger.sqlite")},
        "limits": {"in_flight": 4096},  # wide enough never to hold anybody, but counted at the gate
    }
    file = folder / "joulegate.yaml"
    file.write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "joulegate", "serve", "-c", str(file)]


def _nginx(port: int, engine_port: int, folder: Path) -> list[str]:
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = folder / "nginx.conf"
    file.write_text(f"""
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  {temporary}
  client_body_buffer_size 1m;
  upstream engine {{ server 127.0.0.1:{engine_port}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port} backlog=2048;
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 300s;
    }}
  }}
}}
""")
    return [str(_find_nginx()), "-e", "stderr", "-p", str(folder), "-c", str(file), "-g", "daemon off;"]


def _router(port: int, engine_port: int, folder: Path) -> list[str]:
    command = [str(PEERS / "bin/vllm-router"), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", f"http://127.0.0.1:{engine_port}", "--policy", "round_robin"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return [*command, "--worker-startup-check-interval", "1", "--log-level", "warning"]


def _litellm(port: int, engine_port: int, folder: Path) -> list[str]:
    engine = {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{engine_port}/v1", "api_key": "none"}
    config = {
        "model_list": [{"model_name": MODEL, "litellm_params": engine}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(PEERS / "bin/litellm"), "--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    return [*command, "--num_workers", "1"]


def _find_nginx() -> str | None:
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", str(PEERS / "nginx/usr/sbin")]
    return shutil.which("nginx", path=os.pathsep.join(places))


def _absent_nginx() -> str | None:
    return None if _find_nginx() else "not installed (`make bench-peers`, or your system's package)"


def _absent_peer(name: str) -> Callable[[], str | None]:
    return lambda: None if (PEERS / "bin" / name).exists() else "not installed (`make bench-peers`)"


def _nginx_version() -> str:
    said = subprocess.run([str(_find_nginx()), "-v"], capture_output=True, text=True, check=False).stderr
    return said.strip().rpartition("/")[2]


def _peer_version(name: str) -> Callable[[], str]:
    def version() -> str:
        ask = f"import importlib.metadata as m; print(m.version({name!r}))"
        return subprocess.check_output([str(PEERS / "bin/python"), "-c", ask], text=True).strip()

    return version


def _own_version() -> str:
    return importlib.metadata.version("joulegate")


STUB = Target(DIRECT, _stub, lambda: "uvicorn " + importlib.metadata.version("uvicorn"))
PROXIES = (
    Target(GATEWAY, _gateway, _own_version),
    Target(NGINX, _nginx, _nginx_version, _absent_nginx),
    Target(ROUTER, _router, _peer_version("vllm-router"), _absent_peer("vllm-router")),
    Target(
        LITELLM,
        _litellm,
        _peer_version("litellm"),
        _absent_peer("litellm"),
        env={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
    ),
)
