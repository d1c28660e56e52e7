from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from benchmarks.policies import kept as module
from benchmarks.policies.kept import Kept, Part, complete, of_oracles, of_policies


class Here(Executor):
    """Computes at once, and counts."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.done.append(args)
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except ValueError as error:
            future.set_exception(error)
        return future


def double(value: int) -> dict[str, int]:
    if value < 0:
        raise ValueError("interrupted")
    return {"twice": 2 * value}


def part(name: str, value: int, code: str = "as it is") -> Part:
    return Part(name, code, double, (value,))


def test_what_was_computed_is_not_computed_again(tmp_path: Path) -> None:
    first, told = Here(), []
    complete([part("search h200, 1", 1), part("search h200, 2", 2)], Kept(tmp_path), first, told.append)
    assert first.done == [(1,), (2,)] and {one.name for one in told} == {"search h200, 1", "search h200, 2"}
    again, told = Here(), []
    complete([part("search h200, 1", 1), part("search h200, 3", 3)], Kept(tmp_path), again, told.append)
    assert again.done == [(3,)] and len(told) == 2
    assert Kept(tmp_path).read(part("search h200, 1", 1)) == {"twice": 2}


def test_after_a_change_of_the_code_it_is(tmp_path: Path) -> None:
    kept, pool = Kept(tmp_path), Here()
    complete([part("a", 1)], kept, pool, lambda _: None)
    changed = part("a", 4, "as it is now")
    assert not kept.has(changed)
    with pytest.raises(KeyError, match="a has not been computed by this code"):
        kept.read(changed)
    complete([changed], kept, pool, lambda _: None)
    assert kept.read(changed) == {"twice": 8} and not kept.has(part("a", 1))


def test_what_ended_before_an_interruption_is_there(tmp_path: Path) -> None:
    class InOrder(Here):
        """So that the first is done before the second fails."""

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return super().submit(fn, *args, **kwargs) if args[0] >= 0 else Future()

    kept = Kept(tmp_path)
    with pytest.raises(KeyboardInterrupt):

        def interrupt(_: Part) -> None:
            raise KeyboardInterrupt

        complete([part("a", 1), part("b", -1)], kept, InOrder(), interrupt)
    assert kept.has(part("a", 1)) and not kept.has(part("b", -1))


def test_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    with pytest.raises(ValueError, match="interrupted"):
        complete([part("a", -1), part("b", 2)], kept, Here(), lambda _: None)
    assert kept.has(part("b", 2)) and not kept.has(part("a", -1))


def test_a_change_of_a_policy_leaves_the_oracles_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("policies/company.py", "benchmarks/policies/oracle.py", "emulator/core/machine.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("one")
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def codes() -> tuple[str, str]:
        return of_oracles.__wrapped__(), of_policies.__wrapped__()

    before = codes()
    assert codes() == before
    (tmp_path / "policies/company.py").write_text("two")
    oracles, policies = codes()
    assert oracles == before[0] and policies != before[1]
    (tmp_path / "benchmarks/policies/oracle.py").write_text("two")
    assert codes()[0] != oracles and codes()[1] == policies, "and a change of the oracle the policies"
    (tmp_path / "emulator/core/machine.py").write_text("two")
    assert codes()[1] != policies


def test_the_files_that_the_digests_name_are_there() -> None:
    for pattern in (*module._POLICIES, *module._ORACLES):
        assert any(module.ROOT.glob(pattern)), pattern
