"""What a run says of its energy, and how it ends."""

import asyncio
import socket
from typing import TYPE_CHECKING

import httpx2
import pytest

import joulegate
from joulegate import EnergyUnavailable

if TYPE_CHECKING:
    from tests.joulegate.conftest import StubGateway


def ask(gateway: "StubGateway", prompt: str, key: str | None = None) -> None:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}]}
    httpx2.post(f"{gateway.base_url}/chat/completions", json=body, headers=headers).raise_for_status()


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a gateway that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("JOULEGATE_URL", url)
    return url


def test_figures(gateway: "StubGateway") -> None:
    with joulegate.run("search") as r:
        with r.step("query", node="q1"):
            ask(gateway, "1234")
        with r.step("rank"):
            ask(gateway, "12")
            ask(gateway, "1")
        assert (r.joules, r.final) == (7.0, False)
    assert (r.joules, r.final, r.quality) == (7.0, True, "estimated")
    assert r.by_step == {"query": 4.0, "rank": 3.0}
    first = r.requests[0]
    assert (first.step, first.node, first.engine, first.outcome) == ("query", "q1", "e1", "ok")
    assert (first.joules_low, first.joules, first.joules_high) == (3.6, 4.0, pytest.approx(4.4))
    assert (first.prompt_tokens, first.cached_tokens, first.output_tokens) == (7, 2, 3)
    report = r.report()
    assert (report.run, report.workflow, report.segment, report.duration_s) == (r.id, "search", 1, 0.5)
    assert gateway.closed == [r.id] and (report.critical_path, report.critical_path_s) == ((), None)


def test_the_critical_path_of_a_run_that_has_one(gateway: "StubGateway") -> None:
    gateway.dag = {"critical_path": ["plan", "code"], "critical_path_s": 3.5}
    with joulegate.run("coding") as r:
        ask(gateway, "x")
    report = r.report()
    assert (report.critical_path, report.critical_path_s) == (("plan", "code"), 3.5)


def test_unknown_energy_is_never_0(gateway: "StubGateway") -> None:
    gateway.unmetered = True
    with joulegate.run("search", id="r1") as r, r.step("query"):
        ask(gateway, "1234")
    with pytest.raises(EnergyUnavailable, match="energy of run r1 is not known: no counter saw what engine e1 did"):
        _ = r.joules
    assert (r.quality, r.by_step, r.final) == (None, {"query": None}, True)
    (request,) = r.requests
    assert (request.joules, request.joules_low, request.joules_high, request.output_tokens) == (None, None, None, 3)


def test_final_figures_are_fetched_once(gateway: "StubGateway") -> None:
    with joulegate.run("search") as r:
        ask(gateway, "x")
    assert r.joules == sum(request.joules or 0.0 for request in r.requests) == r.by_step["unnamed"]
    assert len(gateway.polls) == 1


def test_waits_until_the_figures_are_settled(gateway: "StubGateway") -> None:
    gateway.unsettled_polls = 2
    with joulegate.run("search") as r:
        ask(gateway, "x")
    assert r.joules == 1.0
    assert gateway.polls == [5, 5, 5]


def test_waits_for_a_ledger_that_is_behind(gateway: "StubGateway") -> None:
    gateway.behind_polls = 1
    with joulegate.run("search") as r:
        ask(gateway, "x")
    assert r.joules == 1.0
    gateway.behind_polls = 10**9
    with joulegate.run("search") as r:
        ask(gateway, "y")
    with pytest.raises(EnergyUnavailable, match="the ledger is behind"):
        r.report(timeout_s=0)


def test_figures_that_do_not_settle_are_not_given(gateway: "StubGateway") -> None:
    gateway.unsettled_polls = 10**9
    with joulegate.run("search") as r:
        ask(gateway, "x")
    with pytest.raises(EnergyUnavailable, match=r"not settled after 0\.1 s"):
        r.report(timeout_s=0.1)


async def test_waiting_leaves_the_loop_free(gateway: "StubGateway") -> None:
    gateway.unsettled_polls = 10**9
    async with joulegate.run("search") as r:
        await asyncio.to_thread(ask, gateway, "x")
    waiting = asyncio.create_task(r.areport())
    asyncio.get_running_loop().call_soon(setattr, gateway, "unsettled_polls", 0)  # never, if the waiting held the loop
    assert (await waiting).joules == 1.0


