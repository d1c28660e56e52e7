"""Who caused a device's joules: windows of measured energy, shared over the requests in them and settled once.

Sans-I/O. Readings of counters, engines' own counters and the progress of attempts go in with their times; settled
windows come out. In window k of a device, with measured energy ΔE and every price c >= 0 (`prior.Coefficients`):

    w_ik = c_step · S_k · a_ik / Σ_j a_jk  +  c_prompt · u_ik  +  c_output · d_ik  +  c_context · x_ik
    e_ik = ΔE_k · w_ik / Σ_j w_jk

a: seconds in flight; S: engine steps, shared by those in flight; u: uncached prompt tokens, spread evenly from dispatch
to first token; d: output tokens; x: Σ context length over those tokens. The shape follows how a batched engine works: a
step reads the weights once for all, each token adds arithmetic, each token of context adds a read of the KV cache.

Integers of microjoules throughout, so that shares sum to what the counter moved.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite

from proxy.energy.prior import Coefficients
from proxy.energy.records import Phase
from proxy.energy.work import Progress, part, work_in

GAP_S = 5.0  # a device that gave no reading for longer than this has a hole in its books


def split(delta_uj: int, weights: Sequence[float]) -> list[int]:
    """Share `delta_uj` microjoules in proportion to `weights`, in integers that sum to it (largest remainder).

    All-zero weights share equally. Raises ValueError for a negative or non-finite weight, or nobody to share among.
    """
    if not weights or delta_uj < 0:
        raise ValueError(f"cannot share {delta_uj} µJ among {len(weights)}")
    if not all(isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError("weights must be finite and not negative")
    largest = max(weights)
    if largest == 0:
        weights, largest = [1.0] * len(weights), 1.0
    # Integer arithmetic from here on: scaled to 2^53 a weight loses nothing that a float held of it.
    scaled = [int(weight / largest * 2**53) for weight in weights]
    total = sum(scaled)
    shares = [delta_uj * weight // total for weight in scaled]
    remainders = [delta_uj * weight % total for weight in scaled]
    left = delta_uj - sum(shares)
    for index in sorted(range(len(shares)), key=lambda i: -remainders[i])[:left]:
        shares[index] += 1
    return shares


@dataclass(frozen=True, slots=True)
class Share:
    """Settled microjoules of one attempt in one phase, with their band."""

    progress: Progress
    phase: Phase
    uj: int
    low_uj: int
    high_uj: int


@dataclass(frozen=True, slots=True)
class Settled:
    """One settled window of a device: delta = Σ shares + idle + foreign + gap."""

    device: str
    t0: float
    t1: float
    shares: tuple[Share, ...]
    idle_uj: int = 0
    foreign_uj: int = 0
    gap_uj: int = 0


Terms = tuple[float, float, float, float]  # predicted joules of steps, prompt, output, context


@dataclass(frozen=True, slots=True)
class Window:
    device: str
    t0: float
    t1: float
    delta_uj: int
    gap: bool = False


@dataclass(slots=True)
class _EngineState:
    """An engine's attempts that still matter, and what its own cumulative counters said over time."""

    devices: tuple[str, ...]
    prices: Coefficients
    has_counters: bool = False
    attempts: list[Progress] = field(default_factory=list)
    steps: deque[tuple[float, float]] = field(default_factory=deque)  # (time, steps)
    made: float = 0.0  # output tokens, by the engine's counter
    relayed: float = 0.0  # output tokens that ended attempts brought through the gateway
    excess: float | None = None  # the engine's output tokens above those relayed: the highest seen so far
    foreign: deque[tuple[float, float, float]] = field(default_factory=deque)  # (from, to, tokens not ours)
    blurred: float = 0.0  # when an attempt last ended whose tokens nobody told
    looked: float | None = None  # when foreign tokens were last looked for


@dataclass(slots=True)
class _DeviceState:
    raw_uj: int
    seen: float  # last reading
    cut: float  # end of the last window
    settled: float  # everything until here is settled
    counter_uj: int = 0  # all that the counter moved, from the raw readings alone
    windows: deque[Window] = field(default_factory=deque)


