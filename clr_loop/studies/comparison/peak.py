"""The learning rate at the top of a smooth curve through the scores of trials, and what it may cost to have picked it.

The curve is made of two half parabolas over x = log2(rate) that share their top, so it may lean:

    score(x) = top - steepness · √lean · (x - peak)²     above the peak
    score(x) = top - steepness ÷ √lean · (x - peak)²     below it

Neither the peak nor the lean is known, so every pair on a grid counts as much as it is likely, given the mean score at
each rate near the best. Top and steepness follow from each pair by weighted least squares. The variance of a mean is
that of its trials plus the square of a tenth of its drop below the best, because no score is a parabola far from its
top. All peaks, leans, tops and amounts of noise are equally likely beforehand (Gelman et al., Bayesian Data Analysis,
3rd edition, sections 3.2 and 14.2). The regret of a rate is the top minus the score there; the rate that is picked has
the smallest expected regret.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_Floats = NDArray[np.float64]

# How much more steeply the curve may fall above the peak than below it, and how many places the peak may have.
_LEANS = 2.0 ** np.arange(-3, 4)
_NUM_PEAKS = 41
# The curve is fitted to the rates within two octaves of the best, and to two on each side if they are further apart.
_OCTAVES, _SIDE = 2.0, 2
# How far the mean score at a rate may lie off the curve, as a share of how far it lies below the best.
_MISFIT = 0.1
# A trial has failed if it lies this many times as far below the best as the median of those near the best.
_FAILED = 20.0


@dataclass(frozen=True)
class Peak:
    """The rate that was picked.

    Attributes:
        learning_rate: the rate whose expected regret is smallest.
        interval: where the best rate is, with a probability of 95%.
        score: what the curve gives at `learning_rate`.
        regret: the expected regret of `learning_rate`, in the unit of the scores, at least 0.
        regret_variance: the expected square of that regret.
    """

    learning_rate: float
    interval: tuple[float, float]
    score: float
    regret: float
    regret_variance: float


def best_place(means: ArrayLike) -> int:
    """Return the index of the highest mean; of several equal ones, the one in the middle."""
    places = np.flatnonzero(np.asarray(means) == np.max(means))
    return int(places[len(places) // 2])


def find_peak(rates: ArrayLike, scores: ArrayLike) -> Peak:
    """Return the rate at the top of a curve through the mean scores near the best one.

    A rate is left out if one of its trials diverged or failed: it lies more than twenty times as far below the best as
    the median of the trials near the best. The pick stays between the rates that the curve is fitted to, and no rate
    that is left out lies between it and the best of them.

    Args:
        rates: float [r], rising, about equally far apart on a logarithmic axis.
        scores: float [r, t], those of at least 2 trials of each rate; higher is better. NaN is one that diverged.

    Raises:
        ValueError: if there are fewer than 2 trials of each rate or fewer than 3 rates at which none diverged.
    """
    all_x, all_scores = np.log2(np.asarray(rates, np.float64)), np.asarray(scores, np.float64)
    num_finite, num_trials = int(np.isfinite(all_scores.sum(axis=1)).sum()), all_scores.shape[1]
    if num_finite < 3 or num_trials < 2:
        what = f"{num_trials} finite scores of each of {num_finite} rates"
        raise ValueError(f"A peak cannot be found from {what}; give at least 2 of at least 3 rates.")
    is_sound = _are_sound(all_x, all_scores)
    x, y = all_x[is_sound], all_scores[is_sound]
    near = _near_best(x, y.mean(axis=1))
    x, y = x[near], y[near]
    best, left_out = x[best_place(y.mean(axis=1))], all_x[~is_sound]
    below, above = max(left_out[left_out < best], default=x[0]), min(left_out[left_out > best], default=x[-1])
    # Where the best is the last of these rates, the peak may lie beyond it, up to one that is left out.
    places = np.linspace(below if best == x[0] else x[0], above if best == x[-1] else x[-1], _NUM_PEAKS)
    peaks, leans = (grid.ravel() for grid in np.meshgrid(places, _LEANS, indexing="ij"))
    weights, tops, steepness, variances = _fits(y, _falls(x, peaks, leans))
    between = [rate for rate in x if below <= rate <= above]
    candidates = np.linspace(between[0], between[-1], _NUM_PEAKS)
    falls = _falls(candidates, peaks, leans)
    regrets = (weights * steepness) @ falls
    pick = best_place(-regrets)
    shares = weights.reshape(_NUM_PEAKS, -1).sum(axis=1)
    interval = np.interp((0.025, 0.975), np.cumsum(shares) - shares / 2, places)
    return Peak(
        learning_rate=float(2.0 ** candidates[pick]),
        interval=(float(2.0 ** interval[0]), float(2.0 ** interval[1])),
        score=float(weights @ tops - regrets[pick]),
        regret=float(regrets[pick]),
        regret_variance=float((weights * (steepness**2 + variances)) @ falls[:, pick] ** 2),
    )


def _are_sound(x: _Floats, scores: _Floats) -> NDArray[np.bool_]:
    """Return at which rates no trial diverged or failed; if those are fewer than 3, at which none diverged."""
    are_finite = np.isfinite(scores.sum(axis=1))
    medians = np.median(scores[are_finite], axis=1)
    drops = medians.max() - scores
    near = drops[are_finite][_near_best(x[are_finite], medians)]
    are_sound = are_finite & (drops <= _FAILED * np.median(near)).all(axis=1)
    return are_sound if are_sound.sum() >= 3 else are_finite


def _near_best(x: _Floats, means: _Floats) -> slice:
    """Return which rates the curve is fitted to: as many on each side of the best as the grid has room for."""
    side = max(_SIDE, round(_OCTAVES / float(np.median(np.diff(x)))))
    start = min(max(best_place(means) - side, 0), max(len(x) - 2 * side - 1, 0))
    return slice(start, start + 2 * side + 1)


def _falls(x: _Floats, peaks: _Floats, leans: _Floats) -> _Floats:
    """Return how far each curve [c] lies below its top at each rate [r], for a steepness of 1: float [c, r]."""
    distances = x - peaks[:, np.newaxis]
    roots = np.sqrt(leans)[:, np.newaxis]
    return np.where(distances > 0, roots, 1 / roots) * distances**2


def _fits(scores: _Floats, falls: _Floats) -> tuple[_Floats, _Floats, _Floats, _Floats]:
    """Fit top and steepness of each curve to the scores [r, t].

    Returns:
        The probability of each curve, its top, its steepness, and the variance of its steepness: float [c] each.
    """
    (num_rates, num_trials), means = scores.shape, scores.mean(axis=1)
    degrees = num_rates * (num_trials - 1)
    rounding = np.finfo(np.float64).eps * (np.abs(means).max() or 1.0)
    noise = scores.var(axis=1, ddof=1).mean() + rounding**2
    precisions = 1 / (noise / num_trials + (_MISFIT * (means.max() - means)) ** 2)
    center = np.average(means, weights=precisions)
    centers = np.average(falls, axis=1, weights=precisions)
    rises = centers[:, np.newaxis] - falls
    spreads = rises**2 @ precisions
    steepness = np.maximum(rises @ (precisions * (means - center)) / spreads, 0.0)
    squares = (means - center - steepness[:, np.newaxis] * rises) ** 2 @ precisions
    # The noise is known from so many degrees of freedom, so the likelihood is Student's t.
    logs = -0.5 * (degrees + num_rates - 2) * np.log1p(squares / degrees)
    weights = np.exp(logs - logs.max())
    return weights / weights.sum(), center + steepness * centers, steepness, degrees / (degrees - 2) / spreads
