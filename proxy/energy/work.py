"""One attempt as it runs, and what is guessed of it where nothing shows: its first token, its prompt, its output."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from proxy.energy.prior import Coefficients

CHUNK = 8192  # tokens of a prompt that a step takes at most: vLLM's default on large cards
_TOGETHER_S = 0.004  # first tokens of one step reach the gateway within

Steps = Callable[[float, float], float]  # engine steps between two times


@dataclass(slots=True, eq=False)
class Progress:
    """One attempt as it runs; the data plane writes, attribution reads. Times are Unix seconds.

    `frames` counts content frames seen so far, `serial` the engine's attempts. Token counts are null until the usage is
    known. `prompt_guess` stands in for the prompt's length until then, and `cached_guess` for its cached part as long
    as no usage tells it (`hits`). Of an attempt without a stream `marks` are (time, output tokens) and `first_guess` is
    its first token, both as they were guessed for windows that could wait no longer (`hold`). `begun` is when its
    prompt was begun, where that shows (`place_prompts`).
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
    cached_guess: int = 0
    begun: float | None = None
    serial: int = 0
    ticks: list[float] | None = None  # when each frame came, while a trace is recorded

    @property
    def visible(self) -> bool:
        """Whether its tokens are seen as they come: a stream was asked for, or came unasked."""
        return self.streamed or self.frames > 0

    @property
    def uncached(self) -> int:
        """Prompt tokens that the engine had to compute, as far as that is known."""
        prompt = self.prompt_tokens if self.prompt_tokens is not None else self.prompt_guess
        return max(0, prompt - (self.cached_guess if self.cached_tokens is None else self.cached_tokens))


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


def made_until(
    progress: Progress, t: float, first: float, end: float, prices: Coefficients, steps: Steps | None
) -> float:
    """Output tokens made until `t` by an attempt of which no frame was seen, whose first token came at `first`."""
    if not progress.visible:
        return _guessed(progress, t, first, end, prices, steps)
    return (progress.output_tokens or 0) * part(t, first, end)


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
