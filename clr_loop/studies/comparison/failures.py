"""Runs that failed: which they are, how often that happens, and whether one arm fails more often than another.

An arm may give 0.94 and, in one run of ten, 0.76. No interval of the mean of all runs holds then: a third of all sets
of eleven seeds shows no such run. So failures are counted on their own, and differences are those of the other runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

LARGEST_SHARE = 0.25
"""The share of an arm's runs that may fail before nothing is said of the others."""

_GAP = 3.0
_LEAST_ABOVE = 3
_LEAST_APART = 2

_RULE = (
    f"A run has failed if it diverged, or if it lies below a gap that is wider than {_GAP:g} times the range of all "
    f"runs of its arm above the gap, which must be half of the arm and {_LEAST_ABOVE} runs at least. Where fewer than "
    f"half lie above, {_LEAST_APART} at least, the gap must also be wider than {_GAP:g} times the range of all below."
)


def rule(words: str, bound: float | None) -> str:
    """Say which runs have failed; words and bound: of the measure, see `failed`."""
    return _RULE if bound is None else f"A run has failed if it diverged, or if its {words} is worse than {bound}."


def failed(values: ArrayLike, higher_is_better: bool = True, bound: float | None = None) -> NDArray[np.bool_]:
    """Return which runs of an arm have failed.

    A run that diverged has failed. With a bound, so has every run that is worse. Without one, every run has that lies
    below a gap wider than 3 times the range of all runs above it, if these are at least three and half of the arm. If
    they are fewer than half, at least two, the gap must also be wider than 3 times the range of all runs below it.
    Runs that are all equal have no range to measure a gap by.

    Args:
        values: float [..., n], the runs of an arm in the last axis; NaN for one that diverged.
        higher_is_better: of the values.
        bound: a value; None takes the rule of the gap.

    Returns:
        bool [..., n].
    """
    values = np.asarray(values, np.float64)
    diverged = np.isnan(values)
    good = np.where(diverged, -np.inf, values if higher_is_better else -values)
    if bound is not None:
        return diverged | (good < (bound if higher_is_better else -bound))
    rising, n = np.sort(good, axis=-1), values.shape[-1]
    num_below = np.arange(1, n)
    num_above = n - num_below
    lowest = np.min(good, axis=-1, where=~diverged, initial=np.inf)[..., np.newaxis]
    with np.errstate(invalid="ignore"):  # Two that diverged have no gap between them.
        gaps, above, below = np.diff(rising, axis=-1), rising[..., -1:] - rising[..., 1:], rising[..., :-1] - lowest
        is_below_most = (above > 0) & (gaps > _GAP * above) & (num_below <= num_above) & (num_above >= _LEAST_ABOVE)
        ranges = np.maximum(above, below)
        is_between_groups = (
            (ranges > 0) & (gaps > _GAP * ranges) & (num_below > num_above) & (num_above >= _LEAST_APART)
        )
        is_gap = is_below_most | is_between_groups
    num_failed = np.max(np.where(is_gap, num_below, 0), axis=-1, initial=0)
    ranks = np.argsort(np.argsort(good, axis=-1, kind="stable"), axis=-1)
    return diverged | (ranks < num_failed[..., None])


class Failures(NamedTuple):
    """How many of an arm's runs failed."""

    num_failed: int
    num_runs: int

    @property
    def share(self) -> float:
        """The share of the runs."""
        return self.num_failed / self.num_runs

    @property
    def interval_95(self) -> tuple[float, float]:
        """The exact 95% interval of the chance that a run fails (Clopper and Pearson, Biometrika 26, 1934)."""
        interval = stats.binomtest(self.num_failed, self.num_runs).proportion_ci(0.95, "exact")
        return float(interval.low), float(interval.high)

    def to_json(self) -> dict[str, Any]:
        """Return the counts and the interval as JSON types."""
        return {"failed": self.num_failed, "runs": self.num_runs, "interval_95": self.interval_95}

    def __str__(self) -> str:
        """`1 of 11 (at most 41%)`."""
        return f"{self.num_failed} of {self.num_runs} (at most {self.interval_95[1]:.0%})"


def p_value(changed: Failures, reference: Failures) -> float:
    """Return the p value of Fisher's exact test that both fail equally often."""
    rows = [[each.num_failed, each.num_runs - each.num_failed] for each in (changed, reference)]
    return float(stats.fisher_exact(rows).pvalue)
