import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clr_loop.schedules import (
    Constant,
    CosineRestarts,
    Cyclic,
    ExponentialRamp,
    ExpRange,
    LinearRamp,
    OneCycle,
    Schedule,
    Triangular,
    Triangular2,
    join,
)

BASE, MAX = 0.001, 0.006


def advised(warnings):
    """The flags that the warnings name: {flag: number}; warnings that name the same flag must agree."""
    found = {flag: float(value) for warning in warnings for flag, value in re.findall(r"--(\w+)=([\d.]+)", warning)}
    for warning in warnings:
        for flag, value in re.findall(r"--(\w+)=([\d.]+)", warning):
            assert found[flag] == float(value)
    return found


def test_the_articles_run_is_told_that_it_only_climbs_and_what_to_use_instead():
    description = Triangular(BASE, MAX, 2000).describe(450, 30)
    assert description.lines() == [
        "450 steps, 15 epochs: learning rate 0.001 at first, 0.00212 at last; highest 0.00212, at step 449",
        "0.11 cycles; the run ends while the rate climbs, at 22 % of the way from low to high",
        "note: 450 steps, step_size 2000: the rate only climbs, to 0.00212; for two whole cycles --step_size=112",
        "note: step_size 2000 is 66.7 epochs, Smith recommends 2 to 10; for two whole cycles --step_size=112",
    ]
    assert str(description) == "\n".join(description.lines())
    assert Triangular(BASE, MAX, 112).describe(450, 30).warnings == ()


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(0.1),
        Triangular(BASE, MAX, 30, 70),
        Triangular2(BASE, MAX, 40),
        ExpRange(BASE, MAX, 40, gamma=0.99),
        Cyclic(BASE, MAX, 30, scale_fn=lambda step: np.minimum(step / 400, 1.0), scale_mode="iterations"),
        OneCycle(MAX, 450),
        CosineRestarts(BASE, MAX, 100, 2),
        LinearRamp(BASE, MAX, 450),
        ExponentialRamp(MAX, BASE, 450),
        join([LinearRamp(0.0, MAX, 20), Triangular(BASE, MAX, 60)], [20]),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_the_figures_are_those_of_the_rates_themselves(schedule):
    rates = schedule(np.arange(450))
    description = schedule.describe(450, 30)
    assert (description.first_lr, description.last_lr) == pytest.approx((rates[0], rates[-1]), rel=1e-15)
    assert (description.highest_lr, description.highest_step) == (rates.max(), rates.argmax())
    assert (description.total_steps, description.steps_per_epoch) == (450, 30)


def test_the_highest_rate_is_found_across_the_pieces_that_are_looked_at():
    total_steps = 2**20 + 2**19
    description = Triangular(0.0, 1.0, 2**20 + 1000).describe(total_steps, 2**18)
    assert (description.highest_step, description.highest_lr) == (2**20 + 1000, 1.0)


@pytest.mark.parametrize(
    ("schedule", "cycles", "end"),
    [
        (Triangular(BASE, MAX, 75), 3.0, "with the end of a cycle"),
        (Triangular(BASE, MAX, 449), 450 / 898, "at the peak of a cycle"),
        (Triangular(BASE, MAX, 300), 0.75, "while the rate falls, at 50 % of the way from low to high"),
        (Triangular(BASE, MAX, 100, 300), 1.125, "while the rate climbs, at 49 % of the way from low to high"),
        (CosineRestarts(BASE, MAX, 150), 3.0, "with the end of a cycle"),
        (CosineRestarts(BASE, MAX, 100, 2), 2.375, "after 150 of the 400 steps of a cycle"),
        (OneCycle(MAX, 450), 1.0, "with the cycle"),
        (OneCycle(MAX, 400), 1.0, "after the cycle"),
        (OneCycle(MAX, 900), 0.5, "while the rate falls"),
        (OneCycle(MAX, 4500), 0.1, "while the rate climbs"),
        (LinearRamp(BASE, MAX, 450), None, "with the ramp"),
        (LinearRamp(BASE, MAX, 500), None, "before the ramp does"),
        (Constant(BASE), None, "with the rate that it began with"),
        (join([Triangular(BASE, MAX, 50), Triangular(BASE, MAX, 25)], [200]), 7.0, "with the end of a cycle"),
        (join([Triangular(BASE, MAX, 50), Constant(BASE)], [200]), 2.0, "with the rate that it began with"),
    ],
)
def test_cycles_and_the_end_of_the_run_are_named(schedule, cycles, end):
    description = schedule.describe(450, 30)
    assert description.cycles == (None if cycles is None else pytest.approx(cycles))
    assert description.end == end


@given(
    total_steps=st.integers(4, 3000),
    step_size=st.integers(1, 5000),
    down=st.none() | st.integers(1, 5000),
    steps_per_epoch=st.integers(1, 300),
)
def test_the_advised_lengths_of_a_triangle_end_at_the_low_after_max_lr(total_steps, step_size, down, steps_per_epoch):
    warnings = Triangular(BASE, MAX, step_size, down).describe(total_steps, steps_per_epoch).warnings
    flags = advised(warnings)
    assume("step_size" in flags)
    better = Triangular(BASE, MAX, int(flags["step_size"]), int(flags["step_size_down"]) if down else None)
    rates = better(np.arange(total_steps))
    assert rates.max() == MAX
    # Within a step of the cycle's end, or a tenth of the way up.
    assert total_steps % better.period == 0 or rates[-1] <= BASE + 0.1 * (MAX - BASE) * (1 + 1e-9)
    assert all("Smith recommends" in warning for warning in better.describe(total_steps, steps_per_epoch).warnings)


