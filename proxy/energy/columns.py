"""What the attempts of one engine did in some slices of time, in columns: seconds, steps, tokens, context read."""

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxy.energy.prior import Coefficients
from proxy.energy.seen import Floats, Seen, parts
from proxy.energy.work import CHUNK, Progress, Steps, made_until


class Work(NamedTuple):
    """The columns: one attempt's part in one slice, before and after its first token. Seconds, engine steps that it
    took part in, tokens, and context read."""

    prefill_s: float
    decode_s: float
    prefill_steps: float
    decode_steps: float
    prompt: float  # uncached prompt tokens
    output: float
    context: float  # Σ over output tokens of the context length


def works(
    attempts: Sequence[Progress],
    edges: Sequence[float],
    now: float,
    prices: Coefficients,
    steps: Steps | None,
    seen: Seen,
) -> Floats:
    """What each of `attempts` did between each two of `edges`, by what is known at `now`: (slices, attempts, columns).

    Without a stream nobody saw the tokens. The first is then placed by the price of the prompt; from there to the end
    the usage is spread evenly, and while there is no usage a token is made with every step of the engine. `steps`
    counts those; without it they come at the prior's pace. A running stream's prompt lasts until `now` at least, as
    long as no token was seen.

    A step makes one token of each attempt that it decodes, so tokens tell how many steps an attempt took part in. Its
    first one comes with the last step of its prompt. Who waits inside of the engine takes part in none.
    """
    told = _told(attempts)
    begins = edges[0]
    end = np.where(np.isnan(told.ended), max(now, edges[-1]), told.ended)
    prompt = np.where(np.isnan(told.prompt), told.prompt_guess, told.prompt)
    first = first_tokens(told, end, prices)
    begun = np.where(np.isnan(told.begun), told.dispatched, told.begun)
    uncached = np.where(first >= begins, _computed(told, prices), 0.0)
    made = _made(attempts, told, edges, first, end, prices, steps, seen)
    start = told.dispatched
    t0, t1 = np.array(edges[:-1])[:, None], np.array(edges[1:])[:, None]
    before, after = made[:-1], np.maximum(made[1:], made[:-1])
    low, high = np.maximum(t0, start), np.minimum(t1, end)
    seconds = np.maximum(0.0, high - low)
    in_prompt = t0 <= first
    prefill_s = np.where(in_prompt, np.clip(np.minimum(first, high) - low, 0.0, seconds), 0.0)
    read = np.where(in_prompt, parts(t1, begun, first) - parts(t0, begun, first), 0.0)
    table = np.empty((len(edges) - 1, len(attempts), len(Work._fields)))
    table[..., 0], table[..., 1] = prefill_s, seconds - prefill_s
    table[..., 2] = read * (1 + uncached // CHUNK)
    table[..., 3] = np.maximum(0.0, after - 1) - np.maximum(0.0, before - 1)
    table[..., 4] = read * uncached
    table[..., 5] = after - before
    table[..., 6] = (after - before) * (prompt + (before + after) / 2)
    return table


class Told(NamedTuple):
    """What is known of attempts, a column a fact, as `Progress` has it; nan where it is not known yet."""

    dispatched: Floats
    ended: Floats
    first: Floats
    first_guess: Floats
    begun: Floats
    prompt_guess: Floats
    prompt: Floats
    cached_guess: Floats
    cached: Floats
    output: Floats
    frames: Floats
    streamed: Floats

    @property
    def visible(self) -> NDArray[np.bool_]:
        return (self.streamed > 0) | (self.frames > 0)

    @property
    def uncached(self) -> Floats:
        prompt = np.where(np.isnan(self.prompt), self.prompt_guess, self.prompt)
        return np.maximum(0.0, prompt - np.where(np.isnan(self.cached), self.cached_guess, self.cached))


_FACTS = attrgetter(
    *("dispatched", "ended", "first", "first_guess", "begun", "prompt_guess", "prompt_tokens", "cached_guess"),
    *("cached_tokens", "output_tokens", "frames", "streamed"),
)


def _told(attempts: Sequence[Progress]) -> Told:
    table = np.array(list(map(_FACTS, attempts)), dtype=float).reshape(len(attempts), len(Told._fields))
    return Told(*table.T.copy())


def first_tokens(told: Told, end: Floats, prices: Coefficients) -> Floats:
    """`work.first_token` in columns."""
    visible, prompt_s = told.visible, told.uncached * prices.prompt_s
    output = np.where(np.isnan(told.output) & visible, told.frames, told.output)
    whole_s = prompt_s + np.nan_to_num(output) * prices.step_s
    placed = told.dispatched + prompt_s
    running = np.where(visible, np.maximum(placed, end), placed)
    over = told.dispatched + prompt_s * np.minimum(1.0, (end - told.dispatched) / np.where(whole_s > 0, whole_s, 1.0))
    by_price = np.where(np.isnan(told.ended), running, np.where(output == 0, end, over))
    guessed = np.where(np.isnan(told.first_guess), by_price, told.first_guess)
    return np.where(visible & ~np.isnan(told.first), told.first, guessed)


def _computed(told: Told, prices: Coefficients) -> Floats:
    """`work.computed` in columns."""
    uncached = told.uncached
    if not prices.prompt_s:
        return uncached
    at_most = np.where(np.isnan(told.cached) & told.visible, (told.first - told.dispatched) / prices.prompt_s, np.nan)
    return np.fmin(uncached, at_most)


def _made(
    attempts: Sequence[Progress],
    told: Told,
    edges: Sequence[float],
    first: Floats,
    end: Floats,
    prices: Coefficients,
    steps: Steps | None,
    seen: Seen,
) -> Floats:
    """Output tokens made until each edge, a row an edge."""
    made = np.zeros((len(edges), len(attempts)))
    frames = told.frames
    if frames.any():
        serials = np.array([p.serial for p in attempts], dtype=np.int64)
        ended = np.where(np.isnan(told.ended), np.inf, told.ended)
        output = np.where(np.isnan(told.output), frames, told.output)
        a_frame = np.divide(output, frames, out=np.zeros(frames.size), where=frames > 0)
        for row, edge in zip(made, edges, strict=True):
            row[:] = a_frame * seen.frames_at(edge, serials, first, ended, frames)
    silent = frames == 0
    # Of most that were never seen nothing was held on to, and all is known: it is spread evenly.
    even = silent & ~np.isnan(told.output) & np.array([not p.marks for p in attempts], dtype=bool)
    for row, edge in zip(made, edges, strict=True):
        row[even] = told.output[even] * parts(edge, first[even], end[even])
    for index in np.flatnonzero(silent & ~even).tolist():
        progress, begins, ends = attempts[index], float(first[index]), float(end[index])
        made[:, index] = [made_until(progress, edge, begins, ends, prices, steps) for edge in edges]
    return made
