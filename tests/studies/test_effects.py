import math
import subprocess
import sys

import numpy as np
import pytest

from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.comparison.effects import Contrast, Effect
from clr_loop.studies.comparison.failures import Failures
from clr_loop.studies.comparison.measures import Measure, is_share
from clr_loop.studies.comparison.sample import Sample
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
    found = {(effect.measure.name, effect.factor): effect for effect in compare(runs).effects}
    expected = {
        "batch_size": 0.03 + 0.01 / 2, "schedule": 0.2 + 0.01 / 2, "interaction": 0.01, "both": 0.03 + 0.2 + 0.01,
    }  # fmt: skip
    for factor, amount in expected.items():
        assert found["val_accuracy", factor].differences == pytest.approx([amount] * 3)
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
        e for e in compare(make_runs(values)).effects if e.factor == "interaction" and e.measure.name == "val_accuracy"
    ]
    assert interaction.differences == (0.0, 0.0, 0.0)


def test_differences_that_are_equal_but_for_rounding_have_no_spread():
    values = [[0.1, 0.7, 0.2, 0.4, 0.5], [0.3, 0.9, 0.4, 0.6, 0.7]]
    assert len({b - a for a, b in zip(*values, strict=True)}) > 1
    (effect, _) = compare(make_runs(values, arms=ARMS[:2])).effects
    assert len(set(effect.differences)) == 1
    assert (effect.p, effect.interval) == (2.0**-4, None)


def make_effect(values, p_corrected, **arguments):
    contrast = Contrast("schedule", "", np.array([[-1.0, 1.0]]))
    none = Failures(0, len(values))
    arms = (("triangular",), ("constant",))
    arguments = {"measure": Measure(), "mean_of_all": np.mean(values), "failed": (none, none), **arguments}
    return Effect(contrast=contrast, arms=arms, differences=tuple(values), p_corrected=p_corrected, **arguments)


def test_from_fewer_than_four_seeds_there_is_no_verdict():
    for n in (1, 2, 3):
        effects = compare(make_runs([[0.5] * n, [0.75] * n, [0.5] * n, [0.76] * n])).effects
        assert {(e.verdict, e.p, e.p_corrected, e.detectable_difference) for e in effects} == {("none",) + (None,) * 3}
        assert {e.silence for e in effects} == {"a verdict needs at least 4 seeds"}


def test_a_difference_is_shown_by_its_corrected_p_value_and_not_by_its_interval():
    values = (0.1, 0.2, 0.3, 0.4)
    assert make_effect(values, 0.05).verdict == "shown"
    assert make_effect(values, 0.0501).verdict == "undecided"
    assert make_effect(values, 0.0501).interval[0] > 0
    assert make_effect(values, 0.04, alpha=0.0294).verdict == "undecided"


def test_with_a_margin_what_is_not_shown_may_be_equivalent_or_not_worse():
    # Ten values of mean 0 and standard deviation 0.01: the one-sided interval of 5% ends at 1.833113 / sqrt(10) sd.
    values = 0.01 * (np.arange(10) - 4.5) / np.arange(10).std(ddof=1)
    end = 0.01 * 1.833113 / np.sqrt(10)

    def verdict(shift, margin, **arguments):
        return make_effect(values + shift, 0.5, measure=Measure(margin=margin), **arguments).verdict

    assert [verdict(0.0, margin) for margin in (1.001 * end, 0.999 * end)] == ["equivalent", "undecided"]
    assert [verdict(0.002, end - 0.002 + small) for small in (1e-6, -1e-6)] == ["not worse", "undecided"]
    assert verdict(-0.002, end - 0.002 + 1e-6) == "undecided"
    assert verdict(0.0, 1.001 * end, level=0.0125) == "undecided"
    loss = Measure("val_loss", margin=end - 0.002 + 1e-6)
    assert [make_effect(values + shift, 0.5, measure=loss).verdict for shift in (0.002, -0.002)] == [
        "undecided", "not worse",
    ]  # fmt: skip


def test_what_could_have_been_shown_is_told_where_no_difference_is():
    values = (np.arange(10) - 4.5) / np.arange(10).std(ddof=1) * 0.02
    # For 80% power at 5%, ten pairs find 0.9962 standard deviations (G*Power 3.1).
    assert make_effect(values + 0.01, 0.3).detectable_difference == pytest.approx(0.02 * 0.9962, rel=1e-3)
    assert make_effect(values + 0.05, 0.01).detectable_difference is None
    assert make_effect(60 * values, 0.3).detectable_difference is None  # An accuracy cannot differ by more than 1.


def test_no_interval_holds_a_difference_that_an_accuracy_cannot_have():
    assert make_effect((0.9, -0.9, 0.9, -0.8), 1.0).interval == (-1.0, 1.0)
    low, high = make_effect((0.9, -0.9, 0.9, -0.8), 1.0, measure=Measure("val_loss")).interval
    assert low < -1.0
    assert high > 1.0


