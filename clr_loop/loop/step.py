"""What one step does with its batch: forward, loss, gradients, update. The same for every way of feeding the loop.

A `TrainLoop` traces it inside a block of steps, whether the batches are resident or come from a stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

from clr_loop.loop.momentum import momentum_in_graph

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

    With several replicas each works on its share of the batch; its loss and gradients are its part of the whole batch's
    mean, so that their sum over replicas is what one replica would have. Clipping, and the question whether all is
    finite, come after that sum. The parts of `accumulate` are taken and summed in the same way, one after another. So
    are those of `halves`, but neither waits for the other, so that each can have a core to itself from the first
    product to the last gradient; two cores get through that sooner than through the same products shared one by one.

    Args:
        model, optimizer, loss, skip_non_finite, clip_norm, accumulate: see `TrainLoop`; model and optimizer made in the
            scope of the strategy.
        strategy: that the step is traced under; TensorFlow's default strategy is one replica, and adds nothing.
        halves: whether a batch of at least two is computed in two independent halves; not together with accumulate.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: Loss,
        skip_non_finite: bool,
        clip_norm: float | None,
        accumulate: int,
        strategy: tf.distribute.Strategy,
        halves: bool,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._loss = loss
        self._skip_non_finite = skip_non_finite
        self._clip_norm = clip_norm
        self._one_after_another = accumulate > 1
        self._num_parts = 2 if halves else accumulate
        self._strategy = strategy
        self._scales_loss = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)

    def __call__(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        learning_rate: tf.Tensor,
        momentum: tf.Tensor | None,
        sample_weight: tf.Tensor | None = None,
        size: tf.Tensor | None = None,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Takes a step, unless it is skipped. Called outside of any replica.

        Args:
            images: uint8 or float32 [batch, …]; with several replicas this and what follows is a share for each.
            labels: int32 [batch].
            learning_rate: float32 [].
            momentum: float32 [], or None for the optimizer's own.
            sample_weight: float32 [batch], that each example's loss is multiplied by; or None.
            size: int32 [], the examples of the whole batch; None where the share is the batch.

        Returns:
            The step's metrics, float32 [] each; and 1 if the update was taken, 0 if it was skipped, int32 [].
        """
        statistics = self._model.non_trainable_variables
        kept = [tf.identity(variable.value) for variable in statistics] if self._skip_non_finite else []
        *shares, gradients = self._strategy.run(self._gradients, args=(images, labels, sample_weight, size))
        loss, accuracy = (self._strategy.reduce(tf.distribute.ReduceOp.SUM, share, axis=None) for share in shares)
        taken = tf.constant(1)
        if self._skip_non_finite and not _all_finite([loss, *self._strategy.experimental_local_results(gradients)[0]]):
            for variable, value in zip(statistics, kept, strict=True):
                variable.assign(value)  # The forward pass alone may have spoiled them (batch-norm).
            taken = tf.constant(0)
        else:
            before = tf.identity(self._optimizer.iterations) if self._scales_loss else None
            with momentum_in_graph(self._optimizer, momentum), summed_over_replicas(self._optimizer):
                self._optimizer.learning_rate.assign(learning_rate)
                self._strategy.run(self._apply, args=(gradients,))
            if self._scales_loss:  # It skips by itself a step whose scaled gradients are not finite.
                taken = tf.cast(self._optimizer.iterations - before, tf.int32)
        metrics = {
            "learning_rate": keras.ops.convert_to_tensor(self._optimizer.learning_rate),
            "loss": loss,
            "accuracy": accuracy,
        }
        return metrics if momentum is None else {**metrics, "momentum": momentum}, taken

    def evaluate(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the mean loss and the number of examples that are classified rightly, the model in inference mode."""
        logits = self._logits(images, training=False)
        loss = self._loss_of(labels, logits, None, len_of(labels))
        return loss, tf.math.count_nonzero(_is_correct(labels, logits))

    # Plain Python, as it stands: AutoGraph would rewrite it and what it calls, which took half of a trace's time.
    @tf.autograph.experimental.do_not_convert
    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor, sample_weight: tf.Tensor | None, size: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor | None]]:
        """Returns a replica's share of loss and accuracy, and the gradients of the whole batch, summed and clipped."""
        num_here = len_of(labels)
        size = num_here if size is None else size
        variables = self._model.trainable_variables
        loss, accuracy = tf.constant(0.0), tf.constant(0.0)
        gradients: list[tf.Tensor | None] = []
        for i in range(self._num_parts):  # Written out in the graph.
            begin, end = num_here * i // self._num_parts, num_here * (i + 1) // self._num_parts
            part = [x if x is None or self._num_parts == 1 else x[begin:end] for x in (images, labels, sample_weight)]
            # Micro-batches wait for each other, or all would need their memory at the same time.
            done = [gradient for gradient in gradients if gradient is not None and self._one_after_another]
            with tf.control_dependencies(done), tf.GradientTape() as tape:
                logits = self._logits(part[0], training=True)
                part_of_loss = self._loss_of(part[1], logits, part[2], size)
                scaled = self._optimizer.scale_loss(part_of_loss)
            new = tape.gradient(scaled, variables)
            gradients = [_sum(a, b) for a, b in zip(gradients, new, strict=True)] if i else new
            loss += part_of_loss
            accuracy += tf.reduce_sum(tf.cast(_is_correct(part[1], logits), tf.float32)) / tf.cast(size, tf.float32)
        if self._strategy.num_replicas_in_sync > 1:
            present = [gradient for gradient in gradients if gradient is not None]
            summed = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, present))
            gradients = [None if gradient is None else next(summed) for gradient in gradients]
        if self._clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._optimizer.scale_loss(self._clip_norm))
        return loss, accuracy, gradients

    @tf.autograph.experimental.do_not_convert
    def _apply(self, gradients: list[tf.Tensor | None]) -> None:
        self._optimizer.apply_gradients(zip(gradients, self._model.trainable_variables, strict=True))

    def _logits(self, images: tf.Tensor, training: bool) -> tf.Tensor:
        return tf.cast(self._model(to_float(images), training=training), tf.float32)

    def _loss_of(
        self, labels: tf.Tensor, logits: tf.Tensor, sample_weight: tf.Tensor | None, size: tf.Tensor | int
    ) -> tf.Tensor:
        """What these examples, and the layers' own losses, contribute to the mean over `size` examples."""
        losses = self._loss(labels, logits)
        if sample_weight is not None:
            if losses.shape.rank != 1:
                raise ValueError(
                    f"loss must return one value for each example where there are sample weights, received shape "
                    f"{losses.shape}; leave the mean to the loop"
                )
            losses *= sample_weight
        share = tf.cast(len_of(labels), tf.float32) / tf.cast(size, tf.float32)
        return tf.add_n([tf.reduce_mean(losses), *self._model.losses]) * share


