import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from clr_loop.schedules import (
    Constant,
    CosineDecay,
    CosineRestarts,
    Cyclic,
    ExponentialRamp,
    ExpRange,
    LinearDecay,
    LinearRamp,
    OneCycle,
    OneTriangle,
    Schedule,
    Triangular,
    Triangular2,
    describe,
    join,
)

BASE, MAX = 0.001, 0.006


def advised(warnings):
    """The arguments that the warnings name: {name: number}; warnings that name the same must agree."""
    found = {flag: float(value) for warning in warnings for flag, value in re.findall(r"\b(\w+)=([\d.]+)", warning)}
    for warning in warnings:
        for flag, value in re.findall(r"\b(\w+)=([\d.]+)", warning):
            assert found[flag] == float(value)
    return found


def test_the_articles_run_is_told_that_it_only_climbs_and_what_to_use_instead():
    description = describe(Triangular(BASE, MAX, 2000), 450, 30)
    assert str(description).splitlines() == [
        "450 steps, 15 epochs: the learning rate starts at 0.001, ends at 0.00212 and is highest (0.00212) at step 449",
        "0.11 cycles; the run ends while the rate climbs, 22% of the way from low to high",
        "note: the run's 450 steps end before the first peak at step 2000, so the rate only climbs, to 0.00212; "
        "for two whole cycles use step_size=112",
        "note: step_size 2000 is 66.7 epochs, and Smith recommends 2 to 10; for two whole cycles use step_size=112",
    ]
    assert describe(Triangular(BASE, MAX, 112), 450, 30).warnings == ()


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
        LinearDecay(BASE, MAX, 450),
        OneTriangle(BASE, MAX, 450),
        LinearRamp(BASE, MAX, 450),
        ExponentialRamp(MAX, BASE, 450),
        join([LinearRamp(0.0, MAX, 20), Triangular(BASE, MAX, 60)], [20]),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_the_figures_are_those_of_the_rates_themselves(schedule):
    rates = schedule(np.arange(450))
    description = describe(schedule, 450, 30)
    assert (description.first_lr, description.last_lr) == pytest.approx((rates[0], rates[-1]), rel=1e-15)
    assert (description.highest_lr, description.highest_step) == (rates.max(), rates.argmax())
    assert (description.total_steps, description.steps_per_epoch) == (450, 30)


SCHEDULES_OF_ANY_LENGTH = [
    st.builds(Constant, st.just(0.1)),
    st.builds(Triangular, st.just(BASE), st.just(MAX), st.integers(1, 3000), st.none() | st.integers(1, 3000)),
    st.builds(Triangular2, st.just(BASE), st.just(MAX), st.integers(1, 3000)),
    st.builds(ExpRange, st.just(0.0), st.just(MAX), st.integers(1, 3000), gamma=st.floats(0.5, 1.0)),
    st.builds(OneCycle, st.just(MAX), st.integers(1, 3000), st.floats(0, 1)),
    st.builds(CosineRestarts, st.just(BASE), st.just(MAX), st.integers(1, 500), st.integers(1, 3), st.floats(0.1, 1)),
    st.builds(LinearRamp, st.sampled_from([0.0, 1.0]), st.just(0.5), st.integers(2, 3000)),
]


