"""`joulegate emulate` as a process of a test: an engine and two GPUs that do not exist."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from stage import environment, until
from zeus.utils.zeusd import ZeusdClient, ZeusdConfig

MODEL = "llama-2-7b"
ONES = ("--gpu", "h200", "--model", MODEL, "--gpus", "2", "--port", "0", "--zeusd-port", "0")


class EmulatedHost:
    """The process, and what it says of itself: `config` is what it tells a gateway to be given."""

    def __init__(self, folder: Path) -> None:
        said = folder / "emulate.txt"
        with said.open("w") as out:
            command = [sys.executable, "-u", "-m", "joulegate", "emulate", *ONES]
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment(folder))

        def configuration() -> dict[str, Any] | None:
            assert self.process.poll() is None, said.read_text()
            _, marker, block = said.read_text().partition("For a gateway (joulegate serve -c FILE):\n")
            with suppress(yaml.YAMLError):
                config = yaml.safe_load(block) if marker else None
                return config if config and "engines" in config else None
            return None

        self.config = until(configuration)
        self.http = httpx.Client(base_url=self.config["engines"][0]["url"], timeout=30)
        self.zeus = ZeusdClient(ZeusdConfig(host_port=self.config["hosts"]["emulated"]["zeusd"]))

    def limits_w(self) -> list[float]:
        return [limit_mw / 1000 for limit_mw in self.zeus.get_power_limit().values()]

    def fault(self, **fault: Any) -> None:
        self.http.post("/emulator/faults", json=fault).raise_for_status()

    def mend(self) -> None:
        self.http.delete("/emulator/faults").raise_for_status()

    def stop(self) -> None:
        self.http.close()
        self.process.terminate()
        assert self.process.wait(20) == 0
