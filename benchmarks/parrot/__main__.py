"""The same work on the same engine, asked directly and through the real Parrot: a campaign over HTTP, emulated.

    python -m benchmarks.parrot CHECKOUT PYTHON [--repeats N] [--out FOLDER]

An emulated A100 serves Llama-2-7B in real time; the gateway stands before it and before Parrot, whose calls come out at
the gateway's egress. The report is `joulegate campaign`'s.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import yaml

from benchmarks.parrot.real import Checkout, answers, real_parrot, wait
from benchmarks.processes import Process, StartError, free_port

HERE = Path(__file__).parent
MODEL, KEY = "llama-2-7b", "a-key-of-the-benchmark"


def carry_out(checkout: Checkout, repeats: int | None, out: Path) -> int:
    """The exit status of the campaign. Raises StartError for a process that does not come up."""
    folder = Path(tempfile.mkdtemp(prefix="joulegate-parrot-"))
    processes: list[Process] = []
    try:
        engine_port, zeusd_port, gateway_port, egress_port = (free_port() for _ in range(4))
        engine_url, url = f"http://127.0.0.1:{engine_port}", f"http://127.0.0.1:{gateway_port}"
        emulate = ["emulate", "--gpu", "a100-40g", "--model", MODEL, "--served-model-name", MODEL]
        ports = ["--port", str(engine_port), "--zeusd-port", str(zeusd_port)]
        processes.append(_joulegate("the emulated host", [*emulate, *ports], engine_port, folder))
        wait(lambda: answers(f"{engine_url}/health"), processes[-1])
        with real_parrot(checkout, folder, egress_port, KEY) as parrot:
            egress = {"engine": "vllm", "port": egress_port, "key": KEY}
            config = {
                "listen": {"port": gateway_port},
                "ledger": {"path": str(folder / "ledger.sqlite")},
                "hosts": {"h1": {"zeusd": f"127.0.0.1:{zeusd_port}"}},
                "engines": [
                    {"name": "vllm", "kind": "vllm", "url": engine_url, "devices": ["h1/gpu:0"]},
                    {"name": "parrot", "kind": "parrot", "url": parrot.url, "egress": egress},
                ],
            }
            file = folder / "joulegate.yaml"
            file.write_text(yaml.safe_dump(config))
            processes.append(_joulegate("the gateway", ["serve", "-c", str(file)], gateway_port, folder))
            wait(lambda: _serves(url), processes[-1])
            turn = f"{sys.executable} {HERE / 'turn.py'} {file} {url} {MODEL}"
            machine = {
                "url": url,
                "model": MODEL,
                "exact": True,
                "is": {"gpu": "a100-40g", "model": MODEL},
                "about": {"parrot": "the real ServeCore and its openai engine", "engine": "emulated, in real time"},
                "turn": [{"knobs": ["engine"], "command": turn}],
            }
            (folder / "machine.yaml").write_text(yaml.safe_dump(machine))
            command = [sys.executable, "-m", "joulegate", "campaign", str(HERE / "campaign.yaml")]
            command += ["--on", str(folder / "machine.yaml"), "--out", str(out)]
            status = subprocess.call([*command, *(["--repeats", str(repeats)] if repeats else [])])
            if not parrot.lives():
                raise StartError(f"Parrot has died: {parrot.core.last_words()}; {parrot.engine.last_words()}")
            return status
    finally:
        for process in reversed(processes):
            process.stop()
        shutil.rmtree(folder)


def _joulegate(name: str, arguments: list[str], port: int, folder: Path) -> Process:
    log = folder / f"{name.replace(' ', '-')}.log"
    return Process(name, [sys.executable, "-m", "joulegate", *arguments], port, log, dict(os.environ))


def _serves(url: str) -> bool:
    if not answers(f"{url}/readyz"):
        return False
    return all(httpx.get(f"{url}/readyz").json()["engines"].values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parrot", description=__doc__)
    parser.add_argument("src", type=Path, help="a checkout of microsoft/ParrotServe")
    parser.add_argument("python", type=Path, help="a Python that has what it needs (tests/parrot/requirements.txt)")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--out", type=Path, default=Path("joulegate-parrot"))
    given = parser.parse_args()
    try:
        raise SystemExit(carry_out(Checkout(given.src.absolute(), given.python.absolute()), given.repeats, given.out))
    except StartError as error:
        raise SystemExit(str(error)) from None
