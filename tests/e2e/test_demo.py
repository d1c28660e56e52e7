"""The demo's end, whatever brings it: nothing of it goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stage import environment, until

from proxy.engines import model

SECONDS = 60  # of load, which no test here waits for


class Demo:
    """A running `joulegate demo`, and every process that was seen below it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen = folder, set[psutil.Process]()
        command = [sys.executable, "-m", "joulegate", "demo", "--seconds", str(SECONDS), "--port", "0"]
        with (folder / "said.txt").open("w") as said:
            self.process = subprocess.Popen(
                [*command, "--out", str(folder / "out")], stdout=said, stderr=said, env=environment(folder)
            )

    def look(self) -> set[psutil.Process]:
        assert self.process.poll() is None, self.said()
        self.seen |= set(psutil.Process(self.process.pid).children(recursive=True))
        return self.seen

    def runs(self, word: str) -> psutil.Process | None:
        """The process below it whose command has this word."""
        for process in self.look():
            try:
                if word in process.cmdline():
                    return process
            except psutil.Error:  # it came and went
                continue
        return None

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def nothing_is_left(self) -> bool:
        return not [process for process in self.seen if process.is_running() and process.status() != "zombie"]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    model.fetch()
    demo = Demo(tmp_path)
    yield demo
    for process in demo.seen:
        if process.is_running():
            process.kill()
    demo.process.kill()
    demo.process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_all_of_it(demo: Demo, number: signal.Signals) -> None:
    until(lambda: demo.runs("locust"), 90)
    demo.look()
    assert len(demo.seen) >= 3, "the gateway, its model, the load"
    demo.process.send_signal(number)
    demo.process.send_signal(signal.SIGTERM)  # impatience changes nothing
    assert demo.process.wait(60) == 128 + number or demo.process.returncode == 128 + signal.SIGTERM
    until(demo.nothing_is_left)
    assert "Traceback" not in demo.said()


def test_a_signal_while_the_gateway_starts_ends_all_of_it(demo: Demo) -> None:
    until(lambda: demo.runs("serve"), 60)
    demo.process.send_signal(signal.SIGTERM)
    assert demo.process.wait(60) == 128 + signal.SIGTERM
    until(demo.nothing_is_left)
    assert "Traceback" not in demo.said()


def test_a_gateway_that_dies_is_one_line(demo: Demo) -> None:
    until(lambda: demo.runs("locust"), 90)
    gateway = demo.runs("serve")
    assert gateway is not None
    demo.look()
    os.kill(gateway.pid, signal.SIGKILL)
    assert demo.process.wait(60) == 1
    until(demo.nothing_is_left)
    assert "Traceback" not in demo.said() and "joulegate: the gateway " in demo.said().splitlines()[-1]


def test_a_place_for_results_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "joulegate", "demo", "--out", str(tmp_path / "file")]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("joulegate: the demo cannot go on: ") and len(done.stderr.splitlines()) == 1