@pytest.mark.parametrize("epochs", [4, 5, 15, 37, 300])
@pytest.mark.parametrize("step_size", [1, 7, 50, 700, 10**6])
def test_where_a_run_is_long_enough_the_advice_leaves_no_warning(epochs, step_size):
    flags = advised(Triangular(BASE, MAX, step_size).describe(epochs * 60, 60).warnings)
    better = Triangular(BASE, MAX, int(flags.get("step_size", step_size)))
    assert better.describe(epochs * 60, 60).warnings == ()


@given(st.integers(2, 3000), st.integers(1, 5000), st.integers(1, 4))
def test_the_advised_first_cycle_ends_the_run_at_a_low(total_steps, first, t_mul):
    flags = advised(CosineRestarts(BASE, MAX, first, t_mul).describe(total_steps, 30).warnings)
    assume("first_cycle_steps" in flags)
    better = CosineRestarts(BASE, MAX, int(flags["first_cycle_steps"]), t_mul)
    assert better.describe(total_steps, 30).warnings == ()
    rates = better(np.arange(total_steps + 1))
    assert rates[-2] <= BASE + 0.1 * (MAX - BASE) * (1 + 1e-9) or rates[-1] == MAX


@pytest.mark.parametrize(
    ("schedule", "total_steps", "sentence"),
    [
        (Triangular(BASE, MAX, 300), 450, "the run ends at 0.00352 and not at the cycle's low"),
        (Triangular(BASE, MAX, 15), 450, "step_size 15 is 0.5 epochs, Smith recommends 2 to 10"),
        (Triangular(BASE, MAX, 15), 60, "train for 4 epochs or more"),
        (
            Triangular(BASE, MAX, 1),
            1,
            "1 step, step_size 1: the rate only climbs, to 0.001; one step cannot hold a cycle",
        ),
        (ExpRange(BASE, MAX, 75, gamma=0.9), 450, "far from max_lr 0.006; for a first peak at 90 % --gamma=0.99859"),
        (
            Cyclic(BASE, MAX, 75, scale_fn=lambda cycle: 0.1 * np.ones_like(cycle)),
            450,
            "the scale keeps the first peak down at 0.0015",
        ),
        (OneCycle(MAX, 400), 450, "450 steps, total_steps 400: the last 50 steps hold 2.4e-08; --total_steps=450"),
        (OneCycle(MAX, 900), 450, "before it is down; --total_steps=450"),
        (OneCycle(MAX, 4500), 450, "before it comes to max_lr; --total_steps=450"),
        (OneCycle(MAX, 450, 1.0), 450, "pct_start 1: the rate only climbs, to 0.006"),
        (OneCycle(MAX, 1), 1, "the rate never comes near max_lr 0.006"),
        (LinearRamp(BASE, MAX, 500), 450, "before it comes to end_lr 0.006; --total_steps=450"),
        (CosineRestarts(BASE, MAX, 225), 451, "the run ends at 0.006 and not at the cycle's low"),
        (CosineRestarts(BASE, MAX, 225), 451, "for two whole cycles --first_cycle_steps=226"),
        (
            join([Constant(BASE), Triangular(BASE, MAX, 900)], [50]),
            450,
            "from step 50: 400 steps, step_size 900: the rate",
        ),
        (join([Constant(BASE), Constant(MAX)], [450]), 450, "450 steps, boundary 450: the run ends before it"),
    ],
)
def test_what_wastes_a_run_is_named(schedule, total_steps, sentence):
    assert any(sentence in warning for warning in schedule.describe(total_steps, 30).warnings)


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(0.1),
        Triangular(BASE, BASE, 2000),
        Triangular(BASE, MAX, 75),
        Triangular(BASE, MAX, 100, 50),
        Triangular2(BASE, MAX, 75),
        ExpRange(BASE, MAX, 75, gamma=0.9999),
        OneCycle(MAX, 450),
        CosineRestarts(BASE, MAX, 150),
        LinearRamp(BASE, MAX, 450),
    ],
    ids=repr,
)
def test_nothing_is_said_of_a_run_that_is_well_planned(schedule):
    assert schedule.describe(450, 30).warnings == ()


def test_the_advised_gamma_keeps_the_first_peak_at_nine_tenths():
    flags = advised(ExpRange(0.0, 1.0, 75, gamma=0.9).describe(450, 30).warnings)
    assert ExpRange(0.0, 1.0, 75, gamma=flags["gamma"])(75) == pytest.approx(0.9, rel=1e-5)


@given(st.integers(20, 10**4), st.floats(0.1, 0.95))
def test_nothing_is_said_of_a_one_cycle_of_the_runs_own_length(total_steps, pct_start):
    assert OneCycle(MAX, total_steps, pct_start).describe(total_steps, 30).warnings == ()


@pytest.mark.parametrize(("total_steps", "steps_per_epoch"), [(0, 30), (450, 0)])
def test_lengths_below_1_are_refused(total_steps, steps_per_epoch):
    with pytest.raises(ValueError, match=r"must be at least 1, received 0"):
        Constant(0.1).describe(total_steps, steps_per_epoch)


def test_a_schedule_of_an_unknown_kind_is_refused():
    class Sawtooth(Schedule):
        def formula(self, ops, steps):
            return 0.001 * (steps % 10)

    with pytest.raises(TypeError, match=r"schedule must be of clr_loop\.schedules"):
        Sawtooth().describe(450, 30)
