"""Judges differences that were measured seed by seed: what is shown, what is not, and what more seeds would show.

A size is a difference in standard deviations over seeds.

Accuracies can be far from normal, but the differences between arms that do not differ are nearly symmetric. So
Student's t test with Holm's correction keeps its promise from four seeds on; tests/studies/test_statistics.py simulates
this from real runs.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

ALPHA = 0.05
"""The share of comparisons of equal arms in which some difference may be shown."""
POWER = 0.8
"""The chance of showing a difference that "would be found"."""


def t_test(differences: ArrayLike) -> Any:
    """Return Student's t test that the mean difference is 0, SciPy's result, which also has the interval of the mean.

    Args:
        differences: float [..., n], one for each seed in the last axis, n at least 2.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # Equal differences have no spread to divide by.
        return stats.ttest_1samp(differences, 0.0, axis=-1)


def p_value(differences: ArrayLike) -> NDArray[np.float64]:
    """Return the two-sided p value of `t_test`, float64 [...], from 0 to 1.

    Where all differences are equal, p is 1 if they are 0, else 0.
    """
    return np.nan_to_num(t_test(differences).pvalue, nan=1.0)


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


def critical_size(n: int, level: float = ALPHA) -> float:
    """Return the smallest mean that n values (n ≥ 2) show at this level, in their sd: t(1 - level ÷ 2, n - 1) ÷ √n.

    At the level of 0.05 it is half the length of the 95% interval of their mean.
    """
    return float(stats.t.isf(level / 2, n - 1)) / math.sqrt(n)


def power(size: float, n: int, level: float = ALPHA) -> float:
    """Return the chance that n seeds show a difference with its right sign.

        P(T > c),  T noncentral t with n - 1 degrees of freedom around size · √n,  c = t(1 - level ÷ 2, n - 1)

    (Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, chapter 2.)

    Args:
        size: the true difference in standard deviations over seeds, at least 0.
        n: the number of seeds, at least 2.
        level: the p value, before correction, from which the difference counts as shown.
    """
    return float(stats.nct.sf(stats.t.isf(level / 2, n - 1), n - 1, size * math.sqrt(n)))


def detectable_size(n: int, level: float = ALPHA) -> float:
    """Return the smallest difference that n seeds show with a chance of POWER, in standard deviations over seeds.

    It solves power(size, n, level) = POWER. The arguments are those of `power`.

    >>> round(detectable_size(10), 2)
    1.0
    """
    # P(T > c) passes 0.8 before the noncentrality reaches 2 c for every c that a level of at most ALPHA can have.
    return optimize.brentq(lambda size: power(size, n, level) - POWER, 0.0, 2.0 * critical_size(n, level))


def seeds_to_show(size: float, level: float = ALPHA) -> int:
    """Return the smallest number of seeds that shows a difference with a chance of POWER.

    Args:
        size: above 0, in standard deviations over seeds.
        level: as for `power`.
    """
    # With a known sd the test would need this many, and Student's t never needs fewer.
    at_least = ((stats.norm.isf(level / 2) - stats.norm.ppf(1 - POWER)) / size) ** 2
    return next(n for n in itertools.count(max(2, math.floor(at_least))) if power(size, n, level) >= POWER)


def is_small(size: float, n: int) -> bool:
    """Return whether the 95% interval of n seeds around a mean of this size lies within one sd of 0.

    The change then does less than another seed does.
    """
    return size + critical_size(n) <= 1.0


def seeds_to_tell(level: float = ALPHA) -> int:
    """Return the smallest number of seeds from which every difference is either shown or `is_small`.

    What is not shown has a mean below `critical_size`.

    >>> seeds_to_tell(), seeds_to_tell(ALPHA / 4)
    (18, 23)
    """
    return next(n for n in itertools.count(2) if is_small(critical_size(n, level), n))