@given(st.one_of(SCHEDULES_OF_ANY_LENGTH), st.one_of(SCHEDULES_OF_ANY_LENGTH), st.integers(1, 3000), st.data())
@pytest.mark.filterwarnings("ignore:.*holds its last rate")
def test_the_highest_rate_is_that_of_every_step_looked_at(first, second, total_steps, data):
    for schedule in (first, join([first, second], [data.draw(st.integers(1, 3000))])):
        rates = schedule(np.arange(total_steps))
        description = describe(schedule, total_steps, 30)
        assert description.highest_lr == pytest.approx(rates.max(), rel=1e-14)
        assert rates[description.highest_step] == pytest.approx(rates.max(), rel=1e-14)
        assert description.num_samples is None


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(0.1),
        Triangular(BASE, MAX, 3, 4),
        Triangular2(BASE, MAX, 10**8),
        ExpRange(0.0, MAX, 10**9, gamma=1 - 1e-8),
        OneCycle(MAX, 6 * 10**8),
        CosineRestarts(BASE, MAX, 3),
        LinearRamp(0.0, MAX, 10**9),
        join([LinearRamp(0.0, MAX, 10**6), CosineRestarts(BASE, MAX, 7)], [10**6]),
        Cyclic(BASE, MAX, 5, scale_fn=lambda cycle: 1 / cycle),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_a_long_run_is_described_from_a_bounded_number_of_steps(schedule):
    num_looked_at = 0

    def counted(formula):
        def call(ops, steps):
            nonlocal num_looked_at
            num_looked_at += np.size(steps)
            return formula(ops, steps)

        return call

    object.__setattr__(schedule, "formula", counted(schedule.formula))
    describe(schedule, 6 * 10**8 + 1, 600)
    assert 0 < num_looked_at <= 2**17


def test_a_scale_function_of_ones_own_is_sampled_over_a_long_run_with_its_peaks_and_this_is_said():
    late = Cyclic(BASE, MAX, 1001, scale_fn=lambda step: np.minimum(step / 10**7, 1.0), scale_mode="iterations")
    description = describe(late, 10**7, 1000)
    assert description.highest_lr == pytest.approx(MAX, rel=0.01)
    assert description.num_samples <= 2**16
    assert f"of the {description.num_samples:,} sampled steps" in str(description)
    assert describe(late, 2**16, 1000).num_samples is None


def test_the_advice_does_not_contradict_the_count_of_cycles():
    lines = str(describe(Triangular(BASE, MAX, 30), 120, 30)).splitlines()
    assert lines[1:] == [
        "2.00 cycles; the run ends at the end of a cycle",
        "note: step_size 30 is 1 epoch, and Smith recommends 2 to 10; for one whole cycle use step_size=60",
    ]


@pytest.mark.parametrize("down", [None, 3])
def test_the_advice_for_short_cycles_in_a_long_run_is_within_what_smith_recommends(down):
    warnings = describe(Triangular(BASE, MAX, 7, down), 6 * 10**8 + 1, 600).warnings
    assert "step_size 7 is 0.0117 epochs" in warnings[-1]
    assert 1200 <= advised(warnings)["step_size"] <= 6000


def test_more_epochs_are_advised_for_a_slow_climb_only_as_many_as_hold_its_cycle():
    (note,) = describe(Triangular(BASE, MAX, 30, 90), 120, 30).warnings
    assert note.endswith("a cycle with such a climb takes 8 epochs or more")
    assert describe(Triangular(BASE, MAX, 60, 180), 240, 30).warnings == ()


@pytest.mark.parametrize(
    ("schedule", "cycles", "end"),
    [
        (Triangular(BASE, MAX, 75), 3.0, "at the end of a cycle"),
        (Triangular(BASE, MAX, 449), 450 / 898, "while the rate falls, 100% of the way from low to high"),
        (Triangular(BASE, MAX, 300), 0.75, "while the rate falls, 50% of the way from low to high"),
        (Triangular(BASE, MAX, 100, 300), 1.125, "while the rate climbs, 49% of the way from low to high"),
        (CosineRestarts(BASE, MAX, 150), 3.0, "at the end of a cycle"),
        (CosineRestarts(BASE, MAX, 100, 2), 2.375, "while the rate falls, 69% of the way from low to high"),
        (OneCycle(MAX, 450), 1.0, "at the end of the cycle"),
        (OneCycle(MAX, 400), 1.0, "after the cycle"),
        (OneCycle(MAX, 900), 0.5, "before the cycle does"),
        (OneCycle(MAX, 4500), 0.1, "before the cycle does"),
        (OneTriangle(BASE, MAX, 450), 1.0, "at the end of the cycle"),
        (OneTriangle(BASE, MAX, 900), 0.5, "before the cycle does"),
        (LinearDecay(BASE, MAX, 450), None, "at the end of the decay"),
        (CosineDecay(BASE, MAX, 500), None, "before the decay does"),
        (LinearRamp(BASE, MAX, 450), None, "at the end of the ramp"),
        (LinearRamp(BASE, MAX, 500), None, "before the ramp does"),
        (Constant(BASE), None, "at the rate it began with"),
        (join([Triangular(BASE, MAX, 50), Triangular(BASE, MAX, 25)], [200]), 7.0, "at the end of a cycle"),
        (join([Triangular(BASE, MAX, 50), Constant(BASE)], [200]), 2.0, "at the rate it began with"),
    ],
)
def test_cycles_and_the_end_of_the_run_are_named(schedule, cycles, end):
    description = describe(schedule, 450, 30)
    assert description.cycles == (None if cycles is None else pytest.approx(cycles))
    assert description.end == end


