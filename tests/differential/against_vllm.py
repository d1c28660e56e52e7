"""Runs tests against real vLLM on the CPU: `python against_vllm.py VENV [--record]`; what `make test-vllm` does.

It starts vLLM twice: as usual, for the differential test and the gateway's suite; and with one sequence at a time and a
short queue, for order and refusals. Once all is well, `compared.txt` says so of this very code. With `--record` it
writes `recorded/` anew instead of comparing with it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import compared
from perform import Player
from recording import save
from script import SCRIPTS
from servers import GROUPS, MODEL, MOST_REQUESTS, OFFLINE, vllm

from proxy.engines import model

HERE = Path(__file__).parent
LIVE = HERE.parent / "e2e/test_live_engine.py"
TESTS = {"usual": [HERE, LIVE], "queued": [HERE / "test_vllm.py"]}


def main(venv: Path, record: bool) -> int:
    """The worst exit status of the tests."""
    python, worst = venv / "bin/python", 0
    with phase("the model's folder"):
        folder = prepared(python, venv / MODEL)
    for group in GROUPS:
        with phase(f"vLLM, {group}, and its tests"):
            began = time.monotonic()
            with vllm(group, python, folder, venv / f"vllm-{group}.log") as url:
                print(f"vLLM ({group}) was ready after {time.monotonic() - began:.0f} s", flush=True)
                if record:
                    player = Player(url)
                    save(group, {script.name: player.play(script) for script in SCRIPTS[group]})
                    save("metrics", player.families())
                else:
                    worst = max(worst, tested(group, url))
    if not worst and not record:
        compared.keep()
        print(f"all as real vLLM; CI need not compare it again once {compared.KEPT.name} is committed")
    return worst


def prepared(python: Path, folder: Path) -> Path:
    """The model as vLLM reads it; made once."""
    if not folder.is_dir():
        command = [str(python), str(HERE / "prepare_model.py"), str(model.fetch()), str(folder)]
        subprocess.run(command, env={**os.environ, **OFFLINE}, check=True, stderr=subprocess.DEVNULL)
    return folder


def tested(group: str, url: str) -> int:
    said = {"JOULEGATE_VLLM_URL": url, "JOULEGATE_VLLM_GROUP": group}
    engine = {"JOULEGATE_ENGINE_URL": url, "JOULEGATE_ENGINE_MODEL": MODEL, "JOULEGATE_ENGINE_MOST": str(MOST_REQUESTS)}
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", *map(str, TESTS[group])]
    return subprocess.run(command, env={**os.environ, **said, **engine}, check=False).returncode


@contextmanager
def phase(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), "--record" in sys.argv[2:]))
