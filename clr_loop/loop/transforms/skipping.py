"""How gradients and update are joined: always, or only where loss and gradients are finite."""

from __future__ import annotations

import keras
import tensorflow as tf

from clr_loop.loop.batches import Batch
from clr_loop.loop.result import Gradients, Result, Take, Total, Update
from clr_loop.loop.transforms.loss_scale import scales_loss


def always(gradients: Gradients, update: Update) -> Take:
    """Compute the gradients of a batch and update with them."""

    def take(batch: Batch, total: Total) -> tuple[Result, tf.Tensor]:
        result = gradients(batch, total)
        return result, update(result.gradients)

    return take


def skipping(gradients: Gradients, update: Update, model: keras.Model) -> Take:
    """Leave the model unchanged where the loss or a gradient is not finite.

    The forward pass alone may have changed its state, as that of batch-norm, so this state is put back. A loss scale
    skips by itself, and must see what is not finite to halve its scale.
    """
    strategy = model.distribute_strategy

    def take(batch: Batch, total: Total) -> tuple[Result, tf.Tensor]:
        state = model.non_trainable_variables
        kept = [tf.identity(variable.value) for variable in state]

        def put_back() -> tf.Tensor:
            for variable, value in zip(state, kept, strict=True):
                variable.assign(value)
            return tf.constant(0)

        result = gradients(batch, total)
        if scales_loss(model.optimizer):
            taken = update(result.gradients)
            return result, tf.cond(taken > 0, lambda: taken, put_back)
        is_good = _all_finite([result.losses["loss"], *strategy.experimental_local_results(result.gradients)[0]])
        return result, tf.cond(is_good, lambda: update(result.gradients), put_back)

    return take


def _all_finite(tensors: list[tf.Tensor | None]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(t))) for t in tensors if t is not None])
