"""Runs an emulated GPU host: a vLLM-like server and a zeusd over the same emulated cards, in one process."""

import asyncio
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import uvicorn

from emulator.core.host import HostPower
from emulator.core.machine import Machine
from emulator.core.presets import GpuPreset, ModelPreset, PresetError, load_gpu, load_model
from emulator.core.settings import EngineSettings, OutOfMemory
from emulator.engine import engine_of
from emulator.host import Host, Package, cards
from emulator.server.app import App, Served
from emulator.server.faults import Faults
from emulator.server.metrics import EngineMetrics
from emulator.server.serve import server
from emulator.server.shell import EngineShell
from emulator.server.slow import SlowDevice
from emulator.zeusd.app import Zeusd
from emulator.zeusd.serve import server as zeusd_server
from joulegate.serve import url_of
from proxy.config import ConfigError

CAVEAT = (
    "All joules are emulated: a model's figures, not a machine's. "
    "Its power caps and clocks are uncalibrated, and nothing seen here is a saving on hardware."
)


@dataclass(frozen=True)
class Options:
    """What the command line says; names and meaning are vLLM's where it has them."""

    gpu: str
    model: str
    gpus: int = 1
    host: str = "127.0.0.1"
    port: int = 8000
    zeusd_port: int = 4938
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    block_size: int = 16
    scheduling_policy: str = "fcfs"
    max_num_queued_reqs: int | None = None
    prefix_caching: bool = True
    prompt_tokens_details: bool = True
    served_model_name: str | None = None
    power_limit_w: float | None = None
    seed: int = 0


class EmulatedHost:
    """The machine and its engine, ready to be served. Raises ConfigError where it cannot be."""

    def __init__(self, options: Options) -> None:
        self.options = options
        try:
            self.gpu: GpuPreset = load_gpu(options.gpu)
            self.model: ModelPreset = load_model(options.model)
            wanted = EngineSettings(
                kv_blocks=1,
                max_model_len=1,
                block_size=options.block_size,
                max_num_seqs=options.max_num_seqs,
                max_num_batched_tokens=options.max_num_batched_tokens,
                policy=options.scheduling_policy,  # pyright: ignore[reportArgumentType] - it is checked there
                enable_prefix_caching=options.prefix_caching,
            )
            self.settings, gpus = engine_of(
                self.gpu,
                self.model,
                cards=options.gpus,
                gpu_memory_utilization=options.gpu_memory_utilization,
                max_model_len=options.max_model_len,
                settings=wanted,
            )
            for gpu in gpus:
                if options.power_limit_w is not None:
                    gpu.power_limit_w = options.power_limit_w
        except (PresetError, OutOfMemory, ValueError) as error:
            raise ConfigError(str(error)) from None
        if options.max_num_queued_reqs is not None and options.max_num_queued_reqs < 0:
            raise ConfigError(f"--max-num-queued-reqs is at least 0, not {options.max_num_queued_reqs}")
        self.name = options.served_model_name or self.model.name
        self.host: Host[Any, Any] = Host(cards(gpus, self.gpu.title.removeprefix("Emulated ")))
        self.host.packages.append(Package(power := HostPower(self.gpu.host)))
        self._power = power
        self._devices = [SlowDevice(gpu) for gpu in gpus]

    def app(self) -> App:
        """The engine's application. To be called once, inside the event loop that runs it."""
        options, settings = self.options, self.settings
        machine = Machine(settings, self._devices)
        info = {
            "block_size": str(settings.block_size),
            "num_gpu_blocks": str(settings.kv_blocks),
            "gpu_memory_utilization": str(options.gpu_memory_utilization),
            "enable_prefix_caching": str(settings.enable_prefix_caching),
        }
        metrics = EngineMetrics(self.name, settings.max_model_len, machine.scheduler, info)
        factors = self.gpu.factors
        engine = EngineShell(
            machine,
            self._devices,
            metrics,
            max_num_queued_reqs=options.max_num_queued_reqs,
            request_s=factors.request_s,
            prompt_token_s=factors.prompt_token_s,
            power=self._power,
        )
        self.host.engines.append(engine)
        served = Served(
            [self.name],
            self.model.title,
            settings.max_model_len,
            settings.block_size,
            options.prompt_tokens_details,
            options.seed,
        )
        return App(served, engine, Faults(engine, self.host))

    def gateway_yaml(self, url: str, zeusd: str) -> str:
        """What a gateway's configuration needs to stand in front of this host."""
        names = [f"gpu:{n}" for n in range(len(self.host.cards))] + ["cpu:0", "dram:0"]
        devices = ", ".join(f'"emulated/{name}"' for name in names)
        return (
            f'hosts: {{emulated: {{zeusd: "{zeusd}"}}}}\n'
            "engines:\n"
            f'  - {{name: emulated, kind: vllm, url: "{url}", devices: [{devices}], models: ["{self.name}"]}}'
        )

    def about(self) -> str:
        """The host in one line."""
        settings, count = self.settings, len(self.host.cards)
        held = settings.kv_blocks * settings.block_size
        return (
            f"{self.model.title} as {self.name} on {count} x {self.host.cards[0].name}; context "
            f"{settings.max_model_len}, KV cache of {held} tokens, up to {settings.max_num_seqs} sequences a step"
        )


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError when it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"cannot listen on {host}:{port} ({why}); choose another with {flag}, or 0 for any") from None


async def serve(
    emulated: EmulatedHost, sock: socket.socket, zeusd_sock: socket.socket, ready: Callable[[], None]
) -> None:
    """Serve both until SIGINT or SIGTERM; `ready` is called when both answer."""
    engine = server(emulated.app())
    daemon = zeusd_server(Zeusd(emulated.host))
    servers: list[uvicorn.Server] = [engine, daemon]

    def stop() -> None:
        for each in servers:
            each.force_exit, each.should_exit = each.should_exit, True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    running = [
        asyncio.create_task(each.serve(sockets=[one])) for each, one in zip(servers, (sock, zeusd_sock), strict=True)
    ]
    while not all(each.started for each in servers):  # noqa: ASYNC110 - uvicorn sets no event
        await asyncio.sleep(0.01)
    ready()
    await asyncio.gather(*running)


def run(options: Options, say: Callable[[str], None]) -> None:
    """Emulate until told to stop; `say` gets the lines for a person. Raises ConfigError at the start alone."""
    emulated = EmulatedHost(options)
    sock = listen(options.host, options.port, "--port")
    zeusd_sock = listen(options.host, options.zeusd_port, "--zeusd-port")

    def ready() -> None:
        url, zeusd = url_of(sock), url_of(zeusd_sock).removeprefix("http://")
        say(CAVEAT)
        say(f"engine: {url}/v1 · {emulated.about()}")
        say(f"zeusd:  {zeusd} · break things: POST {url}/emulator/faults")
        say("For a gateway (joulegate serve -c FILE):")
        say(emulated.gateway_yaml(url, zeusd))

    serving = serve(emulated, sock, zeusd_sock, ready)
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)
