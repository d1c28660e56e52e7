"""The joules of an emulated host in virtual time: counters of its devices, and each request's share of them.

A device's joules of an interval go to the requests that made progress in it, in proportion to

    w = c_s · steps + c_p · prompt tokens computed + c_d · output tokens + c_x · context over those tokens

with what such work costs the emulated card at the margin (docs/energy.md has the formula and why). Nothing is lost:
shares add up to what the devices drew while anything was in flight. The band is what sharing by steps alone would say.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

from emulator.core.gpu import Gpu
from emulator.core.host import HostPower
from emulator.core.machine import Machine
from emulator.core.request import Finished, Usage
from emulator.core.scheduler import chunk_work
from emulator.core.step import StepCost, StepWork
from loadgen.record import Energy, Sample


class Metered:
    """A card that also counts the seconds in which it worked and rested."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.busy_s = self.idle_s = 0.0

    @property
    def idle_power_w(self) -> float:
        return self.gpu.idle_power_w

    @property
    def limits(self) -> Hashable:
        return self.gpu.limits

    def step(self, work: StepWork) -> StepCost:
        return self.gpu.step(work)

    def spend(self, joules: float, seconds: float) -> None:
        self.busy_s += seconds
        self.gpu.spend(joules, seconds)

    def rest(self, seconds: float) -> None:
        self.idle_s += seconds
        self.gpu.rest(seconds)


@dataclass(frozen=True, slots=True)
class Prices:
    """Joules at the margin: of a step, a prompt token, an output token, a token of context read."""

    step_j: float
    prompt_j: float
    output_j: float
    context_j: float

    @classmethod
    def of(cls, gpu: Gpu) -> "Prices":
        """What the card's own model says at its present limits, around eight sequences of 1000 tokens."""

        def decode_j(sequences: int, context: int) -> float:
            return gpu.step(StepWork(decode_sequences=sequences, decode_context=context)).joules

        def prefill_j(tokens: int) -> float:
            return gpu.step(chunk_work(0, tokens)).joules

        context_j = max(0.0, decode_j(8, 16_000) - decode_j(8, 8_000)) / 8_000
        output_j = max(0.0, decode_j(16, 16_000) - decode_j(8, 16_000)) / 8
        step_j = max(0.0, decode_j(8, 8_000) - 8 * output_j - 8_000 * context_j)
        return cls(step_j, max(0.0, prefill_j(2048) - prefill_j(1024)) / 1024, output_j, context_j)


@dataclass(slots=True)
class _Work:
    """What a request has done, and what it was given so far. Joules by component."""

    prompt: int = 0  # tokens computed
    output: int = 0
    joules: dict[str, float] = field(default_factory=dict)
    low_j: float = 0.0
    high_j: float = 0.0
    active_j: float = 0.0


