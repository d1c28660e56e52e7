from pathlib import Path

import pytest

from proxy.engines import cores


def test_a_quota_of_cgroup_v2_bounds_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_own_group", lambda: "box/app")
    (tmp_path / "box/app").mkdir(parents=True)
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    (tmp_path / "box/cpu.max").write_text("150000 100000\n")
    (tmp_path / "box/app/cpu.max").write_text("max 100000\n")
    assert sorted(cores.quotas(tmp_path)) == [1.5, 4.0]
    assert cores.usable_cores(tmp_path) == 1


def test_a_quota_of_cgroup_v1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000")
    assert list(cores.quotas(tmp_path)) == [0.5] and cores.usable_cores(tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert list(cores.quotas(tmp_path)) == []


def test_without_quotas_there_is_at_least_one(tmp_path: Path) -> None:
    assert cores.usable_cores(tmp_path / "none") >= 1
