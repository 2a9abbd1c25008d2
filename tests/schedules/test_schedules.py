import copy
import json
import math
import pickle
import warnings
from fractions import Fraction

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clr_loop.schedules import (
    Constant,
    CosineDecay,
    CosineRestarts,
    Cyclic,
    ExponentialDecay,
    ExponentialRamp,
    ExpRange,
    LinearDecay,
    LinearRamp,
    OneCycle,
    OneTriangle,
    Triangular,
    Triangular2,
    describe,
    from_config,
    join,
    register_scale_fn,
)
from helpers.warned import user_warnings

BASE, MAX = 0.001, 0.006


def halves_of_halves(cycle):
    return 0.25 ** (cycle - 1)


register_scale_fn("halves_of_halves", halves_of_halves)

EVERY = [
    Constant(0.1),
    Cyclic(BASE, MAX, 7, 9, halves_of_halves, "cycle", momentum=(0.8, 0.9)),
    Triangular(BASE, MAX, 7),
    Triangular2(BASE, MAX, 7, momentum=(0.8, 0.9)),
    ExpRange(BASE, MAX, 7, gamma=0.9),
    OneCycle(MAX, 300, 0.4, 10.0, 50.0, "linear", momentum=(0.8, 0.9)),
    CosineRestarts(BASE, MAX, 5, 2, 0.9),
    LinearRamp(BASE, MAX, 300),
    ExponentialRamp(BASE, MAX, 300),
    LinearDecay(BASE, MAX, 300, momentum=(0.8, 0.9)),
    CosineDecay(BASE, MAX, 300),
    OneTriangle(BASE, MAX, 301),
    ExponentialDecay(MAX, 40, 0.7),
    ExponentialDecay(MAX, 40, 0.7, staircase=True),
    join([LinearRamp(0.0, BASE, 300), Triangular(BASE, MAX, 7)], [10]),
]

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


@given(steps, lengths, lengths)
def test_an_asymmetric_triangle_is_the_lower_of_two_lines_in_exact_arithmetic(step, up, down):
    position = step % (up + down)
    height = min(Fraction(position, up), Fraction(up + down - position, down))
    expected = float(Fraction(BASE) + (Fraction(MAX) - Fraction(BASE)) * height)
    assert Triangular(BASE, MAX, up, down)(step) == pytest.approx(expected, rel=1e-15 * 4)


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