class Attribution:
    """Attributes the energy of all devices. Not thread-safe; one owner feeds it in the order of time."""

    def __init__(self, settle_s: float = 5.0, longest_window_s: float = 1.0) -> None:
        self._settle_s = settle_s
        self._longest_window_s = longest_window_s
        self._engines: dict[str, _EngineState] = {}
        self._devices: dict[str, _DeviceState] = {}

    # What goes in ---------------------------------------------------------------------------------------------------

    def add_engine(self, name: str, devices: Sequence[str], prices: Coefficients) -> None:
        """Know an engine. Under a name that is known, another one takes its place on the same devices: it has counters
        of its own, and the attempts that the former still serves go on."""
        state = _EngineState(tuple(devices), prices)
        if (former := self._engines.get(name)) is not None:
            state.attempts, state.foreign, state.blurred = former.attempts, former.foreign, former.blurred
        self._engines[name] = state

    def remove_engine(self, name: str) -> bool:
        """Forget an engine. False, and not done, while an open window may still need it."""
        if self._engines[name].attempts or self._engines[name].foreign:
            return False
        del self._engines[name]
        return True

    def price(self, engine: str, prices: Coefficients) -> None:
        """Use other prices from now on: the engine has told which model it serves."""
        self._engines[engine].prices = prices

    def start(self, progress: Progress) -> None:
        """An attempt left the gate. Its later life is read from `progress` itself."""
        self._engines[progress.engine].attempts.append(progress)

    def engine(self, name: str, t: float, steps: float | None, output_tokens: float | None) -> None:
        """An engine's own cumulative counters. A restart (counters that fall) starts them anew."""
        engine = self._engines[name]
        if steps is not None:
            if engine.steps and steps < engine.steps[-1][1]:
                engine.steps.clear()
            engine.steps.append((t, steps))
        engine.has_counters = steps is not None or output_tokens is not None
        if output_tokens is not None:
            self._look_for_foreign(engine, t, output_tokens)

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
        state.raw_uj, state.seen = raw_uj, t
        if delta_uj or missed or t - state.cut >= self._longest_window_s:
            state.counter_uj += delta_uj
            state.windows.append(Window(device, state.cut, t, delta_uj, missed))
            state.cut = t

    def mark(self, t: float) -> None:
        """Remember how far every running attempt has come; called with every round of readings."""
        for engine in self._engines.values():
            for progress in engine.attempts:
                if progress.ended is None and progress.frames:
                    progress.marks.append((t, progress.frames))

    def resume(self, device: str, t: float, raw_uj: int, last_raw_uj: int) -> int:
        """Begin a device's books where an earlier process left them; returns the gap (0 after a reset)."""
        gap_uj = max(0, raw_uj - last_raw_uj)
        state = self._devices[device] = _DeviceState(raw_uj, t, t, t, counter_uj=gap_uj)
        if gap_uj:
            state.windows.append(Window(device, t, t, gap_uj, gap=True))
        return gap_uj

    # What comes out -------------------------------------------------------------------------------------------------

    def settle(self, now: float) -> Iterator[Settled]:
        """Settle every window whose requests are all known, or which waited long enough; each once and for all.

        What has been taken from the iterator is settled, whether it is taken to its end or not.
        """
        for state in list(self._devices.values()):
            while state.windows and self._ready(state.windows[0], now):
                window = state.windows.popleft()
                settled = self._share(window, now)
                state.settled = window.t1
                yield settled
            if not state.windows and now - state.seen > GAP_S:
                state.settled = max(state.settled, now - GAP_S)  # a lost counter holds nobody up
        self._forget()

    def is_settled(self, progress: Progress) -> bool:
        """True once no joule of an ended attempt is still to come."""
        if progress.ended is None:
            return False
        engine = self._engines.get(progress.engine)
        if engine is None:  # removed, which it only is once it has settled
            return True
        states = [self._devices[d] for d in engine.devices if d in self._devices]
        return all(state.settled >= progress.ended for state in states)

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
        """Whether a device's engines say how many tokens they made, so that foreign work can be seen at all."""
        known: dict[str, bool] = {}
        for engine in self._engines.values():
            for device in engine.devices:
                known[device] = known.get(device, True) and engine.looked is not None
        return {name: known.get(name, False) for name in self._devices}

    def provisional_uj(self, progress: Progress, now: float) -> int:
        """Microjoules predicted for an attempt in windows that are still open, by what is known now."""
        engine = self._engines.get(progress.engine)
        total = 0
        if engine is None:
            return total
        for name in engine.devices:
            state = self._devices.get(name)
            if state is None:
                continue
            for window in state.windows:
                if progress.overlaps(window.t0, window.t1) and not window.gap:
                    total += sum(s.uj for s in self._share(window, now).shares if s.progress is progress)
            total += self._tail_uj(state, progress, now)
        return total

    # How ------------------------------------------------------------------------------------------------------------

    def _on(self, device: str) -> Iterator[_EngineState]:
        return (engine for engine in self._engines.values() if device in engine.devices)

    def _ready(self, window: Window, now: float) -> bool:
        if window.gap or now - window.t1 >= self._settle_s:
            return True
        for engine in self._on(window.device):
            if engine.has_counters and engine.steps and engine.steps[-1][0] < window.t1:
                return False
            for progress in engine.attempts:
                if progress.ended is None and progress.overlaps(window.t0, window.t1):
                    return False
        return True

    def _share(self, window: Window, now: float) -> Settled:
        if window.gap:
            return Settled(window.device, window.t0, window.t1, (), gap_uj=window.delta_uj)
        parts: list[tuple[Progress, Phase]] = []
        terms: list[Terms] = []
        spreads: list[float] = []
        foreign: list[tuple[Terms, float]] = []
        for engine in self._on(window.device):
            inside = [p for p in engine.attempts if p.overlaps(window.t0, window.t1)]
            strangers = _foreign_tokens(engine, window)
            if not inside and not strangers:
                continue
            own, alien = _predict(engine, inside, strangers, window, now)
            parts += [(p, phase) for p in inside for phase in Phase]
            terms += own
            spreads += [engine.prices.spread] * len(own)
            foreign.append((alien, engine.prices.spread))
        if not foreign:
            return Settled(window.device, window.t0, window.t1, (), idle_uj=window.delta_uj)
        busy_uj = _busy_uj(window, [p for p, _ in parts[::2]], any(any(alien) for alien, _ in foreign), now)
        shared = split(busy_uj, [sum(term) for term in (*terms, *(alien for alien, _ in foreign))])
        own_uj, foreign_uj = shared[: len(parts)], sum(shared[len(parts) :])
        lows, highs = _band(busy_uj, shared, [*terms, *(t for t, _ in foreign)], [*spreads, *(s for _, s in foreign)])
        shares = tuple(
            Share(progress, phase, uj, low, high)
            for (progress, phase), uj, low, high in zip(parts, own_uj, lows, highs, strict=False)
            if uj or high
        )
        idle_uj = window.delta_uj - busy_uj
        return Settled(window.device, window.t0, window.t1, shares, idle_uj=idle_uj, foreign_uj=foreign_uj)

    def _tail_uj(self, state: _DeviceState, progress: Progress, now: float) -> int:
        """Since the last window: this attempt's even share at the last window's power."""
        if not state.windows or (progress.ended is not None and progress.ended <= state.cut):
            return 0
        last = state.windows[-1]
        company = sum(1 for e in self._on(last.device) for p in e.attempts if p.overlaps(state.cut, now))
        seconds = max(0.0, min(now - state.cut, self._longest_window_s))
        return int(last.delta_uj / max(last.t1 - last.t0, 1e-3) * seconds / max(company, 1))

    def _look_for_foreign(self, engine: _EngineState, t: float, output_tokens: float) -> None:
        """Tokens that the engine made and the gateway did not relay, from cumulative counters.

        The engine's count less ours is looked at only when no running attempt hides its tokens (one without a stream
        does), and only a new high counts: an engine that counts a little ahead of our frames, or late, adds nothing.
        Of a running stream frames alone are known, so it is granted more; what that hides shows when it has ended.
        After an attempt that ended without a usage (a client that left) its true count is anybody's guess: the
        difference is then taken as ours.
        """
        blurred = [p.ended for p in engine.attempts if p.ended is not None and p.output_tokens is None]
        engine.blurred = max([engine.blurred, *blurred])
        if output_tokens < engine.made:
            engine.excess = None  # the engine restarted
        engine.made = output_tokens
        if any(not p.streamed for p in engine.attempts if p.ended is None):
            return
        most = output_tokens - engine.relayed  # as if it had counted nothing yet of the attempts in memory
        excess = most - sum(_made_at_most(p) for p in engine.attempts)
        if engine.excess is None or engine.looked is None:
            engine.excess = most
        elif engine.looked <= engine.blurred + _LATE_S:
            engine.excess = max(engine.excess, most)
        elif excess > engine.excess + _TOLERANCE:
            engine.foreign.append((engine.looked, t, excess - engine.excess))
            engine.excess = excess
        engine.looked = t

    def _forget(self) -> None:
        """Drop what no open window can need any more."""
        for engine in self._engines.values():
            states = [self._devices[d] for d in engine.devices if d in self._devices]
            horizon = min((state.settled for state in states), default=inf)
            keep: list[Progress] = []
            for progress in engine.attempts:
                if progress.ended is None or progress.ended > horizon:
                    keep.append(progress)
                    while len(progress.marks) > 1 and progress.marks[1][0] <= horizon:
                        progress.marks.pop(0)
                else:
                    engine.relayed += _relayed(progress)
            engine.attempts = keep
            while len(engine.steps) > 1 and engine.steps[1][0] <= horizon:
                engine.steps.popleft()
            while engine.foreign and engine.foreign[0][1] <= horizon:
                engine.foreign.popleft()


