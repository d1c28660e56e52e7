"""What the engines have in flight, and how a round of settling asks for it without looking at everything every time."""

from collections.abc import Iterable, Sequence

from proxy.energy.fit import Fit
from proxy.energy.foreign import Foreign
from proxy.energy.pace import Pace
from proxy.energy.prior import Coefficients
from proxy.energy.share import Alone, Load, Plan, Window, busy_s, plan
from proxy.energy.work import Progress, hold, place_prompts

FEW = 64  # attempts among which it matters when each came and went


class Serving:
    """An engine's attempts that still matter, and what its own cumulative counters say over time."""

    def __init__(self, name: str, devices: Sequence[str], prices: Coefficients, fit: Fit | None = None) -> None:
        self.name, self.devices = name, tuple(devices)
        self.prices, self.fit = prices, fit or Fit(prices)
        self.has_counters = False
        self.attempts: list[Progress] = []
        self.started = 0  # attempts in all
        self.pace, self.foreign = Pace(), Foreign()

    @property
    def alike(self) -> int:
        """How many of its devices are of the first one's kind: the price of work is learnt on that one alone."""
        kinds = [name.rpartition("/")[2].partition(":")[0] for name in self.devices]
        return kinds.count(kinds[0]) if kinds else 0

    def believe(self, prices: Coefficients) -> None:
        """Begin from these prices; what was learnt of others is forgotten."""
        self.prices, self.fit = prices, Fit(prices)

    def observe(self, alone: Alone, joules: float, seconds: float, setting: str) -> None:
        """Learn from a window in which nobody else worked."""
        self.fit.observe(alone.quantities, joules, seconds, setting)
        if all(progress.visible for progress in self.attempts):
            self.pace.saw(alone.counted, alone.seen)

    def learn(self, setting: str) -> None:
        """Use what the windows showed, under the setting of clocks and limits that holds now."""
        self.fit.refit()
        self.prices = self.fit.prices(setting)

    def follow(self, former: "Serving") -> None:
        """Take the place of another engine: the attempts that it still serves go on."""
        self.attempts, self.started = former.attempts, former.started
        self.foreign.follow(former.foreign)

    def start(self, progress: Progress) -> None:
        self.attempts.append(progress)
        self.started += 1

    def forget(self, horizon: float) -> None:
        """Drop what no window after `horizon` can need."""
        keep: list[Progress] = []
        for progress in self.attempts:
            if progress.ended is None or progress.ended > horizon:
                keep.append(progress)
                while len(progress.marks) > 1 and progress.marks[1][0] <= horizon:
                    progress.marks.pop(0)
            else:
                self.foreign.relay(progress)
                self.pace.learn(progress, self.prices)
        self.attempts = keep
        self.pace.forget(horizon)
        self.foreign.forget(horizon)


class _View:
    """An engine as it is when a round begins."""

    def __init__(self, engine: Serving) -> None:
        self.engine = engine
        self.attempts = sorted(engine.attempts, key=lambda progress: progress.dispatched)
        self.running_since = next((p.dispatched for p in self.attempts if p.ended is None), None)
        self._token_s: float | None = None

    def steps(self, t0: float, t1: float) -> float:
        if self._token_s is None:
            self._token_s = self.engine.pace.token_s(self.attempts, self.engine.prices)
        return self.engine.pace.expected(t0, t1, self._token_s)

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
        self._now, self._settling = now, settling
        self._by_device: dict[str, list[_View]] = {}
        self._sweeps: dict[str, list[_Sweep]] = {}
        self._ahead: dict[str, list[_Sweep]] = {}
        self._plans: dict[tuple[tuple[int, ...], float, float], Plan] = {}
        for engine in engines:
            view = _View(engine)
            for device in engine.devices:
                self._by_device.setdefault(device, []).append(view)

    def is_told(self, window: Window) -> bool:
        """Whether everything is known of the requests in a window."""
        return all(view.is_told(window.t1) for view in self._by_device.get(window.device, ()))

    def is_busy(self, window: Window) -> bool:
        """Whether something was in flight all the time; to be asked of a device's windows in their order."""
        attempts = [p for sweep in self._on(window.device, self._ahead) for p in sweep.inside(window.t0, window.t1)]
        return busy_s(attempts, window.t0, window.t1, self._now) >= window.t1 - window.t0 > 0

    def plan(self, window: Window) -> Plan:
        """How the window is shared."""
        views = self._by_device.get(window.device, [])
        key = tuple(map(id, views)), window.t0, window.t1
        if (known := self._plans.get(key)) is None:
            sweeps = self._on(window.device, self._sweeps)
            loads = [load for sweep in sweeps if (load := self._load(sweep, window.t0, window.t1))]
            # Among many, one more or less makes no difference, and looking at all of them does.
            cuts = window.cuts if sum(len(load.attempts) for load in loads) <= FEW else ()
            known = plan(loads, window.t0, window.t1, self._now, banded=self._settling, cuts=cuts)
            self._plans[key] = known
        return known

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
                hold(progress, t1, self._now, engine.prices, view.steps)
        pace = engine.pace
        return Load(engine.prices, inside, foreign, pace.counted(t0, t1), view.steps, engine.name, pace.steps_seen)