@given(st.integers(0, 10**8), lengths, lengths)
def test_a_period_later_triangular2_is_half_as_high_and_exp_range_gamma_times_period_less(step, up, down):
    period = up + down
    halved = Triangular2(0.0, 1.0, up, down)
    # Where a height is not yet lost among the smallest numbers that float64 has.
    step %= 1000 * period
    assert halved(step + period) == pytest.approx(halved(step) / 2, rel=1e-12)
    shrunk = ExpRange(0.0, 1.0, up, down, gamma=0.999999)
    assert shrunk(step + period) == pytest.approx(shrunk(step) * math.prod([0.999999] * period), rel=1e-9)


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


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_any_integer_shape_gives_float64_of_that_shape(schedule):
    grid = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert schedule(grid).shape == (2, 3, 4)
    assert schedule(grid).dtype == np.float64
    assert schedule(np.arange(0)).shape == (0,)
    assert np.ndim(schedule(5)) == 0
    assert schedule(5).dtype == np.float64
    # The same to the last bit or the one before it: NumPy's powers of a vector are not those of a number.
    np.testing.assert_array_almost_equal_nulp(schedule(5), schedule(grid).ravel()[5], nulp=2)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_every_schedule_survives_json_pickle_and_deepcopy(schedule):
    through_json = from_config(json.loads(json.dumps(schedule.to_config())))
    for other in (through_json, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        assert other == schedule
        assert type(other) is type(schedule)
        np.testing.assert_array_equal(other(np.arange(300)), schedule(np.arange(300)))


def test_numpy_numbers_as_arguments_neither_overflow_nor_break_json():
    schedule = Triangular(np.float32(0.5), np.float64(1.0), np.int8(100), np.uint64(100))
    assert schedule == Triangular(0.5, 1.0, 100, 100)
    assert schedule([0, 100, 200]).tolist() == [0.5, 1.0, 0.5]
    json.dumps(schedule.to_config())


# --- Scale functions ---


def test_a_scale_function_is_given_the_cycle_from_1_or_the_step():
    seen = []

    def spy(x):
        seen.append(x)
        return np.ones_like(x)

    Cyclic(BASE, MAX, 2, 1, spy)(np.arange(7))
    np.testing.assert_array_equal(seen[-1], [1, 1, 1, 2, 2, 2, 3])
    Cyclic(BASE, MAX, 2, 1, spy, "iterations")(np.arange(7))
    np.testing.assert_array_equal(seen[-1], np.arange(7))
    assert seen[-1].dtype == np.float64


def test_the_named_policies_are_cyclic_with_a_scale():
    steps = np.arange(100)
    for named, scale_fn, scale_mode in [
        (Triangular(BASE, MAX, 7, 5), np.ones_like, "cycle"),
        (Triangular2(BASE, MAX, 7, 5), lambda cycle: 1 / 2.0 ** (cycle - 1), "cycle"),
        (ExpRange(BASE, MAX, 7, 5, gamma=0.97), lambda step: 0.97**step, "iterations"),
    ]:
        assert isinstance(named, Triangular)
        np.testing.assert_allclose(named(steps), Cyclic(BASE, MAX, 7, 5, scale_fn, scale_mode)(steps), rtol=1e-14)
    np.testing.assert_array_equal(Cyclic(BASE, MAX, 7, 5)(steps), Triangular(BASE, MAX, 7, 5)(steps))


def test_the_custom_policy_of_the_clr_repository_peaks_at_the_sine_of_its_cycle():
    schedule = Cyclic(BASE, MAX, 10, scale_fn=lambda cycle: 0.5 * (1 + np.sin(cycle * np.pi / 2)))
    peaks = [schedule(10 + 20 * i) for i in range(4)]
    np.testing.assert_allclose(peaks, [MAX, (BASE + MAX) / 2, BASE, (BASE + MAX) / 2], rtol=1e-12)


@pytest.mark.parametrize(
    ("scale_fn", "message"),
    [
        (lambda x: 1.0, "returned shape () for (2,); it must return a value for each element"),
        (
            lambda x: np.full_like(x, np.nan),
            "returned nan for 1; it must return shares of the full height, from 0 to 1",
        ),
        (lambda x: x, "returned 2.0 for 2"),
        (lambda x: -x, "returned -1.0 for 1"),
    ],
)
def test_a_scale_function_of_the_wrong_kind_is_named_when_the_schedule_is_made(scale_fn, message):
    with pytest.raises(ValueError, match="scale_fn <lambda>") as caught:
        Cyclic(BASE, MAX, 10, scale_fn=scale_fn)
    assert message in str(caught.value)


def test_a_scale_function_that_goes_wrong_later_is_named_when_it_does():
    schedule = Cyclic(BASE, MAX, 1, scale_fn=lambda cycle: cycle / 10)
    schedule(np.arange(20))
    with pytest.raises(ValueError, match=r"returned 1\.1 for 11"):
        schedule(np.arange(21))


def test_a_function_without_a_name_says_so_when_serialised_and_copies_all_the_same():
    schedule = Cyclic(BASE, MAX, 10, scale_fn=lambda cycle: 1 / cycle)
    with pytest.raises(ValueError, match=r"has no name, so the schedule cannot be saved; call register_scale_fn"):
        schedule.to_config()
    assert copy.deepcopy(schedule) == schedule


def test_a_registered_function_is_kept_by_its_name_which_is_taken_once():
    assert Cyclic(BASE, MAX, 7, scale_fn=halves_of_halves).to_config()["scale_fn"] == "halves_of_halves"
    register_scale_fn("halves_of_halves", halves_of_halves)
    with pytest.raises(ValueError, match="another scale_fn is already registered as 'halves_of_halves'"):
        register_scale_fn("halves_of_halves", np.ones_like)


# --- 1cycle, warm restarts, ramps ---


def test_one_cycle_is_two_half_cosines_between_its_three_rates():
    schedule = OneCycle(1.0, total_steps=101, pct_start=31 / 101, div_factor=10.0, final_div_factor=100.0)
    up, down = np.cos(np.linspace(np.pi, 0, 31)), np.cos(np.linspace(0, np.pi, 71))
    expected = np.concatenate([0.55 + 0.45 * up, (1.001 + 0.999 * down[1:]) / 2])
    np.testing.assert_allclose(schedule(np.arange(101)), expected, rtol=1e-9)


def test_linear_one_cycle_is_interpolated_between_its_corners():
    schedule = OneCycle(0.1, 200, 0.45, 10.0, 100.0, anneal="linear")
    expected = np.interp(np.arange(200), [0, 0.45 * 200 - 1, 199], [0.01, 0.1, 0.0001])
    np.testing.assert_allclose(schedule(np.arange(200)), expected, rtol=1e-12)


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from(["cos", "linear"]))
def test_one_cycle_of_any_length_and_start_stays_within_bounds_rises_and_falls_once(total_steps, pct_start, anneal):
    schedule = OneCycle(0.1, total_steps, pct_start, anneal=anneal, momentum=(0.85, 0.95))
    rates, momentums = schedule(np.arange(total_steps)), schedule.momentum_at(np.arange(total_steps))
    assert np.all((rates >= 0.1 / 25e4 * (1 - 1e-12)) & (rates <= 0.1))
    assert np.all((momentums >= 0.85 - 1e-15) & (momentums <= 0.95 + 1e-15))
    top = int(np.argmax(rates))
    assert np.all(np.diff(rates[: top + 1]) > -1e-15)
    assert np.all(np.diff(rates[top:]) < 1e-15)