_LATE_S = 5.0  # by how much an engine may count later than the client left: llama.cpp looks for that now and then
_TOLERANCE = 8.0  # tokens by which an engine may be ahead of us without anybody else being there


def _relayed(progress: Progress) -> float:
    return progress.output_tokens if progress.output_tokens is not None else progress.frames


def _made_at_most(progress: Progress) -> float:
    """Output tokens that the engine can have made of an attempt: those relayed once it ended, generous until then."""
    return _relayed(progress) if progress.ended is not None else 2 * progress.frames + _TOLERANCE


def _busy_s(inside: Sequence[Progress], window: Window, now: float) -> float:
    """Seconds of the window in which at least one attempt was in flight."""
    spans = sorted((max(p.dispatched, window.t0), min(now if p.ended is None else p.ended, window.t1)) for p in inside)
    busy, until = 0.0, window.t0
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def _steps(engine: _EngineState, window: Window, busy_s: float) -> float:
    """Engine steps in the window: from its counter, else the busy seconds at the prior's pace."""
    marks = engine.steps
    if len(marks) < 2 or window.t1 <= marks[0][0]:
        return busy_s / engine.prices.step_s
    return max(0.0, _interpolate(marks, window.t1) - _interpolate(marks, window.t0))


def _interpolate(marks: Sequence[tuple[float, float]], t: float) -> float:
    before = marks[0]
    for mark in marks:
        if mark[0] >= t:
            return before[1] + (mark[1] - before[1]) * part(t, before[0], mark[0])
        before = mark
    return before[1]


