"""What the demo makes of a gateway that does not answer well, and of its figures."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from joulegate.demo import Gateway, NoAnswer, run, where_they_went
from proxy.config import ConfigError


class Faulty(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/breaks":
            self.send_response(200)
            self.send_header("content-length", "100")
            self.end_headers()
            self.wfile.write(b"{")
        elif self.path == "/garbles":
            self.wfile.write(b"no HTTP at all\r\n\r\n")
        else:
            self.send_response(int(self.path[1:]))
            self.send_header("content-length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def faulty() -> Iterator[Gateway]:
    """A gateway's process that runs, and answers of every bad kind."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with HTTPServer(("127.0.0.1", 0), Faulty) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Gateway(process, f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
        thread.join()
    process.communicate(b"\n")


@pytest.mark.parametrize("path", ["/200", "/404", "/500", "/503", "/breaks", "/garbles"])
def test_an_answer_that_is_none_is_one_line(faulty: Gateway, path: str) -> None:
    with pytest.raises(NoAnswer, match=f"the gateway does not answer {path} ") as error:
        faulty.get(path)
    assert "\n" not in str(error.value) and isinstance(error.value, ConfigError)


def test_nobody_listens(faulty: Gateway) -> None:
    with pytest.raises(NoAnswer, match="refused"):
        Gateway(faulty.process, "http://127.0.0.1:1").get("/readyz")


def test_a_gateway_that_ended_is_told_from_one_that_is_silent(faulty: Gateway) -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    with pytest.raises(ConfigError, match=r"ended by itself \(exit 3\)"):
        Gateway(process, faulty.url).get("/200")


def test_a_sum_is_as_good_as_its_worst_part() -> None:
    def device(quality: str) -> dict[str, Any]:
        parts = {"workflow_j": 75.0, "idle_j": 25.0, "foreign_j": None, "gap_j": 0.0, "open_j": 0.0}
        return {"counter_j": 100.0, "quality": quality, **parts}

    def said(*qualities: str) -> str:
        workflows = [{"workflow": "far", "joules": None}, {"workflow": "search", "joules": 60.0}]
        balance = {str(n): device(quality) for n, quality in enumerate(qualities)}
        return where_they_went({"quality": sorted(qualities), "balance": balance, "workflows": workflows})

    whole = "75 % went into requests, 25 % were spent with nothing in flight; the largest part, 30 %, by search."
    assert said("estimated", "measured") == f"Of ≈ 200 J, {whole}"
    assert said("attributed", "measured") == f"Of 200 J, {whole}"


def test_an_engine_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'emulate'.* embedded or emulated would be right"):
        run(5, 0, tmp_path / "out", Console(quiet=True), "emulate")
    assert not (tmp_path / "out").exists()
