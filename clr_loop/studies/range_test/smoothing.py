"""Smooths the curve of a sweep, and says where its loss diverged."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

_SPIKE_WINDOW = 5


def smooth(values: Values, time_constant: float) -> Values:
    """Return an exponential average to both sides, with single spikes left out.

        smooth[i] = Σ_j d^|i - j| v[j] / Σ_j d^|i - j|,    d = exp(-1 / time_constant)

    The sums run over the finite j; v is the running median of five values, or of the finite ones among them. Dividing
    by the weights corrects the bias at the ends.

    Args:
        values: float [n], n at least 1.
        time_constant: in steps, above 0.

    Returns:
        float64 [n]; NaN where `values` is not finite.
    """
    finite = np.isfinite(values)
    padded = np.pad(np.where(finite, values, np.nan), _SPIKE_WINDOW // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SPIKE_WINDOW)
    medians = np.zeros(len(values))
    medians[finite] = np.nanmedian(windows[finite], axis=1)

    def sums(v: Values) -> Values:
        return _decayed_sums(v, time_constant) + _decayed_sums(v[::-1], time_constant)[::-1] - v

    return sums(medians) / np.where(finite, sums(finite.astype(np.float64)), np.nan)


def first_divergence(loss: Values, time_constant: float, factor: float) -> int | None:
    """Return the first step at which the loss had diverged, judged by the steps until then, or None.

    The judge is the `running_average`, against the lowest value `best` that it has had. The loss has diverged when this
    average exceeds

        factor · best                           while no loss was negative
        best + (factor - 1) · (highest - best)  otherwise; `highest` is the highest loss until `best` was reached

    A loss that can be negative has no natural zero: a constant added to it changes nothing. So its own fall is the only
    scale. The first `time_constant` steps do not count, because the average still depends on a few values there.

    Args:
        loss: float [n], finite.
        time_constant: in steps, above 0.
        factor: above 1.
    """
    first = math.ceil(time_constant)
    average = running_average(loss, time_constant)[first:]
    best = np.minimum.accumulate(average)
    reached = np.maximum.accumulate(np.where(average == best, np.arange(len(average)), 0))
    highest = np.maximum.accumulate(loss)[first:][reached]
    was_negative = np.minimum.accumulate(loss)[first:] < 0.0
    diverged = average > np.where(was_negative, best + (factor - 1.0) * (highest - best), factor * best)
    return first + int(np.argmax(diverged)) if diverged.any() else None


def running_average(values: Values, time_constant: float) -> Values:
    """Return the exponential average of the values so far, corrected for bias, float64 [n]."""
    return _decayed_sums(values, time_constant) / _decayed_sums(np.ones(len(values)), time_constant)


def _decayed_sums(values: Values, time_constant: float) -> Values:
    """Return for each step the sum of the values so far, each weighted by exp(-age / time_constant)."""
    decay = math.exp(-1.0 / time_constant)
    return np.array(list(itertools.accumulate(values.tolist(), lambda total, value: decay * total + value)))