@contextlib.contextmanager
def summed_over_replicas(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Traces what stands inside with gradients that are summed already, in place of Keras' own sum over replicas.

    Keras clips the gradients of each replica and sums them then, which is not what one replica would do; there is no
    argument that leaves the sum out.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    own = inner._all_reduce_sum_gradients
    inner._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        inner._all_reduce_sum_gradients = own


def metric_names(with_momentums: bool) -> tuple[str, ...]:
    """Returns the names of a step's metrics."""
    return ("learning_rate", "loss", "accuracy") + (("momentum",) if with_momentums else ())


def to_float(images: tf.Tensor) -> tf.Tensor:
    """Returns images as float32: uint8 scaled to 0–1, float32 as they are."""
    return tf.cast(images, tf.float32) / 255.0 if images.dtype == tf.uint8 else images


def len_of(labels: tf.Tensor) -> tf.Tensor | int:
    """Returns the number of examples: an int where it is known when the step is traced."""
    return tf.shape(labels)[0] if labels.shape[0] is None else labels.shape[0]


def _sum(a: tf.Tensor | None, b: tf.Tensor | None) -> tf.Tensor | None:
    return None if a is None else tf.convert_to_tensor(a) + tf.convert_to_tensor(b)


def _all_finite(tensors: list[tf.Tensor | None]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors if tensor is not None])


def _is_correct(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.equal(tf.argmax(logits, -1, labels.dtype), labels)
