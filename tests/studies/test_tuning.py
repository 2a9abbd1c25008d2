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
from clr_loop.studies.comparison.plan import Plan
from clr_loop.studies.comparison.runner import run_arms
from helpers.made_up_runs import make_run

ARMS = [
    Arm(size, name, schedule)
    for size in (100, 2000)
    for name, schedule in {"constant": Constant(0.1), "triangular": Triangular(0.001, 0.006, 10)}.items()
]
CONTROLS = (OneTriangle, LinearDecay, CosineDecay)
PLAN = Plan(ARMS, tuning.trial_seeds(3), 1)


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
        assert search.learning_rate == pytest.approx(answers.best[search.arm.batch_size], rel=0.1)
        assert (search.edge, search.widened) == (None, False)
    assert [plan.seeds for plan in answers.plans] == [[2**32 - 1, 2**32 - 2, 2**32 - 3]] * 2


def test_each_rate_keeps_what_each_of_its_seeds_gave_in_the_order_of_the_seeds():
    def run_trials(plan):
        return [make_run(arm, seed, rate_of(arm) + (2**32 - seed), "val_loss", 1) for seed in plan.seeds[::-1]
                for arm in plan.arms[::-1]]  # fmt: skip

    plan = dataclasses.replace(PLAN, measure=Measure("val_loss"))
    for search in tuning.tune(plan, dict.fromkeys((100, 2000), 0.02), 8, run_trials):
        for trials in search.trials:
            assert trials.values == pytest.approx([trials.learning_rate + place for place in (1, 2, 3)])
            assert trials.seconds == pytest.approx(3 * (0.2 if search.arm.batch_size == 100 else 0.1))


def test_trials_have_seeds_that_no_compared_run_has():
    assert tuning.trial_seeds(3, taken=[0, 2**32 - 2, 2**32 - 1]) == [2**32 - 3, 2**32 - 4, 2**32 - 5]


@pytest.mark.parametrize(
    ("best", "num_rates", "edge"),
    [(1.0, 12, None), (16.0, 16, None), (1e6, 16, "upper"), (4e-4, 12, None), (1e-9, 16, "lower")],
)
def test_a_best_mean_at_the_edge_widens_the_grid_there_until_it_is_twice_as_long(best, num_rates, edge):
    answers = Answers({100: best, 2000: 0.01})
    found = tuning.tune(PLAN, {100: 0.1, 2000: 0.02}, 8, answers)
    for search in found[:2]:
        rates = [trials.learning_rate for trials in search.trials]
        assert (len(rates), search.widened, search.edge) == (num_rates, True, edge)
        np.testing.assert_allclose(np.diff(np.log2(rates)), 1.0, atol=0.02)
        assert edge or search.learning_rate == pytest.approx(best, rel=0.15)
    assert [len(search.trials) for search in found[2:]] == [8, 8]
    assert len(answers.plans) == {12: 3, 16: 4}[num_rates]


def test_a_rate_at_which_a_run_diverges_is_never_picked():
    (search, *_) = tuning.tune(PLAN, dict.fromkeys((100, 2000), 0.02), 8, Answers({100: 0.08, 2000: 0.01}, 0.03))
    assert [trials.finished is None for trials in search.trials] == [False] * 6 + [True] * 2
    assert search.best.learning_rate == search.nearest.learning_rate == 0.02
    assert (search.edge, search.widened) == (None, False)
    assert 0.015 < search.learning_rate <= 0.02


def test_an_arm_that_diverges_at_most_rates_is_tried_at_lower_ones():
    found = tuning.tune(PLAN, dict.fromkeys((100, 2000), 0.02), 8, Answers({100: 1e-4, 2000: 1e-4}, 0.001))
    assert [search.learning_rate for search in found] == pytest.approx([1e-4] * 4, rel=0.3)
    lost = tuning.tune(PLAN, dict.fromkeys((100, 2000), 0.02), 8, Answers({100: 1, 2000: 1}, 0))[0]
    with pytest.raises(ValueError, match="constant, batch 100 has runs that diverged at 16 of 16 rates, from 2"):
        lost.peak  # noqa: B018


def test_the_lowest_loss_is_the_best():
    plan = dataclasses.replace(PLAN, measure=Measure("val_loss"))

    def run_trials(plan):
        losses = {arm: math.log2(rate_of(arm) / 0.01) ** 2 for arm in plan.arms}
        return [make_run(arm, seed, 1 + loss, "val_loss", 1) for arm, loss in losses.items() for seed in plan.seeds]

    for search in tuning.tune(plan, dict.fromkeys((100, 2000), 0.02), 8, run_trials):
        assert search.learning_rate == pytest.approx(0.01, rel=0.05)
        assert search.peak.score == pytest.approx(1, abs=0.02)
        assert search.to_json()["learning_rate"] == search.learning_rate


def test_the_variance_of_the_picks_goes_to_the_arms_that_are_compared():
    found = tuning.tune(PLAN, dict.fromkeys((100, 2000), 0.02), 8, Answers({100: 0.004, 2000: 0.01}))
    tuned = [dataclasses.replace(arm, schedule=tuning.at_rate(arm.schedule, 0.01)) for arm in ARMS]
    variances = tuning.pick_variances(found, Plan(tuned, [0, 1], 1))
    assert variances == {arm: search.peak.regret_variance for arm, search in zip(tuned, found, strict=True)}
    assert min(variances.values()) > 0


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
    with pytest.raises(ValueError, match="trials is 1; it must be at least 2"):
        tuning.tune(dataclasses.replace(PLAN, seeds=[0]), dict.fromkeys((100, 2000), 0.02), 8, Answers({}))


def test_a_real_arm_is_tuned_on_held_out_examples_and_a_run_that_diverges_is_left_out(tmp_path):
    mnist = load("mnist")
    small = dataclasses.replace(mnist, train=Examples(mnist.train.inputs[:1000], mnist.train.targets[:1000]))
    held_out = hold_out(small)
    plan = Plan([Arm(90, "constant", Constant(0.1))], tuning.trial_seeds(2), 1)
    make_model = partial(build_model, "relu_mlp", small)
    options = {"resume": True, "on_diverged": lambda arm, seed: None, "step_options": StepOptions(jit_compile=False)}
    seen = []

    def run_trials(plan):
        seen.append(run_arms(held_out, make_model, plan, tmp_path, **options))
        return seen[-1]

    (search,) = tuning.tune(plan, {90: 0.002}, 3, run_trials)
    assert 0.0005 < search.learning_rate < 0.05
    assert all(run.result.num_examples == 900 for run in seen[0])
    again = tuning.tune(plan, {90: 0.002}, 3, run_trials)
    assert again == [search]  # Read back, not run again.
    wild = dataclasses.replace(plan, arms=[Arm(90, "constant", Constant(1e30))])
    assert run_trials(wild) == []
