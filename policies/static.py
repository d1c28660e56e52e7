"""A fixed table: how many requests may be in flight, when they leave together, how long an answer may be, and watts."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from policies.interface import Decision, Release, Signals

Count = Annotated[int, Field(ge=1, strict=True)]
Watts = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Megahertz = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0)]
Gpu = Annotated[str, Field(pattern=r"^[^/]+/gpu:\d+$")]


class Hold(BaseModel):
    """`policies.interface.Release`, as a table has it: `.inf` as `join_s` lets join whenever something is in flight."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hold_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    join_s: Seconds = 0.0
    join_part: Annotated[float, Field(ge=0)] = 0.0
    group: Literal["", "step", "prefix"] = ""


class Static(BaseModel):
    """Apply the operator's table and never change it.

    `in_flight` (by workflow) and `engine_in_flight` count requests on each engine, `max_tokens` output tokens,
    `power_limit_w` is in watts and `sm_clock_mhz` in megahertz by device (`h1/gpu:0`), `release` says by workflow how
    long requests are held for company, whatever their patience. What is not in the table is not limited.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_flight: Mapping[str, Count] = {}
    engine_in_flight: Mapping[str, Count] = {}
    release: Mapping[str, Hold] = {}
    priority: Mapping[str, Annotated[int, Field(strict=True)]] = {}
    max_tokens: Mapping[str, Count] = {}
    power_limit_w: Mapping[Gpu, Watts] = {}
    sm_clock_mhz: Mapping[Gpu, Megahertz] = {}

    def decide(self, signals: Signals, state: None) -> tuple[Decision, None]:
        return Decision(
            in_flight=self.in_flight,
            engine_in_flight=self.engine_in_flight,
            release={
                name: Release(hold.hold_s, hold.join_s, hold.group, hold.join_part)
                for name, hold in self.release.items()
            },
            priority=self.priority,
            max_tokens=self.max_tokens,
            power_limit_w=self.power_limit_w,
            sm_clock_mhz=self.sm_clock_mhz,
            reason="static table",
        ), None
