"""vLLM 0.32's Prometheus metrics: names, labels, buckets, and when each of them moves.

They are plain numbers until somebody asks: a step costs a few additions. `_total` counters and histograms move when
tokens come back (a step that only chews on a part of a long prompt moves none of them), prefix counters when a request
is scheduled, request histograms when a request finishes by itself; one whose client went is in none of these.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75)
FIRST_TOKEN_S += (1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
BETWEEN_TOKENS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
STEP_TOKENS = tuple(2**n for n in range(15) if n not in (1, 2))
CHOICES = (1, 2, 5, 10, 20)
PREEMPTIONS = (1, 2, 3, 4, 5, 10, 20)
FINISHES = ("stop", "length", "abort", "error", "repetition")


def up_to(largest: int) -> tuple[float, ...]:
    """1, 2, 5, 10, ... up to `largest`."""
    return tuple(n * 10**power for power in range(12) for n in (1, 2, 5) if n * 10**power <= largest)


class Histogram:
    """Counts by bucket and a sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        self.bounds = tuple(float(bound) for bound in bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts, the last one that of all."""
        total, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Cache(Protocol):
    @property
    def usage(self) -> float: ...


class Counted(Protocol):
    """What the scheduler counts of itself; see `emulator.core.scheduler.Scheduler`."""

    @property
    def running(self) -> Collection[object]: ...
    @property
    def cache(self) -> Cache: ...

    waiting: int
    prompt_tokens: int
    generation_tokens: int
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    iteration_tokens: Counter[int]


@dataclass
class Life:
    """The times of one sequence, in seconds of the engine's clock, and what it was made of."""

    arrived: float
    queued: float  # when the engine had it
    prompt_tokens: int
    max_tokens: int
    cached_tokens: int = 0
    output_tokens: int = 0
    scheduled: float | None = None
    first: float | None = None
    last: float = 0.0
    preemptions: int = 0


@dataclass(slots=True)
class Choices:
    """The answers to one prompt: what a request asks for is counted once, when the last of them has ended."""

    asked: int
    ended: int = 0
    longest: int = 0  # tokens


@dataclass(eq=False)
class EngineMetrics(Collector):
    """All metrics of one engine. `info` are the labels of `vllm:cache_config_info`."""

    model: str
    max_model_len: int
    scheduler: Counted
    info: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.reset()

    def reset(self) -> None:
        """Everything to zero, as after a restart."""
        lengths = up_to(self.max_model_len)
        self._created = time.time()
        self._before = self._counted()
        self._steps_before = Counter(self.scheduler.iteration_tokens)
        self.cached_tokens = 0
        self.rejections = 0
        self.finishes: dict[str, int] = dict.fromkeys(FINISHES, 0)
        self.first_token_s = Histogram(FIRST_TOKEN_S)
        self.between_tokens_s = Histogram(BETWEEN_TOKENS_S)
        self.per_token_s = Histogram(BETWEEN_TOKENS_S)
        self.whole_s, self.queued_s, self.inference_s, self.prefill_s, self.decode_s = (
            Histogram(REQUEST_S) for _ in range(5)
        )
        self.request_prompt, self.request_output, self.request_longest, self.request_limit, self.request_computed = (
            Histogram(lengths) for _ in range(5)
        )
        self.request_choices, self.request_preemptions = Histogram(CHOICES), Histogram(PREEMPTIONS)

    def first_token(self, life: Life, at: float) -> None:
        """A sequence has its first token: its whole prompt counts now."""
        self.cached_tokens += life.cached_tokens
        self.first_token_s.observe(at - life.arrived)

    def finished(self, life: Life, choices: Choices, reason: str, at: float) -> None:
        """A sequence that ended by itself, one of `choices`."""
        self.finishes[reason] += 1
        scheduled = life.queued if life.scheduled is None else life.scheduled
        first = scheduled if life.first is None else life.first
        decode_s = life.last - first
        self.whole_s.observe(at - life.arrived)
        self.queued_s.observe(scheduled - life.queued)
        self.prefill_s.observe(first - scheduled)
        self.inference_s.observe(life.last - scheduled)
        self.decode_s.observe(decode_s)
        self.request_preemptions.observe(life.preemptions)
        self.request_computed.observe(life.prompt_tokens - life.cached_tokens)
        self.request_prompt.observe(life.prompt_tokens)
        self.request_output.observe(life.output_tokens)
        self.per_token_s.observe(decode_s / (life.output_tokens - 1) if life.output_tokens > 1 else 0.0)
        self.request_limit.observe(life.max_tokens)
        choices.ended += 1
        choices.longest = max(choices.longest, life.output_tokens)
        if choices.ended == choices.asked:
            self.request_choices.observe(choices.asked)
            self.request_longest.observe(choices.longest)

    def render(self) -> bytes:
        """The text that /metrics answers."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        labels = {"model_name": self.model, "engine": "0"}
        now = self.scheduler
        prompt_tokens, generation_tokens, queries, hits, preemptions = (
            value - before for value, before in zip(self._counted(), self._before, strict=True)
        )
        steps = Histogram(STEP_TOKENS)
        for tokens, times in (now.iteration_tokens - self._steps_before).items():
            steps.observe(tokens, times)
        yield self._gauge("num_requests_running", "Requests that are in the batch.", labels, {(): len(now.running)})
        yield self._gauge("num_requests_waiting", "Requests that wait for the batch.", labels, {(): now.waiting})
        waiting = {("capacity",): now.waiting, ("deferred",): 0}
        yield self._gauge(
            "num_requests_waiting_by_reason", "The same by what they wait for.", labels, waiting, "reason"
        )
        asleep = {("awake",): 1, ("weights_offloaded",): 0, ("discard_all",): 0}
        yield self._gauge(
            "engine_sleep_state", "Whether the engine is awake; it always is.", labels, asleep, "sleep_state"
        )
        yield self._gauge(
            "kv_cache_usage_perc", "Share of the KV cache in use; 1 is full.", labels, {(): now.cache.usage}
        )
        for name, what, value in (
            ("prefix_cache_queries", "Prompt tokens that were looked for in the prefix cache.", queries),
            ("prefix_cache_hits", "Prompt tokens that the prefix cache had.", hits),
            ("external_prefix_cache_queries", "The same in other engines' caches; there are none.", 0),
            ("external_prefix_cache_hits", "The same in other engines' caches; there are none.", 0),
            ("mm_cache_queries", "Images looked for in a cache; there are none.", 0),
            ("mm_cache_hits", "Images found in a cache; there are none.", 0),
            ("num_preemptions", "Requests that lost their place in the batch.", preemptions),
            ("prompt_tokens", "Prompt tokens of requests that have their first token.", prompt_tokens),
            ("prompt_tokens_cached", "Those of them that were in the prefix cache.", self.cached_tokens),
            ("generation_tokens", "Tokens that were produced.", generation_tokens),
        ):
            yield self._counter(name, what, labels, {(): value})
        sources = {
            ("local_compute",): prompt_tokens - self.cached_tokens,
            ("local_cache_hit",): self.cached_tokens,
            ("external_kv_transfer",): 0,
        }
        yield self._counter(
            "prompt_tokens_by_source", "Prompt tokens by where they came from.", labels, sources, "source"
        )
        tiers = {("device",): hits, ("host",): 0, ("p2p",): 0, ("disk",): 0, ("external_unspecified",): 0}
        yield self._counter("prompt_tokens_cached_by_source", "Prefix hits by tier.", labels, tiers, "source")
        finishes = {(reason,): count for reason, count in self.finishes.items()}
        yield self._counter(
            "request_success", "Requests that ended by themselves.", labels, finishes, "finished_reason"
        )
        refused = {("max_num_queued_reqs",): self.rejections, ("max_num_queued_tokens",): 0}
        model = {"model_name": self.model}
        yield self._counter("admission_rejections", "Requests refused for a full queue.", model, refused, "reason")
        for name, what, histogram in (
            ("request_prompt_tokens", "Prompt tokens of a request.", self.request_prompt),
            ("request_generation_tokens", "Tokens produced for a request.", self.request_output),
            ("iteration_tokens_total", "Tokens of a step that returned any.", steps),
            ("request_max_num_generation_tokens", "The longest answer of a request.", self.request_longest),
            ("request_params_n", "Answers asked for by a request.", self.request_choices),
            ("request_params_max_tokens", "The limit of a request's answer.", self.request_limit),
            ("time_to_first_token_seconds", "Seconds from arrival to the first token.", self.first_token_s),
            ("inter_token_latency_seconds", "Seconds from token to token.", self.between_tokens_s),
            ("request_time_per_output_token_seconds", "Their mean, a request.", self.per_token_s),
            ("e2e_request_latency_seconds", "Seconds from arrival to the end.", self.whole_s),
            ("request_queue_time_seconds", "Seconds waited for the batch.", self.queued_s),
            ("request_inference_time_seconds", "Seconds in the batch.", self.inference_s),
            ("request_prefill_time_seconds", "Seconds in the batch before the first token.", self.prefill_s),
            ("request_decode_time_seconds", "Seconds from the first to the last token.", self.decode_s),
            ("request_num_preemptions", "Times that a request lost its place.", self.request_preemptions),
            ("request_prefill_kv_computed_tokens", "Prompt tokens computed for a request.", self.request_computed),
        ):
            yield self._histogram(name, what, labels, histogram)
        yield self._gauge("cache_config_info", "How the cache is set up.", {**self.info, "engine": "0"}, {(): 1})

    def _counted(self) -> tuple[int, ...]:
        now = self.scheduler
        return now.prompt_tokens, now.generation_tokens, now.prefix_queries, now.prefix_hits, now.preemptions

    def _gauge(
        self, name: str, what: str, labels: Mapping[str, str], values: Mapping[tuple[str, ...], float], *more: str
    ) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", what, labels=[*labels, *more])
        for extra, value in values.items():
            family.add_metric([*labels.values(), *extra], value)
        return family

    def _counter(
        self, name: str, what: str, labels: Mapping[str, str], values: Mapping[tuple[str, ...], float], *more: str
    ) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", what, labels=[*labels, *more])
        for extra, value in values.items():
            family.add_metric([*labels.values(), *extra], value, created=self._created)
        return family

    def _histogram(self, name: str, what: str, labels: Mapping[str, str], histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(f"vllm:{name}", what, labels=list(labels))
        family.add_metric(list(labels.values()), histogram.buckets(), histogram.sum)
        family.add_sample(f"vllm:{name}_created", dict(labels), self._created)
        return family
