"""The default policy: look, and touch nothing."""

from pydantic import BaseModel, ConfigDict

from policies.interface import Decision, Signals


class Observe(BaseModel):
    """Never limit anything. It has no options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def decide(self, signals: Signals, state: None) -> tuple[Decision, None]:
        return Decision(reason="observing: nothing is touched"), None
