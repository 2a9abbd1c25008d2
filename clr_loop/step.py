"""What one step does with its batch: forward, loss, gradients, update. The same for every way of feeding the loop.

A `TrainLoop` traces it inside a block of steps, whether the batches are resident or come from a stream.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from clr_loop.momentum import momentum_in_graph

Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy of each example, from logits, numerically stable.

    Args:
        labels: integers [batch].
        logits: floats [batch, num_classes].

    Returns:
        float [batch].
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)


class TrainStep:
    """A step of training and one of evaluation, to be traced into a graph.

    Args:
        model, optimizer, loss, skip_non_finite: see `TrainLoop`.
    """

    def __init__(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, loss: Loss, skip_non_finite: bool
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._loss = loss
        self._skip_non_finite = skip_non_finite

    def __call__(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        learning_rate: tf.Tensor,
        momentum: tf.Tensor | None,
        sample_weight: tf.Tensor | None = None,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Takes a step, unless it is skipped.

        Args:
            images: uint8 or float32 [batch, …].
            labels: int32 [batch].
            learning_rate: float32 [].
            momentum: float32 [], or None for the optimizer's own.
            sample_weight: float32 [batch], that each example's loss is multiplied by; or None.

        Returns:
            The step's metrics, float32 [] each; and 1 if the update was taken, 0 if it was skipped, int32 [].
        """
        statistics = self._model.non_trainable_variables
        kept = [tf.identity(variable.value) for variable in statistics] if self._skip_non_finite else []
        with tf.GradientTape() as tape:
            logits = self._model(to_float(images), training=True)
            loss = self._mean_loss(labels, logits, sample_weight)
        variables = self._model.trainable_variables
        gradients = tape.gradient(loss, variables)
        taken = tf.constant(1)
        if self._skip_non_finite and not _all_finite([loss, *gradients]):
            for variable, value in zip(statistics, kept, strict=True):
                variable.assign(value)  # The forward pass alone may have spoiled them (batch-norm).
            taken = tf.constant(0)
        else:
            with momentum_in_graph(self._optimizer, momentum):
                self._optimizer.learning_rate.assign(learning_rate)
                self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        metrics = {
            "learning_rate": keras.ops.convert_to_tensor(self._optimizer.learning_rate),
            "loss": loss,
            "accuracy": tf.reduce_mean(tf.cast(_is_correct(labels, logits), tf.float32)),
        }
        return metrics if momentum is None else {**metrics, "momentum": momentum}, taken

    def evaluate(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the mean loss and the number of examples that are classified rightly, the model in inference mode."""
        logits = self._model(to_float(images), training=False)
        return self._mean_loss(labels, logits, None), tf.math.count_nonzero(_is_correct(labels, logits))

    def _mean_loss(self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None) -> tf.Tensor:
        losses = self._loss(labels, logits)
        if sample_weight is not None:
            if losses.shape.rank != 1:
                raise ValueError(
                    f"loss must return one value for each example where there are sample weights, received shape "
                    f"{losses.shape}; leave the mean to the loop"
                )
            losses *= sample_weight
        return tf.add_n([tf.reduce_mean(losses), *self._model.losses])


def metric_names(with_momentums: bool) -> tuple[str, ...]:
    """Returns the names of a step's metrics."""
    return ("learning_rate", "loss", "accuracy") + (("momentum",) if with_momentums else ())


def to_float(images: tf.Tensor) -> tf.Tensor:
    """Returns images as float32: uint8 scaled to 0–1, float32 as they are."""
    return tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images


def _all_finite(tensors: list[tf.Tensor | None]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors if tensor is not None])


def _is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.equal(tf.argmax(logits, -1, labels.dtype), labels)
