import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emulator.core.gpu import Gpu
from emulator.core.presets import GpuPreset, Model
from emulator.core.step import StepWork

DECODE = StepWork(decode_sequences=16, decode_context=16 * 800)
PREFILL = StepWork(8, 8192, 8192 * 512, 8192)
works = st.builds(
    lambda tokens, sequences, context: StepWork(
        1 if tokens else 0, tokens, tokens * tokens // 2, tokens, sequences, sequences * context
    ),
    st.integers(0, 8192),
    st.integers(1, 128),
    st.integers(1, 4000),
)
same_card = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def test_decode_keeps_its_speed_at_a_lower_clock_and_costs_less(gpu: Gpu) -> None:
    fast = gpu.step(DECODE)
    gpu.sm_clock_range_mhz = (345, 1200)
    slow = gpu.step(DECODE)
    assert (fast.sm_mhz, slow.sm_mhz) == (1980, 1200)
    assert slow.seconds == fast.seconds
    assert slow.joules < 0.8 * fast.joules


def test_below_what_feeds_the_memory_decode_slows_down_too(gpu: Gpu) -> None:
    fast = gpu.step(DECODE)
    gpu.sm_clock_range_mhz = (345, 600)
    assert gpu.step(DECODE).seconds > 1.2 * fast.seconds


def test_prefill_goes_with_the_clock(gpu: Gpu) -> None:
    gpu.sm_clock_range_mhz = (345, 1200)
    fast = gpu.step(PREFILL)
    gpu.sm_clock_range_mhz = (345, 600)
    assert gpu.step(PREFILL).seconds == pytest.approx(2 * fast.seconds, rel=0.03)
    assert not fast.capped


def test_a_lock_between_two_supported_clocks_takes_the_lower(gpu: Gpu) -> None:
    gpu.sm_clock_range_mhz = (210, 1229)
    assert gpu.step(DECODE).sm_mhz == 1215
    gpu.sm_clock_range_mhz = None
    assert gpu.step(DECODE).sm_mhz == 1980


def test_prefill_meets_the_default_cap_first(gpu: Gpu) -> None:
    prefill, decode = gpu.step(PREFILL), gpu.step(DECODE)
    assert prefill.capped and 1400 <= prefill.sm_mhz <= 1800
    assert not decode.capped and decode.sm_mhz == 1980


@same_card
@given(work=works)
def test_a_lower_cap_is_never_faster_and_holds_where_it_can(gpu: Gpu, work: StepWork) -> None:
    seconds = 0.0
    for watts in (700, 600, 500, 400, 300, 200):
        gpu.power_limit_w = watts
        cost = gpu.step(work)
        assert cost.seconds >= seconds
        if cost.sm_mhz > 345:
            assert cost.joules / cost.seconds <= watts
        seconds = cost.seconds


@same_card
@given(work=works, mhz=st.integers(345, 1965))
def test_a_lower_clock_is_never_faster(gpu: Gpu, work: StepWork, mhz: int) -> None:
    gpu.sm_clock_range_mhz = (345, mhz)
    low = gpu.step(work)
    gpu.sm_clock_range_mhz = (345, mhz + 15)
    assert gpu.step(work).seconds <= low.seconds


def test_a_cap_that_cannot_be_held_is_said(gpu: Gpu) -> None:
    gpu.power_limit_w = 200
    cost = gpu.step(StepWork(decode_sequences=64, decode_context=64 * 3000))
    assert cost.capped and cost.sm_mhz == 345
    assert cost.joules / cost.seconds > 200
    gpu.spend(cost.joules, cost.seconds)
    assert gpu.over_cap_s == cost.seconds


def test_what_the_recent_past_left_of_the_cap_is_there_for_prefill(gpu: Gpu) -> None:
    short = StepWork(1, 512, 512 * 256, 512)
    tired = gpu.step(short)
    gpu.rest(1.0)
    rested = gpu.step(short)
    assert rested.seconds < tired.seconds
    assert rested.joules > 700 * rested.seconds
    for _ in range(10):
        gpu.spend(rested.joules, rested.seconds)
    assert gpu.step(short) == tired


def test_decode_costs_the_same_whatever_was_before(gpu: Gpu) -> None:
    gpu.power_limit_w = 450
    tired = gpu.step(DECODE)
    assert tired.capped
    gpu.rest(1.0)
    assert gpu.step(DECODE) == tired


def test_over_its_control_interval_the_card_never_draws_more_than_the_cap(gpu: Gpu) -> None:
    work = StepWork(1, 700, 700 * 350, 700)
    seconds = 0.0
    for _ in range(200):
        cost = gpu.step(work)
        gpu.spend(cost.joules, cost.seconds)
        gpu.rest(0.002)
        seconds += cost.seconds + 0.002
    assert 0.95 * 700 < gpu.energy_j / seconds <= 700
    assert gpu.over_cap_s == 0


def test_step_changes_nothing(gpu: Gpu) -> None:
    assert gpu.step(PREFILL) == gpu.step(PREFILL)
    assert gpu.energy_j == 0


@given(spent=st.lists(st.tuples(st.floats(0, 1e3), st.floats(1e-6, 10)), max_size=30), rest=st.floats(0, 100))
@same_card
def test_no_joule_is_lost(h200: GpuPreset, llama: Model, spent: list[tuple[float, float]], rest: float) -> None:
    gpu = Gpu(h200.card, h200.factors, llama)
    for joules, seconds in spent:
        gpu.spend(joules, seconds)
    gpu.rest(rest)
    assert gpu.energy_j == pytest.approx(sum(joules for joules, _ in spent) + 123 * rest)


def test_limits_name_all_that_costs_depend_on(gpu: Gpu, h200: GpuPreset, llama: Model) -> None:
    seen = {gpu.limits}
    gpu.power_limit_w = 500
    seen.add(gpu.limits)
    gpu.sm_clock_range_mhz = (345, 1500)
    seen.add(gpu.limits)
    gpu.memory_clock_range_mhz = (1600, 1600)
    seen.add(gpu.limits)
    assert len(seen) == 4
    assert gpu.step(DECODE).seconds > 1.5 * Gpu(gpu.card, h200.factors, llama).step(DECODE).seconds


def test_limits_out_of_range_are_refused(gpu: Gpu) -> None:
    with pytest.raises(ValueError, match="200 to 700 W, not 150"):
        gpu.power_limit_w = 150
    with pytest.raises(ValueError, match="lowest, highest"):
        gpu.sm_clock_range_mhz = (1500, 1200)
    assert gpu.power_limit_w == 700 and gpu.sm_clock_range_mhz is None
