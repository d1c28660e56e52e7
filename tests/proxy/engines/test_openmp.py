"""The embedded engine's OpenMP runtime, on machines without one."""

import subprocess
import sys
from pathlib import Path

import pytest

from proxy.engines import openmp


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux wheels leave OpenMP to the system")
def test_a_machine_without_openmp_gets_the_copy_that_came_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "_system_has_it", lambda: False)
    environment = openmp.environment({"PATH": "/bin", "LD_LIBRARY_PATH": "/elsewhere"})
    folder, elsewhere = environment["LD_LIBRARY_PATH"].split(":")
    assert elsewhere == "/elsewhere"
    found = "import ctypes, pathlib; ctypes.CDLL('libgomp.so.1'); print(pathlib.Path('/proc/self/maps').read_text())"
    maps = subprocess.run([sys.executable, "-c", found], env=environment, capture_output=True, text=True, check=True)
    assert str((Path(folder) / openmp.NAME).resolve()) in maps.stdout


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openmp, "_system_has_it", lambda: True)
    assert openmp.environment({"PATH": "/bin"}) == {"PATH": "/bin"}