def test_the_level_is_that_of_the_tests_that_show_nothing():
    # Of the eight tests the schedule's, the one of both, and the two of the batch size's seconds show something.
    noise = np.random.default_rng(0).normal(0, 0.01, (4, 5))
    values = np.array([[0.5], [0.7], [0.5], [0.7]]) + noise
    effects = compare(make_runs(values, num_timed=5)).effects
    num_open = sum(effect.verdict != "shown" for effect in effects)
    assert [e.factor for e in effects[:4] if e.verdict == "shown"] == ["schedule", "both"]
    assert {effect.level for effect in effects} == {0.05 / num_open}


FINE = [0.940, 0.941, 0.942, 0.943, 0.944, 0.945, 0.946, 0.947]


def test_seeds_with_which_an_arm_failed_are_left_out_of_the_effects_of_that_arm_alone():
    values = [FINE, [value + 0.01 for value in FINE], FINE, [*(value + 0.02 for value in FINE[:7]), 0.76]]
    comparison = compare(make_runs(values, num_timed=8))
    of_factor = {effect.factor: effect for effect in comparison.effects[:4]}
    assert {factor: len(effect.differences) for factor, effect in of_factor.items()} == {
        "batch_size": 7, "schedule": 7, "interaction": 7, "both": 7,
    }  # fmt: skip
    assert of_factor["both"].mean == pytest.approx(0.02)
    assert [effect.failed for effect in comparison.effects[:2]] == [(Failures(1, 16), Failures(0, 16))] * 2
    assert [arm.failures.num_failed for arm in comparison.arms] == [0, 0, 0, 1]
    assert comparison.arms[3].final.values == tuple(values[3])  # The mean of all runs stays.
    assert {len(effect.differences) for effect in comparison.effects[4:]} == {8}  # Times are of all.


def test_where_more_than_a_quarter_of_an_arm_fails_nothing_is_said_of_its_typical_run():
    values = [FINE, [*FINE[:5], 0.76, 0.75, 0.74]]
    effect, _ = compare(make_runs(values, arms=ARMS[:2], num_timed=8)).effects
    assert effect.verdict == "none"
    assert effect.silence == "triangular, batch 100 failed in 3 of 8 runs, so it has no typical run"


def test_better_is_only_said_without_a_reserve_if_failures_do_not_speak_against_it():
    # Nine of forty fail with the change, which is better by a point where it does not: p of Fisher's test is 0.002.
    rng = np.random.default_rng(0)
    constant = 0.94 + 0.001 * rng.uniform(size=40)
    triangular = np.where(np.arange(40) < 9, 0.76, constant + 0.01)
    effect, _ = compare(make_runs([constant, triangular], arms=ARMS[:2], num_timed=40)).effects
    assert effect.verdict == "shown"
    assert effect.is_better
    assert effect.failures_differ
    assert effect.failures_oppose


@pytest.mark.parametrize(
    ("loss", "opposes"), [(0.18, True), (0.05, False)], ids=["turns_the_mean_of_all", "is_made_up_for"]
)
def test_failures_too_few_to_be_shown_speak_against_what_they_turn(loss, opposes):
    better = [value + 0.02 for value in reversed(FINE)]
    effect, _ = compare(make_runs([FINE, [*better[:7], FINE[7] - loss]], arms=ARMS[:2], num_timed=8)).effects
    assert (effect.verdict, effect.is_better, effect.failures_differ) == ("shown", True, False)
    assert effect.failed == (Failures(1, 8), Failures(0, 8))
    assert effect.failures_oppose is opposes


def test_what_diverged_speaks_against_its_own_side_alone():
    better = [value + 0.02 for value in reversed(FINE)]
    runs = make_runs([FINE, better], arms=ARMS[:2], num_timed=8)
    for place, opposes in ((0, False), (1, True)):
        kept = [run for run in runs if (run.arm, run.seed) != (ARMS[place], 3)]
        effect, _ = compare(kept, diverged=[(ARMS[place], 3)]).effects
        assert (effect.verdict, effect.is_better, effect.failures_oppose) == ("shown", True, opposes)


def test_a_seed_with_which_all_arms_diverged_counts():
    runs = [run for run in make_runs([FINE] * 2, arms=ARMS[:2], num_timed=8) if run.seed != 3]
    comparison = compare(runs, Measure(target=0.9), diverged=[(arm, 3) for arm in ARMS[:2]])
    assert comparison.seeds == list(range(8))
    assert [(arm.num_reached, len(arm.reached)) for arm in comparison.arms] == [(7, 8)] * 2
    assert [arm.median_to_target("steps") for arm in comparison.arms] == [1, 1]
    with pytest.raises(ValueError, match="triangular, batch 100 has a run, but it is not among the arms; give all"):
        compare(runs, arms=ARMS[:1])