def test_cosine_restarts_is_one_cosine_stretched_over_each_cycle():
    schedule = CosineRestarts(BASE, MAX, 6, t_mul=3, m_mul=0.5)
    cosine = [0.5 * (1 + np.cos(np.linspace(0, np.pi, n, endpoint=False))) for n in (6, 18, 54)]
    expected = np.concatenate([BASE + (MAX - BASE) * 0.5**i * height for i, height in enumerate(cosine)])
    np.testing.assert_allclose(schedule(np.arange(78)), expected, rtol=1e-12)


@given(st.integers(1, 1000), st.integers(2, 5), st.integers(0, 20))
def test_cosine_restarts_begins_each_cycle_at_max_lr_however_late(first, t_mul, cycle):
    start = first * sum(t_mul**i for i in range(cycle))
    schedule = CosineRestarts(BASE, MAX, first, t_mul)
    length = first * t_mul**cycle
    before_end = Fraction(length - 1, length)
    expected = BASE + (MAX - BASE) * math.sin(math.pi / 2 * (1 - before_end)) ** 2
    assert schedule(start) == MAX
    assert schedule(start + length - 1) == pytest.approx(expected, rel=1e-9)


@given(st.integers(1, 10**6), st.integers(0, 10**9))
def test_cosine_restarts_of_equal_cycles_repeats_itself_exactly(first, step):
    schedule = CosineRestarts(BASE, MAX, first)
    assert schedule(step) == schedule(step % first)


@pytest.mark.parametrize("total_steps", [2, 3, 1000])
@pytest.mark.parametrize(("start", "end"), [(1e-7, 10.0), (10.0, 1e-7), (0.1, 0.1)])
def test_ramps_are_linspace_and_geomspace_and_end_exactly(total_steps, start, end):
    steps = np.arange(total_steps)
    linear, exponential = LinearRamp(start, end, total_steps), ExponentialRamp(start, end, total_steps)
    np.testing.assert_allclose(linear(steps), np.linspace(start, end, total_steps), rtol=1e-12)
    np.testing.assert_allclose(exponential(steps), np.geomspace(start, end, total_steps), rtol=1e-12)
    for ramp in (linear, exponential):
        assert ramp(0) == start
        assert ramp(total_steps - 1) == end


# --- Controls for cycles ---


