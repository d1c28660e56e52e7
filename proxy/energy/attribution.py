"""Who caused a device's joules: windows of measured energy, shared over the requests in them and settled once.

Sans-I/O. Readings of counters, engines' own counters and the progress of attempts go in with their times; settled
windows come out. How a window is shared is `share`'s business, what is known of engines `serving`'s.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from math import inf
from typing import Any

from proxy.energy.cpu_part import CpuTime, is_on_cpu
from proxy.energy.fit import Fit
from proxy.energy.floor import Floor
from proxy.energy.learnt import Learnt
from proxy.energy.method import Method, method
from proxy.energy.prior import Coefficients
from proxy.energy.provisional import Provisional
from proxy.energy.serving import Round, Serving
from proxy.energy.settings import Settings
from proxy.energy.share import Plan, Settled, Window
from proxy.energy.windows import GAP_S, Windows, busy_together, joined, worth_it
from proxy.energy.work import Progress

log = logging.getLogger("joulegate.attribution")


class Attribution:
    """Attributes the energy of all devices. Not thread-safe; one owner feeds it in the order of time."""

    def __init__(self, settle_s: float = 5.0, longest_window_s: float = 1.0) -> None:
        self._learnt: dict[str, dict[str, Any]] = {}  # by an earlier process, of engines
        self.floors: dict[str, Floor] = {}
        self._settle_s = settle_s
        self._longest_window_s = longest_window_s
        self._engines: dict[str, Serving] = {}
        self._devices: dict[str, Windows] = {}
        self._settings = Settings()
        self._withheld: dict[str, str] = {}  # device -> why its joules cannot be shared out
        self._provisional = Provisional()
        self._failed = False

    # What goes in ---------------------------------------------------------------------------------------------------

    def remember(self, learnt: Learnt) -> None:
        """What an earlier process knew; to be told before any engine is."""
        self._learnt, self.floors = learnt.engines, learnt.floors

    def add_engine(self, name: str, devices: Sequence[str], prices: Coefficients, fit: Fit | None = None) -> None:
        """Know an engine. Under a name that is known, another one takes its place on the same devices: it has counters
        of its own, and the attempts that the former still serves go on. `fit` learns in place of one of its own."""
        engine = Serving(name, devices, prices, fit, self._learnt.get(name))
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

    def setting(self, device: str, t: float, setting: str) -> None:
        """Clocks and limits of a device changed at `t`: `setting` names them. Work costs something else since then."""
        self._settings.change(device, t, setting)

    def withhold(self, device: str, why: str) -> None:
        """Share nothing of this device: its counter cannot tell one request's joules from another's. An engine on it
        has no figure for a request then, for one without this device would be taken for the whole."""
        self._withheld[device] = why

    def start(self, progress: Progress) -> None:
        """An attempt left the gate. Its later life is read from `progress` itself."""
        self._engines[progress.engine].start(progress)

    def engine(
        self,
        name: str,
        t: float,
        steps: float | None,
        output_tokens: float | None,
        cached_tokens: float | None = None,
    ) -> None:
        """An engine's own cumulative counters. A restart (counters that fall) starts them anew."""
        engine = self._engines[name]
        if cached_tokens is not None:
            engine.hits.look(t, cached_tokens, engine.attempts)
        if steps is not None:
            engine.pace.count(t, steps)
        engine.has_counters, engine.heard = steps is not None or output_tokens is not None, t
        if output_tokens is not None:
            settled = max((state.settled for state in self._states(engine)), default=-inf)
            engine.foreign.look(name, t, output_tokens, engine.attempts, settled)

    def cpu(self, time: CpuTime) -> None:
        """CPU time of an engine's processes and of their host."""
        if (engine := self._engines.get(time.engine)) is not None:
            engine.cpu.look(time)

    def reading(self, device: str, t: float, raw_uj: int) -> None:
        """A counter's reading. A window ends where the counter moves, or after `longest_window_s` without that."""
        windows = self._devices.get(device)
        if windows is None:
            self._devices[device] = Windows.begin(device, t, raw_uj)
        elif windows.read(t, raw_uj, self._longest_window_s):
            self._provisional.stale = True

    def mark(self, t: float) -> None:
        """Remember how far every running attempt has come; called with every round of readings."""
        for engine in self._engines.values():
            engine.seen.mark(t, engine.attempts)

    def resume(self, device: str, t: float, raw_uj: int, last_raw_uj: int) -> int:
        """Begin a device's books where an earlier process left them; returns the gap (0 after a reset).

        Only for a counter that is the same one and outlives the process: else what lies between is no energy.
        """
        gap_uj = max(0, raw_uj - last_raw_uj)
        self._devices[device] = Windows.begin(device, t, raw_uj, gap_uj)
        return gap_uj

    # What comes out -------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> Iterator[Settled]:
        """Settle every window whose requests are all known, or which waited long enough; each once and for all.

        What has been taken from the iterator is settled, whether it is taken to its end or not. Windows that come up
        meanwhile are for the next call, which is to come when this one is done with.
        """
        round_ = Round(self._engines.values(), now, settling=True)
        for state in [*self._devices.values()]:
            told = list(takewhile(lambda window: self._is_ready(window, round_, now), state.open))
            for together in busy_together(worth_it(told, round_, self._settle_s), round_):
                settled = self._share(joined(together), round_)
                for window in together:
                    state.open.popleft()
                    self._provisional.drop(window)
                state.settled = together[-1].t1
                yield settled
            if not state.open and now - state.seen > GAP_S:
                state.settled = max(state.settled, now - GAP_S)  # a lost counter holds nobody up
        for engine in self._engines.values():
            engine.learn(self._settings.now(engine.main_device))
            engine.forget(min((state.settled for state in self._states(engine)), default=inf))

    def serving(self, engine: str) -> Serving | None:
        """What is known of an engine, its prices among it; None for one that is not, or no more, known."""
        return self._engines.get(engine)

    def is_settled(self, progress: Progress) -> bool:
        """True once no joule of an ended attempt is still to come."""
        return self.settled()(progress)

    def settled(self) -> Callable[[Progress], bool]:
        """`is_settled` as of now, for many attempts."""
        until = {
            name: min((state.settled for state in self._states(engine)), default=inf)
            for name, engine in self._engines.items()
        }

        def is_settled(progress: Progress) -> bool:
            # An engine that is not known was removed, which it only is once it has settled.
            return progress.ended is not None and progress.ended <= until.get(progress.engine, inf)

        return is_settled

    def counter_uj(self) -> dict[str, int]:
        """What each counter moved since its books began here, from the raw readings alone."""
        return {name: state.counter_uj for name, state in self._devices.items()}

    def raw(self) -> dict[str, tuple[int, float]]:
        """The last reading of each counter that is in the books: (microjoules, time)."""
        return {name: (state.raw_uj, state.seen) for name, state in self._devices.items()}

    def open_uj(self) -> dict[str, int]:
        """Microjoules in windows that are not settled yet."""
        return {name: sum(w.delta_uj for w in state.open) for name, state in self._devices.items()}

    def foreign_known(self) -> dict[str, bool]:
        """Whether foreign work on a device could be seen of late: all its engines said how many tokens they made, and
        no request hid its own; on a processor, the CPU time of all of them was known. Without that nothing found does
        not mean that there was nothing."""
        known: dict[str, bool] = {}
        for engine in self._engines.values():
            for device in engine.devices:
                if (state := self._devices.get(device)) is not None:
                    tells = engine.cpu if is_on_cpu(device) else engine.foreign
                    known[device] = known.get(device, True) and tells.is_known(state.seen)
        return {name: known.get(name, False) for name in self._devices}

    def method(self, engine: str, now: float) -> Method | None:
        """How an engine's joules are shared out; None for an engine that is not known."""
        found = self._engines.get(engine)
        if found is None:
            return None
        return method(found, now, self._settings.now(found.main_device), self.why_withheld(engine))

    def learnt(self) -> Learnt:
        """What would be a pity to forget when this process ends: prices by engine, floors by device."""
        fits = {name: engine.fit.state() for name, engine in self._engines.items() if engine.fit.windows}
        return Learnt(self._learnt | fits, self.floors)

    def why_withheld(self, engine: str) -> str | None:
        """Why an engine's requests have no figures; None where they have."""
        found = self._engines.get(engine)
        return next((self._withheld[name] for name in found.devices if name in self._withheld), None) if found else None

    def provisional_uj(self, progress: Progress, now: float) -> int:
        """Microjoules predicted for an attempt in windows that are still open.

        Each window is predicted once, by what was known when it was first asked for after its end, busy neighbours
        together, so that an answer costs next to nothing. Since the last window an attempt gets its even share at that
        one's power.
        """
        engine = self._engines.get(progress.engine)
        if engine is None or self.why_withheld(engine.name):
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

    def _states(self, engine: Serving) -> list[Windows]:
        return [self._devices[device] for device in engine.devices if device in self._devices]

    def _share(self, window: Window, round_: Round) -> Settled:
        if not window.gap and window.device not in self._withheld:
            try:
                plan, state = round_.plan(window), self._devices[window.device]
                settled = plan.settle(window, state.idle_w)
                if plan.busy >= 1 or (plan.busy and state.idle_w is not None):
                    self._learn(window, plan, window.delta_uj - settled.idle_uj)
                elif not plan.busy:
                    state.rests(window)
                self._look_at_floor(settled, plan.busy)
                return self._shown(settled)
            except Exception:  # the books of all the others go on; what cannot be shared is nobody's
                self._say_failed(window)
        return Settled(window.device, window.t0, window.t1, (), gap_uj=window.delta_uj)

    def _shown(self, settled: Settled) -> Settled:
        """Without the shares of engines that also have a device whose joules are withheld."""
        if not self._withheld or not any(self.why_withheld(engine.name) for engine in self._on(settled.device)):
            return settled
        kept = tuple(share for share in settled.shares if not self.why_withheld(share.progress.engine))
        withheld_uj = sum(share.uj for share in settled.shares) - sum(share.uj for share in kept)
        return replace(settled, shares=kept, gap_uj=settled.gap_uj + withheld_uj)

    def _learn(self, window: Window, plan: Plan, busy_uj: int) -> None:
        """One engine's work alone, under one setting of clocks and limits."""
        if plan.alone is not None:
            engine = self._engines.get(plan.alone.engine)
            setting = self._settings.during(window.device, window.t0, window.t1)
            if engine is not None and engine.main_device == window.device and setting is not None:
                joules, busy_s = busy_uj / 1e6 * plan.part, plan.busy * (window.t1 - window.t0)
                engine.observe(plan.alone, joules, busy_s, setting)

    def _predict_open(self, now: float) -> None:
        self._provisional.stale = False
        round_ = Round(self._engines.values(), now, settling=False)
        for name, state in self._devices.items():
            new = list(takewhile(lambda window: window not in self._provisional, reversed(state.open)))
            for together in busy_together(new[::-1], round_):
                plan = None if together[0].gap else self._plan(joined(together), round_)
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

    def _look_at_floor(self, settled: Settled, busy: float) -> None:
        floor = self.floors.get(settled.device)
        if floor is None:
            floor = self.floors[settled.device] = Floor()
        floor.look(settled, busy, any(engine.has_weights(settled.t1) for engine in self._on(settled.device)))

    def _say_failed(self, window: Window) -> None:
        if not self._failed:
            self._failed = True
            log.exception("a window of %s cannot be shared and is booked as gap; this is said once", window.device)

    def _tail_uj(self, device: str, progress: Progress, now: float) -> int:
        """Since the last window: this attempt's even share at the last window's power."""
        state = self._devices.get(device)
        if state is None or not state.open or state.open[-1].gap:
            return 0
        last = state.open[-1]
        until = now if progress.ended is None else min(now, progress.ended)
        seconds = max(0.0, min(until - max(state.cut, progress.dispatched), self._longest_window_s))
        company = state.company + sum(engine.started for engine in self._on(device)) - state.company_at
        return int(last.delta_uj / max(last.t1 - last.t0, 1e-3) * seconds / max(company, 1))
