"""A batch shared out among replicas: each computes its share, and the sums are those of the whole batch."""

from __future__ import annotations

import keras
import tensorflow as tf

from clr_loop.loop.batches import Batch
from clr_loop.loop.result import Gradients, Result, Total

_SUM = tf.distribute.ReduceOp.SUM


def summed_over_replicas(gradients: Gradients) -> Gradients:
    """Add up the gradients of all replicas, before anything looks at them; to be called in each replica."""

    def summed(batch: Batch, total: Total = None) -> Result:
        result = gradients(batch, total)
        present = [tf.convert_to_tensor(gradient) for gradient in result.gradients if gradient is not None]
        sums = iter(tf.distribute.get_replica_context().all_reduce(_SUM, present))
        return result._replace(gradients=[None if gradient is None else next(sums) for gradient in result.gradients])

    return summed


def on_each_replica(gradients: Gradients, model: keras.Model) -> Gradients:
    """Call a function in each replica of the model's strategy, and join what it returns.

    The result's gradients stay with their replicas; losses are summed, and metrics merge when they are read here.
    """
    strategy = model.distribute_strategy

    def on_each(batch: Batch, total: Total = None) -> Result:
        result = strategy.run(gradients, args=(batch, total))
        losses = {name: strategy.reduce(_SUM, loss, axis=None) for name, loss in result.losses.items()}
        return Result(result.gradients, losses, model.get_metrics_result())

    return on_each
