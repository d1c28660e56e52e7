"""A fixed table: per workflow how many requests may be in flight and how long an answer may be, per GPU the watts."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from policies.interface import Decision, Signals

Count = Annotated[int, Field(ge=1, strict=True)]
Watts = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Gpu = Annotated[str, Field(pattern=r"^[^/]+/gpu:\d+$")]


class Static(BaseModel):
    """Apply the operator's table and never change it.

    `in_flight` counts requests on each engine, `max_tokens` output tokens, `power_limit_w` is in watts by device
    (`h1/gpu:0`). What is not in the table is not limited.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_flight: Mapping[str, Count] = {}
    max_tokens: Mapping[str, Count] = {}
    power_limit_w: Mapping[Gpu, Watts] = {}

    def decide(self, signals: Signals, state: None) -> tuple[Decision, None]:
        return Decision(
            in_flight=self.in_flight,
            max_tokens=self.max_tokens,
            power_limit_w=self.power_limit_w,
            reason="static table",
        ), None
