from types import SimpleNamespace

import psutil
import pytest

from proxy.energy.estimate import busy_s


def test_only_what_this_machine_used_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is no use, stolen time is another machine's, and guests are in user time already."""
    spent = {"user": 1.0, "nice": 2.0, "system": 4.0, "irq": 8.0, "softirq": 16.0}
    others = {"idle": 1e3, "iowait": 1e4, "steal": 1e5, "guest": 1e6, "guest_nice": 1e7}
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(**spent, **others))
    assert busy_s() == 31.0


def test_what_a_system_does_not_tell_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=1.0, system=2.0, idle=5.0))
    assert busy_s() == 3.0
