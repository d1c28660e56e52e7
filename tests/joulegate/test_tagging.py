"""Which calls carry a run's headers: real clients against a gateway on a real socket."""

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

import joulegate

if TYPE_CHECKING:
    from tests.joulegate.conftest import StubGateway

HTTPX = pytest.mark.parametrize("package", [httpx, httpx2], ids=["httpx", "httpx2"])


def chat_body(prompt: str) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": prompt}]}


@pytest.fixture
def ask(gateway: "StubGateway") -> Iterator[Callable[..., Any]]:
    """Ask the gateway with one openai client that all callers share."""
    with openai.OpenAI(base_url=gateway.base_url, api_key="k", max_retries=0) as client:
        yield lambda prompt: client.chat.completions.create(**chat_body(prompt))


@pytest.fixture
def model(gateway: "StubGateway") -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=gateway.base_url, api_key=SecretStr("k"), max_retries=0)


def test_openai_sync(gateway: "StubGateway", ask: Callable[..., Any]) -> None:
    ask("before")
    with joulegate.run("search", id="r1", step="query"):
        ask("inside")
    ask("after")
    assert gateway.tags("inside") == {"id": "r1", "name": "search", "step": "query"}
    assert gateway.tags("before") == gateway.tags("after") == {}


def test_a_runs_budget_goes_with_every_call(gateway: "StubGateway", ask: Callable[..., Any]) -> None:
    with joulegate.run("search", id="r1", budget_j=1250) as r, r.step("query"):
        ask("inside")
    assert gateway.tags("inside") == {"id": "r1", "name": "search", "budget": "1250.0", "step": "query"}
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a budget is a number of joules"):
            joulegate.run("search", budget_j=bad)


def test_openai_stream(gateway: "StubGateway") -> None:
    with openai.OpenAI(base_url=gateway.base_url, api_key="k") as client, joulegate.run("search", id="r1"):
        messages = chat_body("one two")["messages"]
        frames = list(client.chat.completions.create(model="m", messages=messages, stream=True))
    assert [frame.choices[0].delta.content for frame in frames] == ["one", "two", None]
    assert gateway.tags("one two") == {"id": "r1", "name": "search"}


async def test_openai_async_runs_share_a_client_and_stay_apart(gateway: "StubGateway") -> None:
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="k") as client:

        async def one(run_id: str) -> None:
            async with joulegate.run("search", id=run_id):
                prompts = [f"{run_id}-{number}" for number in range(4)]
                await asyncio.gather(*(client.chat.completions.create(**chat_body(prompt)) for prompt in prompts))

        await asyncio.gather(one("a"), one("b"), one("c"))
    assert len(gateway.calls) == 12
    assert all(call.tags["id"] == call.prompt[0] for call in gateway.calls)
    assert sorted(gateway.closed) == ["a", "b", "c"]


@HTTPX
def test_httpx_sync(gateway: "StubGateway", package: ModuleType) -> None:
    with package.Client() as client, joulegate.run("search", id="r1"):
        client.post(f"{gateway.base_url}/chat/completions", json=chat_body("client"))
        with client.stream("POST", f"{gateway.base_url}/chat/completions", json=chat_body("stream")) as reply:
            reply.read()
        package.post(f"{gateway.base_url}/chat/completions", json=chat_body("function"))
    assert [call.tags["id"] for call in gateway.calls] == ["r1"] * 3


@HTTPX
async def test_httpx_async(gateway: "StubGateway", package: ModuleType) -> None:
    async with package.AsyncClient() as client, joulegate.run("search", id="r1"):
        await client.post(f"{gateway.base_url}/chat/completions", json=chat_body("x"))
    assert gateway.tags("x") == {"id": "r1", "name": "search"}


@HTTPX
def test_localhost_is_the_gateway_too(gateway: "StubGateway", package: ModuleType) -> None:
    with joulegate.run("search", id="r1"):
        package.post(gateway.base_url.replace("127.0.0.1", "localhost") + "/chat/completions", json=chat_body("x"))
    assert gateway.tags("x")["id"] == "r1"


@HTTPX
def test_other_hosts_see_nothing(gateway: "StubGateway", other_host: "StubGateway", package: ModuleType) -> None:
    with joulegate.run("search", id="r1", step="query"):
        package.post(f"{other_host.base_url}/chat/completions", json=chat_body("x"))
    assert other_host.tags("x") == {}


