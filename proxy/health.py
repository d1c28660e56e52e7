"""How the engines are: once a second each is asked for its health and counters, and now and then for its models."""

import asyncio
import logging
from collections.abc import Callable

import orjson

from proxy import clock
from proxy.energy.attribution import Attribution
from proxy.route import Lane

log = logging.getLogger("joulegate.health")

PROBE_S = 5.0
PROBE_EVERY_S = 1.0
MODELS_EVERY_S = 30.0


async def watch(
    lane: Lane, attribution: Attribution, reprice: Callable[[Lane], None], counters_s: float = PROBE_EVERY_S
) -> None:
    """Probe one engine for ever; what it says goes into its lane and into attribution.

    `reprice` is called when the engine has said which models it serves. Its counters are asked every `counters_s`.
    """
    asked_models = 0.0
    while True:
        was_up, lane.up = lane.up, await _is_up(lane)
        if lane.up and not was_up:
            lane.breaker.try_now(clock.now())
        if lane.up != was_up:
            log.log(
                logging.INFO if lane.up else logging.WARNING, "engine %s is %s", lane.name, "up" if lane.up else "down"
            )
        if lane.up:
            if not was_up or clock.now() - asked_models > MODELS_EVERY_S:
                await _ask_models(lane)
                reprice(lane)
                asked_models = clock.now()
            await _ask_counters(lane, attribution)
        for _ in range(round(PROBE_EVERY_S / counters_s) - 1):
            await asyncio.sleep(counters_s)
            if lane.up:
                await _ask_counters(lane, attribution, looks=False)
        await asyncio.sleep(counters_s)


async def _get(lane: Lane, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 when the engine could not be reached."""
    headers = [(name.lower().encode(), value.encode()) for name, value in lane.engine.headers.items()]
    try:
        async with asyncio.timeout(PROBE_S):
            reply = await lane.upstream.send(b"GET", path.encode(), headers, b"")
            try:
                return reply.status, await reply.rest()
            finally:
                lane.upstream.release(reply)
    except (TimeoutError, OSError):
        return 0, b""


async def _is_up(lane: Lane) -> bool:
    for path in lane.engine.health_paths:
        status, _ = await _get(lane, path)
        if status == 200:
            return True
        if status == 0 or status >= 500:
            return False
    # It answers, if only that it knows none of these paths, or that it wants a key.
    return True


async def _ask_models(lane: Lane) -> None:
    status, body = await _get(lane, "/v1/models")
    if status != 200:
        return
    try:
        lane.models = {str(entry["id"]): entry for entry in orjson.loads(body)["data"]}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        log.warning("engine %s: its /v1/models is not a list of models", lane.name)


async def _ask_counters(lane: Lane, attribution: Attribution, looks: bool = True) -> None:
    """`looks`: for tokens of strangers too, which takes a second to be told from a few that are on their way."""
    path = lane.engine.metrics_path
    if path is None:
        return
    asked = clock.now()
    status, body = await _get(lane, path)
    if status != 200:
        return
    # The engine read its counters at some moment between the question and the answer.
    sample = lane.engine.parse((asked + clock.now()) / 2, body)
    if sample is not None:
        lane.sample = sample
        if not looks and sample.steps is None:
            return
        output_tokens = sample.output_tokens if looks else None
        attribution.engine(lane.name, sample.t, sample.steps, output_tokens, sample.cached_tokens)
