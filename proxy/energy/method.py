"""How an engine's joules are shared out at the moment: what a user has to know of a share beside its band."""

from dataclasses import dataclass
from typing import Literal

from proxy.energy.cpu_part import is_on_cpu
from proxy.energy.serving import Serving

_RECENT_S = 10.0


@dataclass(frozen=True, slots=True)
class Method:
    """Prices in joules, of a step, an uncached prompt token, an output token and a token of context that one reads.

    `windows` is on how many of the engine's own windows they rest, 0 while they are the prior's; each may be off by the
    factor `spread`. `drifts` counts how often the machine was found to have changed. `setting` names the clocks and
    limits that it works under, as far as the gateway set them.
    """

    prices: str  # where they come from
    windows: int
    step_j: float
    prompt_j: float
    output_j: float
    context_j: float
    spread: float
    drifts: int
    setting: str
    steps: Literal["counted", "inferred"]  # by the engine's counter, or from the tokens that were seen
    # By usages, by the engine's counter, or unknown: then a prompt counts as computed as far as there was time for it.
    cached: Literal["told", "counted", "unknown"]
    cpu: Literal["process", "whole"] | None  # how much of a processor's joules is the engine's; null without one
    withheld: str | None  # why its requests have no figures


def method(engine: Serving, now: float, setting: str, withheld: str | None) -> Method:
    """What holds for an engine at `now` (Unix seconds)."""
    prices, last = engine.prices, engine.pace.last
    on_cpu = any(map(is_on_cpu, engine.devices))
    return Method(
        prices=prices.source,
        windows=engine.fit.windows,
        step_j=prices.step_j,
        prompt_j=prices.prompt_j,
        output_j=prices.output_j,
        context_j=prices.context_j,
        spread=prices.spread,
        drifts=engine.fit.drifts,
        setting=setting,
        steps="counted" if last is not None and now - last <= _RECENT_S else "inferred",
        cached="told" if engine.hits.told else "counted" if engine.hits.counted else "unknown",
        cpu=None if not on_cpu else "process" if engine.cpu.is_known(now) else "whole",
        withheld=withheld,
    )
