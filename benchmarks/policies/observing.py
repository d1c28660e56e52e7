"""What a policy is told in the simulation: by the gateway's own learner, of the simulation's requests."""

from collections.abc import Mapping

from benchmarks.sim import DEVICE, ENGINE, Observer, Run, Sent, Simulation
from policies.interface import (
    DeviceSignals,
    EngineSignals,
    Objective,
    Prices,
    QueueSignals,
    Signals,
    WorkflowSignals,
)
from proxy.control.learner import WINDOW_S, Lately, Learner, Served, p95


class Learning(Observer):
    """`objectives` by workflow; `prices` are believed and not fitted."""

    def __init__(self, objectives: Mapping[str, Objective], prices: Prices) -> None:
        self.objectives, self.prices = objectives, prices
        self.learner = Learner(0.0)
        self._lately: dict[str, Lately] = {}
        self._hits: tuple[int, int] = (0, 0)

    def arrived(self, sent: Sent, now: float) -> None:
        run = sent.run
        self.learner.arrived(_id(sent), str(id(run)), run.task.workflow, run.began, 60.0, now)

    def done(self, sent: Sent, now: float) -> None:
        uncached = sent.prompt_tokens - sent.cached_tokens
        served = Served(sent.arrived, sent.released, sent.first, now, uncached, sent.output_tokens)
        self.learner.ended(_id(sent), served, last=not sent.run.left)

    def slack_s(self, run: Run, now: float) -> float | None:
        asked, lately = self.objectives[run.task.workflow].run_p95_s, self._lately.get(run.task.workflow)
        if asked is None or lately is None:
            return None
        return self.learner.slack_s(str(id(run)), now, asked, lately)

    def signals(self, now: float, simulation: Simulation) -> Signals:
        self.learner.tick(now)
        gate, scheduler, card = simulation.gate, simulation.machine.scheduler, simulation.card
        self._lately = {name: self.learner.lately(name, now) for name in self.objectives}
        engine = EngineSignals(
            up=True,
            queues={
                name: QueueSignals(gate.in_flight.get(name, 0), gate.queued(name), *gate.ages(name, now))
                for name in gate.workflows()
            },
            devices=(DEVICE,),
            running=len(scheduler.running),
            waiting=scheduler.waiting,
            kv_usage=1 - scheduler.cache.free / simulation.machine.settings.kv_blocks,
            prices=self.prices,
        )
        device = DeviceSignals(
            power_limit_w=card.power_limit_w,
            power_limit_range_w=card.limit_range_w,
            sm_clock_mhz=(card.sm_clock_range_mhz or card.supported_sm_mhz)[1 if card.sm_clock_range_mhz else 0],
            sm_clock_range_mhz=(card.supported_sm_mhz[-1], card.supported_sm_mhz[0]),
        )
        return Signals(
            now,
            {name: self._workflow(name, lately, now) for name, lately in self._lately.items()},
            {ENGINE: engine},
            {DEVICE: device},
        )

    def _workflow(self, name: str, lately: Lately, now: float) -> WorkflowSignals:
        between_s = [s for one in self.learner.since(name, now - WINDOW_S) if (s := one.itl_s) is not None]
        return WorkflowSignals(
            objective=self.objectives[name],
            itl_p95_s=p95(between_s),
            requests_per_s=lately.requests_per_s,
            ttft_p95_s=lately.ttft_p95_s,
            wait_p95_s=lately.wait_p95_s,
            run_p95_s=lately.run_p95_s,
            served_s=lately.served_s,
            prompt_tokens=lately.prompt_tokens,
            output_tokens=lately.output_tokens,
            depth=lately.depth,
        )


def _id(sent: Sent) -> str:
    return f"{id(sent.run)} {sent.place}"