class Books:
    """Reads a machine's counters at moments of the driver's choice and shares what they moved since the last one."""

    def __init__(self, machine: Machine, cards: Sequence[Metered], host: HostPower) -> None:
        self._machine, self._cards, self._host = machine, cards, host
        self._prices = Prices.of(cards[0].gpu)
        self._in_flight: dict[str, _Work] = {}
        self._seen = self._counters()
        self._sampled: list[tuple[float, float]] = [(0.0, 0.0) for _ in cards]
        self._accounted = (0.0, 0.0, 0, 0, 0)
        self._submitted = 0

    def submitted(self, request_id: str) -> None:
        self._in_flight[request_id] = _Work()
        self._submitted += 1

    def leave(self, request_id: str) -> Energy:
        """What a request cost until now that will get no more. Call `close` first."""
        return _energy(self._in_flight.pop(request_id))

    def close(self, ended: Iterable[Finished]) -> dict[str, Energy]:
        """Share what the counters moved since the last call; the energy of the requests that ended meanwhile."""
        self._account_host()
        now = self._counters()
        moved = {name: now[name] - self._seen[name] for name in now}
        self._seen = now
        usages = {one.request_id: one.usage for one in ended if one.request_id in self._in_flight}
        self._share(moved, self._progress(usages))
        return {request_id: _energy(self._in_flight.pop(request_id)) for request_id in usages}

    def samples(self, at_s: float) -> list[Sample]:
        """Every device now. Call `close` first."""
        found: list[Sample] = []
        for index, card in enumerate(self._cards):
            before_busy_s, before_s = self._sampled[index]
            seconds = card.busy_s + card.idle_s
            busy = (card.busy_s - before_busy_s) / (seconds - before_s) if seconds > before_s else None
            self._sampled[index] = (card.busy_s, seconds)
            found.append(
                Sample(
                    at_s=at_s,
                    device=f"gpu:{index}",
                    component="gpu",
                    energy_j=card.gpu.energy_j,
                    quality="emulated",
                    busy_share=busy,
                    power_limit_w=card.gpu.power_limit_w,
                )
            )
        for component, joules in (("cpu", self._host.cpu_energy_j), ("dram", self._host.dram_energy_j)):
            found.append(
                Sample(at_s=at_s, device=f"{component}:0", component=component, energy_j=joules, quality="emulated")
            )
        return found

    def _counters(self) -> dict[str, float]:
        """Cumulative joules by component; `floor` is what the cards would have drawn idle."""
        return {
            "gpu": sum(card.gpu.energy_j for card in self._cards),
            "cpu": self._host.cpu_energy_j,
            "dram": self._host.dram_energy_j,
            "floor": sum(card.idle_power_w * (card.busy_s + card.idle_s) for card in self._cards),
        }

    def _account_host(self) -> None:
        card, scheduler = self._cards[0], self._machine.scheduler
        seconds = card.busy_s + card.idle_s
        done = (seconds, card.busy_s, self._submitted, scheduler.prompt_tokens, scheduler.generation_tokens)
        passed_s, busy_s, requests, prompts, outputs = (a - b for a, b in zip(done, self._accounted, strict=True))
        self._accounted = done
        self._host.account(
            passed_s,
            busy_s=min(max(busy_s, 0.0), passed_s),
            requests=int(requests),
            prompt_tokens=int(prompts),
            output_tokens=int(outputs),
        )

    def _progress(self, usages: dict[str, Usage]) -> list[tuple[_Work, float, float]]:
        """Per request that made progress: its work so far, the joules that its progress should cost, its steps."""
        clock, found = self._machine.scheduler.clock, []
        for request_id, usage in usages.items():
            found.append(self._done(request_id, usage.prompt - usage.cached, usage.output, usage.prompt + usage.output))
        for sequence in self._machine.scheduler.running:
            if sequence.request.id in self._in_flight and sequence.request.id not in usages:
                in_cache, outputs = sequence.in_cache(clock), sequence.outputs(clock)
                computed = min(in_cache, sequence.prompt_tokens) - (sequence.cached or 0)
                found.append(self._done(sequence.request.id, computed, outputs, in_cache))
        return [one for one in found if one[1] > 0]

    def _done(self, request_id: str, computed: int, outputs: int, context: int) -> tuple[_Work, float, float]:
        work, prices = self._in_flight[request_id], self._prices
        prompts, tokens = max(0, computed - work.prompt), max(0, outputs - work.output)
        work.prompt, work.output = max(work.prompt, computed), max(work.output, outputs)
        steps = tokens + (prompts > 0)
        read = tokens * max(0.0, context - tokens / 2)
        joules = prices.prompt_j * prompts + prices.output_j * tokens + prices.context_j * read
        return work, joules, float(steps)

    def _share(self, moved: dict[str, float], progress: list[tuple[_Work, float, float]]) -> None:
        if not progress:  # on their way to the engine, or waiting in it: nobody more than the others
            progress = [(work, 1.0, 1.0) for work in self._in_flight.values()]
            if not progress:
                return
        # All of them together took as many steps as the one that took most.
        all_steps = sum(steps for _, _, steps in progress)
        a_step_j = self._prices.step_j * max(steps for _, _, steps in progress) / all_steps
        weights = [joules + a_step_j * steps for _, joules, steps in progress]
        whole, floor_j = sum(weights), moved.pop("floor")
        together_j = sum(moved.values())
        for (work, _, steps), weight in zip(progress, weights, strict=True):
            share, other = weight / whole, steps / all_steps
            for component, joules in moved.items():
                work.joules[component] = work.joules.get(component, 0.0) + joules * share
            work.low_j += together_j * min(share, other)
            work.high_j += together_j * max(share, other)
            work.active_j += max(0.0, moved["gpu"] - floor_j) * share


def _energy(work: _Work) -> Energy:
    return Energy(
        joules=sum(work.joules.values()),
        joules_low=work.low_j,
        joules_high=work.high_j,
        quality="emulated",
        by_component=dict(work.joules),
        active_joules=work.active_j,
    )
