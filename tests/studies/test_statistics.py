import itertools

import numpy as np
import pytest
from scipy import stats

from clr_loop.studies.comparison.effects import compare
from clr_loop.studies.comparison.statistics import (
    ALPHA,
    critical_size,
    detectable_size,
    holm,
    is_small,
    p_value,
    power,
    seeds_to_show,
    seeds_to_tell,
)
from helpers.made_up_runs import make_runs

# Validation accuracies in 0.01 points of seeds 0 to 22 of `compare_batch_sizes.py --seeds=23`: constant and triangular
# at batch 100, then at batch 2000. The constant rate of 0.1 leaves the network with some digits it never learned.
_RUNS = """
6968 8072 7314 6401 7339 7974 6430 8032 6377 8855 7910 8249 7841 8280 6708 7967 8329 7697 8083 7401 7677 8186 7576
9533 9550 9525 9507 9527 9461 9540 9529 9442 9531 9502 9522 9506 9467 9504 9533 9435 9493 9517 9538 9500 9486 9575
8550 7644 8230 9384 8586 8524 7992 5769 9123 7642 9186 9313 9338 9266 9369 8559 9240 9351 7605 9374 8137 8447 8488
8508 9238 8525 7585 7648 7607 7614 7677 8460 8498 7634 8507 9267 6857 8477 7659 8513 9270 6764 8406 8498 7627 8452
"""
RUNS = 1e-4 * np.array(_RUNS.split(), float).reshape(4, -1).T
# An arm in a column, an effect in a row: batch size, schedule, interaction, both.
EFFECTS = np.array([[-0.5, -0.5, 0.5, 0.5], [-0.5, 0.5, -0.5, 0.5], [1, -1, -1, 1], [-1, 0, 0, 1]])
INTERACTION = np.array([0.25, -0.25, -0.25, 0.25])
EQUAL_ARMS = RUNS - RUNS.mean(axis=0)
INTERACTION_SD = np.sqrt(EQUAL_ARMS.var(axis=0).sum())
NUM_COMPARISONS = 20_000


def draw(n, runs=EQUAL_ARMS):
    """Differences of made-up comparisons of n seeds, [comparison, effect, seed], from the real runs of each arm."""
    rows = np.random.default_rng(n).integers(len(runs), size=(NUM_COMPARISONS, n, 4))
    return np.einsum("ea,cna->cen", EFFECTS, runs[rows, np.arange(4)])


def test_the_p_value_is_that_of_students_t_test():
    # With two values, t has one degree of freedom: it is Cauchy. With three, p is 1 - t / sqrt(2 + t²).
    assert p_value([[0.1, 0.3], [-0.3, -0.1]]) == pytest.approx([1 - 2 * np.arctan(0.2 / 0.1) / np.pi] * 2)
    t = np.sqrt(3) * 3 / np.std([1, 2, 6], ddof=1)
    assert p_value([1.0, 2.0, 6.0]) == pytest.approx(1 - t / np.sqrt(2 + t**2))


def test_holms_correction_is_the_closed_test_of_bonferroni():
    for p in np.random.default_rng(1).uniform(0, 0.3, (40, 4)):
        every_subset = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
        closed = [max(min(1.0, len(s) * p[list(s)].min()) for s in every_subset if i in s) for i in range(4)]
        assert holm(p) == pytest.approx(closed)


def test_the_effects_of_a_comparison_are_tested_on_their_differences_and_corrected_together():
    found = compare(make_runs(RUNS[:6].T.tolist())).effects[:4]
    p = stats.ttest_1samp(RUNS[:6] @ EFFECTS.T, 0.0).pvalue
    assert [effect.p for effect in found] == pytest.approx(p)
    assert [effect.p_corrected for effect in found] == pytest.approx(holm(p))


@pytest.mark.parametrize("n", [3, 4, 5, 8, 12, 16, 20])
def test_arms_that_do_not_differ_seem_to_in_one_comparison_of_twenty_at_most(n):
    false = (holm(p_value(draw(n))) <= ALPHA).any(axis=1).mean()
    assert 0.03 <= false <= ALPHA


