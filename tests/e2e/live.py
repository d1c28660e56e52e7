"""An engine that is no stub: nobody can script it, it says what it likes, and it computes something."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from stage import until


@dataclass(frozen=True)
class LiveEngine:
    """`url` has no `/v1`; `most` is how many requests it takes before it refuses, null for no limit that is known."""

    url: str
    model: str
    kind: str = "vllm"
    most: int | None = None

    def named(self, name: str = "e1", **more: Any) -> dict[str, Any]:
        """It, as an engine in a gateway's configuration."""
        return {"name": name, "kind": self.kind, "url": self.url, **more}

    def metric(self, name: str) -> float:
        """The sum of one of its metrics over all labels."""
        text = httpx.get(f"{self.url}/metrics").text
        return sum(s.value for f in text_string_to_metric_families(text) for s in f.samples if s.name == name)

    def present(self) -> int:
        """Requests that run or wait in it."""
        return int(self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting"))

    def idle(self) -> bool:
        return self.present() == 0

    @contextmanager
    def occupied(self, requests: int) -> Iterator[None]:
        """So many requests of somebody else are in it meanwhile, and none afterwards."""
        over = threading.Event()
        threads = [threading.Thread(target=self._occupy, args=(over,)) for _ in range(requests)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: self.present() >= requests)
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()
            until(self.idle)

    def _occupy(self, over: threading.Event) -> None:
        body = {"model": self.model, "prompt": [1000, 1001], "max_tokens": 1900, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=60) as reply:
            for _ in reply.iter_raw():
                if over.is_set():
                    return


def configured() -> LiveEngine | None:
    """The engine that the environment names, if any."""
    url = os.environ.get("JOULEGATE_ENGINE_URL")
    if not url:
        return None
    most = os.environ.get("JOULEGATE_ENGINE_MOST")
    kind = os.environ.get("JOULEGATE_ENGINE_KIND", "vllm")
    return LiveEngine(url, os.environ["JOULEGATE_ENGINE_MODEL"], kind, int(most) if most else None)
