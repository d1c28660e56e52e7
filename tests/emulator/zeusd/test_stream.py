"""Power streaming, with Zeus's own client of it."""

import json
import socket
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import httpx
import pytest
from zeus.monitor.power_streaming import PowerStreamingClient
from zeus.utils.zeusd import ZeusdCapabilityError, ZeusdConfig

from emulator.host import Host
from emulator.zeusd.driver import Driver
from emulator.zeusd.stream import cpu_samples, gpu_samples, power_between
from emulator.zeusd.token import ApiGroup


def test_zeus_sees_every_device_and_every_change(zeusd: Any) -> None:
    for gpu, power_w in zip(zeusd.gpus, (400.0, 100.0), strict=True):
        gpu.power_w = power_w
    zeusd.cpus[0].package.power_w, zeusd.cpus[0].dram.power_w = 150.0, 20.0
    client = PowerStreamingClient([ZeusdConfig(host_port=zeusd.address)])
    try:
        whole = (
            seen
            for readings in client
            if len((seen := readings[zeusd.address]).gpu_power_w) == 2 and set(seen.cpu_power_w) == {0}
        )
        first = next(whole)
        assert first.gpu_power_w == pytest.approx({0: 400.0, 1: 100.0}, rel=0.01)
        assert first.timestamp_s == pytest.approx(time.time(), abs=60)
        zeusd.gpus[1].power_w = 300.0
        assert any(readings.gpu_power_w[1] > 200 for readings in islice(whole, 200))
        cpu = client.get_power()[zeusd.address].cpu_power_w[0]
        assert (cpu.cpu_w, cpu.dram_w) == pytest.approx((150.0, 20.0), rel=0.2)
    finally:
        client.stop()


def test_zeus_may_ask_for_some_gpus_alone(zeusd: Any) -> None:
    zeusd.gpus[1].power_w = 250.0
    client = PowerStreamingClient([ZeusdConfig(host_port=zeusd.address, gpu_indices=[1], cpu_indices=[])])
    try:
        (readings,) = next(iter(client)).values()
        assert readings.gpu_power_w == pytest.approx({1: 250.0}, rel=0.01) and readings.cpu_power_w == {}
    finally:
        client.stop()


def test_zeus_is_told_what_it_may_not_stream(make_zeusd: Callable[..., Any]) -> None:
    daemon = make_zeusd(groups=[ApiGroup.GPU_CONTROL])
    with pytest.raises(ZeusdCapabilityError, match="gpu-read"):
        PowerStreamingClient([ZeusdConfig(host_port=daemon.address, gpu_indices=[0])])


def test_an_event_has_the_daemons_form(zeusd: Any) -> None:
    zeusd.gpus[0].power_w = 321.0
    with httpx.stream("GET", f"http://{zeusd.address}/gpu/stream_power?gpu_ids=0") as reply:
        headers = reply.headers
        assert (headers["content-type"], headers["cache-control"]) == ("text/event-stream", "no-cache")
        line = next(line for line in reply.iter_lines() if line)
    kind, _, data = line.partition(": ")
    event = json.loads(data)
    assert kind == "data" and list(event) == ["timestamp_ms", "gpu_id", "power_mw"]
    assert (event["gpu_id"], event["power_mw"]) == (0, pytest.approx(321_000, rel=0.01))


def test_a_stream_of_steady_power_notices_that_its_client_went(zeusd: Any) -> None:
    """Its socket is closed, though there is nothing to send: the daemon can be stopped at once."""
    host, _, port = zeusd.address.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET /gpu/stream_power HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    zeusd.stop()


class Changing:
    """A GPU and a CPU package whose energy a test sets."""

    energy_j = cpu_energy_j = dram_energy_j = 0.0


def test_only_what_has_changed_is_an_event() -> None:
    from emulator.host import Card, Package

    device = Changing()
    driver = Driver(Host([Card(device, "Emulated card", "GPU-0")], [Package(device)]))
    gpus, cpus = gpu_samples(driver, [0]), cpu_samples(driver, [0])
    assert gpus(10.0) == cpus(10.0) == []
    device.energy_j, device.cpu_energy_j, device.dram_energy_j = 50.0, 10.0, 2.0
    assert gpus(10.1) == [{"gpu_id": 0, "power_mw": 500_000}]
    assert cpus(10.1) == [{"cpu_id": 0, "cpu_mw": 100_000, "dram_mw": 20_000}]
    device.energy_j, device.cpu_energy_j, device.dram_energy_j = 100.0, 20.0, 4.0
    assert gpus(10.2) == []
    assert cpus(10.2) == []
    device.energy_j = 110.0
    assert gpus(10.3) == [{"gpu_id": 0, "power_mw": 100_000}]
    assert cpus(10.3) == [{"cpu_id": 0, "cpu_mw": 0, "dram_mw": 0}]


def test_a_counter_that_began_again_is_no_negative_power() -> None:
    assert power_between((1.0, 5000, 5000), (2.0, 0, 6000)) == {"cpu_mw": 0, "dram_mw": 1}
