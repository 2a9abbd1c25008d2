"""Averages of the weights beside the training, which they never change.

Sources: the exponential average is that of Keras' optimizers (`use_ema`). Stochastic weight averaging, the mean of the
weights at the lows of a cyclical rate, is from P. Izmailov et al., arXiv 1803.05407.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from clr_loop.loop.engine import graph_function

Average = float | Literal["swa"]


class Averages:
    """The average of some variables.

    Args:
        variables: what is averaged.
        average: the momentum of an exponential average, or "swa" for the mean of those moments that `add` is called at.

    Attributes:
        values: tf.Variables, the average of each.
        count: int, how many moments the mean holds; 0 for an exponential average, which follows every step.
    """

    def __init__(self, variables: Sequence[keras.Variable], average: Average) -> None:
        self._variables, self._average = variables, average
        self.values = [tf.Variable(variable.value, trainable=False) for variable in variables]
        self.count = 0

    @property
    def is_there(self) -> bool:
        """Whether there is anything to average yet."""
        return self._average != "swa" or self.count > 0

    def follow(self, step: tf.Tensor, taken: tf.Tensor) -> None:
        """Take one step of an exponential average, in the graph, as Keras does.

        Args:
            step: int [], the steps that were taken before this one; the average begins with the first.
            taken: int32 [], 0 for an update that was skipped.
        """
        if self._average == "swa":
            return
        momentum = tf.where(tf.equal(step, 0), 0.0, self._average)
        momentum = tf.where(taken > 0, momentum, 1.0)
        for value, variable in zip(self.values, self._variables, strict=True):
            weight = tf.cast(momentum, value.dtype)
            value.assign(weight * value + (1 - weight) * tf.convert_to_tensor(variable.value))

    def add(self) -> None:
        """Add the variables as they are now to the mean."""
        for value, variable in zip(self.values, self._variables, strict=True):
            value.assign_add((tf.convert_to_tensor(variable.value) - value) / (self.count + 1))
        self.count += 1


def measure_statistics(
    model: keras.Model, batches: Callable[[Callable[..., Any]], Iterator[Any]], forward: Callable[..., Any]
) -> None:
    """Measure what batch-norm layers average over batches anew: the mean over one pass.

    Args:
        model: the statistics are those of its weights as they are now.
        batches: calls a function with each batch and its size, as `Feed.evaluate`.
        forward: (batch, size) → anything; calls the model in training mode.
    """
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    own = [layer.momentum for layer in norms]
    momentum = tf.Variable(0.0, trainable=False)
    try:
        for layer in norms:
            layer.momentum = momentum
        for i, _ in enumerate(batches(graph_function(forward))):
            momentum.assign((i + 1) / (i + 2))  # So that each batch counts alike in the end.
    finally:
        for layer, value in zip(norms, own, strict=True):
            layer.momentum = value


def to_numpy(averages: Averages | None) -> list[np.ndarray]:
    """Return the values on the host; [] without averages."""
    return [] if averages is None else [value.numpy() for value in averages.values]
