"""Real processes over real loopback sockets: engines that are scripted, gateways that are not."""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the tests here share `stage`; the folder is no package (see the conftest above)

from live import LiveEngine, configured  # noqa: E402
from stage import EMULATED, Engine, Gateway, running  # noqa: E402

MakeGateway = Callable[..., Gateway]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if EMULATED:
        skip = pytest.mark.skip(reason="needs the engine that can be scripted")
        for item in items:
            if item.get_closest_marker("scripted"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A stub engine that serves `stub-7b`, a token every 5 ms. Tests script single requests, never all."""
    engine = Engine("stub-7b", step_ms=5)
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def second_engine() -> Iterator[Engine]:
    """Another one, which serves `stub-3b`."""
    engine = Engine("stub-3b", step_ms=5)
    yield engine
    engine.close()


@pytest.fixture
def make_engine() -> Iterator[Callable[..., Engine]]:
    """`make_engine("stub-7b", step_ms=5)`: an engine of a test's own, to be scripted, watched and killed."""
    with ExitStack() as stack:

        def make(model: str = "stub-7b", step_ms: float = 5, port: int = 0) -> Engine:
            engine = Engine(model, step_ms, port)
            stack.callback(engine.close)
            return engine

        yield make


@pytest.fixture
def make_gateway(tmp_path: Path) -> Iterator[MakeGateway]:
    """`make_gateway({"engines": [...]}, env={...})`: a running gateway; it must end well after the test."""
    with ExitStack() as stack:

        def make(
            config: Mapping[str, Any],
            env: Mapping[str, str] | None = None,
            ready: bool = True,
            flags: tuple[str, ...] = (),
        ) -> Gateway:
            folder = tmp_path / f"gateway-{len(list(tmp_path.glob('gateway-*')))}"
            folder.mkdir()
            gateway = Gateway(config, folder, env)
            gateway.flags = flags
            return stack.enter_context(running(gateway, ready))

        yield make


@pytest.fixture(scope="session")
def gateway(engine: Engine, second_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The minimal gateway, before two engines: nothing configured but where they are."""
    engines = [
        {"name": "e1", "kind": "openai", "url": engine.url},
        {"name": "e2", "kind": "openai", "url": second_engine.url},
    ]
    with running(Gateway({"engines": engines}, tmp_path_factory.mktemp("gateway"))) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def live_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveEngine]:
    """The engine that JOULEGATE_ENGINE_URL names, else an emulated one, of the differential test's limits."""
    if engine := configured():
        yield engine
        return
    servers = loaded(HERE.parent / "differential/servers.py")
    with servers.emulator("usual", tmp_path_factory.mktemp("emulator") / "log.txt") as url:
        yield LiveEngine(url, servers.MODEL, most=servers.MOST_REQUESTS)


@pytest.fixture(scope="session")
def nvml_play() -> ModuleType:
    """The module with `NvmlPlay`, for fixtures that live longer than a test."""
    return loaded(HERE.parent / "nvml/play.py")


def loaded(path: Path) -> ModuleType:
    """A module of another folder of tests."""
    spec = importlib.util.spec_from_file_location(f"joulegate_e2e_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def fresh_langchain_clients() -> Iterator[None]:
    """langchain keeps one client a base URL for all of its models; it must not outlive its test's event loop."""
    yield
    module = sys.modules.get("langchain_openai.chat_models._client_utils")
    if module is not None:
        module._cached_async_httpx_client.cache_clear()
        module._cached_sync_httpx_client.cache_clear()
