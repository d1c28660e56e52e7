"""The loop that lets a policy act: once a second signals go in, and what was decided is applied.

A policy that raises or answers late changes nothing that second; the gateway goes on with what held before.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
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
        setting: Callable[[str, float, str], None] = lambda *_: None,
    ) -> None:
        """`setting` is told, with device, time and a name, when the limits that a device works under have changed."""
        self._setting = setting
        self._policy, self._lanes, self._forward = policy, lanes, forward
        self._meter, self._actuator, self._limit = meter, actuator, limit
        self._state: Any = None
        self._enforced_w: dict[str, float | None] = {}
        self._late: asyncio.Task[Any] | None = None
        self.decision = Decision(reason="nothing decided yet")

    def configure(self, policy: Policy, limit: int | None) -> None:
        """Ask another policy from the next second on, and hold all gates to another limit."""
        self._limit = limit
        if policy is not self._policy:
            if self._late is not None:
                self._late.add_done_callback(asyncio.Task.exception)
            self._policy, self._state, self._late = policy, None, None

    async def run_forever(self) -> None:
        while True:
            await self.step()
            await asyncio.sleep(PERIOD_S)

    async def step(self) -> None:
        """Decide once and apply it; a decision that fails or comes late changes nothing."""
        if self._late is not None:
            if not self._late.done():
                return
            self._late.exception()  # looked at, so that asyncio does not complain; it is too late to matter
            self._late = None
        signals = observe(clock.now(), self._lanes, self._meter.power_w, self._enforced_w)
        policy = self._policy
        deciding = asyncio.create_task(asyncio.to_thread(policy.decide, signals, self._state))
        done, _ = await asyncio.wait([deciding], timeout=DECIDE_S)
        if policy is not self._policy:  # replaced meanwhile, and nobody asks for its answer
            deciding.add_done_callback(asyncio.Task.exception)
            return
        if not done:
            self._late = deciding
            log.warning("the policy took longer than %g s; its decision is discarded", DECIDE_S)
            return
        try:
            decision, state = deciding.result()
            await self._apply(decision)
        except Exception:
            # The edge between a policy, which may be anybody's, and the requests that it must never fail.
            log.exception("the policy failed; what held before goes on")
        else:
            self._state = state

    async def _apply(self, decision: Decision) -> None:
        if decision.reason != self.decision.reason:
            log.info("policy: %s", decision.reason)
        self.decision = decision
        self._forward.max_tokens = decision.max_tokens
        for lane in self._lanes:
            lane.wake(lane.gate.set_limits(self._limit, decision.in_flight))
        if decision.power_limit_w or self._enforced_w:
            now = clock.now()
            applied = await asyncio.to_thread(self._actuator.apply, decision.power_limit_w, now)
            self._enforced_w = {result.device: result.enforced_w for result in applied}
            for result in applied:
                if (setting := result.setting) is not None:
                    self._setting(result.device, now, setting)
