"""How many cores this process may really use: a container or a taskset often grants fewer than the machine has."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")


def usable_cores(cgroups: Path = CGROUPS) -> int:
    """Physical cores within the CPU affinity and the cgroup's quota; at least 1."""
    logical = psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    physical = psutil.cpu_count(logical=False) or logical
    return max(1, int(min(physical, allowed, *quotas(cgroups))))


def quotas(cgroups: Path) -> Iterator[float]:
    """The quotas in force, in cores: of cgroup v2 for this process's group and those above it, and of v1."""
    folder = cgroups / _own_group()
    while folder.is_relative_to(cgroups):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        yield from _cores(quota, period)
        if folder == cgroups:
            break
        folder = folder.parent
    yield from _cores(_read(cgroups / "cpu/cpu.cfs_quota_us"), _read(cgroups / "cpu/cpu.cfs_period_us"))


def _own_group() -> str:
    lines = _read(Path("/proc/self/cgroup")).splitlines()
    return next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")


def _cores(quota_us: str, period_us: str) -> Iterator[float]:
    """Nothing where there is no quota: v2 says `max`, v1 -1."""
    if quota_us.isdecimal() and period_us.isdecimal() and int(period_us):
        yield int(quota_us) / int(period_us)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
