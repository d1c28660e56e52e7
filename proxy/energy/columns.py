"""What the attempts of one engine did in some slices of time, in columns: seconds, steps, tokens, context read."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from proxy.energy.prior import Coefficients
from proxy.energy.seen import Floats, Seen, parts
from proxy.energy.work import CHUNK, Progress, Steps, computed, first_token, made_until


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
    horizon, begins = max(now, edges[-1]), edges[0]
    start = np.array([p.dispatched for p in attempts])
    end = np.array([horizon if p.ended is None else p.ended for p in attempts])
    prompt = np.array([p.prompt_guess if p.prompt_tokens is None else p.prompt_tokens for p in attempts], float)
    first = np.array(
        [
            p.first
            if p.first is not None and p.visible
            else first_token(p, horizon if p.ended is None else p.ended, prices)
            for p in attempts
        ]
    )
    begun = np.array([p.dispatched if p.begun is None else p.begun for p in attempts])
    uncached = np.array(
        [computed(p, prices) if one >= begins else 0.0 for p, one in zip(attempts, first.tolist(), strict=True)]
    )
    made = _made(attempts, edges, first, end, prices, steps, seen)
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


def _made(
    attempts: Sequence[Progress],
    edges: Sequence[float],
    first: Floats,
    end: Floats,
    prices: Coefficients,
    steps: Steps | None,
    seen: Seen,
) -> Floats:
    """Output tokens made until each edge, a row an edge."""
    made = np.zeros((len(edges), len(attempts)))
    frames = np.array([p.frames for p in attempts], float)
    if frames.any():
        serials = np.array([p.serial for p in attempts], dtype=np.int64)
        ended = np.array([np.inf if p.ended is None else p.ended for p in attempts])
        output = np.array([p.frames if p.output_tokens is None else p.output_tokens for p in attempts], float)
        a_frame = np.divide(output, frames, out=np.zeros(frames.size), where=frames > 0)
        for row, edge in zip(made, edges, strict=True):
            row[:] = a_frame * seen.frames_at(edge, serials, first, ended, frames)
    for index in np.flatnonzero(frames == 0).tolist():
        progress, begins, ends = attempts[index], float(first[index]), float(end[index])
        made[:, index] = [made_until(progress, edge, begins, ends, prices, steps) for edge in edges]
    return made
