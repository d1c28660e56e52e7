"""What one attempt did in a stretch of time: seconds, prompt tokens, output tokens, context read."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from proxy.energy.prior import Coefficients

CHUNK = 8192  # tokens of a prompt that a step takes at most: vLLM's default on large cards
_TOGETHER_S = 0.004  # first tokens of one step reach the gateway within

Steps = Callable[[float, float], float]  # engine steps between two times


@dataclass(slots=True, eq=False)
class Progress:
    """One attempt as it runs; the data plane writes, attribution reads. Times are Unix seconds.

    `frames` counts content frames seen so far; `marks` are (time, frames) at readings. Token counts are null until the
    engine's usage is known. `prompt_guess` stands in for the prompt's length until then. Of an attempt without a stream
    `marks` are (time, output tokens) and `first_guess` is its first token, both as they were guessed for windows that
    could wait no longer (`hold`). `begun` is when its prompt was begun, where that shows (`place_prompts`).
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
    marks: list[tuple[float, float]] = field(default_factory=list)
    first_guess: float | None = None
    begun: float | None = None
    ticks: list[float] | None = None  # when each frame came, while a trace is recorded

    @property
    def visible(self) -> bool:
        """Whether its tokens are seen as they come: a stream was asked for, or came unasked."""
        return self.streamed or self.frames > 0

    @property
    def uncached(self) -> int:
        """Prompt tokens that the engine had to compute, as far as that is known."""
        prompt = self.prompt_tokens if self.prompt_tokens is not None else self.prompt_guess
        return max(0, prompt - (self.cached_tokens or 0))

    def overlaps(self, t0: float, t1: float) -> bool:
        return self.dispatched < t1 and (self.ended is None or self.ended > t0)

    def frames_at(self, t: float) -> float:
        """Content frames seen until `t`: linear between marks."""
        if self.ended is not None and t >= self.ended:
            return self.frames
        origin_t = self.first or self.dispatched
        if self.marks and t <= self.marks[-1][0]:
            return _along(self.marks, t, origin_t)
        before_t, before = self.marks[-1] if self.marks else (origin_t, 0)
        return before if self.ended is None else before + (self.frames - before) * part(t, before_t, self.ended)


def _along(marks: Sequence[tuple[float, float]], t: float, origin_t: float) -> float:
    """The curve from 0 at `origin_t` through the marks, at a time that is not after the last of them."""
    index = bisect_left(marks, (t, -1.0))
    before_t, before = marks[index - 1] if index else (origin_t, 0.0)
    mark_t, count = marks[index]
    return before if mark_t == before_t else before + (count - before) * part(t, before_t, mark_t)


def part(t: float, t0: float, t1: float) -> float:
    """How much of [t0, t1] lies before `t`, 0 to 1."""
    if t1 <= t0:
        return 1.0 if t >= t1 else 0.0
    return min(1.0, max(0.0, (t - t0) / (t1 - t0)))


class Work(NamedTuple):
    """One attempt's part in one window, before and after its first token: seconds, engine steps that it took part in,
    tokens, and context read."""

    prefill_s: float
    decode_s: float
    prefill_steps: float
    decode_steps: float
    prompt: float  # uncached prompt tokens
    output: float
    context: float  # Σ over output tokens of the context length


