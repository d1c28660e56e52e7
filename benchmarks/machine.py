"""The machine that a benchmark ran on, as far as its figures depend on it. Nothing in it names a host or a person."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import ROOT

_LIBRARIES = ("uvicorn", "uvloop", "httptools", "aiohttp", "orjson", "fastapi", "pydantic")


def describe() -> dict[str, Any]:
    """Processor, memory, kernel, Python, libraries and the state of our source."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "commit": _commit(),
    }


def load() -> list[float]:
    """Mean number of processes that ran or waited for a CPU, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def steal_share(before: Any, after: Any) -> float:
    """The share of CPU time that the host of a virtual machine kept for others, between two `psutil.cpu_times()`."""
    total = sum(after) - sum(before)
    return round((getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0)) / total, 4) if total else 0.0


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the working tree, with a `+` when files differ from it; null outside a repository."""
    commit, changes = _git(["rev-parse", "--short=12", "HEAD"]), _git(["status", "--porcelain", "--untracked-files=no"])
    return None if commit is None else commit + ("+" if changes else "")


def _git(arguments: Sequence[str]) -> str | None:
    try:
        return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
