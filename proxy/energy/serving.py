"""What the engines have in flight, and how a round of settling asks for it without looking at everything every time."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxy.energy.apportion import apportion
from proxy.energy.cpu_part import CpuPart, is_on_cpu
from proxy.energy.fit import Fit
from proxy.energy.foreign import Foreign
from proxy.energy.hits import Hits
from proxy.energy.pace import Pace
from proxy.energy.prior import Coefficients
from proxy.energy.seen import MANY, Seen
from proxy.energy.share import Alone, Load, Plan, Window, busy_s, plan
from proxy.energy.work import Progress, hold, place_prompts

_RECENT_S = 10.0


class Serving:
    """An engine's attempts that still matter, and what its own cumulative counters say over time."""

    def __init__(
        self,
        name: str,
        devices: Sequence[str],
        prices: Coefficients,
        fit: Fit | None = None,
        learnt: Mapping[str, Any] | None = None,
    ) -> None:
        """`fit` learns in place of one of its own; `learnt` is what an earlier process knew (`Fit.state`)."""
        self.name, self.devices, self.learnt = name, tuple(devices), learnt or {}
        self.fit = fit or Fit.of(prices, self.learnt)
        self.prices = self.fit.prices()
        self.has_counters = False
        self.heard: float | None = None  # when its counters were last told
        self.attempts: list[Progress] = []
        self.started = 0  # attempts in all
        self.pace, self.foreign, self.hits, self.cpu = Pace(), Foreign(), Hits(), CpuPart()
        self.seen = Seen()

    @property
    def main_device(self) -> str:
        """The one whose joules teach the prices: a GPU where there is one. The others of a group do the same again."""
        return next((name for name in self.devices if not is_on_cpu(name)), self.devices[0] if self.devices else "")

    def has_weights(self, t: float) -> bool:
        """Whether it had its weights in memory at `t`, as far as that shows: it told its counters, or has served."""
        if self.heard is not None:
            return t - self.heard <= _RECENT_S
        return self.started > 0

    @property
    def alike(self) -> int:
        """How many of its devices are of the first one's kind: the price of work is learnt on that one alone."""
        kinds = [name.rpartition("/")[2].partition(":")[0] for name in self.devices]
        return kinds.count(kinds[0]) if kinds else 0

    def believe(self, prices: Coefficients) -> None:
        """Begin from these prices. What was learnt of others is forgotten, and kept where they are the same again."""
        if prices != self.fit.prior:
            self.fit = Fit.of(prices, self.learnt)
            self.prices = self.fit.prices()

    def observe(self, alone: Alone, joules: float, seconds: float, setting: str) -> None:
        """Learn from a window in which nobody else worked."""
        self.fit.observe(alone.quantities, joules, seconds, setting)
        if all(progress.visible for progress in self.attempts):
            self.pace.saw(alone.counted, alone.seen)

    def learn(self, setting: str) -> None:
        """Use what the windows showed, under the setting of clocks and limits that holds now."""
        self.fit.refit()
        self.pace.conclude()
        self.prices = self.fit.prices(setting)

    def follow(self, former: "Serving") -> None:
        """Take the place of another engine: the attempts that it still serves go on."""
        self.attempts, self.started, self.seen = former.attempts, former.started, former.seen
        self.foreign.follow(former.foreign)

    def start(self, progress: Progress) -> None:
        self.started += 1
        progress.serial = self.started
        self.attempts.append(progress)

    def forget(self, horizon: float) -> None:
        """Drop what no window after `horizon` can need."""
        keep: list[Progress] = []
        for progress in self.attempts:
            if progress.ended is None or progress.ended > horizon:
                keep.append(progress)
                while len(progress.marks) > 1 and progress.marks[1][0] <= horizon:
                    del progress.marks[0]
            else:
                self.foreign.relay(progress)
                self.hits.relay(progress)
                self.pace.learn(progress, self.prices)
        self.attempts = keep
        self.pace.forget(horizon)
        self.foreign.forget(horizon)
        self.cpu.forget(horizon)
        self.seen.forget(horizon)


class _View:
    """An engine as it is when a round begins."""

    def __init__(self, engine: Serving) -> None:
        self.engine = engine
        self.attempts = sorted(engine.attempts, key=lambda progress: progress.dispatched)
        self.running_since = next((p.dispatched for p in self.attempts if p.ended is None), None)
        self._token_s: float | None = None
        self._times: tuple[list[float], list[float]] | None = None  # of starts, of ends, each in order

    def steps(self, t0: float, t1: float) -> float:
        if self._token_s is None:
            self._token_s = self.engine.pace.token_s(self.attempts, self.engine.seen, self.engine.prices)
        return self.engine.pace.expected(t0, t1, self._token_s)

    def in_flight(self, at: float) -> int:
        """How many of the attempts there were at a time: those that had begun, less those that had ended."""
        if self._times is None:
            ends = sorted(progress.ended for progress in self.attempts if progress.ended is not None)
            self._times = [progress.dispatched for progress in self.attempts], ends
        starts, ends = self._times
        return bisect_right(starts, at) - bisect_right(ends, at)

    def is_told(self, t1: float) -> bool:
        """Whether all is known of what ran before `t1`."""
        last = self.engine.pace.last
        waits = self.engine.has_counters and last is not None and last < t1
        return not waits and (self.running_since is None or self.running_since >= t1)


