"""What is given for each step: a learning rate, and perhaps a momentum.

Keras keeps an optimizer's momentum (beta_1 of the Adam family) in a Python float, which a `tf.function` freezes when it
is traced; assigning it later changes nothing. So a tensor takes its place while a step is traced.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

Rates = NDArray[np.float32]


def checked_rates(learning_rates: ArrayLike) -> Rates:
    """Return rates as the block takes them.

    Raises:
        ValueError: unless they are a vector of numbers of at least 0 that are finite in float32.
    """
    rates = np.asarray(learning_rates, np.float64)
    if rates.ndim != 1:
        raise ValueError(f"The learning rates have shape {rates.shape}; give a vector with one rate for each step.")
    with np.errstate(over="ignore"):
        cast = rates.astype(np.float32)
    bad = ~(np.isfinite(cast) & (rates >= 0.0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"The learning rate at index {i} is {rates[i]}; rates are finite and at least 0.")
    return cast


def checked_momentums(momentums: ArrayLike, num_rates: int) -> Rates:
    """Return momentums as the block takes them.

    Raises:
        ValueError: unless there is one for each rate, at least 0 and in float32 below 1.
    """
    values = np.asarray(momentums, np.float64)
    if values.shape != (num_rates,):
        raise ValueError(f"The momentums have shape {values.shape}; give one for each of the {num_rates} rates.")
    cast = values.astype(np.float32)
    bad = ~((values >= 0.0) & (cast < 1.0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"The momentum at index {i} is {values[i]}; momentums are at least 0 and below 1.")
    return cast


def momentums_of(schedule: Any, steps: NDArray[np.int64]) -> ArrayLike | None:
    """Return the momentums that a schedule gives for these steps, floats [n], or None if it does not cycle them."""
    return schedule.momentum_at(steps) if hasattr(schedule, "momentum_at") else None


def momentum_attribute(optimizer: keras.optimizers.Optimizer) -> str:
    """Return the name under which the optimizer keeps its momentum: `beta_1`, or `momentum` where it has none.

    Raises:
        ValueError: if it has neither, or was made with 0, for which Keras keeps no velocities.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("beta_1", "momentum"):
        if getattr(optimizer, name, 0.0) != 0.0:
            return name
    raise ValueError(
        f"The schedule cycles the momentum, but {type(optimizer).__name__} has none; make it with one, as in "
        "SGD(momentum=0.9)."
    )


@contextlib.contextmanager
def momentum_in_graph(optimizer: keras.optimizers.Optimizer, momentum: tf.Tensor | None) -> Iterator[None]:
    """Trace what stands inside with this momentum, a scalar float tensor; None leaves the optimizer's own.

    Adam's bias correction then uses the momentum of the step, `1 - beta_1 ** (step + 1)`, as Keras and PyTorch do when
    it is assigned from Python.
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


def check_multipliers(variables: Sequence[keras.Variable], multipliers: Mapping[str, float]) -> None:
    """Raise ValueError if a regex cannot be read, or matches no variable's path."""
    paths = [variable.path for variable in variables]
    for regex in multipliers:
        try:
            matches = any(re.search(regex, path) for path in paths)
        except re.error as error:
            raise ValueError(f"The rate multiplier's regex {regex!r} cannot be read: {error}.") from error
        if not matches:
            raise ValueError(f"The rate multiplier's regex {regex!r} matches no variable; they are {', '.join(paths)}.")


def _factor(multipliers: Mapping[str, float], variable: keras.Variable) -> float:
    return next((factor for regex, factor in multipliers.items() if re.search(regex, variable.path)), 1.0)


@contextlib.contextmanager
def rates_scaled(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], multipliers: Mapping[str, float]
) -> Iterator[None]:
    """Trace what stands inside with a learning rate for each variable; see `StepOptions.rate_multipliers`."""
    if not multipliers:
        yield
        return
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    by_key = dict(zip(map(optimizer._var_key, variables), map(partial(_factor, multipliers), variables), strict=True))
    update_step, decay_weights, decay = optimizer.update_step, optimizer._apply_weight_decay, optimizer.weight_decay

    def scaled_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        update_step(gradient, variable, learning_rate * by_key[optimizer._var_key(variable)])

    def scaled_decay(given: Sequence[keras.Variable]) -> None:
        for variable in given if decay is not None else ():
            optimizer.weight_decay = decay * by_key[optimizer._var_key(variable)]
            decay_weights([variable])
        optimizer.weight_decay = decay

    optimizer.update_step, optimizer._apply_weight_decay = scaled_step, scaled_decay
    try:
        yield
    finally:
        del optimizer.update_step, optimizer._apply_weight_decay


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
