"""The loop that lets a policy act: once a second signals go in, and what was decided is applied.

The default (nothing limited, nothing held) takes the policy's place when it raises, answers late or with nonsense, and
when objectives are missed under it; after a pause it is asked again. In a dry run the default holds throughout.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from policies.interface import Decision, DeviceSignals, Policy, Signals
from proxy import clock
from proxy.config import Config
from proxy.control.arrivals import Arrivals
from proxy.control.check import fault, is_any
from proxy.control.devices import Devices
from proxy.control.guard import REASONS, Guard
from proxy.control.history import History, Measured, Standing
from proxy.control.learner import Learner, Served
from proxy.control.preview import Preview, preview
from proxy.control.signals import Senses
from proxy.energy.meter import Meter
from proxy.energy.receipts import Book
from proxy.forward import Forward
from proxy.route import Lane
from proxy.telemetry.metrics import Metrics

log = logging.getLogger("joulegate.control")

PERIOD_S = 1.0
DECIDE_S = 0.2  # a decision that takes longer is about a state that has passed
DEFAULT = "observe"  # who is asked for nothing, so that nothing is watched for it


class Control:
    """Asks the policy and applies what it says: to gates, requests and GPUs."""

    def __init__(
        self,
        policy: Policy,
        config: Config,
        lanes: Sequence[Lane],
        forward: Forward,
        book: Book,
        meter: Meter,
        metrics: Metrics,
        senses: Senses,
        devices: Devices,
        setting: Callable[[str, float, str], None] = lambda *_: None,
    ) -> None:
        """`setting` is told, with device, time and a name, when what a device works under has changed."""
        self._policy, self._lanes, self._forward, self._book = policy, lanes, forward, book
        self._meter, self._metrics, self._senses, self._setting = meter, metrics, senses, setting
        self.devices = devices
        self.guard, self.history = Guard(), History()
        self.signals: Signals | None = None
        self.decision = Decision(reason="nothing decided yet")  # in force
        self.worth: Preview | None = None  # of what the policy said last
        self._arrivals = Arrivals(senses.learner, senses.sharing)
        self._settings: dict[str, dict[str, str]] = {}  # device -> quantity -> what it is at
        self._state: Any = None
        self._late: asyncio.Task[Any] | None = None
        self._take(config)

    @property
    def policy(self) -> str:
        return self._config.policy.name

    @property
    def standing(self) -> Standing:
        """Who holds the gateway."""
        if self.guard.why:
            return Standing.BACKED_OFF if self.guard.reason == "objective" else Standing.REPLACED
        return Standing.DRY_RUN if self._config.policy.dry_run else Standing.ACTING

    def served_since(self, t: float) -> list[Served]:
        """The requests of all workflows that ended well since then, as far as they are remembered."""
        learner = self._senses.learner
        return [one for workflow in learner.workflows() for one in learner.since(workflow, t)]

    def configure(self, policy: Policy, config: Config) -> None:
        """Take another configuration, and ask another policy from the next second on."""
        if policy is not self._policy or config.policy != self._config.policy:
            if self._late is not None:
                self._late.add_done_callback(asyncio.Task.exception)
            self._policy, self._state, self._late, self.guard = policy, None, None, Guard()
        self._take(config)

    def _take(self, config: Config) -> None:
        self._config = config
        self.devices.allow_clocks = config.policy.allow_clocks
        self.devices.dwell(config.policy.dwell)
        self._metrics.policy_born(config.policy.name, REASONS)
        if config.policy.name == DEFAULT:
            self._book.watcher = self._forward.arrivals = None
        elif self._book.watcher is None:  # what came while nobody watched would never be seen to end
            self._senses.learner = Learner(clock.now())
            self._arrivals = Arrivals(self._senses.learner, self._senses.sharing)
            self._book.watcher = self._forward.arrivals = self._arrivals

    async def run_forever(self) -> None:
        while True:
            await self.step()
            await asyncio.sleep(PERIOD_S)

    async def step(self) -> None:
        """Look, decide once, and apply it."""
        now = clock.now()
        self.history.count(self.policy if self.standing is Standing.ACTING else DEFAULT, self._sums())
        if self.policy == DEFAULT:
            seen: Mapping[str, DeviceSignals] = {n: DeviceSignals(power_w=w) for n, w in self._meter.power_w.items()}
        else:
            seen = await asyncio.to_thread(self.devices.look, dict(self._meter.power_w), now)
        signals = self.signals = await self._senses.signals(now, self._lanes, self._config.workflows, seen)
        self.devices.watch(now, seen, [name for lane in self._lanes if lane.gate.total for name in lane.engine.devices])
        acts = is_any(self.decision)
        if self.guard.look(signals.workflows, signals.engines, self._senses.learner, acts, now):
            self._set_back()
        if self.guard.is_pausing(now):
            await self._hold_default()
            return
        policy = self._policy
        decision = await self._decide(policy, signals)
        if policy is not self._policy:  # replaced meanwhile, and nobody asks for its answer
            return
        if decision is None:
            self._set_back()
            await self._hold_default()
            return
        worth = self.worth = preview(signals, decision)
        if self.history.add(now, self.standing, decision, worth=worth):
            said = "would be" if self.standing is Standing.DRY_RUN else "is"
            log.info("policy %s: %s", self.policy, decision.reason or f"what {said} done is in /energy/policy")
        try:
            await self._apply(Decision(reason="dry run") if self._config.policy.dry_run else decision, signals)
        except Exception:
            # What came from a policy, which may be anybody's, must not end the loop that takes it back.
            log.exception("what the policy decided cannot be applied")
            self.guard.failed("not_a_decision", "its decision cannot be applied", clock.now())
            self._set_back()
            await self._hold_default()

    async def _decide(self, policy: Policy, signals: Signals) -> Decision | None:
        """What the policy says, in time and in shape; None where it does not, and the guard knows why."""
        if self._late is not None:
            if not self._late.done():
                self.guard.failed("late", "it still thinks about an earlier second", clock.now())
                return None
            self._late.exception()  # looked at, so that asyncio does not complain; it is too late to matter
            self._late = None
        deciding = asyncio.create_task(asyncio.to_thread(_timed, policy, signals, self._state))
        done, _ = await asyncio.wait([deciding], timeout=DECIDE_S)
        if not done:  # it may have answered while this loop was busy
            done, _ = await asyncio.wait([deciding], timeout=DECIDE_S / 4)
        if policy is not self._policy:
            deciding.add_done_callback(asyncio.Task.exception)
            return None
        if not done:
            self._late = deciding
            self.guard.failed("late", f"it took longer than {DECIDE_S:g} s", clock.now())
            return None
        try:
            (decision, state), took_s = deciding.result()
            if took_s > DECIDE_S:
                self.guard.failed("late", f"it took {took_s:.2g} s, longer than {DECIDE_S:g} s", clock.now())
                return None
            if problem := fault(decision):
                self.guard.failed("not_a_decision", problem, clock.now())
                return None
        except Exception as error:
            # The edge between a policy, which may be anybody's, and the requests that it must never fail.
            log.exception("the policy failed")
            self.guard.failed("raised", f"{type(error).__name__}: {error}", clock.now())
            self._state = None  # which may be what it fails over
            return None
        self._state = state
        return decision

    def _set_back(self) -> None:
        """The guard has just put the default in the policy's place: count and say it."""
        self._metrics.policy_set_back(self.policy, self.guard.reason)
        log.warning("policy %s does not hold for now: %s", self.policy, self.guard.why)

    async def _hold_default(self) -> None:
        decision = Decision(reason="nothing is held or limited meanwhile")
        self.history.add(clock.now(), self.standing, decision, self.guard.why)
        self.worth = None
        self._open(decision)
        if self.devices.applied:
            await asyncio.to_thread(self.devices.set_back)
            self._tell_settings(clock.now())

    async def _apply(self, decision: Decision, signals: Signals) -> None:
        decision = self._within_patience(decision, signals)
        grouped = frozenset(name for name, rule in decision.release.items() if rule.group == "prefix")
        self._arrivals.configure(signals, grouped)
        self._open(decision)
        if decision.power_limit_w or decision.sm_clock_mhz or self.devices.applied:
            await asyncio.to_thread(self.devices.apply, decision, clock.now())
            self._tell_settings(clock.now())

    def _open(self, decision: Decision) -> None:
        """Let requests through as the decision says; those that may go now, go."""
        self.decision, now = decision, clock.now()
        self._forward.max_tokens, self._forward.priority = decision.max_tokens, decision.priority
        for lane in self._lanes:
            limits = (self._config.limits.in_flight, decision.engine_in_flight.get(lane.name))
            limit = min((one for one in limits if one is not None), default=None)
            lane.wake(lane.gate.set_rules(limit, decision.in_flight, decision.release, now))

    def _within_patience(self, decision: Decision, signals: Signals) -> Decision:
        """Nobody waits longer than his workflow's patience, whatever a policy says."""
        release = {}
        for name, rule in decision.release.items():
            known = signals.workflows.get(name)
            hold_s = min(rule.hold_s, known.objective.patience_s if known else 0.0)
            if hold_s > 0 or rule.group:
                release[name] = replace(rule, hold_s=hold_s)
        return replace(decision, release=release)

    def _tell_settings(self, now: float) -> None:
        """Tell what each device now works under, cap and clock in one name, where that is new."""
        for one in self.devices.applied:
            known = self._settings.setdefault(one.device, {})
            if one.setting is not None and one.setting != known.get(one.quantity.name, ""):
                known[one.quantity.name] = one.setting
                self._setting(one.device, now, " ".join(filter(None, known.values())))

    def _sums(self) -> Measured:
        """What was spent and answered in the gateway's whole life."""
        metrics = self._metrics
        counters = self._meter.counter_uj()
        names = {name for lane in self._lanes for name in lane.engine.devices}
        waits = metrics.wait_seconds.spreads().values()
        return Measured(
            seconds=clock.now(),
            uj=sum(counters.get(name, 0) for name in names),
            requests=sum(count for key, count in metrics.requests.totals.items() if key[-1] == "ok"),
            held=sum(sum(spread.counts[2:]) for spread in waits),  # who waited longer than 5 ms
            waited_s=sum(spread.total for spread in waits),
            output_tokens=sum(n for key, n in metrics.tokens_by_kind.totals.items() if key[-1] == "output"),
        )


def _timed(policy: Policy, signals: Signals, state: Any) -> tuple[Any, float]:
    """What it answers, and the seconds that it took."""
    began = time.monotonic()
    return policy.decide(signals, state), time.monotonic() - began
