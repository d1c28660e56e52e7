"""Who caused a device's joules: windows of measured energy, shared over the requests in them and settled once.

Sans-I/O. Readings of counters, engines' own counters and the progress of attempts go in with their times; settled
windows come out. How a window is shared is `share`'s business, what is known of engines `serving`'s.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf

from proxy.energy.beat import Beat
from proxy.energy.fit import Fit
from proxy.energy.prior import Coefficients
from proxy.energy.provisional import Provisional
from proxy.energy.serving import Round, Serving
from proxy.energy.share import Plan, Settled, Window
from proxy.energy.work import Progress

log = logging.getLogger("joulegate.attribution")

WINDOW_S = (
    0.5  # busy windows are shared together up to here: at 0.1 s a counter's own steps are a third of what it says
)
IDLE_S = 1.0  # the power of a device at rest is its mean over about so long
GAP_S = 5.0  # a device that gave no reading for longer than this has a hole in its books


@dataclass(slots=True)
class _DeviceState:
    raw_uj: int
    seen: float  # last reading
    cut: float  # end of the last window
    settled: float  # everything until here is settled
    counter_uj: int = 0  # all that the counter moved, from the raw readings alone
    windows: deque[Window] = field(default_factory=deque)
    beat: Beat = field(default_factory=Beat)
    idle_w: float | None = None  # with nothing in flight, of late
    company: int = 0  # attempts in flight since `cut`, when that was last counted
    company_at: int = 0  # attempts started in all, at that time

    def rests(self, window: Window) -> None:
        """Nothing was in flight in a window."""
        seconds = window.t1 - window.t0
        power_w = window.delta_uj / 1e6 / seconds
        part = min(1.0, seconds / IDLE_S)
        self.idle_w = power_w if self.idle_w is None else self.idle_w + part * (power_w - self.idle_w)


class Attribution:
    """Attributes the energy of all devices. Not thread-safe; one owner feeds it in the order of time."""

    def __init__(self, settle_s: float = 5.0, longest_window_s: float = 1.0) -> None:
        self._settle_s = settle_s
        self._longest_window_s = longest_window_s
        self._engines: dict[str, Serving] = {}
        self._devices: dict[str, _DeviceState] = {}
        self._settings: dict[str, str] = {}
        self._provisional = Provisional()
        self._failed = False

    # What goes in ---------------------------------------------------------------------------------------------------

    def add_engine(self, name: str, devices: Sequence[str], prices: Coefficients, fit: Fit | None = None) -> None:
        """Know an engine. Under a name that is known, another one takes its place on the same devices: it has counters
        of its own, and the attempts that the former still serves go on. `fit` learns in place of one of its own."""
        engine = Serving(name, devices, prices, fit)
        if (former := self._engines.get(name)) is not None:
            engine.follow(former)
        self._engines[name] = engine

    def remove_engine(self, name: str) -> bool:
        """Forget an engine. False, and not done, while an open window may still need it."""
        if self._engines[name].attempts or self._engines[name].foreign:
            return False
        del self._engines[name]
        return True

    def price(self, engine: str, prices: Coefficients) -> None:
        """Use other prices from now on: the engine has told which model it serves."""
        self._engines[engine].believe(prices)

    def setting(self, device: str, setting: str) -> None:
        """Clocks and limits of a device changed: `setting` names them. Work costs something else from now on."""
        self._settings[device] = setting

    def start(self, progress: Progress) -> None:
        """An attempt left the gate. Its later life is read from `progress` itself."""
        self._engines[progress.engine].start(progress)

    def engine(self, name: str, t: float, steps: float | None, output_tokens: float | None) -> None:
        """An engine's own cumulative counters. A restart (counters that fall) starts them anew."""
        engine = self._engines[name]
        if steps is not None:
            engine.pace.count(t, steps)
        engine.has_counters = steps is not None or output_tokens is not None
        if output_tokens is not None:
            settled = max((state.settled for state in self._states(engine)), default=-inf)
            engine.foreign.look(name, t, output_tokens, engine.attempts, settled)

    def reading(self, device: str, t: float, raw_uj: int) -> None:
        """A counter's reading. A window ends where the counter moves, or after `longest_window_s` without that."""
        state = self._devices.get(device)
        if state is None:
            self._devices[device] = _DeviceState(raw_uj, t, t, t)
            return
        if t <= state.seen:
            return
        delta_uj, missed = raw_uj - state.raw_uj, t - state.seen > GAP_S
        if delta_uj < 0:  # the counter was reset: what it moved meanwhile is not known, and not invented
            delta_uj, missed = 0, True
            state.beat.forget()
        moved_at = state.beat.moved_at(t, delta_uj)
        state.raw_uj, state.seen = raw_uj, t
        if delta_uj or missed or t - state.cut >= self._longest_window_s:
            end = moved_at if delta_uj and moved_at > state.cut else t
            state.counter_uj += delta_uj
            state.windows.append(Window(device, state.cut, end, delta_uj, missed))
            state.cut = end
            self._provisional.stale = True

    def mark(self, t: float) -> None:
        """Remember how far every running attempt has come; called with every round of readings."""
        for engine in self._engines.values():
            for progress in engine.attempts:
                if progress.ended is None and progress.frames:
                    progress.marks.append((t, progress.frames))

    def resume(self, device: str, t: float, raw_uj: int, last_raw_uj: int) -> int:
        """Begin a device's books where an earlier process left them; returns the gap (0 after a reset).

        Only for a counter that is the same one and outlives the process: else what lies between is no energy.
        """
        gap_uj = max(0, raw_uj - last_raw_uj)
        state = self._devices[device] = _DeviceState(raw_uj, t, t, t, counter_uj=gap_uj)
        if gap_uj:
            state.windows.append(Window(device, t, t, gap_uj, gap=True))
        return gap_uj

    # What comes out -------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> Iterator[Settled]:
        """Settle every window whose requests are all known, or which waited long enough; each once and for all.

        What has been taken from the iterator is settled, whether it is taken to its end or not. Windows that come up
        meanwhile are for the next call, which is to come when this one is done with.
        """
        round_ = Round(self._engines.values(), now, settling=True)
        for state in [*self._devices.values()]:
            ready = list(takewhile(lambda window: self._is_ready(window, round_, now), state.windows))
            for together in _busy_together(ready, round_):
                settled = self._share(_joined(together), round_)
                for window in together:
                    state.windows.popleft()
                    self._provisional.drop(window)
                state.settled = together[-1].t1
                yield settled
            if not state.windows and now - state.seen > GAP_S:
                state.settled = max(state.settled, now - GAP_S)  # a lost counter holds nobody up
        for engine in self._engines.values():
            engine.learn(self._setting(engine))
            engine.forget(min((state.settled for state in self._states(engine)), default=inf))

    def serving(self, engine: str) -> Serving | None:
        """What is known of an engine, its prices among it; None for one that is not, or no more, known."""
        return self._engines.get(engine)

    def is_settled(self, progress: Progress) -> bool:
        """True once no joule of an ended attempt is still to come."""
        if progress.ended is None:
            return False
        engine = self._engines.get(progress.engine)
        if engine is None:  # removed, which it only is once it has settled
            return True
        return all(state.settled >= progress.ended for state in self._states(engine))

    def counter_uj(self) -> dict[str, int]:
        """What each counter moved since its books began here, from the raw readings alone."""
        return {name: state.counter_uj for name, state in self._devices.items()}

    def raw(self) -> dict[str, tuple[int, float]]:
        """The last reading of each counter that is in the books: (microjoules, time)."""
        return {name: (state.raw_uj, state.seen) for name, state in self._devices.items()}

    def open_uj(self) -> dict[str, int]:
        """Microjoules in windows that are not settled yet."""
        return {name: sum(w.delta_uj for w in state.windows) for name, state in self._devices.items()}

    def foreign_known(self) -> dict[str, bool]:
        """Whether foreign work on a device could be seen of late: all its engines said how many tokens they made, and
        no request hid its own. Without that nothing found does not mean that there was nothing."""
        known: dict[str, bool] = {}
        for engine in self._engines.values():
            for device in engine.devices:
                if (state := self._devices.get(device)) is not None:
                    known[device] = known.get(device, True) and engine.foreign.is_known(state.seen)
        return {name: known.get(name, False) for name in self._devices}

    def provisional_uj(self, progress: Progress, now: float) -> int:
        """Microjoules predicted for an attempt in windows that are still open.

        Each window is predicted once, by what was known when it was first asked for after its end, busy neighbours
        together, so that an answer costs next to nothing. Since the last window an attempt gets its even share at that
        one's power.
        """
        engine = self._engines.get(progress.engine)
        if engine is None:
            return 0
        if self._provisional.stale:
            self._predict_open(now)
        tails = (self._tail_uj(device, progress, now) for device in engine.devices)
        return self._provisional.uj(progress) + sum(tails)

    # How ------------------------------------------------------------------------------------------------------------

    def _is_ready(self, window: Window, round_: Round, now: float) -> bool:
        return window.gap or now - window.t1 >= self._settle_s or round_.is_told(window)

    def _on(self, device: str) -> list[Serving]:
        return [engine for engine in self._engines.values() if device in engine.devices]

    def _states(self, engine: Serving) -> list[_DeviceState]:
        return [self._devices[device] for device in engine.devices if device in self._devices]

    def _share(self, window: Window, round_: Round) -> Settled:
        if not window.gap:
            try:
                plan, state = round_.plan(window), self._devices[window.device]
                settled = plan.settle(window, state.idle_w)
                if plan.busy >= 1 or (plan.busy and state.idle_w is not None):
                    self._learn(window, plan, window.delta_uj - settled.idle_uj)
                elif not plan.busy:
                    state.rests(window)
                return settled
            except Exception:  # the books of all the others go on; what cannot be shared is nobody's
                self._say_failed(window)
        return Settled(window.device, window.t0, window.t1, (), gap_uj=window.delta_uj)

    def _learn(self, window: Window, plan: Plan, busy_uj: int) -> None:
        """One engine's work alone, for its first device: the others of a group do the same again."""
        if plan.alone is not None:
            engine = self._engines.get(plan.alone.engine)
            if engine is not None and engine.devices[0] == window.device:
                busy_s = plan.busy * (window.t1 - window.t0)
                engine.observe(plan.alone, busy_uj / 1e6, busy_s, self._setting(engine))

    def _setting(self, engine: Serving) -> str:
        return self._settings.get(engine.devices[0], "") if engine.devices else ""

    def _predict_open(self, now: float) -> None:
        self._provisional.stale = False
        round_ = Round(self._engines.values(), now, settling=False)
        for name, state in self._devices.items():
            new = list(takewhile(lambda window: window not in self._provisional, reversed(state.windows)))
            for together in _busy_together(new[::-1], round_):
                plan = None if together[0].gap else self._plan(_joined(together), round_)
                for window in together:
                    self._provisional.add(window, {} if plan is None else plan.predict(window, state.idle_w))
            on = self._on(name)
            state.company = sum(p.ended is None or p.ended > state.cut for engine in on for p in engine.attempts)
            state.company_at = sum(engine.started for engine in on)

    def _plan(self, window: Window, round_: Round) -> Plan | None:
        try:
            return round_.plan(window)
        except Exception:  # whoever asks gets an answer without it
            self._say_failed(window)
            return None

    def _say_failed(self, window: Window) -> None:
        if not self._failed:
            self._failed = True
            log.exception("a window of %s cannot be shared and is booked as gap; this is said once", window.device)

    def _tail_uj(self, device: str, progress: Progress, now: float) -> int:
        """Since the last window: this attempt's even share at the last window's power."""
        state = self._devices.get(device)
        if state is None or not state.windows or state.windows[-1].gap:
            return 0
        last = state.windows[-1]
        until = now if progress.ended is None else min(now, progress.ended)
        seconds = max(0.0, min(until - max(state.cut, progress.dispatched), self._longest_window_s))
        company = state.company + sum(engine.started for engine in self._on(device)) - state.company_at
        return int(last.delta_uj / max(last.t1 - last.t0, 1e-3) * seconds / max(company, 1))


def _busy_together(windows: Sequence[Window], round_: Round) -> Iterator[list[Window]]:
    """The windows in their order, busy neighbours of up to `WINDOW_S` in all together."""
    together: list[Window] = []
    for window in windows:
        busy = not window.gap and round_.is_busy(window)
        if together and not (busy and window.t1 - together[0].t0 <= WINDOW_S + 1e-3):
            yield together
            together = []
        together.append(window)
        if not busy:
            yield together
            together = []
    if together:
        yield together


def _joined(windows: Sequence[Window]) -> Window:
    """Neighbours as one."""
    if len(windows) == 1:
        return windows[0]
    first, last = windows[0], windows[-1]
    cuts = tuple(window.t0 for window in windows[1:])
    return Window(first.device, first.t0, last.t1, sum(window.delta_uj for window in windows), cuts=cuts)
