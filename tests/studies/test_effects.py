import math
import subprocess
import sys

import numpy as np
import pytest

from clr_loop.studies.comparison.effects import Effect, Sample, compare
from clr_loop.studies.comparison.measures import Measure, is_share
from helpers.made_up_runs import ARMS, make_run, make_runs


def test_effects_recover_what_was_put_in():
    # y = 0.5 + size + schedule + interaction + a seed's own level, which differences seed by seed must cancel.
    size, schedule, interaction = {100: 0.0, 2000: 0.03}, {"constant": 0.0, "triangular": 0.2}, 0.01

    def value(arm, seed):
        both = arm.batch_size == 2000 and arm.schedule_name == "triangular"
        return 0.5 + size[arm.batch_size] + schedule[arm.schedule_name] + interaction * both + 0.05 * seed

    runs = [
        make_run(arm, seed, value(arm, seed), epoch_seconds=2.0 if arm.batch_size == 100 else 0.5)
        for arm in ARMS
        for seed in range(3)
    ]
    found = {(effect.measure, effect.factor): effect.sample for effect in compare(runs).effects}
    expected = {
        "batch_size": 0.03 + 0.01 / 2, "schedule": 0.2 + 0.01 / 2, "interaction": 0.01, "both": 0.03 + 0.2 + 0.01,
    }  # fmt: skip
    for factor, amount in expected.items():
        assert found["val_accuracy", factor].values == pytest.approx([amount] * 3)
    assert found["epoch_seconds", "batch_size"].mean == -1.5
    assert found["epoch_seconds", "schedule"].mean == 0.0


def test_a_factor_with_one_level_has_no_effect():
    runs = [make_run(arm, 0, 0.5) for arm in ARMS if arm.batch_size == 100]
    assert {effect.factor for effect in compare(runs).effects} == {"schedule"}


def test_an_unknown_measure_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"no measure val_auc; choose one of loss, accuracy, val_loss, val_accuracy\."):
        compare(make_runs([[0.5]] * 4), Measure("val_auc"))


def test_a_value_that_is_not_finite_cannot_be_compared():
    with pytest.raises(ValueError, match=r"val_accuracy is nan in triangular, batch 100, seed 0; it cannot"):
        compare(make_runs([[0.5], [math.nan], [0.5], [0.5]]))


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ([(3, 0), (3, 1)], "are not a whole grid; give every batch size with every schedule"),
        ([(2, 1)], "seed 1 of constant, batch 2000 is missing"),
    ],
)
def test_runs_that_are_not_a_whole_grid_are_refused(left_out, message):
    runs = [run for run in make_runs([[0.5, 0.6]] * 4) if (ARMS.index(run.arm), run.seed) not in left_out]
    with pytest.raises(ValueError, match=message):
        compare(runs)


def test_a_run_that_is_there_twice_and_runs_of_unequal_length_are_refused():
    runs = make_runs([[0.5, 0.6]] * 4)
    with pytest.raises(ValueError, match="seed 0 of constant, batch 100 is there twice"):
        compare([*runs, runs[0]])
    with pytest.raises(ValueError, match="differ in length, from 14 to 15 epochs"):
        compare([*runs[:-1], make_run(ARMS[3], 1, 0.5, num_epochs=14)])


def test_rounding_is_no_effect():
    # The same gain of 0.2 at both batch sizes, in numbers whose float64 differences are not the same.
    values = [[0.1, 0.4, 0.6], [0.3, 0.6, 0.8], [0.7, 0.5, 0.2], [0.9, 0.7, 0.4]]
    assert 0.3 - 0.1 - (0.9 - 0.7) != 0.0
    (interaction,) = [
        e for e in compare(make_runs(values)).effects if e.factor == "interaction" and e.measure == "val_accuracy"
    ]
    assert interaction.sample.values == (0.0, 0.0, 0.0)
    assert interaction.p_corrected == 1.0
    assert interaction.verdict == "small"


def make_effect(values, p_corrected, level=0.05):
    return Effect("val_accuracy", "schedule", "", Sample(tuple(values)), p_corrected, level)


def test_a_difference_that_is_the_same_for_every_seed_is_shown_unless_it_is_zero():
    found = {e.factor: e for e in compare(make_runs([[0.5] * 3, [0.75] * 3, [0.5] * 3, [0.75] * 3])).effects[:4]}
    verdicts = {factor: (effect.p_corrected, effect.verdict) for factor, effect in found.items()}
    assert verdicts == {
        "schedule": (0.0, "shown"), "both": (0.0, "shown"), "batch_size": (1.0, "small"), "interaction": (1.0, "small"),
    }  # fmt: skip


def test_from_one_seed_there_is_nothing_to_test():
    effect = compare(make_runs([[0.5], [0.75], [0.5], [0.75]])).effects[0]
    told = (effect.p, effect.p_corrected, effect.detectable_difference, effect.seeds_for_half, effect.seeds_to_tell)
    assert told == (None,) * 5
    assert effect.verdict == "one seed"


