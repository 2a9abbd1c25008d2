"""Averages of the weights. They follow the training and never change it.

Sources: the exponential average is that of Keras' optimizers (`use_ema`). Stochastic weight averaging, the mean of the
weights where a cyclical rate is lowest, is from P. Izmailov et al., arXiv 1803.05407.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from clr_loop.loop import keras_private
from clr_loop.loop.options import Average
from clr_loop.loop.result import Update


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
        # In a narrower type a step of the average would be rounded to nothing.
        precise = [tf.cast(v.value, tf.float32) if v.value.dtype.size < 4 else v.value for v in variables]
        self.values = [tf.Variable(value, trainable=False) for value in precise]
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
            value.assign(weight * value + (1 - weight) * tf.cast(variable.value, value.dtype))

    def add(self) -> None:
        """Add the variables as they are now to the mean."""
        for value, variable in zip(self.values, self._variables, strict=True):
            value.assign_add((tf.cast(variable.value, value.dtype) - value) / (self.count + 1))
        self.count += 1

    def put_in_place(self) -> None:
        """Give the variables their averages."""
        for value, variable in zip(self.values, self._variables, strict=True):
            variable.assign(tf.cast(value, variable.dtype))


def averages_of(model: keras.Model, average: Average | None) -> Averages | None:
    """Return the average of a model's weights that `StepOptions.average` asks for."""
    if average is None:
        return None
    if average != "swa" and model.distribute_strategy.num_replicas_in_sync > 1:
        raise ValueError("An exponential average follows one replica; use average='swa', or no strategy.")
    return Averages(keras_private.all_trainable(model), average)


def followed_by(update: Update, averages: Averages, optimizer: keras.optimizers.Optimizer) -> Update:
    """Let the average follow each update."""

    def both(gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
        before = tf.identity(optimizer.iterations)
        taken = update(gradients)
        averages.follow(before, taken)
        return taken

    return both