@pytest.mark.parametrize("total_steps", [2, 3, 1000])
def test_a_linear_decay_is_linspace_and_a_cosine_decay_is_that_of_keras(total_steps):
    steps = np.arange(total_steps)
    linear, cosine = LinearDecay(BASE, MAX, total_steps), CosineDecay(BASE, MAX, total_steps)
    np.testing.assert_allclose(linear(steps), np.linspace(MAX, BASE, total_steps), rtol=1e-13)
    theirs = keras.optimizers.schedules.CosineDecay(MAX, total_steps - 1, alpha=BASE / MAX)
    np.testing.assert_allclose(cosine(steps), [float(theirs(step)) for step in steps], rtol=2e-5)
    for decay in (linear, cosine):
        assert (decay(0), decay(total_steps - 1)) == (MAX, BASE)


def test_a_decay_of_one_step_is_at_max_lr_and_a_triangle_of_one_step_at_base_lr():
    assert (LinearDecay(BASE, MAX, 1)(0), CosineDecay(BASE, MAX, 1)(0), OneTriangle(BASE, MAX, 1)(0)) == (
        MAX,
        MAX,
        BASE,
    )


@pytest.mark.parametrize("total_steps", [2, 450, 451])
def test_one_triangle_is_a_triangle_whose_next_cycle_begins_where_the_run_ends(total_steps):
    corners = [0, math.ceil(total_steps / 2), total_steps]
    steps = np.arange(total_steps)
    schedule = OneTriangle(BASE, MAX, total_steps)
    np.testing.assert_allclose(schedule(steps), np.interp(steps, corners, [BASE, MAX, BASE]), rtol=1e-14)
    assert schedule.cycle_ends(total_steps).tolist() == [total_steps]
    assert schedule.cycle_ends(total_steps - 1).tolist() == []


