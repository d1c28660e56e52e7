"""The loop that lets a policy act: once a second signals go in, and what was decided is applied.

A policy that raises or answers late changes nothing that second; the gateway goes on with what held before.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from policies.interface import Decision, Policy
from proxy import clock
from proxy.control.actuator import PowerActuator
from proxy.control.signals import observe
from proxy.energy.meter import Meter
from proxy.forward import Forward
from proxy.route import Lane

log = logging.getLogger("joulegate.control")

PERIOD_S = 1.0
DECIDE_S = 0.2  # a decision that takes longer is about a state that has passed


class Control:
    """Asks the policy and applies what it says: gates and ceilings here, power limits through the actuator."""

    def __init__(
        self,
        policy: Policy,
        lanes: Sequence[Lane],
        forward: Forward,
        meter: Meter,
        actuator: PowerActuator,
        limit: int | None,
    ) -> None:
        self._policy, self._lanes, self._forward = policy, lanes, forward
        self._meter, self._actuator, self._limit = meter, actuator, limit
        self._state: Any = None
        self._enforced_w: dict[str, float | None] = {}
        self._late: asyncio.Task[Any] | None = None
        self.decision = Decision(reason="nothing decided yet")

    async def run_forever(self) -> None:
        while True:
            try:
                await self.step()
            except Exception:
                # The edge between a policy, which may be anybody's, and the requests that it must never fail.
                log.exception("the policy failed; what held before goes on")
            await asyncio.sleep(PERIOD_S)

    async def step(self) -> None:
        """Decide once and apply it."""
        if self._late is not None and not self._late.done():
            return
        signals = observe(clock.now(), self._lanes, self._meter.power_w, self._enforced_w)
        self._late = asyncio.create_task(asyncio.to_thread(self._policy.decide, signals, self._state))
        try:
            decision, state = await asyncio.wait_for(asyncio.shield(self._late), DECIDE_S)
        except TimeoutError:
            log.warning("the policy took longer than %g s; its decision is discarded", DECIDE_S)
            return
        self._state = state
        await self._apply(decision)

    async def _apply(self, decision: Decision) -> None:
        if decision.reason != self.decision.reason:
            log.info("policy: %s", decision.reason)
        self.decision = decision
        self._forward.max_tokens = decision.max_tokens
        for lane in self._lanes:
            lane.wake(lane.gate.set_limits(self._limit, decision.in_flight))
        if decision.power_limit_w or self._enforced_w:
            applied = await asyncio.to_thread(self._actuator.apply, decision.power_limit_w, clock.now())
            self._enforced_w = {result.device: result.enforced_w for result in applied}
