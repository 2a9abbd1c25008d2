"""The gradient noise scale: up to which batch size more examples in a step should pay.

Source: S. McCandlish et al., An Empirical Model of Large-Batch Training, arXiv 1812.06162. The "simple" noise scale
B_simple = tr(Σ) / |G|² (section 2.2) is worked out from gradients of two batch sizes (appendix A.1).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy import stats

from clr_loop.arguments import checked_types, checked_whole
from clr_loop.data import Examples
from clr_loop.loop.loop import TrainLoop
from clr_loop.schedules import Schedule

# The interval comes from leaving out one group of small batches at a time.
_MOST_GROUPS = 20


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise along a run.

    Attributes:
        steps: ints: the steps that had been taken at each measurement.
        noise: floats: tr(Σ), the variance of an example's gradient, summed over the parameters.
        signal: floats: |G|², the squared norm of the expected gradient. It is an unbiased estimate, which may be below
            0 where the gradient is small.
        covariance: (variance of noise, covariance, variance of signal) at each measurement: what other examples would
            have changed, by the jackknife.
        largest: int, the examples of each measurement. A noise scale far above it is measured badly.
        num_groups: int, at least 3, the groups of examples of the jackknife.
    """

    steps: tuple[int, ...]
    noise: tuple[float, ...]
    signal: tuple[float, ...]
    covariance: tuple[tuple[float, float, float], ...]
    largest: int
    num_groups: int

    @property
    def batch_sizes(self) -> tuple[float, ...]:
        """B_simple at each measurement, in examples; infinite where the gradient cannot be told from 0."""
        pairs = zip(self.noise, self.signal, strict=True)
        return tuple(noise / signal if signal > 0.0 else math.inf for noise, signal in pairs)

    @property
    def intervals_95(self) -> tuple[tuple[float, float], ...]:
        """The 95% interval of B_simple at each measurement; its end is infinite where |G|² may be 0.

        It is Fieller's for a ratio, with Student's t. It tells what other examples of the same data would change, and
        not what another run would.
        """
        t2 = float(stats.t.ppf(0.975, self.num_groups - 1)) ** 2
        measured = zip(self.noise, self.signal, self.covariance, strict=True)
        return tuple(_fieller(noise, signal, covariance, t2) for noise, signal, covariance in measured)

    def __str__(self) -> str:
        """The first, median and last noise scale, each with its interval, in words."""
        sizes = self.batch_sizes
        middle = sizes.index(statistics.median_low(sizes))
        first, median, last = (
            _words(sizes[i], self.intervals_95[i], self.largest) for i in (0, middle, len(sizes) - 1)
        )
        return f"{first} at the beginning, {median} in the median of {len(sizes)} points, {last} at the end"


@checked_types
def measure(
    loop: TrainLoop, schedule: Schedule, epochs: int, examples: Examples, batch_size: int = 100, num_batches: int = 100
) -> NoiseScale:
    """Train for some epochs, measure the gradient noise before the first and after each, and put everything back.

    Args:
        loop: of one replica, at any step.
        schedule: as for `fit`.
        epochs: int, at least 1.
        examples: what the gradients are taken of, usually the training examples.
        batch_size, num_batches: the gradients of so many small batches, and of all of them as one large batch; fewer
            where there are not as many examples, but at least 3 batches.

    Raises:
        ValueError: if epochs is below 1, num_batches below 3, there are fewer than 6 examples, or as
            `TrainLoop.gradients`.
    """
    checked_whole("epochs", epochs)
    checked_whole("num_batches", num_batches, low=3)
    num_examples = len(keras.tree.flatten(examples.inputs)[0])
    if num_examples < 6:
        raise ValueError(f"There are {num_examples} examples; the noise of a gradient needs at least 6.")
    batch_size = min(batch_size, num_examples // 3)
    num_batches = min(num_batches, num_examples // batch_size)
    chosen = np.random.default_rng(loop.seed).permutation(num_examples)[: batch_size * num_batches]
    batches = [
        keras.tree.map_structure(lambda x, part=part: None if x is None else np.asarray(x)[part], tuple(examples))
        for part in np.sort(chosen.reshape(num_batches, batch_size), axis=1)
    ]
    before, measured = loop.snapshot(), [(loop.step, *_noise_and_signal(loop, batches))]
    try:
        for _ in range(epochs):
            loop.run(schedule(loop.step + np.arange(loop.steps_per_epoch)))
            measured.append((loop.step, *_noise_and_signal(loop, batches)))
    finally:
        loop.restore(before)
    steps, noise, signal, covariance = zip(*measured, strict=True)
    return NoiseScale(steps, noise, signal, covariance, batch_size * num_batches, min(num_batches, _MOST_GROUPS))


def _noise_and_signal(loop: TrainLoop, batches: list[Any]) -> tuple[float, float, tuple[float, float, float]]:
    """Return tr(Σ) and |G|², estimated without bias, and their variances and covariance by the jackknife."""
    num_groups = min(len(batches), _MOST_GROUPS)
    sums, squares = [np.zeros(0)] * num_groups, np.zeros(num_groups)
    for i, batch in enumerate(batches):
        gradient, group = loop.gradients(*batch).astype(np.float64), i % num_groups
        sums[group] = sums[group] + gradient if sums[group].size else gradient
        squares[group] += gradient @ gradient
    total, counts = np.sum(sums, axis=0), np.bincount(np.arange(len(batches)) % num_groups)
    small = len(keras.tree.flatten(batches[0][0])[0])
    noise, signal = _estimates(squares.sum(), total @ total, len(batches), small)
    without = np.array([
        _estimates(squares.sum() - of_group, np.sum((total - of_sum) ** 2), len(batches) - count, small)
        for of_group, of_sum, count in zip(squares, sums, counts, strict=True)
    ])  # fmt: skip
    variances = (num_groups - 1) * np.cov(without.T, bias=True)
    return noise, signal, (float(variances[0, 0]), float(variances[0, 1]), float(variances[1, 1]))


def _estimates(squares: float, square_of_sum: float, num_batches: int, small: int) -> tuple[float, float]:
    """Return tr(Σ) and |G|² from the sum of the squared norms of batch gradients, and the squared norm of their sum."""
    of_small, of_large, large = squares / num_batches, square_of_sum / num_batches**2, small * num_batches
    noise = (of_small - of_large) / (1 / small - 1 / large)
    return float(noise), float((large * of_large - small * of_small) / (large - small))


def _fieller(noise: float, signal: float, covariance: tuple[float, float, float], t2: float) -> tuple[float, float]:
    """Return the ratios B >= 0 for which noise - B · signal lies within t standard errors of 0."""
    of_noise, of_both, of_signal = covariance
    # a B² - 2 b B + c <= 0
    a, b, c = signal**2 - t2 * of_signal, noise * signal - t2 * of_both, noise**2 - t2 * of_noise
    root = math.sqrt(max(b**2 - a * c, 0.0))
    if a > 0.0 and signal < 0.0:  # |G|² is below 0 by more than chance gives it, so it is 0.
        return math.inf, math.inf
    if a > 0.0:
        return max((b - root) / a, 0.0), (b + root) / a
    return ((b - root) / a if a < 0.0 < c else 0.0), math.inf


def _words(size: float, interval: tuple[float, float], largest: int) -> str:
    low, high = interval
    if not high <= 10 * largest:
        return f"at least {min(low, 10 * largest):,.0f} examples"
    return f"{size:,.0f} examples ({low:,.0f} to {high:,.0f})"
