"""What the gateway knows, in the words of a policy."""

import asyncio
from collections.abc import Iterable, Mapping

from policies.interface import DeviceSignals, EngineSignals, Prices, QueueSignals, Signals, WorkflowSignals
from proxy.config import Workflow
from proxy.control.learner import Learner
from proxy.control.objective import isolated, objective
from proxy.control.recent import Recent, quantile
from proxy.control.sharing import Sharing
from proxy.energy.attribution import Attribution
from proxy.energy.cpu_part import is_on_cpu
from proxy.route import Lane
from proxy.telemetry.tables import Histogram

_UNKNOWN = Workflow()


class Senses:
    """Asks everybody who knows something, once a second. `learner` and `sharing` are told by the data plane."""

    def __init__(self, attribution: Attribution, itl: Histogram, learner: Learner, sharing: Sharing) -> None:
        self._attribution, self._itl = attribution, itl
        self.learner, self.sharing = learner, sharing
        self._recent: dict[tuple[str, ...], Recent] = {}

    async def signals(
        self,
        now: float,
        lanes: Iterable[Lane],
        workflows: Mapping[str, Workflow],
        devices: Mapping[str, DeviceSignals],
    ) -> Signals:
        """The signals at `now`; `workflows` are the configured ones. Others get their turn between two of them."""
        self.learner.tick(now)
        engines = {lane.name: self._engine(lane, now) for lane in lanes}
        prices = next((engine.prices for engine in engines.values() if engine.prices), None)
        itl_p95_s = self._itl_p95_s(now)
        seen: dict[str, WorkflowSignals] = {}
        for name in dict.fromkeys([*workflows, *self.learner.workflows()]):
            seen[name] = self._workflow(name, workflows.get(name, _UNKNOWN), now, prices, itl_p95_s.get(name))
            await asyncio.sleep(0)  # a busy workflow takes 0.2 ms, and streams do not wait for all of them
        return Signals(now, seen, engines, devices)

    def _workflow(
        self, name: str, known: Workflow, now: float, prices: Prices | None, itl_p95_s: float | None
    ) -> WorkflowSignals:
        learner = self.learner
        lately = learner.lately(name, now)
        asked = objective(known, isolated(known, learner.isolated(name), lately, prices))
        run_s = asked.run_p95_s
        return WorkflowSignals(
            objective=asked,
            requests_per_s=lately.requests_per_s,
            ttft_p95_s=lately.ttft_p95_s,
            itl_p95_s=itl_p95_s,
            wait_p95_s=lately.wait_p95_s,
            run_p95_s=lately.run_p95_s,
            served_s=lately.served_s,
            prompt_tokens=lately.prompt_tokens,
            output_tokens=lately.output_tokens,
            sharing=self.sharing.part(name),
            depth=lately.depth,
            slack_s=None if run_s is None else learner.least_slack_s(name, now, run_s, lately),
        )

    def _engine(self, lane: Lane, now: float) -> EngineSignals:
        gate, sample = lane.gate, lane.sample
        hit_rate = None
        if sample is not None and sample.cached_tokens is not None and sample.prompt_tokens is not None:
            counts = (sample.cached_tokens, sample.prompt_tokens)
            cached, prompt = self._of("hits", lane.name).grown(now, counts)
            hit_rate = min(1.0, cached / prompt) if prompt else None
        return EngineSignals(
            up=lane.up,
            queues={
                name: QueueSignals(gate.in_flight.get(name, 0), gate.queued(name), *gate.ages(name, now))
                for name in gate.workflows()
            },
            devices=lane.engine.devices,
            running=sample.running if sample else None,
            waiting=sample.waiting if sample else None,
            kv_usage=sample.kv_usage if sample else None,
            prefix_hit_rate=hit_rate,
            prices=self._prices(lane.works_for or lane.name),
        )

    def _prices(self, engine: str) -> Prices | None:
        """What work costs on all the devices of an engine that are alike; None where no counter is behind it."""
        serving = self._attribution.serving(engine)
        if serving is None or not serving.devices:
            return None
        one, alike = serving.prices, serving.alike
        on_cpu = is_on_cpu(serving.main_device)
        floors = [self._attribution.floors.get(name) for name in serving.devices if is_on_cpu(name) == on_cpu]
        watts = [floor.watts if floor else None for floor in floors]
        return Prices(
            step_j=one.step_j * alike,
            prompt_j=one.prompt_j * alike,
            output_j=one.output_j * alike,
            context_j=one.context_j * alike,
            step_s=one.step_s,
            prompt_s=one.prompt_s,
            spread=one.spread,
            rest_w=sum(filter(None, watts)) if all(w is not None for w in watts) else None,
        )

    def _itl_p95_s(self, now: float) -> dict[str, float | None]:
        """By workflow, of all engines together."""
        counts: dict[str, list[float]] = {}
        for (workflow, engine), series in self._itl.spreads().items():
            grown = self._of("itl", workflow, engine).grown(now, series.counts)
            before = counts.setdefault(workflow, [0.0] * len(grown))
            counts[workflow] = [a + b for a, b in zip(before, grown, strict=True)]
        return {workflow: quantile(0.95, self._itl.bounds, grown) for workflow, grown in counts.items()}

    def _of(self, *what: str) -> Recent:
        return self._recent.setdefault(what, Recent())
