from itertools import product

import pytest

from loadgen.energy_model import fit

LENGTHS = list(product((100, 500, 1000), (50, 128, 256)))


def test_what_made_the_joules_is_found_again() -> None:
    joules = [0.016 * a + 2.0 * b + 1e-4 * a * b for a, b in LENGTHS]
    model = fit([a for a, _ in LENGTHS], [b for _, b in LENGTHS], joules)
    assert (model.prompt_mj, model.output_mj, model.pair_mj) == pytest.approx((16, 2000, 0.1))
    assert model.r2 == pytest.approx(1) and model.n == 9
    assert model.joules(200, 100) == pytest.approx(3.2 + 200 + 2)


def test_what_it_cannot_explain_lowers_r2() -> None:
    odd = [1.0, 90.0, 3.0, 70.0, 5.0, 60.0, 7.0, 50.0, 9.0]
    assert fit([a for a, _ in LENGTHS], [b for _, b in LENGTHS], odd).r2 < 0.5


@pytest.mark.parametrize("lengths", [LENGTHS[:3], [(100, 50)] * 9, [(a, 50) for a in range(100, 900, 100)], []])
def test_lengths_that_tell_nothing_apart_are_refused(lengths: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="several lengths"):
        fit([a for a, _ in lengths], [b for _, b in lengths], [1.0] * len(lengths))
