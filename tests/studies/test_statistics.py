import itertools

import numpy as np
import pytest
from scipy import stats

from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.comparison.statistics import (
    ALPHA,
    LEVELS,
    detectable_size,
    holm,
    p_value,
    power,
    standard_error,
)
from helpers.judgments import DISTRIBUTIONS, EFFECTS, OFTEN_FAILING, RUNS, called_equal, rates
from helpers.made_up_runs import make_runs

NUM_COMPARISONS = 4_000
# Three standard errors of a share of 5% over so many comparisons.
LUCK = 3 * np.sqrt(0.05 * 0.95 / NUM_COMPARISONS)


def test_the_p_value_is_that_of_students_t_test():
    # With two values, t has one degree of freedom: it is Cauchy. With three, p is 1 - t / sqrt(2 + t²).
    assert p_value([[0.1, 0.3], [-0.3, -0.1]]) == pytest.approx([1 - 2 * np.arctan(0.2 / 0.1) / np.pi] * 2)
    t = np.sqrt(3) * 3 / np.std([1, 2, 6], ddof=1)
    assert p_value([1.0, 2.0, 6.0]) == pytest.approx(1 - t / np.sqrt(2 + t**2))


def test_differences_that_are_all_equal_have_the_p_value_of_the_sign_test():
    assert p_value([[0.1, 0.1], [-0.2, -0.2], [0.0, 0.0]]).tolist() == [0.5, 0.5, 1.0]
    assert p_value([0.1] * 11) == 2.0**-10


def test_what_the_choice_of_the_rates_adds_to_the_variance_makes_p_larger():
    values, added = np.array([1.0, 2.0, 6.0]), 0.7
    assert standard_error(values, added) ** 2 == pytest.approx(np.var(values, ddof=1) / 3 + added)
    t = 3 / np.sqrt(np.var(values, ddof=1) / 3 + added)
    assert p_value(values, added) == pytest.approx(1 - t / np.sqrt(2 + t**2))


def test_holms_correction_is_the_closed_test_of_bonferroni():
    for p in np.random.default_rng(1).uniform(0, 0.3, (40, 4)):
        every_subset = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
        closed = [max(min(1.0, len(s) * p[list(s)].min()) for s in every_subset if i in s) for i in range(4)]
        assert holm(p) == pytest.approx(closed)


def test_the_effects_of_a_comparison_are_tested_on_their_differences_and_all_corrected_together():
    runs = RUNS[24:30]  # Of which none has failed.
    effects = compare(make_runs(runs.T.tolist(), num_timed=6)).effects
    p = stats.ttest_1samp(runs @ EFFECTS.T, 0.0).pvalue
    assert [effect.p for effect in effects[:4]] == pytest.approx(p)
    assert [effect.p_corrected for effect in effects] == pytest.approx(holm([effect.p for effect in effects]))


@pytest.mark.parametrize("n", [8, 11])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_of_equal_arms_one_comparison_in_twenty_shows_something_and_the_interval_holds(name, n):
    found = rates(name, n, NUM_COMPARISONS)
    assert found["any shown"] <= ALPHA + LUCK
    assert found["interval holds"] >= 0.93
    assert found["silent"] <= 0.25


@pytest.mark.parametrize("n", [8, 11])
@pytest.mark.parametrize("name", OFTEN_FAILING)
def test_where_many_runs_fail_seldom_anything_is_said_and_what_is_said_holds(name, n):
    found = rates(name, n, NUM_COMPARISONS)
    assert found["any shown"] <= ALPHA + LUCK
    assert found["interval holds"] >= 0.93
    assert found["silent"] >= 0.3


@pytest.mark.parametrize("n", [8, 11])
@pytest.mark.parametrize("name", DISTRIBUTIONS | OFTEN_FAILING)
def test_where_the_typical_run_is_better_by_half_a_point_the_wrong_sign_is_seldom_shown(name, n):
    assert rates(name, n, NUM_COMPARISONS, gain=0.005)["wrong sign"] <= 0.025


@pytest.mark.parametrize("n", [8, 11])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_arms_that_differ_by_the_margin_are_seldom_called_less_than_it_apart(name, n):
    assert called_equal(name, n, 0.005, NUM_COMPARISONS) <= ALPHA


def test_on_all_seeds_the_interval_of_an_arm_that_sometimes_fails_does_not_hold():
    assert rates("1 in 10 of the last arm fails", 11, NUM_COMPARISONS, knows_failures=False)["interval holds"] < 0.75


@pytest.mark.parametrize("looks", LEVELS)
def test_the_levels_of_the_looks_make_one_in_twenty_in_all(looks):
    differences = np.random.default_rng(looks).normal(size=(40_000, 60))
    ends = [round(60 * look / looks) for look in range(1, looks + 1)]
    shown = [p_value(differences[:, :end]) <= LEVELS[looks] for end in ends]
    assert np.any(shown, axis=0).mean() == pytest.approx(ALPHA, abs=0.004)


@pytest.mark.parametrize(("size", "n", "level"), [(1.2, 5, 0.05), (0.5, 20, 0.0125), (4.0, 3, 0.0125), (0.0, 6, 0.05)])
def test_the_power_is_how_often_normal_differences_are_shown_with_the_right_sign(size, n, level):
    values = np.random.default_rng(2).normal(size, 1.0, (40_000, n))
    found = (p_value(values) <= level) & (values.mean(axis=1) > 0)
    assert power(size, n, level) == pytest.approx(found.mean(), abs=0.01)


@pytest.mark.parametrize("level", [ALPHA, ALPHA / 4, ALPHA / 40])
def test_the_detectable_size_is_the_one_that_reaches_the_power(level):
    for n in (2, 3, 5, 30, 300):
        assert power(detectable_size(n, level), n, level) == pytest.approx(0.8, abs=1e-6)
    # Pairs for 80% power at 5%, two-sided: 34 find Cohen's medium difference of 0.5, and 33 do not (G*Power 3.1).
    assert detectable_size(34) < 0.5 < detectable_size(33)