def test_a_difference_is_shown_by_its_corrected_p_value_and_not_by_its_interval():
    values = (0.1, 0.2, 0.3, 0.4)
    assert make_effect(values, 0.05).verdict == "shown"
    assert make_effect(values, 0.0501).verdict == "undecided"
    assert make_effect(values, 0.0501).sample.interval_95[0] > 0


def test_a_difference_is_small_if_its_interval_lies_within_one_standard_deviation_over_seeds():
    # Ten values of mean 0 and standard deviation 1: the interval ends at 2.262157 / sqrt(10) = 0.715357.
    values = (np.arange(10) - 4.5) / np.arange(10).std(ddof=1)
    verdicts = [make_effect(values + sign * shift, 0.5).verdict for sign in (1, -1) for shift in (0.2846, 0.2847)]
    assert verdicts == ["small", "undecided"] * 2


def test_what_could_have_been_found_is_told_where_no_difference_is_shown():
    values = (np.arange(10) - 4.5) / np.arange(10).std(ddof=1) * 0.02
    undecided = make_effect(values + 0.01, 0.3)
    # For 80% power at 5%, ten pairs find 0.9962 standard deviations, and half of that needs 34 (G*Power 3.1).
    assert undecided.detectable_difference == pytest.approx(0.02 * 0.9962, rel=1e-3)
    assert (undecided.seeds_for_half, undecided.seeds_to_tell) == (34, 18)
    shown = make_effect(values + 0.05, 0.01)
    assert (shown.detectable_difference, shown.seeds_for_half, shown.seeds_to_tell) == (None, None, None)


def test_the_level_is_that_of_the_effects_that_are_not_shown():
    # Of four effects only the schedule's and the one of both are shown: the other two are tested at 0.05 / 2.
    noise = np.random.default_rng(0).normal(0, 0.01, (4, 5))
    values = np.array([[0.5], [0.7], [0.5], [0.7]]) + noise
    effects = compare(make_runs(values)).effects[:4]
    assert [e.factor for e in effects if e.verdict == "shown"] == ["schedule", "both"]
    assert {effect.level for effect in effects} == {0.025}


def test_the_interval_is_that_of_students_t():
    assert Sample((1.0, 3.0)).interval_95 == pytest.approx((2 - 12.706205, 2 + 12.706205))
    low, high = Sample((1.0, 2.0, 6.0)).to_json()["interval_95"]
    half = 4.302653 * math.sqrt((4 + 1 + 9) / 2 / 3)
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    assert Sample((0.25,) * 3).interval_95 == (0.25, 0.25)


def test_a_sample_of_one_has_no_spread():
    sample = Sample((0.5,))
    assert (sample.mean, sample.sd, sample.interval_95, sample.to_json()["interval_95"]) == (0.5, None, None, None)


def test_a_measure_knows_its_direction_its_words_and_its_unit():
    assert [Measure(name).words for name in ("val_top_5_accuracy", "loss")] == [
        "validation top 5 accuracy",
        "training loss",
    ]
    assert Measure("val_accuracy").higher_is_better is True
    assert Measure("val_loss").higher_is_better is False
    assert Measure("val_loss", higher_is_better=True).higher_is_better is True
    shares = ("accuracy", "val_accuracy", "sparse_top_k_categorical_accuracy", "acc", "val_acc")
    assert all(map(is_share, shares))
    assert not any(map(is_share, ("loss", "val_mae", "r2_score", "accumulated")))


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("val_accuracy", 90, r"target is 90, but val_accuracy is a share from 0 to 1 \(0.9 means 90%\)"),
        ("val_loss", math.inf, "target is inf, but val_loss is a finite number"),
    ],
)
def test_a_target_that_cannot_be_is_refused(name, target, message):
    with pytest.raises(ValueError, match=message):
        Measure(name, target=target)
    assert Measure("val_loss", target=90).target == 90


def test_the_target_is_reached_from_the_side_of_the_measure():
    runs = make_runs([[0.3], [0.2], [0.5], [0.1]], measure="val_loss")
    reached = [arm.seconds_to_target for arm in compare(runs, Measure("val_loss", target=0.25)).arms]
    assert reached == [(math.inf,), (pytest.approx(0.2),), (math.inf,), (pytest.approx(0.1),)]
    the_other_way = Measure("val_loss", higher_is_better=True, target=0.25)
    assert [arm.num_reached for arm in compare(runs, the_other_way).arms] == [1, 0, 1, 0]


def test_a_comparison_without_a_timed_seed_is_refused():
    with pytest.raises(ValueError, match=r"No seed was timed in every arm; run at least one seed alone"):
        compare(make_runs([[0.5]] * 4, num_timed=0))


def test_effects_and_the_pictures_of_a_run_need_no_tensorflow():
    modules = "clr_loop.studies.comparison.effects, clr_loop.studies.pictures.runs"
    code = f"import sys, {modules}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
