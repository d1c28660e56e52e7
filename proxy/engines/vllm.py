"""vLLM: its counters are in its Prometheus metrics, one label set an engine core."""

from proxy.engines.exposition import total, values
from proxy.engines.interface import EngineSample
from proxy.engines.openai import OpenAI


class Vllm(OpenAI):
    """A vLLM server (0.9 or later).

    When its counters move: steps and output tokens at every step that returns tokens (a step that only chews on a part
    of a long prompt is not counted), prompt tokens whole at the request's first token, cached tokens already when the
    request is scheduled, so that they can run ahead of the prompt tokens that hold them.
    """

    kind: str = "vllm"
    health_paths: tuple[str, ...] = ("/health", "/v1/models")
    metrics_path: str | None = "/metrics"

    def parse(self, t: float, body: bytes) -> EngineSample | None:
        # Versions before 0.10 say gpu_ in two names, some say both.
        cached = total(body, b"vllm:prefix_cache_hits_total")
        usage = [*values(body, b"vllm:kv_cache_usage_perc")] or [*values(body, b"vllm:gpu_cache_usage_perc")]
        sample = EngineSample(
            t,
            steps=total(body, b"vllm:iteration_tokens_total_count"),
            prompt_tokens=total(body, b"vllm:prompt_tokens_total"),
            cached_tokens=total(body, b"vllm:gpu_prefix_cache_hits_total") if cached is None else cached,
            output_tokens=total(body, b"vllm:generation_tokens_total"),
            running=total(body, b"vllm:num_requests_running"),
            waiting=total(body, b"vllm:num_requests_waiting"),
            kv_usage=min(max(usage), 1.0) if usage else None,  # the fullest core is the one that preempts
        )
        return sample or None
