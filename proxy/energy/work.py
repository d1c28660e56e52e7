"""What one attempt did in a stretch of time: seconds, prompt tokens, output tokens, context read."""

from dataclasses import dataclass, field

from proxy.energy.prior import Coefficients


@dataclass(slots=True, eq=False)
class Progress:
    """One attempt as it runs; the data plane writes, attribution reads. Times are Unix seconds.

    `frames` counts content frames seen so far; `marks` are (time, frames) at readings. Token counts are null until the
    engine's usage is known. `prompt_guess` stands in for the prompt's length until then.
    """

    request_id: str
    attempt: int
    engine: str
    dispatched: float
    prompt_guess: int = 0
    streamed: bool = True
    first: float | None = None
    ended: float | None = None
    frames: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    marks: list[tuple[float, int]] = field(default_factory=list)

    def overlaps(self, t0: float, t1: float) -> bool:
        return self.dispatched < t1 and (self.ended is None or self.ended > t0)

    def frames_at(self, t: float) -> float:
        """Content frames seen until `t`: linear between marks."""
        if self.ended is not None and t >= self.ended:
            return self.frames
        before_t, before = self.first or self.dispatched, 0
        for mark_t, frames in self.marks:
            if mark_t >= t:
                return before if mark_t == before_t else before + (frames - before) * part(t, before_t, mark_t)
            before_t, before = mark_t, frames
        if self.ended is None:
            return before
        return before + (self.frames - before) * part(t, before_t, self.ended)


def part(t: float, t0: float, t1: float) -> float:
    """How much of [t0, t1] lies before `t`, 0 to 1."""
    if t1 <= t0:
        return 1.0 if t >= t1 else 0.0
    return min(1.0, max(0.0, (t - t0) / (t1 - t0)))


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt's part in one window: seconds before and after its first token, tokens, and context read."""

    prefill_s: float
    decode_s: float
    prompt: float  # uncached prompt tokens
    output: float
    context: float  # Σ over output tokens of the context length


def work_in(progress: Progress, t0: float, t1: float, now: float, prices: Coefficients) -> Work:
    """What `progress` did between `t0` and `t1`, by what is known of it at `now`.

    Without a stream nobody saw the first token: its time is then placed by the prices of prompt and output. Before the
    first token of a running stream, the prompt is taken to last until `now`.
    """
    start, end = progress.dispatched, progress.ended if progress.ended is not None else max(now, t1)
    prompt = progress.prompt_tokens if progress.prompt_tokens is not None else progress.prompt_guess
    uncached = max(0, prompt - (progress.cached_tokens or 0))
    output = progress.output_tokens if progress.output_tokens is not None else progress.frames
    if progress.first is not None and progress.streamed:
        first = progress.first
    elif progress.ended is not None and output:
        prefill_s, decode_s = uncached * prices.prompt_s, output * prices.step_s
        first = start + (end - start) * prefill_s / ((prefill_s + decode_s) or 1.0)
    else:
        first = end
    uncached_part = part(t1, start, first) - part(t0, start, first)
    if progress.streamed and progress.frames:
        before, after = (output * progress.frames_at(t) / progress.frames for t in (t0, t1))
    else:
        before, after = (output * part(t, first, end) for t in (t0, t1))
    tokens = max(0.0, after - before)
    low, high = max(t0, start), min(t1, end)
    seconds = max(0.0, high - low)
    prefill = min(seconds, max(0.0, min(first, high) - low))
    return Work(prefill, seconds - prefill, uncached * uncached_part, tokens, tokens * (prompt + (before + after) / 2))
