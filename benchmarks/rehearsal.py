"""`real_mixes.py` on an emulated H200, and what `mixes_table.py` makes of it: the real run, rehearsed.

    python -m benchmarks.rehearsal OUT_DIR [part of each scenario's time, 0.3]

What comes out is a model's figures, and says nothing of hardware.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.mixes_table import main as table
from benchmarks.real_mixes import Site, measure

GPU, MODEL = "h200", "llama-2-7b"
MARKER = "For a gateway (joulegate serve -c FILE):\n"


@contextmanager
def emulated_host(out: Path) -> Iterator[dict[str, Any]]:
    """An emulated host while the block runs: the configuration for a gateway that it prints. What it says is kept in
    `out`. Raises RuntimeError where it does not start."""
    out.mkdir(parents=True, exist_ok=True)
    said = out / "emulate.txt"
    command = [sys.executable, "-u", "-m", "joulegate", "emulate", "--gpu", GPU, "--model", MODEL]
    with said.open("wb") as log:
        process = subprocess.Popen([*command, "--port", "0", "--zeusd-port", "0"], stdout=log, stderr=log)
    try:
        yield _config(said, process)
    finally:
        process.terminate()
        process.wait(20)


def _config(said: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        _, marker, block = said.read_text().partition(MARKER)
        with suppress(yaml.YAMLError):
            config = yaml.safe_load(block) if marker else None
            if config and "engines" in config:
                return config
        time.sleep(0.1)
    raise RuntimeError(f"joulegate emulate did not start: {said.read_text()}")


def main(out: Path, part: float) -> None:
    with emulated_host(out) as config:
        host, engine = config["hosts"]["emulated"], config["engines"][0]
        counter = f"http://{host['zeusd']}/gpu/get_cumulative_energy?gpu_ids=0"

        def counter_j() -> float:
            return httpx.get(counter).json()["0"]["energy_mj"] / 1000

        site = Site(f"Emulated {GPU}", host, "emulated/gpu:0", counter_j)
        asyncio.run(measure(engine["url"], MODEL, site, out, part))
    table(out / "trace.jsonl.gz")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.3)