def _foreign_tokens(engine: _EngineState, window: Window) -> float:
    """Foreign output tokens in the window, spread evenly between the two looks that found them."""
    return sum(n * (part(window.t1, t0, t1) - part(window.t0, t0, t1)) for t0, t1, n in engine.foreign)


def _busy_uj(window: Window, inside: Sequence[Progress], strangers: bool, now: float) -> int:
    """The part of a window's energy in which anything was in flight: all of it, less the time when nothing was."""
    length = window.t1 - window.t0
    if strangers or length <= 0:
        return window.delta_uj
    return min(window.delta_uj, round(window.delta_uj * _busy_s(inside, window, now) / length))


def _predict(
    engine: _EngineState, inside: Sequence[Progress], strangers: float, window: Window, now: float
) -> tuple[list[Terms], Terms]:
    """Predicted joules by price: prefill and decode of every attempt in turn, and those of foreign work."""
    prices = engine.prices
    works = [work_in(p, window.t0, window.t1, now, prices) for p in inside]
    steps = _steps(engine, window, busy_s=_busy_s(inside, window, now))
    # Foreign tokens over steps is how many strangers were in the batch on average.
    alien_s = (window.t1 - window.t0) * strangers / steps if steps else 0.0
    seconds = sum(w.prefill_s + w.decode_s for w in works) + alien_s
    a_second = prices.step_j * steps / seconds if seconds else 0.0
    own: list[Terms] = []
    for w in works:
        own.append((a_second * w.prefill_s, prices.prompt_j * w.prompt, 0.0, 0.0))
        own.append((a_second * w.decode_s, 0.0, prices.output_j * w.output, prices.context_j * w.context))
    if own and not any(map(any, own)) and not strangers:  # nothing is known but that they were there
        own = [(s, 0.0, 0.0, 0.0) for w in works for s in (w.prefill_s, w.decode_s)]
    return own, (a_second * alien_s, 0.0, prices.output_j * strangers, 0.0)


def _band(
    busy_uj: int, shared: Sequence[int], terms: Sequence[Terms], spreads: Sequence[float]
) -> tuple[list[int], list[int]]:
    """The least and the most that each would get with any one price off by its spread, in either direction."""
    lows, highs = list(shared), list(shared)
    total = sum(map(sum, terms))
    for price in range(4):
        for up in (True, False):
            moved = [t[price] * ((s if up else 1 / s) - 1) for t, s in zip(terms, spreads, strict=True)]
            whole = total + sum(moved)
            if whole <= 0 or not any(moved):
                continue
            a_joule = busy_uj / whole
            for i, (term, more) in enumerate(zip(terms, moved, strict=True)):
                at = int(a_joule * (sum(term) + more))
                if at < lows[i]:
                    lows[i] = at
                elif at > highs[i]:
                    highs[i] = at
    return lows, highs
