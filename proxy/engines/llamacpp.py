"""llama.cpp's server, started with `--metrics`."""

from proxy.engines.exposition import total
from proxy.engines.interface import EngineSample
from proxy.engines.openai import OpenAI


class LlamaCpp(OpenAI):
    """A llama.cpp server.

    When its counters move: steps at every step (a whole batch of prompt, up to 2048 tokens, is *one* step and can take
    seconds on a CPU), prompt and cached tokens at the request's first token, output tokens only when the request ends
    or is cancelled. So output tokens lag behind what was relayed by up to a whole request, while steps do not.
    """

    kind: str = "llamacpp"
    health_paths: tuple[str, ...] = ("/health", "/v1/models")
    metrics_path: str | None = "/metrics"

    def parse(self, t: float, body: bytes) -> EngineSample | None:
        processed = total(body, b"llamacpp:prompt_tokens_total")  # without those from the cache
        cached = total(body, b"llamacpp:prompt_tokens_cached_total")
        sample = EngineSample(
            t,
            steps=total(body, b"llamacpp:n_decode_total"),
            prompt_tokens=None if processed is None or cached is None else processed + cached,
            cached_tokens=cached,
            output_tokens=total(body, b"llamacpp:tokens_predicted_total"),
            running=total(body, b"llamacpp:requests_processing"),
            waiting=total(body, b"llamacpp:requests_deferred"),
        )
        return sample or None
