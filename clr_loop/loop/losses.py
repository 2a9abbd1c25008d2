"""The losses of a batch, or of a part of one, as Keras computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from clr_loop.loop import keras_private
from clr_loop.loop.batches import Batch, num_examples_of
from clr_loop.loop.result import Total, Values


def losses_of(model: keras.Model, batch: Batch, y_pred: Any, total: Total, training: bool) -> Values:
    """Return the `loss` and, of a model with several losses, that of each output, float32 [].

    Args:
        batch: a whole batch, or a part of one.
        y_pred: the model's outputs for it.
        total: None, or the number of examples of the whole batch. Then each loss is what these examples contribute to
            the mean over all of them.
    """
    of_outputs = keras_private.output_losses(model)
    for metric in of_outputs:  # Keras weights batches of them by a static shape, which may be unknown.
        metric.reset_state()
    loss = keras_private.compute_loss(model, batch, y_pred, training)
    losses = {metric.name: tf.cast(metric.result(), tf.float32) for metric in of_outputs}
    if total is not None:
        _check_no_mask(y_pred)
        share = tf.cast(num_examples_of(batch), tf.float32) / tf.cast(total, tf.float32)
        losses = {name: share * value for name, value in losses.items()}
        # Keras has divided it by the number of replicas.
        loss = model.distribute_strategy.num_replicas_in_sync * share * tf.cast(loss, tf.float32)
    return {**losses, "loss": tf.cast(loss, tf.float32)}


def function_of(loss: Any) -> Callable[..., Any] | None:
    """Return Keras' own function (y, y_pred) → values that a loss is made of; None for a loss of another kind.

    A class with a `call` of its own is of another kind, also if it inherits from one of Keras'.
    """
    plain, function = keras.losses.MeanSquaredError, getattr(loss, "fn", None)
    is_plain = type(loss).call is plain.call and type(loss).__call__ is plain.__call__
    return function if is_plain and getattr(function, "__module__", "").startswith("keras.") else None


def _check_no_mask(y_pred: Any) -> None:
    """Refuse to split a masked batch: Keras averages over unmasked tokens, and each part has another number of them."""
    if keras_private.carries_mask(y_pred):
        raise ValueError(
            "The model's output carries a mask, so its loss is a mean over the tokens that are not masked. Such a "
            "batch cannot be split into equal shares: use accumulate=1 and one replica, or give the mask as "
            "sample_weight."
        )
