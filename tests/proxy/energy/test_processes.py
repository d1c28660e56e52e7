import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import pytest

from proxy import clock
from proxy.energy.processes import Processes, listener

SERVER = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.readline()
begun = time.process_time()
while time.process_time() - begun < 0.3:
    pass
print("worked", flush=True)
sys.stdin.readline()
"""


@dataclass
class Engine:
    name: str = "e1"
    url: str = "http://127.0.0.1:1"
    local: bool = True
    devices: tuple[str, ...] = ("local/cpu:0",)


@dataclass
class Embedded(Engine):
    pid: int | None = None


@pytest.fixture
def server() -> "Iterator[subprocess.Popen[str]]":
    command = [sys.executable, "-c", SERVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def say(process: "subprocess.Popen[str]") -> str:
    assert process.stdin and process.stdout
    print(file=process.stdin, flush=True)
    return process.stdout.readline().strip()


def test_the_cpu_time_of_who_listens_on_the_engines_port(
    server: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.stdout
    engine = Engine(url=f"http://127.0.0.1:{int(server.stdout.readline())}/v1")
    processes = Processes(lambda: [engine])
    (before,) = processes.read()
    assert (before.engine, before.own_s is not None) == ("e1", True)
    assert say(server) == "worked"
    (after,) = processes.read()
    assert after.own_s and before.own_s is not None and after.t > before.t
    assert 0.25 <= after.own_s - before.own_s <= after.host_s - before.host_s + 0.1
    server.kill()
    server.wait()
    (gone,) = processes.read()
    assert gone.own_s is None


def test_an_engine_that_nobody_can_see_is_not_known_and_not_looked_for_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[float] = []
    now = [1000.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    monkeypatch.setattr(psutil, "net_connections", lambda kind: looks.append(now[0]) or [])
    processes = Processes(lambda: [Engine()])
    for _ in range(1200):
        (time_,) = processes.read()
        assert time_.own_s is None
        now[0] += 0.1
    assert looks == [pytest.approx(1000.0 + t, abs=0.2) for t in (0, 2, 6, 14, 30, 62)]


def test_an_engine_that_the_gateway_started_is_known_by_its_process() -> None:
    own, none = Embedded(name="own", pid=psutil.Process().pid), Embedded(name="starting")
    processes = Processes(lambda: [own, none])
    first, starting = processes.read()
    assert first.own_s == pytest.approx(time.process_time(), rel=0.5) and starting.own_s is None
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        while psutil.Process(child.pid).cpu_times().user < 0.2:
            time.sleep(0.01)
        grown = Processes(lambda: [own]).read()[0]
    finally:
        child.kill()
        child.wait()
    assert grown.own_s is not None and first.own_s is not None
    assert grown.own_s - first.own_s > 0.1, "with those that it started"


def test_without_engines_nothing_is_read() -> None:
    assert Processes(list).read() == []


def test_a_go_between_is_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as ours:
        port = ours.getsockname()[1]
        found = listener(port)
        assert found is not None and found.pid == psutil.Process().pid
        monkeypatch.setattr(psutil.Process, "name", lambda self: "docker-proxy")
        assert listener(port) is None
    assert listener(None) is None
