"""A loss scale, which keeps small gradients of float16 from becoming 0: how the other wrappers work with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from clr_loop.loop.batches import Batch
from clr_loop.loop.result import Gradients, Result, Total, Transform, Update


def scales_loss(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether an optimizer multiplies the loss by a scale, and its gradients come multiplied by it."""
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)


def without_scale(
    gradients: Gradients, transforms: Sequence[Transform], optimizer: keras.optimizers.Optimizer
) -> Gradients:
    """Let transformations see gradients without the loss scale, which is a power of 2, and put it back afterwards."""

    def times(gradients: Gradients, sign: int) -> Gradients:
        def scaled(batch: Batch, total: Total = None) -> Result:
            result = gradients(batch, total)
            factor = optimizer.scale_loss(1.0)
            factor = factor if sign > 0 else 1.0 / factor
            dense = [None if g is None else tf.convert_to_tensor(g) for g in result.gradients]
            return result._replace(gradients=[None if g is None else g * tf.cast(factor, g.dtype) for g in dense])

        return scaled

    gradients = times(gradients, -1)
    for transform in transforms:
        gradients = transform(gradients)
    return times(gradients, 1)


def showing_the_loss(gradients: Gradients) -> Gradients:
    """Make all gradients NaN where the loss is not finite: the loss scale looks at the gradients alone."""

    def shown(batch: Batch, total: Total = None) -> Result:
        result = gradients(batch, total)
        zero = tf.where(tf.math.is_finite(result.losses["loss"]), 0.0, math.nan)
        dense = [None if g is None else tf.convert_to_tensor(g) for g in result.gradients]
        return result._replace(gradients=[None if g is None else g + tf.cast(zero, g.dtype) for g in dense])

    return shown


def counted(update: Update, optimizer: keras.optimizers.Optimizer) -> Update:
    """Return 0 instead of 1 where the loss scale made the optimizer skip its update."""

    def counting(gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
        before = tf.identity(optimizer.iterations)
        update(gradients)
        return tf.cast(optimizer.iterations - before, tf.int32)

    return counting