@given(
    total_steps=st.integers(2, 3000),
    step_size=st.integers(1, 5000),
    down=st.none() | st.integers(1, 5000),
    steps_per_epoch=st.integers(1, 300),
)
def test_the_advised_lengths_of_a_triangle_end_at_the_low_after_max_lr(total_steps, step_size, down, steps_per_epoch):
    warnings = describe(Triangular(BASE, MAX, step_size, down), total_steps, steps_per_epoch).warnings
    flags = advised(warnings)
    assume("step_size" in flags)
    better = Triangular(BASE, MAX, int(flags["step_size"]), int(flags["step_size_down"]) if down else None)
    rates = better(np.arange(total_steps))
    assert rates.max() == MAX
    (cycles,) = {match for warning in warnings for match in re.findall(r"for (\S+) whole cycle", warning)}
    assert {"one": 1, "two": 2}.get(cycles) or int(cycles) == round(total_steps / better.period)
    # Within a step of the cycle's end, or a tenth of the way up.
    assert total_steps % better.period == 0 or rates[-1] <= BASE + 0.1 * (MAX - BASE) * (1 + 1e-9)
    assert all("Smith recommends" in warning for warning in describe(better, total_steps, steps_per_epoch).warnings)


@pytest.mark.parametrize("epochs", [4, 5, 15, 37, 300])
@pytest.mark.parametrize("step_size", [1, 7, 50, 700, 10**6])
def test_where_a_run_is_long_enough_the_advice_leaves_no_warning(epochs, step_size):
    flags = advised(describe(Triangular(BASE, MAX, step_size), epochs * 60, 60).warnings)
    better = Triangular(BASE, MAX, int(flags.get("step_size", step_size)))
    assert describe(better, epochs * 60, 60).warnings == ()


@given(st.integers(2, 3000), st.integers(1, 5000), st.integers(1, 4))
def test_the_advised_first_cycle_ends_the_run_at_a_low(total_steps, first, t_mul):
    flags = advised(describe(CosineRestarts(BASE, MAX, first, t_mul), total_steps, 30).warnings)
    assume("first_cycle_steps" in flags)
    better = CosineRestarts(BASE, MAX, int(flags["first_cycle_steps"]), t_mul)
    assert describe(better, total_steps, 30).warnings == ()
    rates = better(np.arange(total_steps + 1))
    assert rates[-2] <= BASE + 0.1 * (MAX - BASE) * (1 + 1e-9) or rates[-1] == MAX


