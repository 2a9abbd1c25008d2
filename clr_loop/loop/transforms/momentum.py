"""A momentum that is given for each step, as the learning rate is."""

from __future__ import annotations

import contextlib

import keras
import tensorflow as tf

from clr_loop.loop import keras_private


def momentum_attribute(optimizer: keras.optimizers.Optimizer) -> str:
    """Return the name under which the optimizer keeps its momentum: `beta_1`, or `momentum` where it has none.

    Raises:
        ValueError: if it has neither, or was made with 0, for which Keras keeps no velocities.
    """
    optimizer = keras_private.inner(optimizer)
    for name in ("beta_1", "momentum"):
        if getattr(optimizer, name, 0.0) != 0.0:
            return name
    raise ValueError(
        f"The schedule cycles the momentum, but {type(optimizer).__name__} has none; make it with one, as in "
        "SGD(momentum=0.9)."
    )


def at_momentum(optimizer: keras.optimizers.Optimizer, momentum: tf.Tensor) -> contextlib.AbstractContextManager[None]:
    """Return the context in which updates are traced with this momentum, a scalar float tensor."""
    return keras_private.at_momentum(optimizer, momentum_attribute(optimizer), momentum)
