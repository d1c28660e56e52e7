"""The gateway's one clock: Unix seconds that never step, so that intervals and timestamps agree."""

import time

_OFFSET = time.time() - time.monotonic()


def now() -> float:
    """Unix time in seconds, advanced by the monotonic clock: a change of the wall clock moves nothing."""
    return time.monotonic() + _OFFSET