@HTTPX
def test_a_redirect_to_another_host_sheds_the_tags(
    gateway: "StubGateway", other_host: "StubGateway", package: ModuleType
) -> None:
    gateway.redirect_to = other_host.url
    own = {"X-Workflow-Step": "mine"}
    with joulegate.run("search", id="r1", step="query"), package.Client(follow_redirects=True, headers=own) as client:
        client.post(f"{gateway.base_url}/chat/completions", json=chat_body("x"))
    assert other_host.tags("x") == {"step": "mine"}


@HTTPX
def test_one_request_object_in_two_runs(gateway: "StubGateway", package: ModuleType) -> None:
    with package.Client() as client:
        request = client.build_request("POST", f"{gateway.base_url}/chat/completions", json=chat_body("x"))
        for run_id in ("r1", "r2"):
            with joulegate.run("search", id=run_id):
                client.send(request)
    assert [call.tags["id"] for call in gateway.calls] == ["r1", "r2"]


def test_explicit_headers_win(gateway: "StubGateway") -> None:
    own = {"x-workflow-step": "mine"}
    with (
        openai.OpenAI(base_url=gateway.base_url, api_key="k", default_headers=own) as client,
        joulegate.run("search", id="r1", step="query"),
    ):
        client.chat.completions.create(**chat_body("step"))
        client.chat.completions.create(**chat_body("run"), extra_headers={"X-Workflow-Id": "another"})
    assert gateway.tags("step") == {"id": "r1", "name": "search", "step": "mine"}
    assert gateway.tags("run") == {"id": "another", "step": "mine"}, "our workflow's name would mislabel another run"


def test_steps_nest_and_do_not_inherit(gateway: "StubGateway", ask: Callable[..., Any]) -> None:
    with joulegate.step("nowhere"):
        ask("outside any run")
    with joulegate.run("coding", id="r1", step="plan") as r:
        ask("first")
        with r.step("coder", node="coder-1", parents=["plan-1", "plan-2"]):
            ask("coder")
            with joulegate.step("review"):
                ask("review")
                assert r.headers["X-Workflow-Step"] == "review"
            ask("coder again")
        ask("last")
    run = {"id": "r1", "name": "coding"}
    assert gateway.tags("outside any run") == {}
    assert gateway.tags("first") == gateway.tags("last") == {**run, "step": "plan"}
    coder = {**run, "step": "coder", "node": "coder-1", "parent": "plan-1,plan-2"}
    assert gateway.tags("coder") == gateway.tags("coder again") == coder
    assert gateway.tags("review") == {**run, "step": "review"}


def test_an_inner_run_is_its_own(gateway: "StubGateway", ask: Callable[..., Any]) -> None:
    with joulegate.run("outer", id="o"):
        with joulegate.run("inner", id="i"):
            ask("inner")
        ask("outer")
    assert gateway.tags("inner") == {"id": "i", "name": "inner"}
    assert gateway.tags("outer") == {"id": "o", "name": "outer"}
    assert gateway.closed == ["i", "o"]


def test_threads(gateway: "StubGateway", ask: Callable[..., Any]) -> None:
    class Asker(threading.Thread):
        def run(self) -> None:
            ask("subclass")

    with joulegate.run("search", id="r1") as r:
        with r.step("chunk"):
            threads = [threading.Thread(target=ask, args=("target",)), Asker(), threading.Timer(0, ask, ("timer",))]
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join()
    assert {call.prompt for call in gateway.calls} == {"target", "subclass", "timer"}
    assert all(call.tags == {"id": "r1", "name": "search", "step": "chunk"} for call in gateway.calls)


def test_executor_work_belongs_to_the_run_that_submitted_it(gateway: "StubGateway", ask: Callable[..., Any]) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        with joulegate.run("search", id="r1"):
            pool.submit(ask, prompt="one").result()  # starts the worker, which goes on to serve others
            list(pool.map(ask, ["two"]))
            with joulegate.run("coding", id="r2"):
                pool.submit(ask, "inner").result()
            assert isinstance(pool.submit(ask).exception(), TypeError)
        pool.submit(ask, "after").result()
    assert gateway.tags("one") == gateway.tags("two") == {"id": "r1", "name": "search"}
    assert gateway.tags("inner")["id"] == "r2"
    assert gateway.tags("after") == {}


