"""Simulates comparisons of equal schedules, each tuned first, and counts how many of them show a difference.

Two batch sizes with two schedules each have the same best score, at a rate between two of the eight that are tried, an
octave apart. Below and above it the score falls as a parabola of log2(rate), which may be steeper above. The unit is
the standard deviation of a trial's score. The effects are those of a comparison, tested by Student's t and Holm.

The whole table: PYTHONPATH=tests python -m helpers.tuned_comparisons
"""

import itertools

import numpy as np
from scipy import stats

from clr_loop.studies.comparison.peak import find_peak
from clr_loop.studies.comparison.statistics import ALPHA, holm

PLACES = np.arange(8.0)  # log2 of the rates.
SEEDS = (5, 11, 20)
# What the arms (b, s), (b, S), (B, s), (B, S) count in the effects batch_size, schedule, interaction and both.
WEIGHTS = np.array([[-0.5, -0.5, 0.5, 0.5], [-0.5, 0.5, -0.5, 0.5], [1, -1, -1, 1], [-1, 0, 0, 1]])


def best_single(scores):
    """The place of the best of the first trials, which is taken for certain."""
    return PLACES[scores[:, 0].argmax()], 0.0


def best_mean(scores):
    """The place of the best mean, which is taken for certain."""
    return PLACES[scores.mean(axis=1).argmax()], 0.0


def top_of_curve(scores):
    """The place that the package takes, and the expected square of its regret."""
    peak = find_peak(2.0**PLACES, scores)
    return np.log2(peak.learning_rate), peak.regret_variance


def regret(place, peak, steepness, lean):
    """How far the score at a place falls below the one at the peak."""
    return steepness * np.where(place > peak, lean, 1.0) * (place - peak) ** 2


def simulate(rule, steepness, lean, spread, num_comparisons, rng, failing=0.0):
    """Tune four equal arms again and again, and compare them.

    Args:
        rule: scores [rate, trial] → the place that is picked, and the variance that is added for it.
        steepness: by how much the score falls at one octave below its peak.
        lean: how many times as much it falls at one octave above.
        spread: the standard deviation of the compared runs' scores.
        failing: the share of trials that fall 50 standard deviations below the others at their rate.

    Returns:
        The mean regret, and the share of comparisons that show anything for each number of seeds.
    """
    shape = (num_comparisons, 4)
    peaks = rng.uniform(2.5, 4.5, shape)
    means = -regret(PLACES, peaks[..., None], steepness, lean)
    scores = means[..., None] + rng.standard_normal((*shape, 8, 3))
    scores = np.where(rng.random(scores.shape) < failing, scores - 50, scores)
    picks, variances = np.transpose([[rule(of_arm) for of_arm in arms] for arms in scores], (2, 0, 1))
    regrets = regret(picks, peaks, steepness, lean)
    return regrets.mean(), [share_shown(regrets, variances, n, spread, rng) for n in SEEDS]


def share_shown(regrets, variances, num_seeds, spread, rng):
    """The share of comparisons [c, arm] in which any effect is shown from so many seeds."""
    values = -regrets[..., None] + spread * rng.standard_normal((*regrets.shape, num_seeds))
    effects = np.einsum("ea,can->cen", WEIGHTS, values)
    squared_errors = effects.var(axis=-1, ddof=1) / num_seeds + variances @ WEIGHTS.T**2
    p = 2 * stats.t.sf(np.abs(effects.mean(axis=-1)) / np.sqrt(squared_errors), num_seeds - 1)
    return np.mean((holm(p) <= ALPHA).any(axis=-1))


def main():
    rng = np.random.default_rng(0)
    print("steeper above | spread | failing | rule         | mean regret | % shown at 5, 11 and 20 seeds")
    for failing in (0.0, 0.1):
        for lean, spread in itertools.product((1, 2, 4), (1.0, 0.6)):
            for rule in (best_single, best_mean, top_of_curve):
                found = [simulate(rule, steepness, lean, spread, 1000, rng, failing) for steepness in (0.1, 0.3, 1, 3)]
                regrets, shown = zip(*found, strict=True)
                ranges = [f"{100 * min(each):.1f}-{100 * max(each):.1f}" for each in zip(*shown, strict=True)]
                case = f"{lean:<13} | {spread:<6} | {failing:<7} | {rule.__name__:12}"
                print(f"{case} | {min(regrets):.2f}-{max(regrets):.2f}   | {', '.join(ranges)}", flush=True)


if __name__ == "__main__":
    main()