def test_a_run_that_diverged_counts_as_failed():
    runs = make_runs([FINE, [*FINE[:7], 0.0]], arms=ARMS[:2], num_timed=8)
    comparison = compare(runs[:-1], diverged=[(ARMS[1], 7)])
    accuracy, seconds = comparison.effects
    assert accuracy.failures_p_corrected is not None
    assert (seconds.failed, seconds.failures_p_corrected) == ((Failures(0, 8), Failures(0, 8)), None)  # Counted once.
    assert accuracy.mean_of_all == -math.inf
    assert [arm.failures for arm in comparison.arms] == [Failures(0, 8), Failures(1, 8)]
    assert {len(effect.differences) for effect in comparison.effects} == {7}
    assert comparison.results(ARMS[1]) == [run.result for run in runs[8:-1]]
    with pytest.raises(ValueError, match=r"^Every run diverged; choose lower learning rates\."):
        compare([], arms=ARMS[:2], diverged=[(arm, seed) for arm in ARMS[:2] for seed in range(8)])
    with pytest.raises(ValueError, match="are not a whole grid; give every batch size with every schedule"):
        compare(runs, diverged=[(ARMS[2], 0)])
    with pytest.raises(ValueError, match="seed 7 of triangular, batch 100 is there twice"):
        compare(runs, diverged=[(ARMS[1], 7)])


def test_the_choice_of_the_rates_widens_the_intervals_of_the_measure_alone():
    runs = make_runs([FINE, [*FINE[1:], 0.95]], arms=ARMS[:2], num_timed=8)
    plain, allowed = compare(runs), compare(runs, pick_variances={ARMS[0]: 1e-6, ARMS[1]: 3e-6})
    n, sd = 8, np.std(plain.effects[0].differences, ddof=1)
    half = 2.364624 * np.sqrt(sd**2 / n + 4e-6)
    assert allowed.effects[0].interval == pytest.approx((plain.effects[0].mean - half, plain.effects[0].mean + half))
    assert allowed.effects[1].interval == plain.effects[1].interval


def test_the_question_is_the_last_arm_against_the_first():
    comparison = compare(make_runs([FINE] * 4, num_timed=8))
    assert comparison.question.arms == (("triangular, batch 2000",), ("constant, batch 100",))
    assert compare(make_runs([FINE] * 4, arms=ARMS[:2])).question.factor == "schedule"
    assert compare(make_runs([FINE], arms=ARMS[:1])).question is None


def test_the_ratio_of_the_times_is_the_geometric_mean_over_timed_seeds_with_its_interval():
    runs = [make_run(arm, seed, 0.9, epoch_seconds=seconds)
            for arm, times in zip(ARMS[:2], ((2.0, 4.0, 1.0), (1.0, 1.0, 0.5)), strict=True)
            for seed, seconds in enumerate(times)]  # fmt: skip
    ratio, (low, high) = compare(runs).time_ratio()
    logs = np.log([0.5, 0.25, 0.5])
    assert ratio == pytest.approx(np.exp(logs.mean()))
    assert np.log([low, high]) == pytest.approx(
        logs.mean() + 4.302653 * logs.std(ddof=1) / np.sqrt(3) * np.array([-1, 1])
    )


def test_the_interval_is_that_of_students_t():
    low, high = make_effect((1.0, 2.0, 6.0), 1.0, measure=Measure("val_loss")).interval
    half = 4.302653 * math.sqrt((4 + 1 + 9) / 2 / 3)
    assert (low, high) == pytest.approx((3 - half, 3 + half))
    assert make_effect((0.25,) * 4, 1.0).interval is None


def test_a_sample_of_one_has_no_spread():
    sample = Sample((0.5,))
    assert (sample.mean, sample.median, sample.sd) == (0.5, 0.5, None)


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
    with pytest.raises(ValueError, match="The margin is 0; it is the smallest difference that matters, above 0"):
        Measure(name, margin=0)


def test_the_target_is_reached_from_the_side_of_the_measure():
    runs = make_runs([[0.3], [0.2], [0.5], [0.1]], measure="val_loss")
    reached = [arm.times.seconds_to_target for arm in compare(runs, Measure("val_loss", target=0.25)).arms]
    assert reached == [(math.inf,), (pytest.approx(0.2),), (math.inf,), (pytest.approx(0.1),)]
    the_other_way = Measure("val_loss", higher_is_better=True, target=0.25)
    assert [arm.num_reached for arm in compare(runs, the_other_way).arms] == [1, 0, 1, 0]


def test_a_comparison_without_a_timed_seed_has_effects_on_its_measure_alone():
    comparison = compare(make_runs([FINE] * 4, num_timed=0))
    assert [arm.times for arm in comparison.arms] == [None] * 4
    assert {effect.measure.name for effect in comparison.effects} == {"val_accuracy"}
    assert [arm.to_json()["to_target"]["seconds"] for arm in comparison.arms] == [None] * 4


def test_effects_and_the_pictures_of_a_run_need_no_tensorflow():
    modules = "clr_loop.studies.comparison.effects, clr_loop.studies.pictures.runs"
    code = f"import sys, {modules}; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
