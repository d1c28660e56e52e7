"""Starts the two engines that are compared, with the same limits, and ends them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

MODEL = "smol"
MAX_MODEL_LEN, BLOCK = 2048, 32  # tokens
READY_S = 300.0
MOST_REQUESTS = 16  # that run or wait
# The same words mean the same to both engines.
LIMITS = [
    *("--served-model-name", MODEL, "--host", "127.0.0.1"),
    *("--max-model-len", str(MAX_MODEL_LEN), "--block-size", str(BLOCK), "--enable-prompt-tokens-details"),
]
GROUPS = {
    "usual": [*LIMITS, "--max-num-seqs", "16", "--max-num-queued-reqs", str(MOST_REQUESTS)],
    "queued": [*LIMITS, "--max-num-seqs", "1", "--max-num-queued-reqs", "4", "--scheduling-policy", "priority"],
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}


@contextmanager
def vllm(group: str, python: Path, model: Path, log: Path) -> Iterator[str]:
    """The URL of a real vLLM on the CPU that is ready."""
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    how = ["--dtype", "bfloat16", "--enforce-eager", "--disable-uvicorn-access-log"]
    with _listening([*command, *how, *GROUPS[group]], {**os.environ, **OFFLINE}, log) as url:
        yield url


@contextmanager
def emulator(group: str, log: Path) -> Iterator[str]:
    """The URL of an emulated engine that is ready."""
    command = [sys.executable, "-m", "joulegate", "emulate", "--gpu", "a100-40g", "--model", "llama-2-7b"]
    command += ["--zeusd-port", "0"]
    with _listening([*command, *GROUPS[group]], os.environ, log) as url:
        yield url


@contextmanager
def _listening(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=dict(env), stdout=said, stderr=subprocess.STDOUT, cwd=log.parent
        )
    try:
        _ready(process, url, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the engine ended with {process.returncode}:\n{log.read_text()[-4000:]}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready after {READY_S:g} s:\n{log.read_text()[-4000:]}")
        time.sleep(0.1)
