"""The OpenMP runtime that the embedded engine links to, on machines that have not installed one.

scikit-learn, which Zeus brings, carries a copy for Linux under a name of its own; a link with the usual name makes it
fit.
"""

import ctypes
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

NAME = "libgomp.so.1"


def environment(of: dict[str, str]) -> dict[str, str]:
    """The environment in which a child finds OpenMP: `of` itself wherever the system has it, or nobody can help."""
    if sys.platform != "linux" or _system_has_it():
        return of
    copy = _carried_copy()
    if copy is None:
        return of
    folder = Path(tempfile.mkdtemp(prefix="joulegate-openmp-"))
    (folder / NAME).symlink_to(copy)
    path = of.get("LD_LIBRARY_PATH")
    return {**of, "LD_LIBRARY_PATH": f"{folder}:{path}" if path else str(folder)}


def _system_has_it() -> bool:
    try:
        ctypes.CDLL(NAME)
    except OSError:
        return False
    return True


def _carried_copy() -> Path | None:
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parents[1] / "scikit_learn.libs"
    return next(iter(sorted(folder.glob("libgomp*.so*"))), None)
