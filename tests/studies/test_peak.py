"""The rate at the top of a curve: where it is, what it costs, and what it must not be led astray by."""

import numpy as np
import pytest

from clr_loop.studies.comparison.peak import best_place, find_peak
from helpers.tuned_comparisons import best_mean, regret, simulate, top_of_curve

PLACES = np.arange(8.0)
RATES = 1e-4 * 2.0**PLACES
PEAK = 3.3


def scores(lean=1.0, steepness=0.01, noise=0.0, num_trials=3, seed=0):
    random = np.random.default_rng(seed).standard_normal((8, num_trials))
    return 0.9 - regret(PLACES, PEAK, steepness, lean)[:, None] + noise * random


def place(peak):
    return np.log2(peak.learning_rate / 1e-4)


@pytest.mark.parametrize("lean", [0.25, 1.0, 4.0])
def test_without_noise_the_peak_of_a_leaning_parabola_is_found_between_two_rates(lean):
    peak = find_peak(RATES, scores(lean))
    assert place(peak) == pytest.approx(PEAK, abs=0.1)  # The grid of peaks is a tenth of an octave wide.
    assert peak.score == pytest.approx(0.9, abs=2e-4)
    assert peak.interval[0] <= 1e-4 * 2**PEAK <= peak.interval[1]


def test_units_and_levels_of_scores_and_rates_do_not_matter():
    y = scores(noise=0.005)
    peak, scaled = find_peak(RATES, y), find_peak(7 * RATES, 100 * y - 20)
    assert scaled.learning_rate == pytest.approx(7 * peak.learning_rate)
    assert scaled.interval == pytest.approx([7 * end for end in peak.interval])
    assert scaled.score == pytest.approx(100 * peak.score - 20)
    assert (scaled.regret, scaled.regret_variance) == pytest.approx((100 * peak.regret, 1e4 * peak.regret_variance))


def test_a_mirrored_grid_gives_the_mirrored_pick():
    y = scores(lean=2.0, noise=0.005)
    there, back = find_peak(RATES, y), find_peak(1 / RATES[::-1], y[::-1])
    assert back.learning_rate == pytest.approx(1 / there.learning_rate)
    assert back.regret_variance == pytest.approx(there.regret_variance)


def test_regret_and_interval_are_those_of_repeated_searches():
    peaks = [find_peak(RATES, scores(noise=0.01, seed=seed)) for seed in range(400)]
    costs = regret(np.array([place(peak) for peak in peaks]), PEAK, 0.01, 1.0)
    told = np.mean([peak.regret_variance for peak in peaks])
    assert np.mean(costs**2) <= told <= 4 * np.mean(costs**2)
    assert np.mean(costs) <= np.mean([peak.regret for peak in peaks]) <= 2 * np.mean(costs)
    inside = [peak.interval[0] <= 1e-4 * 2**PEAK <= peak.interval[1] for peak in peaks]
    assert np.mean(inside) >= 0.95


def test_more_trials_cost_less():
    few, many = (
        np.mean([find_peak(RATES, scores(noise=0.01, num_trials=n, seed=s)).regret_variance for s in range(100)])
        for n in (3, 12)
    )
    assert many < few / 2


@pytest.mark.parametrize("failed", [0.1, np.nan])
@pytest.mark.parametrize("where", [slice(4, None), (4, 1)])
def test_no_rate_is_picked_between_the_best_and_one_where_a_trial_failed_or_diverged(where, failed):
    y = scores(noise=0.001)
    y[where] = failed
    peak = find_peak(RATES, y)
    assert 2.7 < place(peak) < 3 + 1e-9
    assert peak.score == pytest.approx(0.9, abs=0.003)
    assert peak.regret < 0.003


def test_trials_that_failed_far_below_the_best_leave_the_pick_where_it_was():
    y = scores(noise=0.001)
    failed = y.copy()
    failed[:2], failed[6:] = 0.1, np.nan
    assert place(find_peak(RATES, failed)) == pytest.approx(place(find_peak(RATES, y)), abs=0.15)


def test_where_trials_fail_at_almost_every_rate_none_is_left_out():
    y = scores(noise=0.001)
    y[np.arange(7), [0, 1, 2, 0, 1, 2, 0]] = 0.1
    assert find_peak(RATES, y).regret_variance > find_peak(RATES, scores(noise=0.001)).regret_variance


def test_a_finer_grid_uses_the_same_octaves():
    fine = np.linspace(0, 7, 15)
    y = 0.9 - regret(fine, PEAK, 0.01, 1.0)[:, None] + 0.01 * np.random.default_rng(1).standard_normal((15, 3))
    outside = np.abs(fine - fine[y.mean(axis=1).argmax()]) > 2.01
    further_down = np.where(outside[:, None], y - 0.5, y)
    assert outside.any()
    assert find_peak(2.0**fine, further_down) == find_peak(2.0**fine, y)


def test_equal_scores_give_the_rate_in_the_middle_at_no_cost():
    peak = find_peak(RATES, np.full((8, 3), 1.0))
    assert place(peak) == pytest.approx(4)
    assert (peak.score, peak.regret, peak.regret_variance) == pytest.approx((1, 0, 0), abs=1e-12)
    assert [best_place(means) for means in ([1, 3, 3, 3], [3, 1, 1], [0, 0])] == [2, 0, 1]


@pytest.mark.parametrize(("num_rates", "num_trials"), [(2, 3), (7, 1)])
def test_scores_that_show_no_curve_or_no_noise_are_refused(num_rates, num_trials):
    message = f"from {num_trials} finite scores of each of {num_rates} rates; give at least 2 of at least 3 rates"
    with pytest.raises(ValueError, match=message):
        find_peak(RATES, np.where(PLACES[:, None] < num_rates, np.zeros((8, num_trials)), np.nan))


@pytest.mark.parametrize("lean", [1, 2, 4])
def test_tuning_makes_no_difference_between_equal_schedules_and_the_best_mean_would(lean):
    rng = np.random.default_rng(lean)
    _, of_means = simulate(best_mean, 1.0, lean, 0.6, 150, rng)
    _, of_curves = simulate(top_of_curve, 1.0, lean, 0.6, 150, rng)
    assert max(of_curves) <= 0.05
    assert of_means[-1] > 0.2
