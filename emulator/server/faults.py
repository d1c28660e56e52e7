"""What can be broken on purpose, what is broken now, and how it is asked for.

`POST /emulator/faults {"fault": NAME, ...}` breaks something, `GET` shows what is broken, `DELETE` mends all of it:

- stall `seconds`: the engine computes nothing, and answers nothing new
- slow `factor`, `seconds`: every step takes `factor` times as long; the time it waits costs idle power
- crash: the process ends at once, as if it were killed
- drop `count`: the next `count` streams are reset midway, once half of their tokens are sent
- refuse `count`, `status`, `in_stream`: the next `count` requests are refused, with `in_stream` inside a 200 stream
- reset: energy counters and the engine's metrics begin again at zero
- forbid: power limits and clocks can no longer be set
"""

import os
import signal
from collections.abc import Callable
from difflib import get_close_matches
from http import HTTPStatus
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from emulator.server.refusal import Refusal


class Host(Protocol):
    """The emulated machine, as far as it can be broken."""

    may_set: bool

    def reset_counters(self) -> None: ...


class Engine(Protocol):
    """The engine, as far as it can be broken. Times are in seconds."""

    def stall(self, seconds: float) -> None: ...
    def slow(self, factor: float, seconds: float) -> None: ...
    def stalled_s(self) -> float: ...
    def slowed(self) -> tuple[float, float]: ...
    def reset_metrics(self) -> None: ...


class Fault(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Stall(Fault):
    seconds: float = Field(ge=0, le=86400)


class Slow(Fault):
    factor: float = Field(ge=1, le=1000)
    seconds: float = Field(ge=0, le=86400)


class Count(Fault):
    count: Annotated[int, Field(ge=0)] = 1


class Refuse(Count):
    status: Annotated[int, Field(ge=400, le=599)] = 503
    in_stream: bool = False


class Nothing(Fault):
    pass


KINDS: dict[str, type[Fault]] = {
    "stall": Stall,
    "slow": Slow,
    "crash": Nothing,
    "drop": Count,
    "refuse": Refuse,
    "reset": Nothing,
    "forbid": Nothing,
}


def die() -> None:
    """End this process as the kernel would, with nothing closed and nobody told."""
    os.kill(os.getpid(), signal.SIGKILL)


class Faults:
    """What is broken now."""

    def __init__(self, engine: Engine, host: Host, die: Callable[[], None] = die) -> None:
        self._engine, self._host, self._die = engine, host, die
        self._drops = 0
        self._refuse = Refuse(count=0)

    def inject(self, asked: Any) -> None:
        """Break what a body asks for. Raises Refusal with what would be right."""
        name = asked.pop("fault", None) if isinstance(asked, dict) else None
        kind = KINDS.get(name) if isinstance(name, str) else None
        if kind is None:
            near = get_close_matches(str(name), KINDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(KINDS)} would be right"
            raise Refusal(f"no fault is called {name!r}: {hint}", param="fault")
        try:
            fault = kind.model_validate(asked)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise Refusal(f"{name}: {place}: {first['msg']}", param=place) from None
        match fault:
            case Stall():
                self._engine.stall(fault.seconds)
            case Slow():
                self._engine.slow(fault.factor, fault.seconds)
            case Refuse():
                self._refuse = fault
            case Count():
                self._drops = fault.count
            case _ if name == "crash":
                self._die()
            case _ if name == "reset":
                self._host.reset_counters()
                self._engine.reset_metrics()
            case _:
                self._host.may_set = False

    def active(self) -> dict[str, Any]:
        """What is broken, and for how long or how often yet."""
        faults: dict[str, Any] = {}
        if seconds := self._engine.stalled_s():
            faults["stall"] = {"seconds": round(seconds, 3)}
        factor, seconds = self._engine.slowed()
        if seconds:
            faults["slow"] = {"factor": factor, "seconds": round(seconds, 3)}
        if self._drops:
            faults["drop"] = {"count": self._drops}
        if self._refuse.count:
            faults["refuse"] = self._refuse.model_dump()
        if not self._host.may_set:
            faults["forbid"] = {}
        return faults

    def clear(self) -> None:
        """Mend everything; a counter that was reset stays reset."""
        self._engine.stall(0)
        self._engine.slow(1, 0)
        self._drops, self._refuse = 0, Refuse(count=0)
        self._host.may_set = True

    def refusal(self) -> tuple[Refusal, bool] | None:
        """The refusal that the next request gets, and whether it comes inside a stream."""
        if self._refuse.count == 0:
            return None
        self._refuse = self._refuse.model_copy(update={"count": self._refuse.count - 1})
        status = self._refuse.status
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else f"Status {status}"
        return Refusal(f"refused on purpose ({phrase})", status, phrase), self._refuse.in_stream

    def drops(self) -> bool:
        """Whether the next stream is to be dropped."""
        self._drops -= (dropped := self._drops > 0)
        return dropped