def work_in(
    progress: Progress, t0: float, t1: float, now: float, prices: Coefficients, steps: Steps | None = None
) -> Work:
    """What `progress` did between `t0` and `t1`, by what is known of it at `now`.

    Without a stream nobody saw the tokens. The first is then placed by the price of the prompt; from there to the end
    the usage is spread evenly, and while there is no usage a token is made with every step of the engine. `steps`
    counts those; without it they come at the prior's pace. A running stream's prompt lasts until `now` at least, as
    long as no token was seen.

    A step makes one token of each attempt that it decodes, so tokens tell how many steps an attempt took part in. Its
    first one comes with the last step of its prompt. Who waits inside of the engine takes part in none.
    """
    start, end = progress.dispatched, progress.ended if progress.ended is not None else max(now, t1)
    prompt = progress.prompt_tokens if progress.prompt_tokens is not None else progress.prompt_guess
    first = first_token(progress, end, prices)
    if t0 <= start < end <= t1 and first > t0 and progress.ended is not None and progress.output_tokens:
        # All of it, as with most requests that are shorter than a window: nothing needs to be placed.
        tokens, uncached = progress.output_tokens, computed(progress, prices)
        prefill_s = max(0.0, min(first, end) - start)
        times = prefill_s, end - start - prefill_s
        return Work(*times, 1 + uncached // CHUNK, tokens - 1, uncached, tokens, tokens * (prompt + tokens / 2))
    if not progress.visible:
        before = _guessed(progress, t0, first, end, prices, steps)
        after = _guessed(progress, t1, first, end, prices, steps)
    else:
        output = progress.output_tokens if progress.output_tokens is not None else progress.frames
        if frames := progress.frames:
            before = output * progress.frames_at(t0) / frames
            after = output * progress.frames_at(t1) / frames
        else:
            before, after = output * part(t0, first, end), output * part(t1, first, end)
    tokens = max(0.0, after - before)
    low, high = max(t0, start), min(t1, end)
    seconds = max(0.0, high - low)
    prefill_s, read = 0.0, 0.0
    if t0 <= first:
        prefill_s = min(seconds, max(0.0, min(first, high) - low))
        begun = start if progress.begun is None else progress.begun
        read = part(t1, begun, first) - part(t0, begun, first)
    uncached = computed(progress, prices)
    return Work(
        prefill_s,
        seconds - prefill_s,
        read * (1 + uncached // CHUNK),
        max(0.0, after - 1) - max(0.0, min(before, after) - 1),
        read * uncached,
        tokens,
        tokens * (prompt + (before + after) / 2),
    )


def first_token(progress: Progress, end: float, prices: Coefficients) -> float:
    """When the first token came, or is taken to have come; `end` is the attempt's, or as far as is looked."""
    if progress.visible and progress.first is not None:
        return progress.first
    if progress.first_guess is not None:
        return progress.first_guess
    prompt_s = progress.uncached * prices.prompt_s
    if progress.ended is None:
        placed = progress.dispatched + prompt_s
        return max(placed, end) if progress.visible else placed
    output = progress.output_tokens
    if output is None and progress.visible:
        output = progress.frames
    if output == 0:
        return end
    # Who waited longer than the prices say did so among others, which slows every token; who was faster, was in both.
    whole_s = prompt_s + (output or 0) * prices.step_s
    return progress.dispatched + prompt_s * min(1.0, (end - progress.dispatched) / (whole_s or 1.0))


def computed(progress: Progress, prices: Coefficients) -> float:
    """Prompt tokens that the engine had to compute. Where it does not say how many it found in its cache: no more than
    it can have computed until the first token."""
    if progress.cached_tokens is None and progress.visible and progress.first is not None and prices.prompt_s:
        return min(progress.uncached, (progress.first - progress.dispatched) / prices.prompt_s)
    return progress.uncached


def place_prompts(attempts: Iterable[Progress], prices: Coefficients) -> None:
    """Say when the prompts were begun of these attempts, whose first tokens are seen.

    A prompt waits inside of the engine until the steps before it are over. Those whose first tokens come together were
    computed together, in the time that their tokens take by the price.
    """
    batch: list[Progress] = []
    for progress in sorted(attempts, key=lambda p: p.first or 0.0):
        if batch and (progress.first or 0.0) - (batch[0].first or 0.0) > _TOGETHER_S:
            _place(batch, prices)
            batch = []
        batch.append(progress)
    _place(batch, prices)


def _place(batch: Sequence[Progress], prices: Coefficients) -> None:
    tokens = sum(computed(progress, prices) for progress in batch)
    for progress in batch:
        if progress.first is not None:
            begun = progress.first - prices.step_s - prices.prompt_s * tokens
            progress.begun = min(progress.first, max(progress.dispatched, begun))


def hold(progress: Progress, t: float, now: float, prices: Coefficients, steps: Steps) -> None:
    """Hold on to what is guessed of a running attempt's output until `t`, because a window is settled by it.

    When its usage comes, what is left of it goes to the windows that are still open, and nothing is told twice.
    """
    if progress.visible or progress.ended is not None or progress.output_tokens is not None:
        return
    first = first_token(progress, max(now, t), prices)
    if t > first and not (progress.marks and t <= progress.marks[-1][0]):
        made = _guessed(progress, t, first, max(now, t), prices, steps)
        progress.first_guess = first
        progress.marks.append((t, made))


def _guessed(
    progress: Progress, t: float, first: float, end: float, prices: Coefficients, steps: Steps | None
) -> float:
    """Output tokens made until `t` by an attempt whose tokens nobody sees."""
    held_t, held = progress.marks[-1] if progress.marks else (first, 0.0)
    if t < held_t:
        return _along(progress.marks, t, first) if progress.marks else 0.0
    since = max(held_t, first)
    if progress.output_tokens is not None:
        return held + max(0.0, progress.output_tokens - held) * part(t, since, end)
    until = min(t, end)
    if until <= since:
        return held
    return held + (steps(since, until) if steps else (until - since) / prices.step_s)