def test_ids_are_generated_and_any_can_be_asked_for(gateway: "StubGateway") -> None:
    first, second = joulegate.run("search"), joulegate.run("search")
    assert first.id != second.id
    with joulegate.run("search", id="a/b c?d") as r:
        ask(gateway, "x")
    assert (r.joules, gateway.closed) == (1.0, ["a/b c?d"])


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_the_url_may_be_the_clients_base_url(
    gateway: "StubGateway", monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.delenv("JOULEGATE_URL")
    with joulegate.run("search", url=gateway.url + suffix) as r:
        ask(gateway, "x")
    assert r.joules == 1.0


def test_reads_with_the_key_that_the_calls_carried(gateway: "StubGateway") -> None:
    gateway.key = "s3cret"
    with joulegate.run("search") as r:
        ask(gateway, "x", key="s3cret")
    assert r.joules == 1.0
    assert "s3cret" not in repr(r) + repr(vars(r)["_traffic"])


def test_reads_with_the_key_it_is_given(gateway: "StubGateway", monkeypatch: pytest.MonkeyPatch) -> None:
    gateway.key = "s3cret"
    monkeypatch.setenv("JOULEGATE_KEY", "s3cret\n")
    with joulegate.run("search") as by_environment:
        ask(gateway, "x", key="another")
    assert by_environment.joules == 1.0
    with joulegate.run("search", key="wrong") as wrong:
        ask(gateway, "y", key="s3cret")
    with pytest.raises(EnergyUnavailable, match="JOULEGATE_KEY"):
        wrong.report()


def test_a_failing_app_still_ends_its_run(gateway: "StubGateway") -> None:
    with pytest.raises(ZeroDivisionError), joulegate.run("search", id="r1") as r:
        ask(gateway, "x")
        raise ZeroDivisionError
    assert gateway.closed == ["r1"]
    assert r.joules == 1.0
    ask(gateway, "after")
    assert gateway.tags("after") == {}


async def test_a_failing_async_app_still_ends_its_run(gateway: "StubGateway") -> None:
    with pytest.raises(ZeroDivisionError):
        async with joulegate.run("search", id="r1"):
            raise ZeroDivisionError
    assert gateway.closed == ["r1"]


async def test_a_cancelled_task_still_ends_its_run(gateway: "StubGateway") -> None:
    inside = asyncio.Event()

    async def work() -> None:
        async with joulegate.run("search", id="r1"):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gateway.closed == ["r1"]


async def test_no_gateway_does_not_disturb_the_app(nobody: str, caplog: pytest.LogCaptureFixture) -> None:
    with joulegate.run("search") as r:
        pass
    with pytest.raises(ZeroDivisionError):
        async with joulegate.run("search"):
            raise ZeroDivisionError
    assert [nobody in record.getMessage() for record in caplog.records] == [True], "said once"
    with pytest.raises(EnergyUnavailable, match="joulegate serve"):
        r.report()


def test_says_where_the_calls_went_instead(gateway: "StubGateway", other_host: "StubGateway") -> None:
    with joulegate.run("search") as r:
        ask(other_host, "x")
    port = other_host.url.rsplit(":", 1)[1]
    with pytest.raises(EnergyUnavailable, match=rf"some went to http://localhost:{port}"):
        r.report()


def test_a_run_without_calls_has_no_figures(gateway: "StubGateway") -> None:
    with joulegate.run("search") as r:
        pass
    with pytest.raises(EnergyUnavailable, match="made no call"):
        r.report()


def test_an_answer_that_is_no_report(gateway: "StubGateway") -> None:
    gateway.garbage = True
    with joulegate.run("search") as r:
        ask(gateway, "x")
    with pytest.raises(EnergyUnavailable, match="no run's report"):
        r.report()


def test_a_run_is_entered_once(gateway: "StubGateway") -> None:
    r = joulegate.run("search")
    with r, pytest.raises(RuntimeError, match="make a new one"), r:
        pass


@pytest.mark.parametrize("bad", ["", "a\nb", "é", "x" * 201, " x"])
def test_what_cannot_be_a_header_is_refused(bad: str) -> None:
    for make in (
        lambda: joulegate.run(bad),
        lambda: joulegate.run("search", id=bad),
        lambda: joulegate.run("search", step=bad),
        lambda: joulegate.run("search").step("s", node=bad).__enter__(),
        lambda: joulegate.run("search").step("s", parents=[bad]).__enter__(),
    ):
        with pytest.raises(ValueError, match="printable ASCII"):
            make()


def test_a_parent_is_one_name(gateway: "StubGateway") -> None:
    with pytest.raises(ValueError, match="comma"), joulegate.run("search").step("s", parents=["a,b"]):
        pass


@pytest.mark.parametrize("url", ["gateway:8080", "ftp://gateway", "http://"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"must look like http://127\.0\.0\.1:8080"):
        joulegate.run("search", url=url)