def test_a_worker_begun_in_a_run_is_free_while_that_run_is_open(
    gateway: "StubGateway", ask: Callable[..., Any]
) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        begun, submitted = threading.Event(), threading.Event()

        def open_run() -> None:
            with joulegate.run("search", id="r1"):
                pool.submit(ask, "in the run").result()
                begun.set()
                submitted.wait(10)

        other = threading.Thread(target=open_run)
        other.start()
        begun.wait(10)
        pool.submit(ask, "of nobody").result()
        submitted.set()
        other.join()
    assert gateway.tags("in the run")["id"] == "r1"
    assert gateway.tags("of nobody") == {}


async def test_work_handed_from_a_loop_to_threads(gateway: "StubGateway", ask: Callable[..., Any]) -> None:
    async with joulegate.run("search", id="r1"):
        await asyncio.to_thread(ask, "to_thread")
        await asyncio.get_running_loop().run_in_executor(None, ask, "run_in_executor")
    assert [call.tags["id"] for call in gateway.calls] == ["r1", "r1"]


async def test_a_task_that_outlives_its_run_is_not_counted_in_it(
    gateway: "StubGateway", ask: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        await asyncio.to_thread(ask, "late")
        await asyncio.to_thread(ask, "later")

    async with joulegate.run("search", id="r1"):
        task = asyncio.create_task(late())
        await asyncio.sleep(0)
    over.set()
    await task
    assert gateway.tags("late") == gateway.tags("later") == {}
    assert len([record for record in caplog.records if "had ended" in record.message]) == 1


def test_langchain_runs_in_threads_share_a_model(gateway: "StubGateway", model: ChatOpenAI) -> None:
    def one(run_id: str) -> None:
        with joulegate.run("search", id=run_id) as r:
            model.invoke(f"{run_id} invoked")
            with r.step("rank"):
                assert "".join(str(part.content) for part in model.stream(f"{run_id} streamed")) == f"{run_id}streamed"
            model.batch([f"{run_id} batch {number}" for number in range(3)])

    threads = [threading.Thread(target=one, args=(run_id,)) for run_id in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gateway.calls) == 10
    assert all(call.tags["id"] == call.prompt[0] for call in gateway.calls)
    assert {call.prompt for call in gateway.calls if call.tags.get("step") == "rank"} == {"a streamed", "b streamed"}


async def test_langchain_runs_in_tasks_share_a_model(gateway: "StubGateway", model: ChatOpenAI) -> None:
    async def one(run_id: str) -> joulegate.Report:
        async with joulegate.run("search", id=run_id) as r:
            await asyncio.gather(*(model.ainvoke(f"{run_id} invoked {number}") for number in range(2)))
            assert [str(part.content) async for part in model.astream(f"{run_id} streamed")][:2] == [run_id, "streamed"]
            await model.abatch([f"{run_id} batch {number}" for number in range(2)])
        return await r.areport()

    for run_id, report in zip("ab", await asyncio.gather(one("a"), one("b")), strict=True):
        assert (report.run, report.final, len(report.requests)) == (run_id, True, 5)
        assert report.joules == sum(len(call.prompt) for call in gateway.calls if call.tags["id"] == run_id)


def test_a_client_first_imported_inside_the_run(gateway: "StubGateway") -> None:
    program = f"""
        import sys
        import joulegate
        with joulegate.run("search", id="r1"):
            assert not {{"openai", "httpx", "httpx2"}} & set(sys.modules)
            import openai
            client = openai.OpenAI(base_url={gateway.base_url!r}, api_key="k")
            client.chat.completions.create(model="m", messages=[{{"role": "user", "content": "x"}}])
            import httpx
            body = {{"model": "m", "messages": [{{"role": "user", "content": "y"}}]}}
            httpx.post({gateway.base_url!r} + "/chat/completions", json=body)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
    assert gateway.tags("x")["id"] == gateway.tags("y")["id"] == "r1"


def test_importing_joulegate_loads_the_standard_library_alone() -> None:
    program = "import sys; old = set(sys.modules); import joulegate; print(*(set(sys.modules) - old))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    packages = {name.partition(".")[0] for name in loaded.stdout.split()}
    assert packages - sys.stdlib_module_names == {"joulegate"}
    assert "asyncio" not in packages