@given(st.integers(2, 2000))
def test_controls_have_the_highest_lowest_and_mean_rate_of_whole_triangles(quarter):
    total_steps = 4 * quarter
    for schedule in (
        Triangular(BASE, MAX, quarter),
        OneTriangle(BASE, MAX, total_steps),
        LinearDecay(BASE, MAX, total_steps),
        CosineDecay(BASE, MAX, total_steps),
    ):
        rates = schedule(np.arange(total_steps))
        assert (rates.min(), rates.max()) == (BASE, MAX)
        assert rates.mean() == pytest.approx((BASE + MAX) / 2, rel=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        OneCycle(MAX, 10),
        LinearDecay(BASE, MAX, 10),
        CosineDecay(BASE, MAX, 10),
        OneTriangle(BASE, MAX, 10),
        LinearRamp(BASE, MAX, 10),
        ExponentialRamp(BASE, MAX, 10),
        join([Constant(BASE), LinearRamp(BASE, MAX, 6)], [4]),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_finite_schedule_holds_its_last_rate_past_its_end_and_warns_once(schedule):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = schedule(np.arange(10))[-1]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for step in range(9, 1000, 10):
            assert schedule(step) == last
        assert schedule(10**9) == last
    # Python shows a warning once for each line that calls: two lines above do.
    assert [str(warning.message).split(";")[0] for warning in user_warnings(caught)] == [
        f"{type(schedule).__name__} has 10 steps and holds its last rate after them"
    ] * 2
    assert {warning.filename for warning in user_warnings(caught)} == {__file__}


# --- Momentum ---


@pytest.mark.parametrize(
    "make",
    [
        lambda momentum: Triangular(BASE, MAX, 30, 70, momentum=momentum),
        lambda momentum: Triangular2(BASE, MAX, 30, momentum=momentum),
        lambda momentum: ExpRange(BASE, MAX, 30, gamma=0.99, momentum=momentum),
        lambda momentum: CosineRestarts(BASE, MAX, 30, 2, momentum=momentum),
        lambda momentum: LinearDecay(BASE, MAX, 400, momentum=momentum),
        lambda momentum: CosineDecay(BASE, MAX, 400, momentum=momentum),
        lambda momentum: OneTriangle(BASE, MAX, 400, momentum=momentum),
    ],
)
def test_momentum_is_the_mirror_of_the_rate(make):
    steps = np.arange(400)
    schedule = make((0.85, 0.95))
    share = (schedule(steps) - BASE) / (MAX - BASE)
    np.testing.assert_allclose(schedule.momentum_at(steps), 0.95 - 0.1 * share, rtol=1e-12)
    assert schedule.momentum_at(np.zeros((2, 3), int)).shape == (2, 3)
    assert make(None).momentum_at(steps) is None
    np.testing.assert_array_equal(make(None)(steps), schedule(steps))


# --- Joining ---


def test_joined_schedules_each_count_from_0_at_their_boundary():
    first, second, third = Triangular(BASE, MAX, 10), CosineRestarts(0.01, 0.1, 7), Constant(0.5)
    joined = join([first, second, third], boundaries=[25, 60])
    expected = np.concatenate([first(np.arange(25)), second(np.arange(35)), third(np.arange(40))])
    np.testing.assert_array_equal(joined(np.arange(100)), expected)
    assert joined(10**9) == 0.5


def test_joined_momentum_is_that_of_the_schedule_whose_turn_it_is():
    first, second = Triangular(BASE, MAX, 10, momentum=(0.8, 0.9)), OneCycle(MAX, 30, momentum=(0.5, 0.6))
    expected = np.concatenate([first.momentum_at(np.arange(25)), second.momentum_at(np.arange(30))])
    np.testing.assert_array_equal(join([first, second], [25]).momentum_at(np.arange(55)), expected)
    assert join([Constant(0.1), Constant(0.2)], [5]).momentum_at(3) is None


def test_a_warm_up_holds_the_first_momentum_of_the_cycles_after_it_and_a_tail_the_last_before_it():
    cycles, one_cycle = Triangular(BASE, MAX, 10, momentum=(0.8, 0.9)), OneCycle(MAX, 30, momentum=(0.5, 0.6))
    warm_up, tail = LinearRamp(0.0, BASE, 5), Constant(BASE)
    joined = join([warm_up, warm_up, cycles, tail, one_cycle, tail, tail], [5, 10, 23, 30, 45, 50])
    expected = np.concatenate([
        np.full(10, 0.9), cycles.momentum_at(np.arange(13)), np.full(7, 0.6), one_cycle.momentum_at(np.arange(15)),
        np.full(15, one_cycle.momentum_at(14)),
    ])  # fmt: skip
    np.testing.assert_array_equal(joined.momentum_at(np.arange(60)), expected)
    assert joined.momentum_at(3) == 0.9
    assert join([tail, joined], [7]).momentum_at(0) == 0.9


def test_a_scale_function_is_not_asked_beyond_the_boundary_of_its_schedule():
    tenths = Cyclic(BASE, MAX, 1, scale_fn=lambda cycle: cycle / 10)
    np.testing.assert_array_equal(join([tenths, Constant(0.1)], [20])(np.arange(20, 90)), 0.1)
    np.testing.assert_array_equal(join([Constant(0.2), tenths, Constant(0.1)], [5, 25])(np.arange(25, 90)), 0.1)


# --- Bad arguments ---

HIGHEST = float(np.finfo(np.float32).max)


def test_the_highest_rate_and_momentum_that_float32_holds_are_taken():
    assert np.isfinite(np.float32(Constant(HIGHEST)(0)))
    below_1 = float(np.nextafter(np.float32(1), np.float32(0)))
    assert np.float32(OneCycle(MAX, 10, momentum=(0.5, below_1)).momentum_at(0)) < 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Constant(-0.1), ValueError, "learning_rate is -0.1; a learning rate must be finite, at least 0"),
        (lambda: Constant(float("nan")), ValueError, "learning_rate is nan"),
        (
            lambda: Constant(1e39),
            ValueError,
            "learning_rate is 1e+39; a learning rate must be finite, at least 0 and at",
        ),
        (lambda: Constant("0.1"), TypeError, "learning_rate is '0.1', which is not a number"),
        (lambda: Triangular(-1, MAX, 10), ValueError, "base_lr is -1"),
        (lambda: Triangular(BASE, float("inf"), 10), ValueError, "max_lr is inf"),
        (lambda: LinearRamp(0.0, 3.5e38, 10), ValueError, "end_lr is 3.5e+38"),
        (lambda: Triangular(0.01, 0.001, 10), ValueError, "base_lr 0.01 is above max_lr 0.001"),
        (lambda: Triangular(BASE, MAX, 0), ValueError, "step_size is 0; it must be at least 1"),
        (lambda: Triangular(BASE, MAX, 10**20), ValueError, "and at most 2**61"),
        (lambda: Triangular(BASE, MAX, 2.5), TypeError, "step_size is 2.5; it must be a whole number"),
        (lambda: Triangular2(BASE, MAX, 10, -1), ValueError, "step_size_down is -1"),
        (lambda: ExpRange(BASE, MAX, 10, gamma=0.0), ValueError, "gamma is 0.0; it must be above 0 and at most 1"),
        (lambda: ExpRange(BASE, MAX, 10, gamma=1.1), ValueError, "gamma is 1.1"),
        (lambda: ExpRange(BASE, MAX, 10, gamma=float("nan")), ValueError, "gamma is nan"),
        (
            lambda: Cyclic(BASE, MAX, 10, scale_fn="sine"),
            ValueError,
            "scale_fn is 'sine', and the registered names are",
        ),
        (lambda: Cyclic(BASE, MAX, 10, scale_fn=1.0), TypeError, "scale_fn is 1.0; it must be a function of an array"),
        (lambda: Cyclic(BASE, MAX, 10, scale_mode="epoch"), ValueError, "must be 'cycle' or 'iterations'"),
        (lambda: register_scale_fn("name", 1.0), TypeError, "scale_fn is 1.0; it must be a function"),
        (lambda: Triangular(BASE, MAX, 10, momentum=(0.9, 0.8)), ValueError, "momentum is (0.9, 0.8)"),
        (lambda: Triangular(BASE, MAX, 10, momentum=(0.9, 1.0)), ValueError, "low <= high < 1"),
        (lambda: Triangular(BASE, MAX, 10, momentum=(0.9, 1 - 1e-9)), ValueError, "momentum is (0.9, 0.999999999)"),
        (lambda: Triangular(BASE, MAX, 10, momentum=(0.9, float("nan"))), ValueError, "momentum is (0.9, nan)"),
        (lambda: OneCycle(MAX, 10, momentum=0.9), TypeError, "momentum is 0.9; it must be a pair (low, high)"),
        (lambda: OneCycle(MAX, 10, momentum=("0.8", 0.9)), TypeError, "momentum is '0.8', which is not a number"),
        (lambda: OneCycle(MAX, 0), ValueError, "total_steps is 0; it must be at least 1"),
        (lambda: OneCycle(MAX, 10, pct_start=1.5), ValueError, "pct_start is 1.5; it is a share"),
        (lambda: OneCycle(MAX, 10, div_factor=0.5), ValueError, "div_factor is 0.5"),
        (lambda: OneCycle(MAX, 10, final_div_factor=0.01), ValueError, "final_div_factor is 0.01"),
        (lambda: OneCycle(MAX, 10, anneal="step"), ValueError, "anneal is 'step'; it must be 'cos' or 'linear'"),
        (lambda: LinearDecay(BASE, MAX, 0), ValueError, "total_steps is 0; it must be at least 1"),
        (lambda: CosineDecay(MAX, BASE, 10), ValueError, "base_lr 0.006 is above max_lr 0.001"),
        (lambda: OneTriangle(BASE, MAX, 2.5), TypeError, "total_steps is 2.5; it must be a whole number"),
        (lambda: CosineRestarts(MAX, BASE, 10), ValueError, "base_lr 0.006 is above max_lr 0.001"),
        (lambda: CosineRestarts(BASE, MAX, 2.0), TypeError, "first_cycle_steps is 2.0; it must be a whole number"),
        (lambda: CosineRestarts(BASE, MAX, 10, t_mul=1.5), TypeError, "t_mul is 1.5; it must be a whole number"),
        (lambda: CosineRestarts(BASE, MAX, 10, t_mul=0), ValueError, "t_mul is 0; it must be at least 1"),
        (lambda: CosineRestarts(BASE, MAX, 10, m_mul=2), ValueError, "m_mul is 2; it must be above 0 and at most 1"),
        (lambda: LinearRamp(BASE, MAX, 1), ValueError, "total_steps is 1; a ramp needs at least 2 steps"),
        (lambda: ExponentialRamp(0.0, MAX, 10), ValueError, "start_lr is 0; no factor leads to or from 0"),
        (lambda: join([Constant(0.1)], []), ValueError, "join was given 1 schedules and 0 boundaries"),
        (lambda: join([Constant(0.1)] * 3, [5]), ValueError, "join was given 3 schedules and 1 boundaries"),
        (lambda: join([Constant(0.1)] * 3, [5, 5]), ValueError, "the boundaries [5, 5] do not rise"),
        (lambda: join([Constant(0.1)] * 2, [0]), ValueError, "boundary is 0; it must be at least 1"),
        (lambda: join([Constant(0.1), abs], [5]), TypeError, "which is not a schedule of clr_loop.schedules"),
        (lambda: from_config({"name": "Sawtooth"}), ValueError, "no schedule is named 'Sawtooth'"),
        (lambda: from_config({"name": "Constant", "rate": 0.1}), ValueError, "the arguments ['rate']"),
        (lambda: from_config({"name": "Joined", "parts": []}), ValueError, "the arguments ['parts']"),
        (lambda: describe(Triangular(BASE, MAX, 10), 0, 10), ValueError, "total_steps is 0"),
        (lambda: Triangular(BASE, MAX, 10)(-1), ValueError, "step is -1; steps are counted from 0"),
        (lambda: Constant(0.1)(np.array([1, 2**63], np.uint64)), ValueError, "step is 9223372036854775808"),
        (lambda: Triangular(BASE, MAX, 10)(0.5), TypeError, "step has the type float64"),
    ],
)
def test_bad_arguments_are_named_in_one_line(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("staircase", [False, True])
def test_exponential_decay_is_that_of_keras(staircase):
    ours = ExponentialDecay(0.1, decay_steps=7, decay_rate=0.6, staircase=staircase)
    theirs = keras.optimizers.schedules.ExponentialDecay(0.1, 7, 0.6, staircase)
    np.testing.assert_allclose(ours(np.arange(40)), [float(theirs(step)) for step in range(40)], rtol=1e-5)
    assert ours(7) == pytest.approx(0.06)
    assert from_config(ours.to_config()) == ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay_rate": 0.0}, "decay_rate is 0.0; the rate is multiplied by it"),
        ({"decay_steps": 0}, "decay_steps is 0; it must be at least 1"),
    ],
)
def test_a_decay_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ExponentialDecay(**{"learning_rate": 0.1, "decay_steps": 5, "decay_rate": 0.5, **change})
    with pytest.raises(TypeError, match="staircase is 1; it must be True or False"):
        ExponentialDecay(0.1, 5, 0.5, staircase=1)


