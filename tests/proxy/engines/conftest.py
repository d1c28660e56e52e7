from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.config import EngineConfig
from proxy.engines import model
from proxy.engines.embedded import Embedded


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The demo model in the user's own cache, so that it is fetched once a machine."""
    return model.fetch()


@pytest.fixture
async def embedded(demo_model: Path) -> AsyncIterator[Embedded]:
    engine = Embedded(EngineConfig(name="e1", kind="embedded", slots=2, context=512))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
