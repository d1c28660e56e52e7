from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.control.knobs import KnobError, NoPrivilege


class FakeKnob:
    """A GPU's power limit in memory, from 200 to 700 W, that can be told to fail."""

    def __init__(self, limit_w: float = 700.0, uuid: str | None = None) -> None:
        self.limit_w = limit_w
        self.uuid = uuid
        self.allowed = True
        self.lost = False
        self.ceiling_w = 700.0
        self.place = uuid or "fake-gpu"
        self.step_w = 0.0  # what the driver rounds to, 0 for nothing
        self.written_w: list[float] = []

    def read(self) -> float:
        if self.lost:
            raise KnobError("GPU is lost")
        return self.limit_w

    def write(self, value: float) -> None:
        if self.lost:
            raise KnobError("GPU is lost")
        if not self.allowed:
            raise NoPrivilege("Insufficient Permissions")
        self.limit_w = round(value / self.step_w) * self.step_w if self.step_w else value
        self.written_w.append(value)

    def put_back(self, found: float | None) -> None:
        assert found is not None
        self.write(found)

    def throttle(self) -> frozenset[str] | None:
        return None

    def range(self) -> tuple[float, float] | None:
        return 200.0, 700.0

    def enforced(self) -> float:
        return min(self.read(), self.ceiling_w)


@pytest.fixture(scope="session")
def make_knob() -> Callable[..., FakeKnob]:
    return FakeKnob


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where what was found is written down; the folder does not exist yet."""
    return tmp_path / "state" / "restore.json"
