"""Turns the campaign's knob `engine`: who serves the model's name is changed in a running gateway's configuration.

`python turn.py FILE URL MODEL`, with the engine in `$JOULEGATE_ENGINE`; ends when the gateway serves as it says.
"""

import os
import sys
import time
from pathlib import Path

import httpx
import yaml

WAIT_S = 30.0


def main(file: Path, url: str, model: str) -> None:
    serves = os.environ["JOULEGATE_ENGINE"]
    config = yaml.safe_load(file.read_text())
    for engine in config["engines"]:
        engine["models"] = [model if engine["name"] == serves else f"nobody-asks-{engine['name']}"]
    file.write_text(yaml.safe_dump(config))
    httpx.post(f"{url}/admin/reload", timeout=WAIT_S).raise_for_status()
    until = time.monotonic() + WAIT_S
    while not all(httpx.get(f"{url}/readyz").json()["engines"].values()):
        if time.monotonic() > until:
            raise SystemExit(f"{serves} is not up after {WAIT_S:g} s")
        time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
