"""The embedded engine: a small real model on this host's CPU, in a process that the gateway starts and ends."""

import asyncio
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from proxy.config import ConfigError, EngineConfig
from proxy.engines import model, openmp
from proxy.engines.cores import usable_cores
from proxy.engines.interface import EngineError
from proxy.engines.llamacpp import LlamaCpp

CHILD = Path(__file__).with_name("llama_child.py")
START_S = 300.0  # a large model of the user's own takes its time
END_S = 5.0
BACKOFF_S = (0.5, 30.0)

log = logging.getLogger(__name__)


class Embedded(LlamaCpp):
    """llama.cpp's server as a child process, on a free loopback port that stays the same over restarts."""

    kind: str = "embedded"

    def __init__(self, config: EngineConfig) -> None:
        if config.url:
            raise ConfigError(f"engine {config.name}: kind embedded takes no url: it finds a free port by itself")
        super().__init__(config.model_copy(update={"url": "http://127.0.0.1:0"}))
        self.model_path = config.model_path
        self.models = config.models or (config.model_path.stem if config.model_path else model.MODEL,)
        self._settings: dict[str, Any] = {
            "aliases": self.models,
            "port": 0,
            "slots": config.slots,
            "context": config.context,
            "threads": config.threads or usable_cores(),
        }
        self._child: Child | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        return self._child.pid if self._child else None

    async def start(self) -> None:
        """Fetch the model if need be and serve it. Raises ConfigError for the model, EngineError for the start."""
        if self.model_path is None:
            path = await asyncio.to_thread(model.fetch)
        else:
            path = await asyncio.to_thread(model.own, self.model_path)
        self._settings["model"] = str(path)
        self._child = await Child.start(self.name, self._settings)
        self.url = self._child.url
        self._settings["port"] = int(self.url.rpartition(":")[2])
        self._supervisor = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        if self._supervisor:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
            self._supervisor = None
        if self._child:
            await self._child.end()
            self._child = None

    async def _supervise(self) -> None:
        """Start the child again whenever it ends, ever more slowly while it does not last."""
        loop = asyncio.get_running_loop()
        shortest_s, longest_s = BACKOFF_S
        wait_s = shortest_s
        while True:
            if self._child:
                began = loop.time()
                reason = await self._child.ended()
                self._child = None
                if loop.time() - began > longest_s:
                    wait_s = shortest_s
                log.error("engine %s: its process ended (%s); it starts again in %g s", self.name, reason, wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)
            try:
                self._child = await Child.start(self.name, self._settings)
            except EngineError as error:
                log.error("%s; it starts again in %g s", error, wait_s)


class Child:
    """A running `llama_child`; the end of its standard input is its signal to end."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.pid = process.pid
        self.url = ""
        self._process = process
        self._tail = b""
        self._reader = asyncio.create_task(self._read_log())

    @classmethod
    async def start(cls, engine: str, settings: dict[str, Any]) -> "Child":
        """A child that answers. Raises EngineError with the child's own reason; leaves no process behind then."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # else the script's folder would be searched first, and it has an openai.py
                str(CHILD),
                json.dumps(settings),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=openmp.environment(dict(os.environ)),
                start_new_session=True,  # Ctrl-C is for the gateway, which still has requests to finish
            )
        except OSError as error:
            raise EngineError(f"engine {engine}: its process cannot be started: {error.strerror}") from None
        child = cls(process)
        try:
            assert process.stdout
            async with asyncio.timeout(START_S):
                child.url = (await process.stdout.readline()).decode().strip()
                if not child.url:
                    raise EngineError(f"engine {engine}: the model does not start: {await child.ended()}")
        except TimeoutError:
            await child.end()
            raise EngineError(f"engine {engine}: the model is not ready after {START_S:g} s") from None
        except BaseException:
            await child.end()
            raise
        return child

    async def ended(self) -> str:
        """Wait for the end; returns its reason in one line."""
        code = await self._process.wait()
        await self._reader
        lines = [line.strip() for line in self._tail.decode(errors="replace").splitlines() if line.strip()]
        errors = [match[1] for line in lines if (match := re.match(r"[\d.]+ E (.*)", line))]
        words = [re.sub(r"\s+", " ", line) for line in errors[:3] or lines[-3:]]
        return "; ".join([f"exit {code}" if code >= 0 else f"signal {-code}", *words])

    async def end(self) -> None:
        """End the process: politely, and if that does not help by SIGKILL."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reader

    async def _read_log(self) -> None:
        assert self._process.stderr
        while some := await self._process.stderr.read(4096):
            self._tail = (self._tail + some)[-8192:]
