"""Power limits behind a zeusd: a small daemon with the paths and answers of the real one."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from proxy.config import Host
from proxy.control.actuator import Effect, PowerActuator
from proxy.control.knobs import KnobError, NoPrivilege, open_knobs


class Daemon(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.limit_mw = 700_000
        self.groups = ["gpu-read", "gpu-control"]
        self.root = True
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    server: Daemon  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        if self.path.startswith("/discover"):
            gpus = [{"id": 3, "name": "NVIDIA H200"}]
            groups = self.server.groups
            self.answer({"gpus": gpus, "cpus": [], "enabled_api_groups": groups, "auth_required": False})
        else:
            assert self.path.startswith("/gpu/get_power_limit"), self.path
            self.answer({3: {"power_limit_mw": self.server.limit_mw}})

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        assert (url.path, query["gpu_ids"], query["block"]) == ("/gpu/set_power_limit", "3", "true")
        if not self.server.root:
            self.answer("NVML error: the current user does not have permission to perform this operation", 403)
        elif not 200_000 <= int(query["power_limit_mw"]) <= 700_000:
            self.answer("NVML error: a supplied argument was invalid", 400)
        else:
            self.server.limit_mw = int(query["power_limit_mw"])
            self.answer("")

    def answer(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    server = Daemon()
    yield server
    server.shutdown()
    server.server_close()


def hosts(daemon: Daemon) -> dict[str, Host]:
    return {"h1": Host(zeusd=f"127.0.0.1:{daemon.server_port}")}


def test_zeusd_sets_and_restores(daemon: Daemon, path: Path) -> None:
    actuator = PowerActuator(open_knobs(hosts(daemon)), path)
    (applied,) = actuator.apply({"h1/gpu:3": 400.0}, 0.0)
    assert (applied.effect, applied.enforced_w, daemon.limit_mw) == (Effect.SET, 400.0, 400_000)
    actuator.restore()
    assert daemon.limit_mw == 700_000


def test_zeusd_itself_refuses_what_is_out_of_range(daemon: Daemon, path: Path) -> None:
    actuator = PowerActuator(open_knobs(hosts(daemon)), path)
    (applied,) = actuator.apply({"h1/gpu:3": 90.0}, 0.0)
    assert applied.effect is Effect.REFUSED and "argument was invalid" in applied.reason
    assert daemon.limit_mw == 700_000 and not path.exists()


def test_zeusd_without_control_or_privilege(daemon: Daemon) -> None:
    daemon.groups = ["gpu-read"]
    with pytest.raises(NoPrivilege, match="gpu-control"):
        open_knobs(hosts(daemon))["h1/gpu:3"].set_limit_w(400.0)
    daemon.groups, daemon.root = ["gpu-read", "gpu-control"], False
    with pytest.raises(NoPrivilege, match="does not have permission"):
        open_knobs(hosts(daemon))["h1/gpu:3"].set_limit_w(400.0)
    daemon.groups = ["gpu-control"]
    assert open_knobs(hosts(daemon)) == {}


def test_zeusd_that_went_away_is_an_error_of_the_knob(daemon: Daemon) -> None:
    knob = open_knobs(hosts(daemon))["h1/gpu:3"]
    daemon.shutdown()
    daemon.server_close()
    with pytest.raises(KnobError):
        knob.get_limit_w()
