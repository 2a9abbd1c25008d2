"""One update of the model: the heart of the loop, and how it is put together.

`batch_gradients` is the step that anyone would write by hand: forward pass under a tape, loss, gradients, metrics.
Everything else is a wrapper around it, a file each in `transforms`, and `make_step` says which of them are used and in
which order. A block takes many such steps in one compiled program; see `block`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from clr_loop.loop import keras_private
from clr_loop.loop.batches import Batch
from clr_loop.loop.losses import losses_of
from clr_loop.loop.options import StepOptions
from clr_loop.loop.result import Gradients, Result, Take, Total, Update
from clr_loop.loop.transforms.averages import Averages, followed_by
from clr_loop.loop.transforms.clipping import clipped
from clr_loop.loop.transforms.halves import in_halves
from clr_loop.loop.transforms.loss_scale import counted, scales_loss, showing_the_loss, without_scale
from clr_loop.loop.transforms.multipliers import with_multipliers
from clr_loop.loop.transforms.parts import in_parts
from clr_loop.loop.transforms.replicas import on_each_replica, summed_over_replicas
from clr_loop.loop.transforms.skipping import always, skipping


def batch_gradients(model: keras.Model) -> Gradients:
    """Return the function from a batch to its gradients, losses and metrics, as Keras' `train_step` computes them."""

    in_training = keras_private.training_argument(model, True)

    def gradients(batch: Batch, total: Total = None) -> Result:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        with tf.GradientTape() as tape:
            y_pred = model(x, **in_training)
            losses = losses_of(model, batch, y_pred, total, training=True)
            scaled = model.optimizer.scale_loss(losses["loss"])
        metrics = model.compute_metrics(x, y, y_pred, sample_weight)
        return Result(tape.gradient(scaled, model.trainable_variables), losses, metrics)

    return gradients


def applied(model: keras.Model) -> Update:
    """Return the function that updates the model with gradients, in every replica."""
    optimizer = model.optimizer

    def apply(gradients: Sequence[tf.Tensor | None]) -> None:
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    def update(gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
        if model.trainable_variables:
            with keras_private.summed_already(optimizer):
                model.distribute_strategy.run(apply, args=(gradients,))
        return tf.constant(1)

    return update


def make_step(model: keras.Model, options: StepOptions, halves: bool, averages: Averages | None) -> Take:
    """Put the step of a compiled model together.

    Args:
        model: compiled, with its losses, metrics and optimizer built.
        options: see `StepOptions`.
        halves: whether a batch is computed in two halves; see `transforms.halves`.
        averages: what follows the weights, if anything.
    """
    optimizer, has_scale = model.optimizer, scales_loss(model.optimizer)
    is_shared = model.distribute_strategy.num_replicas_in_sync > 1

    gradients = batch_gradients(model)
    if halves:
        gradients = in_halves(gradients)
    elif options.accumulate > 1:
        gradients = in_parts(gradients, options.accumulate)
    if has_scale and options.skip_non_finite:
        gradients = showing_the_loss(gradients)
    if is_shared:
        gradients = summed_over_replicas(gradients)
    if has_scale and options.transforms:
        gradients = without_scale(gradients, options.transforms, optimizer)
    else:
        for transform in options.transforms:
            gradients = transform(gradients)
    if options.clip_norm is not None:
        gradients = clipped(gradients, options.clip_norm, optimizer)
    if is_shared:
        gradients = on_each_replica(gradients, model)

    update = applied(model)
    if has_scale:
        update = counted(update, optimizer)
    if options.rate_multipliers:
        update = with_multipliers(update, model, options.rate_multipliers)
    if averages is not None:
        update = followed_by(update, averages, optimizer)

    return skipping(gradients, update, model) if options.skip_non_finite else always(gradients, update)


def batch_begin(
    model: keras.Model, optimizers: Sequence[keras.optimizers.Optimizer]
) -> Callable[[tf.Tensor, tf.Tensor | None], contextlib.AbstractContextManager[None]]:
    """Return the context in which a step is traced with its learning rate and momentum (None for the optimizer's own).

    They are assigned before the forward pass, as Keras' callbacks do, and the metrics are reset.
    """

    @contextlib.contextmanager
    def begun(learning_rate: tf.Tensor, momentum: tf.Tensor | None) -> Iterator[None]:
        for metric in model.metrics:
            metric.reset_state()
        with contextlib.ExitStack() as stack:
            for optimizer in optimizers:
                optimizer.learning_rate.assign(learning_rate)
                if momentum is not None:
                    stack.enter_context(keras_private.at_momentum(optimizer, momentum))
            yield

    return begun