@pytest.mark.parametrize(
    "schedule",
    [
        Triangular(0.0, 1.0, 3, step_size_down=4),
        Triangular2(0.0, 1.0, 2),
        CosineRestarts(0.0, 1.0, 4),
        CosineRestarts(0.0, 1.0, 2, t_mul=2),
    ],
)
def test_a_cycle_ends_where_the_next_begins(schedule):
    # Worked out from the rates alone: a cycle begins where they turn upward, or jump up.
    rates = schedule(np.arange(200))
    turns = np.flatnonzero((rates[1:-1] < rates[2:]) & (rates[:-2] >= rates[1:-1])) + 1
    begins = turns if isinstance(schedule, Triangular) else turns + 1
    begins = begins[begins > 1]
    np.testing.assert_array_equal(schedule.cycle_ends(150), begins[begins <= 150])
    assert schedule.cycle_ends(1).size == 0


def test_cycles_of_parts_count_where_the_parts_are():
    one_cycle = OneCycle(1.0, total_steps=10)
    assert one_cycle.cycle_ends(10).tolist() == [10]
    assert one_cycle.cycle_ends(9).tolist() == []
    assert Constant(0.1).cycle_ends(100) is None
    warm = join([LinearRamp(0.0, 0.1, 5), Triangular(0.1, 1.0, 2)], [5])
    assert warm.cycle_ends(14).tolist() == [9, 13]
    assert join([Constant(0.1), Constant(0.2)], [3]).cycle_ends(10) is None
    assert join([one_cycle, Constant(0.1)], [12]).cycle_ends(11).tolist() == [10]