class _Sweep:
    """The attempts inside of one window after the other, which come in the order of time."""

    def __init__(self, view: _View) -> None:
        self.view = view
        self._next = 0
        self._inside: list[Progress] = []

    def inside(self, t0: float, t1: float) -> list[Progress]:
        attempts = self.view.attempts
        inside = [p for p in self._inside if p.ended is None or p.ended > t0]
        while self._next < len(attempts) and (progress := attempts[self._next]).dispatched < t1:
            self._next += 1
            if progress.ended is None or progress.ended > t0:
                inside.append(progress)
        self._inside = inside
        return inside


class Round:
    """One round over the windows that are open when it begins, each device's in the order of time.

    Devices that serve the same engines and whose windows are the same share them by one plan, made once.
    """

    def __init__(self, engines: Iterable[Serving], now: float, settling: bool) -> None:
        self.now, self._settling = now, settling
        self._by_device: dict[str, list[_View]] = {}
        self._sweeps: dict[str, list[_Sweep]] = {}
        self._ahead: dict[str, list[_Sweep]] = {}
        self._plans: dict[tuple[tuple[int, ...], float, float, bool], Plan] = {}
        self._engines: dict[str, Serving] = {}
        for engine in engines:
            self._engines[engine.name] = engine
            view = _View(engine)
            for device in engine.devices:
                self._by_device.setdefault(device, []).append(view)

    def is_told(self, window: Window) -> bool:
        """Whether everything is known of the requests in a window."""
        return all(view.is_told(window.t1) for view in self._by_device.get(window.device, ()))

    def is_crowded(self, window: Window) -> bool:
        """Whether so much was in flight at once that one attempt more or less makes no difference.

        Many that come one after the other are no crowd: each has a share in few windows.
        """
        views = self._by_device.get(window.device, ())
        if sum(len(view.attempts) for view in views) <= MANY:
            return False
        return any(sum(view.in_flight(at) for view in views) > MANY for at in (window.t0, window.t1))

    def is_busy(self, window: Window) -> bool:
        """Whether something was in flight all the time; to be asked of a device's windows in their order."""
        t0, t1 = window.t0, window.t1
        attempts = [p for sweep in self._on(window.device, self._ahead) for p in sweep.inside(t0, t1)]
        return busy_s(attempts, t0, t1, self.now) >= t1 - t0 > 0

    def plan(self, window: Window) -> Plan:
        """How the window is shared."""
        views, on_cpu = self._by_device.get(window.device, []), is_on_cpu(window.device)
        key = tuple(map(id, views)), window.t0, window.t1, on_cpu
        if (known := self._plans.get(key)) is None:
            known = self._plans[key] = self._on_cpu(window) if on_cpu else self._pooled(window)
        return known

    def _pooled(self, window: Window) -> Plan:
        """By the predicted work of all, whichever engine it is on."""
        return self._plan(self._loads(window), window)

    def _on_cpu(self, window: Window) -> Plan:
        """By CPU time, as far as engines' processes are known; what these leave is the others', and nobody's else."""
        loads = self._loads(window)
        parts = {load.engine: self._engines[load.engine].cpu.during(window.t0, window.t1) for load in loads}
        known = [(self._plan([load], window), part) for load in loads if (part := parts[load.engine]) is not None]
        others = [load for load in loads if parts[load.engine] is None]
        if not known:
            return self._plan(others, window)
        busy = 1.0
        if not any(load.foreign for load in loads):
            everybody = [progress for load in loads for progress in load.attempts]
            busy = busy_s(everybody, window.t0, window.t1, self.now) / (window.t1 - window.t0)
        return apportion(known, self._plan(others, window) if others else None, busy)

    def _plan(self, loads: Sequence[Load], window: Window) -> Plan:
        # Among many, one more or less makes no difference, and looking at all of them does.
        cuts = window.cuts if sum(len(load.attempts) for load in loads) <= MANY else ()
        return plan(loads, window.t0, window.t1, self.now, banded=self._settling, cuts=cuts)

    def _loads(self, window: Window) -> list[Load]:
        sweeps = self._on(window.device, self._sweeps)
        return [load for sweep in sweeps if (load := self._load(sweep, window.t0, window.t1))]

    def _on(self, device: str, sweeps: dict[str, list[_Sweep]]) -> list[_Sweep]:
        if (known := sweeps.get(device)) is None:
            known = sweeps[device] = [_Sweep(view) for view in self._by_device.get(device, ())]
        return known

    def _load(self, sweep: _Sweep, t0: float, t1: float) -> Load | None:
        inside, view, engine = sweep.inside(t0, t1), sweep.view, sweep.view.engine
        foreign = engine.foreign.tokens(t0, t1)
        if not inside and not foreign:
            return None
        place_prompts((p for p in inside if p.visible and p.first is not None and p.first > t0), engine.prices)
        if self._settling:
            for progress in inside:
                if progress.ended is None and not progress.visible:
                    hold(progress, t1, self.now, engine.prices, view.steps)
        pace = engine.pace
        counted = pace.counted(t0, t1)
        return Load(engine.prices, inside, foreign, counted, view.steps, engine.name, pace.steps_seen, engine.seen)
