from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from proxy.energy.cpu_part import CpuPart, CpuTime, is_on_cpu


def looked(*times: tuple[float, float | None, float]) -> CpuPart:
    part = CpuPart()
    for t, own_s, host_s in times:
        part.look(CpuTime("e1", t, own_s, host_s))
    return part


def test_an_engine_has_the_part_of_its_cpu_time_in_all_that_was_used() -> None:
    part = looked((0.0, 10.0, 100.0), (1.0, 11.5, 102.0), (2.0, 11.5, 104.0))
    assert part.during(0.0, 1.0) == approx(0.75)
    assert part.during(1.0, 2.0) == 0.0
    assert part.during(0.0, 2.0) == approx(1.5 / 4)
    assert part.during(0.5, 1.5) == approx(0.75 / 2), "linear between two looks"


def test_of_a_time_nobody_looked_at_nothing_is_known() -> None:
    part = looked((5.0, 0.0, 0.0))
    assert part.during(5.0, 6.0) is None
    part.look(CpuTime("e1", 6.0, 1.0, 2.0))
    assert part.during(3.0, 5.0) is None and part.during(6.0, 7.0) is None
    assert part.during(4.0, 7.0) == approx(0.5), "what is known of it stands for it"
    assert part.is_known(7.0) and not part.is_known(9.0)


def test_another_process_begins_anew_and_none_is_not_known() -> None:
    part = looked((0.0, 50.0, 100.0), (1.0, 51.0, 101.0), (2.0, 0.1, 102.0), (3.0, 0.6, 103.0))
    assert part.during(0.0, 1.0) is None
    assert part.during(2.0, 3.0) == approx(0.5)
    part.look(CpuTime("e1", 4.0, None, 104.0))
    assert part.during(2.0, 3.0) is None and not part.is_known(4.0)


def test_a_machine_that_does_nothing_else_and_ticks_that_do_not_fit() -> None:
    assert looked((0.0, 1.0, 1.0), (1.0, 1.0, 1.0)).during(0.0, 1.0) == 1.0
    assert looked((0.0, 1.0, 1.0), (1.0, 2.0, 1.5)).during(0.0, 1.0) == 1.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 2), st.none() | st.floats(-1, 3), st.floats(-0.1, 3)), max_size=30))
def test_it_is_a_part_whatever_is_read(steps: list[tuple[float, float | None, float]]) -> None:
    part, t, own_s, host_s = CpuPart(), 0.0, 5.0, 50.0
    for seconds, own, host in steps:
        t, own_s, host_s = t + seconds, max(0.0, own_s + (own or 0.0)), host_s + host
        part.look(CpuTime("e1", t, None if own is None else own_s, host_s))
        for begin in (t - 2.0, t - 0.3, t - 1e-9):
            found = part.during(begin, t)
            assert found is None or 0.0 <= found <= 1.0
        part.forget(t - 1.0)
    assert len(part._marks) <= 210


def test_a_moment_of_few_ticks_is_judged_by_what_was_around_it() -> None:
    part = looked(*((t / 10, 0.004 * t, 0.01 * (t // 2)) for t in range(21)))
    for t in range(6, 14):
        assert part.during(t / 10, (t + 1) / 10) == approx(0.8, rel=0.2), "and not all or nothing"


def test_which_devices_a_processor_moves() -> None:
    names = ("h1/cpu:0", "h1/dram:1", "h1/gpu:0", "h1/soc:0")
    assert [is_on_cpu(name) for name in names] == [True, True, False, False]
