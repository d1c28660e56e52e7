"""The main paper's table, to be compared: search wide, summarization narrow, coding by role, the cap at its sweet spot.

From arXiv 2604.09611 (one A100, vLLM 0.9.1): energy per token of search is lowest at a batch of 8, of document chains
at 1, of the composite at 4; coding suffers where roles share a batch and partly recovers at 8; of 250 W, 200 W is the
cap with the best latency. On this project's H200 energy per run fell with more in flight for all four: the table is
here to be reproduced, not to be believed.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from policies.interface import Decision, Release, Signals

Count = Annotated[int, Field(ge=1, strict=True)]


class Paper(BaseModel):
    """Workflows are known by their names. `cap` is a part of the highest limit that each GPU allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_flight: Mapping[str, Count] = {"search": 8, "summarize": 1, "coding": 8, "composite": 4}
    by_role: tuple[str, ...] = ("coding",)
    cap: Annotated[float, Field(gt=0, le=1)] = 0.8

    def decide(self, signals: Signals, state: Any) -> tuple[Decision, Any]:
        ranges = {name: device.power_limit_range_w for name, device in signals.devices.items()}
        return Decision(
            in_flight=self.in_flight,
            release={name: Release(0.0, group="step") for name in self.by_role},
            power_limit_w={name: max(watts[0], self.cap * watts[1]) for name, watts in ranges.items() if watts},
            reason="the paper's table",
        ), None
