"""The gradient noise scale: up to which batch size more examples in a step should pay.

Source: S. McCandlish et al., An Empirical Model of Large-Batch Training, arXiv 1812.06162. The "simple" noise scale
B_simple = tr(Σ) / |G|² (section 2.2) is worked out from gradients of two batch sizes (appendix A.1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from clr_loop.arguments import checked_types, checked_whole
from clr_loop.data import Examples
from clr_loop.loop.loop import TrainLoop
from clr_loop.schedules import Schedule


@dataclass(frozen=True)
class NoiseScale:
    """The gradient noise along a run.

    Attributes:
        steps: ints: the steps that had been taken at each measurement.
        noise: floats: tr(Σ), the variance of an example's gradient, summed over the parameters.
        signal: floats: |G|², the squared norm of the expected gradient. It is an unbiased estimate, which may be below
            0 where the gradient is small.
        largest: int, the examples of each measurement. A noise scale far above it is measured badly.
    """

    steps: tuple[int, ...]
    noise: tuple[float, ...]
    signal: tuple[float, ...]
    largest: int

    @property
    def batch_sizes(self) -> tuple[float, ...]:
        """B_simple at each measurement, in examples; infinite where the gradient cannot be told from 0."""
        pairs = zip(self.noise, self.signal, strict=True)
        return tuple(noise / signal if signal > 0.0 else math.inf for noise, signal in pairs)

    def __str__(self) -> str:
        """The first, median and last noise scale, in words."""
        first, *_, last = sizes = [_words(size, self.largest) for size in self.batch_sizes]
        middle = _words(float(np.median(self.batch_sizes)), self.largest)
        return f"{first} examples at the beginning, {middle} in the median of {len(sizes)} points, {last} at the end"


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
            where there are not as many examples, but at least 2 batches.

    Raises:
        ValueError: if epochs is below 1, there are fewer than 4 examples, or as `TrainLoop.gradients`.
    """
    checked_whole("epochs", epochs)
    num_examples = len(keras.tree.flatten(examples.inputs)[0])
    if num_examples < 4:
        raise ValueError(f"There are {num_examples} examples; the noise of a gradient needs at least 4.")
    batch_size = min(batch_size, num_examples // 2)
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
    steps, noise, signal = zip(*measured, strict=True)
    return NoiseScale(steps, noise, signal, batch_size * num_batches)


def _noise_and_signal(loop: TrainLoop, batches: list[Any]) -> tuple[float, float]:
    """Return tr(Σ) and |G|², estimated without bias from the small batches and from all of them together."""
    total, squares = np.zeros(0), 0.0
    for batch in batches:
        gradient = loop.gradients(*batch).astype(np.float64)
        total = gradient if not total.size else total + gradient
        squares += float(gradient @ gradient)
    small = len(keras.tree.flatten(batches[0][0])[0])
    large = small * len(batches)
    of_small, of_large = squares / len(batches), float(total @ total) / len(batches) ** 2
    noise = (of_small - of_large) / (1 / small - 1 / large)
    return noise, (large * of_large - small * of_small) / (large - small)


def _words(size: float, largest: int) -> str:
    return f"{size:,.0f}" if size <= 10 * largest else f"more than {10 * largest:,}"
