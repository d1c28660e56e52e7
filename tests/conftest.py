"""Fixtures for every test: GPUs that exist only in a file, and the plug-ins as pyproject registers them."""

import ctypes
import importlib.util
import os
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]

# How long an example takes is the machine's business.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def _load(path: Path) -> ModuleType:
    """A module beside the tests, by its path: `tests` is no package here (another wheel installs one of that name)."""
    spec = importlib.util.spec_from_file_location(f"joulegate_tests_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the library that plays NVML, built once a session."""
    build = _load(ROOT / "tests/nvml/build.py")
    if sys.platform != "linux":
        pytest.skip("NVML is played on Linux alone")
    if build.compiler() is None:
        pytest.skip("no C compiler: the library that plays NVML cannot be built")
    return build.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def make_nvml(nvml_library: Path, tmp_path: Path) -> Callable[..., Any]:
    """`make_nvml(gpus=2, period_s=0.1)`: a set of played GPUs (an `NvmlPlay`), to be used by subprocesses."""
    play = _load(ROOT / "tests/nvml/play.py")
    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(play.NvmlPlay(nvml_library, tmp_path / f"nvml-{len(made)}.state", **options))
        return made[-1]

    return make


@pytest.fixture
def nvml(make_nvml: Callable[..., Any]) -> Any:
    """One played H200, for subprocesses that are started with `nvml.env` in their environment."""
    return make_nvml()


@pytest.fixture
def load_nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Any]]:
    """`load_nvml(play)`: this process meets the played GPUs, through the real pynvml and a fresh Zeus."""
    import pynvml
    import zeus.device.cpu
    import zeus.device.gpu
    import zeus.device.soc
    from zeus.device.gpu.nvidia import nvml_is_available

    def load(play: Any) -> Any:
        for name in [name for name in os.environ if name.startswith("ZEUSD_")] + ["CUDA_VISIBLE_DEVICES"]:
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NVML_PLAY_STATE", str(play.path))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(play.library)))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
        monkeypatch.setattr(zeus.device.gpu, "_gpus", None)
        monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
        monkeypatch.setattr(zeus.device.soc, "_soc", None)
        nvml_is_available.cache_clear()
        return play

    yield load
    nvml_is_available.cache_clear()


@pytest.fixture
def nvml_here(nvml: Any, load_nvml: Callable[[Any], Any]) -> Any:
    """One played H200 that this very process sees."""
    return load_nvml(nvml)


@pytest.fixture(scope="session")
def zeusd_play() -> ModuleType:
    """The module with `Served`, for fixtures that live longer than a test."""
    return _load(ROOT / "tests/zeusd/served.py")


@pytest.fixture
def make_zeusd(zeusd_play: ModuleType) -> Iterator[Callable[..., Any]]:
    """`make_zeusd(gpus=2, groups=["gpu-read"], key=b"...")`: the emulator's zeusd (a `Served`) over played devices."""
    with ExitStack() as stack:

        def make(**options: Any) -> Any:
            daemon = zeusd_play.Served(**options)
            stack.callback(daemon.stop)
            return daemon

        yield make


@pytest.fixture
def zeusd(make_zeusd: Callable[..., Any]) -> Any:
    """One with two GPUs and one CPU, for whoever asks."""
    return make_zeusd()


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points as pyproject.toml has them, whether or not (or in whichever version) joulegate is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / f"joulegate-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: joulegate\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(info.parent))
