"""A momentum that changes from step to step inside a compiled step.

Keras keeps an optimizer's momentum (beta_1 of the Adam family) in a Python float, which a `tf.function` freezes when it
is traced: assigning it later changes nothing. Here the float gives way to a tensor while the step is being traced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray


def momentum_attribute(optimizer: keras.optimizers.Optimizer) -> str:
    """Returns the name under which the optimizer keeps its momentum: `beta_1`, or `momentum` where it has none.

    Raises:
        ValueError: if it has neither, or was made with 0, for which Keras keeps no velocities.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("beta_1", "momentum"):
        if getattr(optimizer, name, 0.0) != 0.0:
            return name
    raise ValueError(
        f"momentums need an optimizer with momentum, received {type(optimizer).__name__} without; make it with one, "
        "such as SGD(momentum=0.9)"
    )


@contextlib.contextmanager
def momentum_in_graph(optimizer: keras.optimizers.Optimizer, momentum: tf.Tensor | None) -> Iterator[None]:
    """Traces what stands inside with this momentum in place of the optimizer's own; None leaves its own.

    Adam's bias correction then uses the momentum of the step, `1 - beta_1 ** (step + 1)`, as Keras and PyTorch do when
    it is assigned from Python.

    Args:
        momentum: scalar float tensor, or None.
    """
    if momentum is None:
        yield
        return
    name = momentum_attribute(optimizer)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    own = getattr(optimizer, name)
    setattr(optimizer, name, momentum if name == "beta_1" else _HasMomentum(momentum))
    try:
        yield
    finally:
        setattr(optimizer, name, own)


def momentums_of(schedule: Any, steps: NDArray[np.int64]) -> ArrayLike | None:
    """Returns the momentums that a schedule gives for these steps, floats [n], or None if it does not cycle them."""
    return schedule.momentum_at(steps) if hasattr(schedule, "momentum_at") else None


class _HasMomentum:
    """A tensor to TensorFlow; to SGD and RMSprop, which ask in Python whether they have momentum at all: yes."""

    def __init__(self, value: tf.Tensor) -> None:
        self._value = value

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        return self._value if dtype is None else tf.cast(self._value, dtype)

    def __ne__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]
