import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from joulegate.cli import app
from joulegate.policy import fetch, show
from proxy.config import ConfigError

REPORT: dict[str, Any] = {
    "policy": "company",
    "standing": "backed_off",
    "why": "search misses its ttft_p95: 4 of 9 are late",
    "reason": "nothing is held or limited meanwhile",
    "reasons": {"release/search": "held for 3 s at most"},
    "devices": {
        "h1/gpu:0": {
            "settings": [
                {"what": "power limit", "unit": "W", "wanted": 400.0, "effect": "set", "reason": None},
                {"what": "SM clock", "unit": "MHz", "wanted": None, "effect": "back", "reason": "as it was found"},
            ],
            "note": "the cap of 400 W has not held it once in 90 s of work",
        }
    },
    "groups": {"count": 3, "mean_size": 4.0, "largest": 5, "mean_wait_s": 1.0},
    "measured": {
        "company": {
            "seconds": 60.0,
            "requests": 100,
            "requests_held": 80,
            "joules_per_request": 123.456,
            "joules_per_output_token": None,
            "mean_wait_s": 1.25,
        }
    },
    "history": [
        {
            "t": 0.0,
            "standing": "acting",
            "why": None,
            "reason": "held for [company]",
            "preview": {"saved_w": 120.0, "low_w": 100.0, "high_w": 150.0},
        },
        {"t": 0.0, "standing": "backed_off", "why": "late", "reason": "x", "preview": None},
    ],
}


class Door(BaseHTTPRequestHandler):
    """A gateway that wants the key `secret`."""

    def do_GET(self) -> None:
        allowed = self.headers.get("authorization") == "Bearer secret"
        body = json.dumps(REPORT if allowed else {}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_person_reads_what_is_done_and_why() -> None:
    console = Console(file=io.StringIO(), width=140)
    show(REPORT, False, console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    for line in (
        "policy company: backed off\n",
        "  because search misses its ttft_p95: 4 of 9 are late\n",
        "  release/search: held for 3 s at most\n",
        "h1/gpu:0: power limit 400 W: set\n",
        "h1/gpu:0: SM clock as found: back, as it was found\n",
        "h1/gpu:0: the cap of 400 W has not held it once in 90 s of work\n",
        "last minute: 3 groups left the gate, 4 requests each\n",
        "1.2e+02 (1e+02 to 1.5e+02)",
    ):
        assert line in text
    assert "[company]" in text, "words are no markup"
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("company "))
    assert row == ["company", "60", "100", "80", "123", "-", "1.25"]


def test_a_program_gets_all_of_it(url: str) -> None:
    done = CliRunner().invoke(app, ["policy", "--json"], env={"JOULEGATE_URL": url, "JOULEGATE_KEY": "secret"})
    assert done.exit_code == 0 and json.loads(done.stdout) == REPORT


def test_what_is_wrong_is_one_line(url: str) -> None:
    with pytest.raises(ConfigError, match="wants the admin key: set JOULEGATE_KEY, or give --key-file"):
        fetch(url, None)
    with pytest.raises(ConfigError, match=r"no gateway answers at http://127\.0\.0\.1:1"):
        fetch("http://127.0.0.1:1", None)
    with pytest.raises(ConfigError, match="no gateway answers at nonsense"):
        fetch("nonsense", None)
