"""The data plane's word to the policy's loop: requests as they come and go, and the ticket that each takes to the gate.

It is asked only while a policy acts, or would in a dry run: `observe` costs a request nothing.
"""

from collections.abc import Mapping
from typing import Any

from policies.interface import Signals
from proxy.control.learner import Lately, Learner, Served
from proxy.control.sharing import Sharing
from proxy.energy.receipts import Receipt
from proxy.energy.records import Outcome
from proxy.gate import Ticket


class Arrivals:
    """Feeds `learner` and `sharing`, and knows of each workflow what a ticket says."""

    def __init__(self, learner: Learner, sharing: Sharing) -> None:
        self._learner, self._sharing = learner, sharing
        self._pressed: dict[str, tuple[float, Lately]] = {}  # workflows with an objective for a run: it, and of late
        self._grouped: frozenset[str] = frozenset()  # workflows whose tickets say their prefix

    def configure(self, signals: Signals, grouped: frozenset[str]) -> None:
        """What holds for the tickets of the next second; `grouped` workflows seek the company of their prefix."""
        self._grouped = grouped
        self._pressed = {
            name: (run_s, Lately(served_s=one.served_s, depth=one.depth))
            for name, one in signals.workflows.items()
            if (run_s := one.objective.run_p95_s) is not None
        }

    def opened(self, receipt: Receipt) -> None:
        run = receipt.run
        self._learner.arrived(receipt.id, run.uid, run.label, run.opened, run.quiet_s, receipt.received)

    def released(self, receipt: Receipt) -> None:
        """It waited for others of its run, which have answered: only now it wants to be served."""
        self._learner.follows(receipt.id)

    def closed(self, receipt: Receipt) -> None:
        run, attempt = receipt.run, receipt.attempts[-1] if receipt.attempts else None
        prompt = receipt.prompt_tokens
        served = Served(
            receipt.received + receipt.held_s,
            attempt.dispatched if attempt else None,
            attempt.first if attempt else None,
            receipt.ended or receipt.received,
            None if prompt is None else max(0, prompt - (receipt.cached_tokens or 0)),
            receipt.output_tokens,
            receipt.outcome is Outcome.OK,
        )
        self._learner.ended(receipt.id, served, last=run.asked_to_close and not run.in_flight)

    def prefix(self, receipt: Receipt, body: Mapping[str, Any]) -> int:
        """See a request's prompt; returns a number for its shared beginning where tickets are to say it, else 0."""
        run = receipt.run
        self._sharing.look(run.label, run.tenant, body, receipt.received)
        return self._sharing.prefix(run.label, run.tenant, body) if run.label in self._grouped else 0

    def ticket(self, receipt: Receipt, prefix: int, now: float) -> Ticket:
        run, slack_s = receipt.run, None
        if (pressed := self._pressed.get(run.label)) is not None:
            slack_s = self._learner.slack_s(run.uid, now, *pressed)
        return Ticket(run.label, receipt.step, prefix, slack_s, self._learner.attained_s(run.uid))
