"""About what attempts will get of the windows that are still open: predicted once a window, added up by attempt."""

from proxy.energy.share import Window
from proxy.energy.work import Progress


class Provisional:
    """Predicted microjoules of open windows. `stale` says that there is a window that was not looked at."""

    def __init__(self) -> None:
        self.stale = False
        self._by_window: dict[Window, dict[Progress, int]] = {}
        self._uj: dict[Progress, int] = {}

    def __contains__(self, window: Window) -> bool:
        return window in self._by_window

    def add(self, window: Window, predicted: dict[Progress, int]) -> None:
        """An open window was predicted."""
        self._by_window[window] = predicted
        for progress, uj in predicted.items():
            self._uj[progress] = self._uj.get(progress, 0) + uj

    def drop(self, window: Window) -> None:
        """A window is settled."""
        for progress, uj in self._by_window.pop(window, {}).items():
            self._uj[progress] -= uj
            if not self._uj[progress]:
                del self._uj[progress]

    def uj(self, progress: Progress) -> int:
        return self._uj.get(progress, 0)
