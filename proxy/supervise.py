"""Loops that must not end: what goes wrong in one is logged, and it goes on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("joulegate")

PAUSE_S = 1.0


async def forever(what: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a loop, and again after a pause whenever it raises; ends by being cancelled alone."""
    while True:
        try:
            await run()
        except Exception:
            # The edge between one loop of the gateway and all the rest of it, which must not stand still with it.
            log.exception("%s failed; it goes on in %g s", what, PAUSE_S)
        await asyncio.sleep(PAUSE_S)
