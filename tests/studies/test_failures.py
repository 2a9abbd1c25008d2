import math

import numpy as np
import pytest

from clr_loop.studies.comparison.failures import Failures, failed, p_value

GOOD = [0.940, 0.941, 0.942, 0.943, 0.944, 0.945, 0.946, 0.947, 0.948, 0.950]


def test_a_run_far_below_the_others_has_failed_and_the_lowest_of_a_spread_has_not():
    assert failed([*GOOD, 0.76]).tolist() == [False] * 10 + [True]
    assert failed([*GOOD, 0.76, 0.62]).tolist() == [False] * 10 + [True] * 2
    assert not failed([*GOOD, 0.915]).any()


def test_the_gap_is_measured_by_the_range_of_the_runs_above_it():
    # The range is 0.01, so the gap must be wider than 0.03.
    assert failed([*GOOD, 0.9101]).sum() == 0
    assert failed([*GOOD, 0.9099]).sum() == 1


def test_three_must_be_above_a_gap_with_half_of_the_runs():
    assert failed([0.9, 0.901, 0.902, 0.5, 0.6, 0.7]).sum() == 3
    assert failed([0.9, 0.901, 0.902, 0.5, 0.6, 0.7, 0.8]).sum() == 0
    assert failed([0.9, 0.901, 0.5, 0.5]).sum() == 0


def test_where_most_runs_are_below_a_gap_it_must_be_wide_beside_both_groups():
    assert failed([0.9, 0.901, 0.902, 0.5, 0.501, 0.502, 0.503]).tolist() == [False] * 3 + [True] * 4
    assert failed([0.9, 0.901, 0.7, 0.72, 0.75, 0.77]).sum() == 0  # 0.13 is not wider than 3 times 0.07.
    assert failed([0.9, 0.901, 0.7, 0.71, 0.72, 0.73]).sum() == 4
    assert failed([0.9, 0.5, 0.501, 0.502, 0.503]).sum() == 0  # One run may be luck.
    diverged = [0.9, 0.901, 0.5, 0.501, 0.502, math.nan]  # It has no place below the others.
    assert failed(diverged).tolist() == [False] * 2 + [True] * 4


def test_of_a_loss_the_highest_fail():
    assert failed([-value for value in [*GOOD, 0.76]], higher_is_better=False).tolist() == [False] * 10 + [True]


def test_a_run_that_diverged_has_failed_even_if_most_have():
    assert failed([*GOOD, math.nan]).tolist() == [False] * 10 + [True]
    assert failed([0.9, 0.8, math.nan, math.nan, math.nan]).tolist() == [False] * 2 + [True] * 3


def test_runs_that_are_all_equal_have_no_range_to_measure_a_gap_by():
    assert not failed([0.9] * 7 + [0.89]).any()
    assert not failed([0.9] * 8).any()


def test_a_bound_replaces_the_gap():
    assert failed([0.95, 0.9, 0.89], bound=0.9).tolist() == [False, False, True]
    assert failed([0.05, 0.1, 0.11], higher_is_better=False, bound=0.1).tolist() == [False, False, True]


def test_the_rule_does_not_depend_on_the_order_or_on_the_other_arms():
    rng = np.random.default_rng(0)
    arms = rng.permuted(np.array([[*GOOD, 0.76], [*GOOD, 0.949]]), axis=1)
    assert failed(arms).tolist() == [(row < 0.9).tolist() for row in arms]


def test_the_interval_of_the_share_is_exact():
    # Without a failure its end p solves (1 - p)**n = 0.025; with one of 11, the table of Clopper and Pearson has 41.3%.
    assert Failures(0, 11).interval_95 == pytest.approx((0.0, 1 - 0.025 ** (1 / 11)))
    assert Failures(1, 11).interval_95[1] == pytest.approx(0.4128, abs=1e-4)
    assert (str(Failures(1, 11)), str(Failures(0, 11))) == ("1 of 11 (at most 41%)", "0 of 11 (at most 28%)")


def test_arms_are_compared_by_fishers_exact_test():
    # All 4 failures in one of two arms of 8: 2 * C(8, 4) / C(16, 4).
    assert p_value(Failures(4, 8), Failures(0, 8)) == pytest.approx(2 * math.comb(8, 4) / math.comb(16, 4))
