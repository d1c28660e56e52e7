"""What Zeus's client does not look at: statuses, headers and bodies, as the daemon's sources have them."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from emulator.zeusd.token import ApiGroup, issue

KEY = b"a key of thirty-two bytes and so"
SET = {"gpu_ids": "0", "power_limit_mw": "300000", "block": "true"}


@pytest.fixture
def http(zeusd: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://{zeusd.address}") as http:
        yield http


def test_discover_is_what_newer_clients_want_too(http: httpx.Client) -> None:
    assert http.get("/discover").json() == {
        "gpus": [
            {"id": n, "name": "Emulated H200", "pci_address": address, "cumulative_energy_available": True}
            for n, address in enumerate(["0000:01:00.0", "0000:02:00.0"])
        ],
        "cpus": [{"id": 0, "dram_available": True}],
        "enabled_api_groups": ["gpu-control", "gpu-read", "cpu-read"],
        "auth_required": False,
    }


def test_a_setting_is_answered_by_nothing(http: httpx.Client) -> None:
    reply = http.post("/gpu/set_power_limit", params=SET)
    assert (reply.status_code, reply.content) == (200, b"")


def test_all_locks_are_reset_together(zeusd: Any, http: httpx.Client) -> None:
    gpu = zeusd.gpus[1]
    gpu.sm_clock_range_mhz = gpu.memory_clock_range_mhz = (1000, 1000)
    assert http.post("/gpu/reset_locked_clocks", params={"gpu_ids": "1", "block": "true"}).status_code == 200
    assert gpu.sm_clock_range_mhz is None and gpu.memory_clock_range_mhz is None


def test_errors_of_several_gpus_come_together_with_the_worst_status(zeusd: Any, http: httpx.Client) -> None:
    zeusd.gpus[0].lost = zeusd.gpus[1].lost = True
    reply = http.get("/gpu/get_cumulative_energy")
    says = "NVML error: device fell off the bus or has otherwise become inacessible"
    assert (reply.status_code, reply.json()) == (500, {"errors": {"0": says, "1": says}})
    zeusd.host.may_set = False
    assert http.post("/gpu/set_power_limit", params=SET).status_code == 403
    assert http.post("/gpu/set_power_limit", params={**SET, "block": "false"}).status_code == 200


@pytest.fixture(scope="module")
def refusing(zeusd_play: ModuleType) -> Iterator[httpx.Client]:
    """One for all the calls that change nothing."""
    daemon = zeusd_play.Served()
    with httpx.Client(base_url=f"http://{daemon.address}") as http:
        yield http
    daemon.stop()


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/nowhere", 404, b""),
        ("GET", "/gpu/nowhere", 404, b""),
        ("GET", "/gpu/set_power_limit", 404, b""),
        ("POST", "/gpu/get_power_limit", 404, b""),
        ("HEAD", "/time", 404, b""),
        ("GET", "/time/", 404, b""),
        ("GET", "/auth/whoami", 404, b'{"error":"Authentication is not enabled on this server."}'),
        ("GET", "/gpu/get_power_limit?gpu_ids=", 400, b'{"error":"gpu_ids must contain at least one GPU index"}'),
        ("GET", "/gpu/get_power_limit?gpu_ids=1,2", 400, b'{"error":"GPU 2 not found"}'),
        ("GET", "/gpu/stream_power?gpu_ids=2", 400, b'{"error":"Unknown GPU indices: [2]. Available: [0, 1]"}'),
        ("GET", "/cpu/stream_power?cpu_ids=1", 400, b'{"error":"Unknown CPU indices: [1]. Available: [0]"}'),
        ("GET", "/gpu/get_power?x=1", 400, b"Query deserialize error: unknown field `x`, expected `gpu_ids`"),
        ("GET", "/cpu/get_cumulative_energy", 400, b"Query deserialize error: missing field `cpu`"),
        ("POST", "/gpu/set_power_limit", 400, b"Query deserialize error: missing field `gpu_ids`"),
        ("POST", "/gpu/reset_locked_clocks?gpu_ids=2&block=false", 400, b"GPU index 2 does not exist."),
    ],
)
def test_refusals(refusing: httpx.Client, method: str, path: str, status: int, body: bytes) -> None:
    reply = refusing.request(method, path)
    assert (reply.status_code, reply.content) == (status, body)
    if body:
        expected = "application/json" if body.startswith(b"{") else "text/plain; charset=utf-8"
        assert reply.headers["content-type"] == expected


def test_who_asks_without_a_token_is_told_how(make_zeusd: Callable[..., Any]) -> None:
    daemon = make_zeusd(key=KEY, groups=[ApiGroup.GPU_READ])
    with httpx.Client(base_url=f"http://{daemon.address}") as http:
        for token in (None, b"Basic eDp5", "Bearer é".encode("latin-1")):
            headers = {} if token is None else {b"authorization": token}
            reply = http.get("/gpu/get_power_limit", headers=headers)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Bearer realm="zeusd"')
            says = "Authentication required. Provide an Authorization: Bearer <token> header."
            assert reply.json() == {"error": says}
        assert http.get("/nowhere").status_code == 401
        assert http.get("/discover").json()["auth_required"] is True
        assert http.post("/gpu/set_power_limit").status_code == 404, "what is off is not there, with or without a token"


def test_whoami(make_zeusd: Callable[..., Any]) -> None:
    daemon = make_zeusd(key=KEY)
    with httpx.Client(base_url=f"http://{daemon.address}") as http:

        def whoami(token: str) -> Any:
            return http.get("/auth/whoami", headers={"authorization": f"Bearer {token}"}).json()

        groups = [ApiGroup.CPU_READ, ApiGroup.GPU_READ]
        assert whoami(issue(KEY, "ada", groups)) == {"sub": "ada", "scopes": ["cpu-read", "gpu-read"]}
        assert whoami(issue(KEY, "ada", [], exp=4_000_000_000)) == {"sub": "ada", "scopes": [], "exp": 4_000_000_000}
