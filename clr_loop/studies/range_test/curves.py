"""The curve of a sweep: smoothed, and cut off where its loss diverged."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DIVERGENCE_FACTOR = 4.0
"""A loss above this many times its best has diverged, unless another factor is given."""

_SPIKE_WINDOW = 5


@dataclass(frozen=True)
class Curve:
    """What a sweep measured, and how it is smoothed.

    Attributes:
        learning_rate: float64 [n], at least 0, rising.
        loss: float64 [n], of the batch of each step; a value may be NaN or infinite.
        score: float64 [n], of the batch of each step or of held-out examples before it; higher is better. Without such
            a metric it is the negative loss.
        time_constant: float, of the smoothing, in steps.
        divergence_factor: float above 1, see `first_divergence`.
        measure: the name of the score, such as "accuracy", or "val_accuracy" of held-out examples; "loss" or "val_loss"
            where the score is the negative loss.
    """

    learning_rate: Values
    loss: Values
    score: Values
    time_constant: float
    divergence_factor: float = DIVERGENCE_FACTOR
    measure: str = "accuracy"

    @property
    def is_loss(self) -> bool:
        """Whether the score is a negative loss."""
        return self.measure in ("loss", "val_loss")

    @cached_property
    def num_usable(self) -> int:
        """The number of steps before the loss diverged or was not finite; n if neither happened."""
        first_bad = int(np.argmin(np.append(np.isfinite(self.loss), False)))
        diverged = first_divergence(self.loss[:first_bad], self.time_constant, self.divergence_factor)
        return first_bad if diverged is None else diverged

    @cached_property
    def smoothed_loss(self) -> Values:
        """float64 [n]: `smooth` of the usable steps, NaN beyond them.

        At the step of divergence it is the running average that diverged, so the curve shows what stopped the sweep.
        """
        smoothed, end = self._smooth(self.loss), self.num_usable
        if end < len(smoothed) and np.isfinite(self.loss[end]):
            smoothed[end] = running_average(self.loss[: end + 1], self.time_constant)[-1]
        return smoothed

    @cached_property
    def smoothed_score(self) -> Values:
        """float64 [n]: `smooth` of the usable steps, NaN beyond them."""
        return self._smooth(self.score)

    def _smooth(self, values: Values) -> Values:
        smoothed = np.full(len(values), np.nan)
        if self.num_usable:
            smoothed[: self.num_usable] = smooth(values[: self.num_usable], self.time_constant)
        return smoothed


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
