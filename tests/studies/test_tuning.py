"""Equal tuning, on trials that a function answers and on real ones."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest

from clr_loop.data import Examples, build_model, hold_out, load
from clr_loop.loop.options import StepOptions
from clr_loop.schedules import (
    Constant,
    CosineDecay,
    CosineRestarts,
    ExponentialRamp,
    LinearDecay,
    OneCycle,
    OneTriangle,
    Triangular,
)
from clr_loop.studies.arms import Arm
from clr_loop.studies.comparison import tuning
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.runner import Plan, run_arms
from helpers.made_up_runs import make_run

ARMS = [
    Arm(size, name, schedule)
    for size in (100, 2000)
    for name, schedule in {"constant": Constant(0.1), "triangular": Triangular(0.001, 0.006, 10)}.items()
]
CONTROLS = (OneTriangle, LinearDecay, CosineDecay)
PLAN = Plan(ARMS, [tuning.SEED], 1)


def rate_of(arm):
    config = arm.schedule.to_config()
    return config.get("learning_rate", config.get("max_lr"))


class Answers:
    """Runs trials whose accuracy is highest at a rate of its own for each batch size; notes the plans it was given."""

    def __init__(self, best, diverges_from=math.inf):
        self.best, self.diverges_from, self.plans = best, diverges_from, []

    def __call__(self, plan):
        self.plans.append(plan)
        return [
            make_run(arm, seed, 0.9 - 0.01 * abs(math.log2(rate_of(arm) / self.best[arm.batch_size])), num_epochs=1)
            for arm in plan.arms
            for seed in plan.seeds
            if rate_of(arm) < self.diverges_from
        ]


def test_all_schedules_of_a_batch_size_get_the_same_rates_around_its_range_test():
    answers = Answers({100: 0.004, 2000: 0.01})
    found = tuning.tune(PLAN, {100: 0.008, 2000: 0.02}, 8, answers)
    assert [search.arm for search in found] == ARMS
    for search in found:
        center = {100: 0.008, 2000: 0.02}[search.arm.batch_size]
        rates = [trial.learning_rate for trial in search.trials]
        np.testing.assert_allclose(rates, center * 2.0 ** np.arange(-5, 3), rtol=5e-3)  # Three digits.
        assert search.best.learning_rate == pytest.approx(answers.best[search.arm.batch_size], rel=5e-3)
        assert (search.edge, search.widened) == (None, False)
    assert [plan.seeds for plan in answers.plans] == [[tuning.SEED]] * 2


@pytest.mark.parametrize(("best", "edge"), [(1.0, None), (100.0, "upper"), (4e-4, None), (1e-9, "lower")])
def test_a_best_rate_at_the_edge_widens_the_grid_there_once(best, edge):
    answers = Answers({100: best, 2000: 0.01})
    found = tuning.tune(PLAN, {100: 0.1, 2000: 0.02}, 8, answers)
    for search in found[:2]:
        rates = [trial.learning_rate for trial in search.trials]
        assert (len(rates), search.widened, search.edge) == (12, True, edge)
        np.testing.assert_allclose(np.diff(np.log2(rates)), 1.0, atol=0.02)
    assert [len(search.trials) for search in found[2:]] == [8, 8]
    assert len(answers.plans) == 3


def test_a_trial_that_diverges_has_no_value():
    (search, *_) = tuning.tune(PLAN, dict.fromkeys((100, 2000), 0.02), 8, Answers({100: 0.01, 2000: 0.01}, 0.03))
    assert [trial.value is None for trial in search.trials] == [False] * 6 + [True] * 2


def test_the_lowest_loss_is_the_best():
    plan = dataclasses.replace(PLAN, measure=Measure("val_loss"))

    def run_trials(plan):
        return [make_run(arm, 0, abs(math.log2(rate_of(arm) / 0.01)), "val_loss", 1) for arm in plan.arms]

    for search in tuning.tune(plan, dict.fromkeys((100, 2000), 0.02), 8, run_trials):
        assert search.best.learning_rate == pytest.approx(0.01)


@pytest.mark.parametrize(
    "schedule", [Constant(0.1), Triangular(0.01, 0.06, 20), OneCycle(0.1, 100), CosineRestarts(0.01, 0.06, 50)]
)
def test_a_schedule_at_a_rate_has_it_as_its_highest_and_a_fourth_as_the_base_of_its_cycle(schedule):
    at_rate = tuning.at_rate(schedule, 0.3)
    rates = at_rate(np.arange(100))
    assert rates.max() == pytest.approx(0.3)
    if "base_lr" in schedule.to_config():
        assert at_rate.base_lr == pytest.approx(0.075)
    for name in ("step_size", "first_cycle_steps", "total_steps"):
        assert getattr(at_rate, name, None) == getattr(schedule, name, None)


@pytest.mark.parametrize("total_steps", [450, 449])
def test_tuned_controls_have_the_highest_lowest_and_mean_rate_of_two_cycles_up_to_rounded_lengths(total_steps):
    steps, quarter = np.arange(total_steps), math.ceil(total_steps / 4)
    schedules = [Triangular(0.001, 0.006, quarter), *(kind(0.001, 0.006, total_steps) for kind in CONTROLS)]
    for rates in [tuning.at_rate(schedule, 0.3)(steps) for schedule in schedules]:
        assert (rates.min(), rates.max()) == pytest.approx((0.075, 0.3))
        assert rates.mean() == pytest.approx(0.1875, rel=2 / total_steps)


def test_what_cannot_be_tuned_is_refused():
    with pytest.raises(ValueError, match="ExponentialRamp has no highest rate to tune"):
        tuning.at_rate(ExponentialRamp(1e-6, 1.0, 100), 0.1)
    with pytest.raises(ValueError, match="tune is 2; it must be at least 3"):
        tuning.tune(PLAN, dict.fromkeys((100, 2000), 0.02), 2, Answers({}))


def test_a_real_arm_is_tuned_on_held_out_examples_and_a_run_that_diverges_is_left_out(tmp_path):
    mnist = load("mnist")
    small = dataclasses.replace(mnist, train=Examples(mnist.train.inputs[:1000], mnist.train.targets[:1000]))
    held_out = hold_out(small)
    plan = Plan([Arm(90, "constant", Constant(0.1))], [tuning.SEED], 1)
    make_model = partial(build_model, "relu_mlp", small)
    options = {"resume": True, "skip_diverged": True, "step_options": StepOptions(jit_compile=False)}
    seen = []

    def run_trials(plan):
        seen.append(run_arms(held_out, make_model, plan, tmp_path, **options))
        return seen[-1]

    (search,) = tuning.tune(plan, {90: 0.002}, 3, run_trials)
    assert 0.0005 < search.best.learning_rate < 0.05
    assert all(run.result.num_examples == 900 for run in seen[0])
    again = tuning.tune(plan, {90: 0.002}, 3, run_trials)
    assert again == [search]  # Read back, not run again.
    wild = dataclasses.replace(plan, arms=[Arm(90, "constant", Constant(1e30))])
    assert run_trials(wild) == []
