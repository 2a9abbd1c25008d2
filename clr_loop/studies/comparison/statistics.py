"""Judges differences that were measured seed by seed: what is shown, and what so many seeds could have shown.

A size is a difference in standard deviations over seeds. tests/helpers/judgments.py simulates how often a judgment is
wrong, from normal seeds to those of real runs.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

ALPHA = 0.05
"""The share of comparisons of equal arms in which something may be shown."""
POWER = 0.8
"""The chance of showing a difference that "would be found"."""

LEVELS = {1: ALPHA, 2: 0.0294, 3: 0.0221, 4: 0.0182, 5: 0.0158}
"""Looks at equal distances → the level of each, which is ALPHA in all (S. J. Pocock, Biometrika 64, 1977, table 1)."""


def standard_error(differences: ArrayLike, pick_variance: ArrayLike = 0.0) -> NDArray[np.float64]:
    """Return the standard error of the mean difference, float64 [...].

    Args:
        differences: float [..., n], one for each seed in the last axis, n at least 2.
        pick_variance: float [...], what the choice of the arms' rates adds to the variance of the mean.
    """
    values = np.asarray(differences, np.float64)
    return np.sqrt(values.var(axis=-1, ddof=1) / values.shape[-1] + pick_variance)


def p_value(differences: ArrayLike, pick_variance: ArrayLike = 0.0) -> NDArray[np.float64]:
    """Return the two-sided p value of Student's t test that the mean difference is 0, float64 [...], from 0 to 1.

    Where all n differences are equal they have no spread for the test; p is then 1 if they are 0, else that of the sign
    test, 2 ** (1 - n).

    The arguments are those of `standard_error`.
    """
    values = np.asarray(differences, np.float64)
    n, mean, error = values.shape[-1], values.mean(axis=-1), standard_error(values, pick_variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2.0 * stats.t.sf(np.abs(mean) / error, n - 1)
    return np.where(error > 0.0, p, np.where(mean == 0.0, 1.0, 2.0 ** (1 - n)))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return the p values of a family of tests, corrected so that a false one is below ALPHA in ALPHA of the families.

    The k-th smallest of m is multiplied by m - k + 1, and none comes out below a smaller one or above 1. This needs no
    assumption on how the tests depend on one another (Holm, Scandinavian Journal of Statistics 6, 1979).

    Args:
        p: float [..., m], a family in the last axis.

    Returns:
        float64 [..., m], in the order of `p`.

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    values = np.asarray(p, np.float64)
    order = np.argsort(values, axis=-1)
    multiplied = np.take_along_axis(values, order, axis=-1) * np.arange(values.shape[-1], 0, -1)
    rising = np.minimum(np.maximum.accumulate(multiplied, axis=-1), 1.0)
    return np.take_along_axis(rising, np.argsort(order, axis=-1), axis=-1)


def critical_t(n: int, level: float = ALPHA) -> float:
    """Return how many standard errors from 0 the mean of n values (n ≥ 2) is shown at this two-sided level."""
    return float(stats.t.isf(level / 2, n - 1))


def power(size: float, n: int, level: float = ALPHA) -> float:
    """Return the chance that n seeds show a difference with its right sign.

        P(T > c),  T noncentral t with n - 1 degrees of freedom around size · √n,  c = t(1 - level ÷ 2, n - 1)

    (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2.)

    Args:
        size: the true difference in standard deviations over seeds, at least 0.
        n: the number of seeds, at least 2.
        level: the p value, before correction, from which the difference counts as shown.
    """
    return float(stats.nct.sf(critical_t(n, level), n - 1, size * math.sqrt(n)))


def detectable_size(n: int, level: float = ALPHA) -> float:
    """Return the smallest difference that n seeds show with a chance of POWER, in standard deviations over seeds.

    It solves power(size, n, level) = POWER. The arguments are those of `power`.

    >>> round(detectable_size(10), 2)
    1.0
    """
    # P(T > c) passes 0.8 before the noncentrality reaches 2 c for every c that a level of at most ALPHA can have.
    highest = 2.0 * critical_t(n, level) / math.sqrt(n)
    return optimize.brentq(lambda size: power(size, n, level) - POWER, 0.0, highest)
