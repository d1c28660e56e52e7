"""The other hand on the library that plays NVML: makes its state, turns its knobs, and reads its counters by itself."""

import ctypes
import fcntl
import mmap
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAGIC = 0x4C564E59414C50


class _Gpu(ctypes.Structure):  # the layout of `struct gpu` in nvml.c
    _fields_ = (
        ("energy_uj", ctypes.c_double),
        ("time_ns", ctypes.c_int64),
        ("published_uj", ctypes.c_int64),
        ("published_tick", ctypes.c_int64),
        ("power_mw", ctypes.c_int64),
        ("limit_mw", ctypes.c_int64),
        ("default_mw", ctypes.c_int64),
        ("min_mw", ctypes.c_int64),
        ("max_mw", ctypes.c_int64),
        ("ceiling_mw", ctypes.c_int64),
        ("lost", ctypes.c_int64),
        ("mig", ctypes.c_int64),
        ("architecture", ctypes.c_int64),
        ("writes", ctypes.c_int64),
        ("locked_mhz", ctypes.c_int64),
        ("name", ctypes.c_char * 96),
        ("uuid", ctypes.c_char * 96),
    )


class _Head(ctypes.Structure):
    _fields_ = (
        ("magic", ctypes.c_uint64),
        ("gpus", ctypes.c_int64),
        ("period_ns", ctypes.c_int64),
        ("privileged", ctypes.c_int64),
    )


class NvmlPlay:
    """GPUs that exist only in a file, shared by every process that loads the library with `env` set.

    They begin as H200s: 700 W limit (200 to 700), drawing 100 W, counter moving every 100 ms, process privileged.
    """

    def __init__(self, library: Path, path: Path, gpus: int = 1, period_s: float = 0.1) -> None:
        self.library = library
        self.path = path
        size = ctypes.sizeof(_Head) + gpus * ctypes.sizeof(_Gpu)
        path.write_bytes(bytes(size))
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), size)
        self._head = _Head.from_buffer(self._map)
        self._gpus = (_Gpu * gpus).from_buffer(self._map, ctypes.sizeof(_Head))
        self._head.gpus, self._head.period_ns, self._head.privileged = gpus, round(period_s * 1e9), 1
        now_ns = time.monotonic_ns()
        for gpu in self._gpus:
            gpu.time_ns, gpu.published_tick = now_ns, now_ns // self._head.period_ns
            gpu.power_mw, gpu.min_mw = 100_000, 200_000
            gpu.limit_mw = gpu.default_mw = gpu.max_mw = gpu.ceiling_mw = 700_000
            gpu.architecture = 9
            gpu.name = b"NVIDIA H200"
            gpu.uuid = f"GPU-{uuid.uuid4()}".encode()  # the host's locks go by it
        self._head.magic = MAGIC  # last: until then the library refuses the file

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment, from its start, to meet these GPUs."""
        inherited = os.environ.get("LD_LIBRARY_PATH")
        folders = str(self.library.parent) + (f":{inherited}" if inherited else "")
        return {"LD_LIBRARY_PATH": folders, "NVML_PLAY_STATE": str(self.path)}

    @property
    def privileged(self) -> bool:
        """Whether limits may be set."""
        return bool(self._head.privileged)

    @privileged.setter
    def privileged(self, allowed: bool) -> None:
        with self._locked():
            self._head.privileged = allowed

    def counter_uj(self, i: int = 0) -> int:
        """What the energy counter shows now, in microjoules (whole millijoules, as NVML gives them)."""
        with self._at(i) as gpu:
            return gpu.published_uj // 1000 * 1000

    def drawn_uj(self, i: int = 0) -> float:
        """The energy really drawn until now, between the counter's steps too."""
        with self._at(i) as gpu:
            return gpu.energy_uj

    def set_power_w(self, i: int, power_w: float) -> None:
        """What the work on the GPU would draw without a limit."""
        with self._at(i) as gpu:
            gpu.power_mw = round(power_w * 1000)

    def add_energy_uj(self, i: int, energy_uj: int) -> None:
        """Move the counter at once, whatever its period: with 0 W drawn, the only thing that moves it."""
        with self._at(i) as gpu:
            gpu.energy_uj += energy_uj
            gpu.published_uj += energy_uj

    def reset_counter(self, i: int = 0) -> None:
        """Begin at zero again, as after a driver reload."""
        with self._at(i) as gpu:
            gpu.energy_uj, gpu.published_uj = 0.0, 0

    def limit_w(self, i: int = 0) -> float:
        with self._at(i) as gpu:
            return gpu.limit_mw / 1000

    def set_limit_w(self, i: int, limit_w: float) -> None:
        """Set the limit as somebody else would, with nvidia-smi."""
        with self._at(i) as gpu:
            gpu.limit_mw = round(limit_w * 1000)

    def set_ceiling_w(self, i: int, ceiling_w: float) -> None:
        """Another limiter (thermal, slot) that is enforced when it is lower than the limit."""
        with self._at(i) as gpu:
            gpu.ceiling_mw = round(ceiling_w * 1000)

    def locked_mhz(self, i: int = 0) -> int | None:
        """The highest SM clock that is locked, None where none is."""
        with self._at(i) as gpu:
            return gpu.locked_mhz or None

    def writes(self, i: int = 0) -> int:
        """How often a limit, or a clock, was set through NVML."""
        with self._at(i) as gpu:
            return gpu.writes

    def lose(self, i: int = 0, lost: bool = True) -> None:
        """Let the GPU fall off the bus, or bring it back."""
        with self._at(i) as gpu:
            gpu.lost = lost

    def set_mig(self, i: int, on: bool) -> None:
        with self._at(i) as gpu:
            gpu.mig = on

    def set_model(self, i: int, name: str, architecture: int = 9) -> None:
        """Name and NVML architecture number: 4 is Pascal (no energy counter), 9 is Hopper."""
        with self._at(i) as gpu:
            gpu.name, gpu.architecture = name.encode(), architecture

    def uuid(self, i: int = 0) -> str:
        with self._at(i) as gpu:
            return gpu.uuid.decode()

    def set_uuid(self, i: int, uuid: str) -> None:
        with self._at(i) as gpu:
            gpu.uuid = uuid.encode()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    @contextmanager
    def _at(self, i: int) -> Iterator[Any]:
        """GPU `i`, locked, with its energy brought up to now."""
        with self._locked():
            gpu = self._gpus[i]
            now_ns = time.monotonic_ns()
            tick = now_ns // self._head.period_ns
            uj_per_ns = min(gpu.power_mw, gpu.limit_mw, gpu.ceiling_mw) / 1e6
            if tick > gpu.published_tick:
                since_ns = max(0, tick * self._head.period_ns - gpu.time_ns)
                gpu.published_uj = int(gpu.energy_uj + uj_per_ns * since_ns)
                gpu.published_tick = tick
            gpu.energy_uj += uj_per_ns * (now_ns - gpu.time_ns)
            gpu.time_ns = now_ns
            yield gpu
