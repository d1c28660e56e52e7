"""The kind itself: what it needs to be told, and what it says of itself."""

from pathlib import Path
from typing import Any

import pytest

from proxy.config import ConfigError, EngineConfig
from proxy.engines.parrot import Parrot
from proxy.route import Translating

KEY = "0123456789abcdef"


def parrot(**more: Any) -> Parrot:
    return Parrot(EngineConfig(name="p", kind="parrot", url="http://127.0.0.1:9000/v1/", **more))


def test_behind_an_egress_it_works_for_another_engine_and_has_no_devices_of_its_own() -> None:
    engine: Any = parrot(egress={"engine": "e1", "key": KEY})
    assert engine.works_for == "e1" and engine.devices == () and not engine.local
    assert engine.url == "http://127.0.0.1:9000" and isinstance(engine, Translating)


def test_without_one_it_works_itself_and_needs_models() -> None:
    engine = parrot(models=("v7b",), devices=("local/gpu:0",))
    assert engine.works_for is None and engine.devices == ("local/gpu:0",) and engine.local
    with pytest.raises(ConfigError, match=r"engine p: without an egress nobody says which models"):
        parrot()


def test_a_key_that_can_be_guessed_is_refused_without_being_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 6 characters; 16 or more") as error:
        parrot(egress={"engine": "e1", "key": "secret"})
    assert "secret" not in str(error.value)
    (tmp_path / "key").write_text(KEY + "\n")
    parrot(egress={"engine": "e1", "key_file": tmp_path / "key"})
    with pytest.raises(ConfigError, match="cannot be read"):
        parrot(egress={"engine": "e1", "key_file": tmp_path / "nothing"})


def test_a_key_for_servecore_is_refused_for_it_would_go_to_the_engine_behind(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("of-servecore\n")
    for given in ({"api_key": "of-servecore"}, {"api_key_file": tmp_path / "key"}):
        with pytest.raises(ConfigError, match="engine p: ServeCore takes no key") as error:
            parrot(egress={"engine": "e1", "key": KEY}, **given)
        assert "of-servecore" not in str(error.value)