@pytest.mark.parametrize("n", [4, 5, 8, 20])
@pytest.mark.parametrize("arm", [0, 2, 3])
def test_arms_that_all_give_the_same_unlike_normal_accuracies_seldom_seem_to_differ(n, arm):
    false = (holm(p_value(draw(n, EQUAL_ARMS[:, [arm] * 4]))) <= ALPHA).any(axis=1).mean()
    assert false <= ALPHA


@pytest.mark.parametrize("n", [3, 5, 8, 16, 20])
def test_a_known_difference_is_found_as_often_as_stated(n):
    # An interaction alone leaves the other three effects 0, so it must pass the first of Holm's four steps.
    known = detectable_size(n, ALPHA / 4) * INTERACTION_SD
    differences = draw(n, EQUAL_ARMS + known * INTERACTION)
    found = (holm(p_value(differences))[:, 2] <= ALPHA) & (differences[:, 2].mean(axis=1) > 0)
    assert found.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("n", [3, 5, 8, 16, 20])
def test_beside_effects_that_are_shown_the_last_one_is_found_as_often_as_stated(n):
    known = detectable_size(n) * INTERACTION_SD
    differences = draw(n, EQUAL_ARMS + known * INTERACTION + [0, 9, 5, 14])
    corrected = holm(p_value(differences))
    assert (corrected[:, [0, 1, 3]] <= ALPHA).all()
    assert (corrected[:, 2] <= ALPHA).mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(("size", "n", "level"), [(1.2, 5, 0.05), (0.5, 20, 0.0125), (4.0, 3, 0.0125), (0.0, 6, 0.05)])
def test_the_power_is_how_often_normal_differences_are_shown_with_the_right_sign(size, n, level):
    values = np.random.default_rng(2).normal(size, 1.0, (40_000, n))
    found = (p_value(values) <= level) & (values.mean(axis=1) > 0)
    assert power(size, n, level) == pytest.approx(found.mean(), abs=0.01)


def test_the_number_of_seeds_is_that_of_the_textbook():
    # Pairs for 80% power at 5%, two-sided: Cohen's small, medium and large difference (G*Power 3.1).
    assert [seeds_to_show(size) for size in (0.2, 0.5, 0.8)] == [199, 34, 15]


@pytest.mark.parametrize("level", [ALPHA, ALPHA / 4, ALPHA / 40])
def test_the_detectable_size_is_the_smallest_that_reaches_the_power(level):
    for n in (2, 3, 5, 30, 300):
        size = detectable_size(n, level)
        assert power(size, n, level) == pytest.approx(0.8, abs=1e-6)
        assert seeds_to_show(size * (1 + 1e-6), level) == n
        assert seeds_to_show(size * (1 - 1e-6), level) == n + 1


@pytest.mark.parametrize("level", [ALPHA, ALPHA / 4])
def test_with_the_seeds_that_would_tell_no_difference_is_left_undecided(level):
    sizes = np.linspace(0, 1.5, 301)

    def undecided(n):
        deviations = stats.zscore(np.arange(n), ddof=1)
        return (p_value(sizes[:, None] + deviations) > level) & ~is_small(sizes, n)

    assert not undecided(seeds_to_tell(level)).any()
    assert undecided(seeds_to_tell(level) - 1).any()


@pytest.mark.parametrize("n", [8, 12, 20])
def test_a_difference_larger_than_the_one_named_as_not_likely_is_seldom_there(n):
    differences, true = draw(n, RUNS), EFFECTS @ RUNS.mean(axis=0)
    mean, sd = differences.mean(axis=2), differences.std(axis=2, ddof=1)
    is_said = (holm(p_value(differences)) > ALPHA) & is_small(abs(mean) / sd, n)
    is_wrong = is_said & (abs(true) > abs(mean) + critical_size(n) * sd)
    assert is_said.any(axis=1).mean() > 0.2
    assert is_wrong.any(axis=1).mean() <= ALPHA
