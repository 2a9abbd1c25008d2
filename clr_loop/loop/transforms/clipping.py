"""Gradients of a bounded global norm."""

from __future__ import annotations

import keras
import tensorflow as tf

from clr_loop.loop.batches import Batch
from clr_loop.loop.result import Gradients, Result, Total


def clipped(gradients: Gradients, norm: float, optimizer: keras.optimizers.Optimizer) -> Gradients:
    """Scale gradients whose global norm is above `norm` down to it.

    The rows that an embedding was read at several times count with their sum, as they do in the update.
    """

    def at_most(batch: Batch, total: Total = None) -> Result:
        result = gradients(batch, total)
        dense = [None if gradient is None else tf.convert_to_tensor(gradient) for gradient in result.gradients]
        return result._replace(gradients=tf.clip_by_global_norm(dense, optimizer.scale_loss(norm))[0])

    return at_most