@pytest.mark.parametrize(
    ("schedule", "total_steps", "sentence"),
    [
        (Triangular(BASE, MAX, 300), 450, "the run ends at 0.00352 and not at the low of a cycle"),
        (Triangular(BASE, MAX, 15), 450, "step_size 15 is 0.5 epochs, and Smith recommends 2 to 10"),
        (Triangular(BASE, MAX, 15), 60, "a cycle with such a climb takes 4 epochs or more"),
        (
            Triangular(BASE, MAX, 1),
            1,
            "the run has 1 step, which cannot hold a cycle; train for more",
        ),
        (
            OneCycle(MAX, 400),
            450,
            "the run has 450 steps and the schedule 400: the rate is held at 2.4e-08 for the last 50 steps; use",
        ),
        (OneCycle(MAX, 900), 450, "before the cycle does; use total_steps=450"),
        (OneCycle(MAX, 4500), 450, "before the cycle does; use total_steps=450"),
        (
            CosineDecay(BASE, MAX, 400),
            450,
            "the schedule 400: the rate is held at 0.001 for the last 50 steps; use total_steps=450",
        ),
        (OneTriangle(BASE, MAX, 900), 450, "the rate ends at 0.00599, before the cycle does; use total_steps=450"),
        (LinearRamp(BASE, MAX, 500), 450, "before the ramp does; use total_steps=450"),
        (CosineRestarts(BASE, MAX, 225), 451, "the run ends at 0.006 and not at the low of a cycle"),
        (CosineRestarts(BASE, MAX, 225), 451, "for two whole cycles use first_cycle_steps=226"),
        (
            join([Constant(BASE), Triangular(BASE, MAX, 900)], [50]),
            450,
            "from step 50: the run's 400 steps end before the first peak at step 900",
        ),
        (
            join([Constant(BASE), Constant(MAX)], [450]),
            450,
            "the run ends before boundary 450; give a boundary below 450",
        ),
    ],
)
def test_what_wastes_a_run_is_named(schedule, total_steps, sentence):
    assert any(sentence in warning for warning in describe(schedule, total_steps, 30).warnings)


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
        LinearDecay(BASE, MAX, 450),
        CosineDecay(BASE, MAX, 450),
        OneTriangle(BASE, MAX, 450),
        LinearRamp(BASE, MAX, 450),
    ],
    ids=repr,
)
def test_nothing_is_said_of_a_run_that_is_well_planned(schedule):
    assert describe(schedule, 450, 30).warnings == ()


@pytest.mark.parametrize(
    "schedule", [ExpRange(BASE, MAX, 2000, gamma=0.99), Cyclic(BASE, MAX, 2000, None, np.reciprocal)]
)
def test_a_scaled_rate_is_not_said_to_climb_where_it_falls(schedule):
    assert "only climbs" not in str(describe(schedule, 450, 30))


@given(st.integers(20, 10**4), st.floats(0.1, 0.95))
def test_nothing_is_said_of_a_one_cycle_of_the_runs_own_length(total_steps, pct_start):
    assert describe(OneCycle(MAX, total_steps, pct_start), total_steps, 30).warnings == ()


def test_nothing_is_said_of_a_control_in_a_run_far_longer_than_a_cycle_should_be():
    for kind in (OneTriangle, LinearDecay, CosineDecay):
        assert describe(kind(BASE, MAX, 30_000), 30_000, 30).warnings == ()


@pytest.mark.parametrize(("total_steps", "steps_per_epoch"), [(0, 30), (450, 0)])
def test_lengths_below_1_are_refused(total_steps, steps_per_epoch):
    with pytest.raises(ValueError, match=r"(total_steps|steps_per_epoch) is 0; it must be at least 1"):
        describe(Constant(0.1), total_steps, steps_per_epoch)


class Sawtooth(Schedule):
    def formula(self, ops, steps):
        return 0.001 * (steps % 10)


def test_of_a_schedule_of_an_unknown_kind_every_step_of_a_short_run_is_looked_at_and_a_sample_of_a_long_one():
    assert str(describe(Sawtooth(), 45, 30)).startswith(
        "45 steps, 1.5 epochs: the learning rate starts at 0, ends at 0.004 and is highest (0.009) at step 9\n"
    )
    assert 2**15 < describe(Sawtooth(), 10**6, 30).num_samples <= 2**16


def test_what_is_no_schedule_is_refused():
    with pytest.raises(TypeError, match=r"not a schedule of clr_loop\.schedules"):
        describe(lambda steps: steps, 450, 30)
