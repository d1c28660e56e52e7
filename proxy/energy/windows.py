"""A device's counter cut into windows, and which of these are shared together. Times are Unix seconds."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from proxy.energy.beat import Beat
from proxy.energy.serving import Round
from proxy.energy.share import Window

# Busy windows are shared together up to here: at 0.1 s a counter's own steps are a third of what it says.
WINDOW_S = 0.5
CROWDED_S = 2.5  # and wait for each other until it is as much, while many are in flight
IDLE_S = 1.0  # the power of a device at rest is its mean over about so long
GAP_S = 5.0  # a device that gave no reading for longer than this has a hole in its books


@dataclass(slots=True)
class Windows:
    """What one counter moved. A window ends where it moved, and waits here until it is settled."""

    device: str
    raw_uj: int
    seen: float  # last reading
    cut: float  # end of the last window
    settled: float  # everything until here is settled
    counter_uj: int = 0  # all that the counter moved, from the raw readings alone
    open: deque[Window] = field(default_factory=deque)
    beat: Beat = field(default_factory=Beat)
    idle_w: float | None = None  # with nothing in flight, of late
    company: int = 0  # attempts in flight since `cut`, when that was last counted
    company_at: int = 0  # attempts started in all, at that time

    @classmethod
    def begin(cls, device: str, t: float, raw_uj: int, gap_uj: int = 0) -> "Windows":
        """The first reading, and what the counter moved while nobody looked."""
        windows = cls(device, raw_uj, t, t, t, counter_uj=gap_uj)
        if gap_uj:
            windows.open.append(Window(device, t, t, gap_uj, gap=True))
        return windows

    def read(self, t: float, raw_uj: int, longest_s: float) -> bool:
        """A reading; returns whether it ended a window, where the counter moved or after `longest_s` without that."""
        if t <= self.seen:
            return False
        delta_uj, missed = raw_uj - self.raw_uj, t - self.seen > GAP_S
        if delta_uj < 0:  # the counter was reset: what it moved meanwhile is not known, and not invented
            delta_uj, missed = 0, True
            self.beat.forget()
        moved_at = self.beat.moved_at(t, delta_uj)
        self.raw_uj, self.seen = raw_uj, t
        if not (delta_uj or missed or t - self.cut >= longest_s):
            return False
        end = moved_at if delta_uj and moved_at > self.cut else t
        self.counter_uj += delta_uj
        self.open.append(Window(self.device, self.cut, end, delta_uj, missed))
        self.cut = end
        return True

    def rests(self, window: Window) -> None:
        """Nothing was in flight in a window."""
        seconds = window.t1 - window.t0
        power_w = window.delta_uj / 1e6 / seconds
        part = min(1.0, seconds / IDLE_S)
        self.idle_w = power_w if self.idle_w is None else self.idle_w + part * (power_w - self.idle_w)


def worth_it(ready: list[Window], round_: Round, late_s: float) -> list[Window]:
    """Those of the windows that are `ready` to be settled that shall be: of a crowd all, or none until they are long
    enough or `late_s` behind."""
    if not ready or any(window.gap for window in ready) or not round_.is_crowded(ready[0]):
        return ready
    is_short = ready[-1].t1 - ready[0].t0 < CROWDED_S - 0.05
    return [] if is_short and round_.now - ready[0].t1 < late_s + 2 * CROWDED_S else ready


def busy_together(windows: Sequence[Window], round_: Round) -> Iterator[list[Window]]:
    """The windows in their order, busy neighbours of up to `WINDOW_S` in all together.

    Longer while so many are in flight that shares change slowly, and each window costs a share for each.
    """
    together: list[Window] = []
    for window in windows:
        busy = not window.gap and round_.is_busy(window)
        most_s = 1.5 * CROWDED_S if round_.is_crowded(window) else WINDOW_S
        if together and not (busy and window.t1 - together[0].t0 <= most_s + 1e-3):
            yield together
            together = []
        together.append(window)
        if not busy:
            yield together
            together = []
    if together:
        yield together


def joined(windows: Sequence[Window]) -> Window:
    """Neighbours as one."""
    if len(windows) == 1:
        return windows[0]
    first, last = windows[0], windows[-1]
    cuts = tuple(window.t0 for window in windows[1:])
    return Window(first.device, first.t0, last.t1, sum(window.delta_uj for window in windows), cuts=cuts)
