"""What an engine's prefix cache saved: joules that were not spent, and so are in no total.

    saved = cached prompt tokens · c_prompt · devices that share the work

c_prompt is the engine's price of an uncached prompt token when the request has ended (`fit`, or the `prior`). The
steps that a longer prefill would have taken are left out, so the true saving is somewhat larger.
"""

from collections.abc import Mapping

from proxy.energy.receipts import share_quality
from proxy.energy.records import Quality
from proxy.energy.serving import Serving
from proxy.energy.sources import Device
from proxy.energy.work import Progress


def saved(progress: Progress, serving: Serving, devices: Mapping[str, Device]) -> tuple[Quality, int] | None:
    """Microjoules that an attempt did not cost, and how far to trust them: as a share of the engine's counters, and no
    better than an estimate while the price is the prior's.

    None where nothing was found in the cache, the engine does not say, or no counter is behind it.
    """
    known = [devices[name].quality for name in serving.devices if name in devices]
    if not known or not progress.cached_tokens:
        return None
    uj = round(progress.cached_tokens * serving.prices.prompt_j * serving.alike * 1e6)
    price = Quality.ATTRIBUTED if serving.fit.windows else Quality.ESTIMATED
    return max([price, *map(share_quality, known)], key=list(Quality).index), uj
