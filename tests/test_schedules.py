import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clr_loop.schedules import Constant, Cyclic, ExpRange, Triangular, Triangular2

BASE, MAX = 0.001, 0.006

lengths = st.integers(1, 5000)
steps = st.integers(0, 10**9)


def formula_of_the_paper(step, base_lr, max_lr, step_size):
    """The listing of arXiv 1506.01186, section 3.1, in exact rational arithmetic: an oracle of another form."""
    cycle = 1 + step // (2 * step_size)
    x = abs(Fraction(step, step_size) - 2 * cycle + 1)
    return Fraction(base_lr) + (Fraction(max_lr) - Fraction(base_lr)) * max(Fraction(0), 1 - x)


def test_triangular_is_linspace_up_and_down():
    schedule = Triangular(BASE, MAX, 50)
    up, down = np.linspace(BASE, MAX, 51), np.linspace(MAX, BASE, 51)
    expected = np.concatenate([up[:-1], down[:-1]] * 3)
    np.testing.assert_allclose(schedule(np.arange(300)), expected, rtol=1e-14)


def test_asymmetric_triangle_is_interpolated_between_its_corners():
    schedule = Triangular(BASE, MAX, 30, step_size_down=70)
    corners = [0, 30, 100, 130, 200]
    expected = np.interp(np.arange(201), corners, [BASE, MAX, BASE, MAX, BASE])
    np.testing.assert_allclose(schedule(np.arange(201)), expected, rtol=1e-14)


@given(steps, lengths)
def test_triangular_equals_the_formula_of_the_paper_in_exact_arithmetic(step, step_size):
    expected = float(formula_of_the_paper(step, BASE, MAX, step_size))
    assert Triangular(BASE, MAX, step_size)(step) == pytest.approx(expected, rel=1e-15 * 4)


def test_triangular2_peaks_halve():
    schedule = Triangular2(BASE, MAX, 10)
    peaks = schedule(np.arange(8) * 20 + 10) - BASE
    np.testing.assert_allclose(peaks, (MAX - BASE) / 2.0 ** np.arange(8), rtol=1e-12)


def test_triangular2_stays_finite_and_at_base_lr_after_5000_cycles():
    late = Triangular2(BASE, MAX, 3)(np.arange(5000 * 6, 5002 * 6))
    assert np.isfinite(late).all()
    assert (late >= BASE).all()
    np.testing.assert_allclose(late, BASE, rtol=1e-12)


def test_exp_range_is_the_triangle_under_a_running_product():
    gamma, n = 0.999, 500
    heights = (Triangular(BASE, MAX, 40)(np.arange(n)) - BASE) * np.cumprod([1.0] + [gamma] * (n - 1))
    np.testing.assert_allclose(ExpRange(BASE, MAX, 40, gamma=gamma)(np.arange(n)), BASE + heights, rtol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.99994])
@given(steps, lengths, lengths)
def test_every_rate_is_within_bounds(gamma, step, up, down):
    for schedule in (
        Triangular(BASE, MAX, up, down),
        Triangular2(BASE, MAX, up, down),
        ExpRange(BASE, MAX, up, down, gamma=gamma),
    ):
        assert BASE * (1 - 1e-15) <= schedule(step) <= MAX


@given(st.integers(0, 10**8), lengths, lengths)
def test_triangular_repeats_itself_exactly_after_a_period(step, up, down):
    schedule = Triangular(BASE, MAX, up, down)
    assert schedule(step) == schedule(step + schedule.period) == schedule(step + 10 * schedule.period)


@given(lengths, st.integers(0, 10**6), st.data())
def test_a_symmetric_cycle_falls_as_it_climbed(step_size, cycle, data):
    offset = data.draw(st.integers(0, step_size))
    peak = cycle * 2 * step_size + step_size
    schedule = Triangular(BASE, MAX, step_size)
    assert schedule(peak - offset) == schedule(peak + offset)


def test_phase_is_exact_at_step_ten_to_the_ninth():
    schedule = Triangular(BASE, MAX, 2000)
    start = 10**9  # A multiple of the period, so the first cycle must come again to the last bit.
    np.testing.assert_array_equal(schedule(start + np.arange(4001)), schedule(np.arange(4001)))
    assert schedule(start) == BASE
    assert schedule(start + 2000) == MAX


@pytest.mark.parametrize(
    "schedule", [Constant(0.1), Triangular(BASE, MAX, 7), Triangular2(BASE, MAX, 7), ExpRange(BASE, MAX, 7, gamma=0.9)]
)
def test_any_integer_shape_gives_float64_of_that_shape(schedule):
    grid = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert schedule(grid).shape == (2, 3, 4)
    assert schedule(grid).dtype == np.float64
    assert schedule(np.arange(0)).shape == (0,)
    assert np.ndim(schedule(5)) == 0
    assert schedule(5).dtype == np.float64
    assert schedule(5) == schedule(grid).ravel()[5]
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Constant(-0.1), ValueError, "learning_rate must be a finite number of at least 0, received -0.1"),
        (lambda: Constant(float("nan")), ValueError, "received nan"),
        (lambda: Constant("0.1"), TypeError, "learning_rate must be a number, received '0.1'"),
        (lambda: Triangular(-1, MAX, 10), ValueError, "base_lr must be"),
        (lambda: Triangular(BASE, float("inf"), 10), ValueError, "max_lr must be"),
        (lambda: Triangular(0.01, 0.001, 10), ValueError, "base_lr must not be above max_lr"),
        (lambda: Triangular(BASE, MAX, 0), ValueError, "step_size must be at least 1 step, received 0"),
        (lambda: Triangular(BASE, MAX, 2.5), TypeError, "step_size must be a whole number"),
        (lambda: Triangular2(BASE, MAX, 10, -1), ValueError, "step_size_down must be at least 1 step, received -1"),
        (lambda: ExpRange(BASE, MAX, 10, gamma=0.0), ValueError, "gamma must be above 0 and at most 1, received 0.0"),
        (lambda: ExpRange(BASE, MAX, 10, gamma=1.1), ValueError, "received 1.1"),
        (lambda: ExpRange(BASE, MAX, 10, gamma=float("nan")), ValueError, "received nan"),
        (lambda: Triangular(BASE, MAX, 10)(-1), ValueError, "step must be at least 0, received -1"),
        (lambda: Triangular(BASE, MAX, 10)(0.5), TypeError, "step must be an integer"),
    ],
)
def test_bad_arguments_are_named_in_one_line(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_that_never_turns_is_told_so_with_the_value_to_use():
    (warning,) = Triangular(BASE, MAX, 2000).warnings(450)
    assert "450 steps are 11% of one cycle" in warning
    assert "only climbs, from 0.001 to 0.002123" in warning
    assert "--step_size=112" in warning
    assert Triangular(BASE, MAX, 112).warnings(450) == []
    (warning,) = Triangular(BASE, MAX, 300).warnings(450)
    assert "never comes back to base_lr" in warning
    assert Constant(0.1).warnings(450) == []


def test_cyclic_itself_has_no_scale():
    with pytest.raises(NotImplementedError):
        Cyclic(BASE, MAX, 10)(0)


def test_schedules_do_not_import_tensorflow():
    code = "import sys, clr_loop.schedules; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
