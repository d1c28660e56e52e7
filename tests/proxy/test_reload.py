from typing import Any

import pytest

from proxy.config import Config, ConfigError, parse
from proxy.reload import changes

E1 = {"name": "e1", "kind": "openai", "url": "http://127.0.0.1:9001"}
E2 = {"name": "e2", "kind": "openai", "url": "http://127.0.0.1:9002"}


def config(*engines: dict[str, Any], **more: Any) -> Config:
    return parse({"engines": engines or (E1,), **more})


def test_nothing_changes() -> None:
    found = changes(config(), config())
    assert str(found) == "nothing changed" and not found.added and not found.parts


def test_engines_and_parts_are_told_apart() -> None:
    moved = {**E1, "url": "http://127.0.0.1:9003"}
    e3 = {**E2, "name": "e3"}
    found = changes(config(E1, E2), config(moved, e3, limits={"queue": 1}, routing={"affinity": "session"}))
    assert str(found) == "engine e3 added; engine e1 changed; engine e2 removed; limits changed; routing changed"
    assert [engine.url for engine in found.changed] == ["http://127.0.0.1:9003"]


def test_what_needs_a_restart_is_refused_by_name_all_at_once() -> None:
    more: dict[str, Any] = {"listen": {"port": 1}, "ledger": {"path": "/elsewhere"}, "energy": {"interval": 1.0}}
    with pytest.raises(ConfigError) as error:
        changes(config({**E1, "devices": ["local/gpu:0"]}), config({**E1, "devices": ["local/gpu:1"]}, **more))
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["listen", "ledger", "energy", "engine e1"]
    with pytest.raises(ConfigError, match="hosts: cannot be changed"):
        changes(config(), config(hosts={"h": {"local": True}}))
