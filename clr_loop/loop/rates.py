"""What a caller gives for each step: a learning rate, and perhaps a momentum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Vector = NDArray[np.float32]


def checked_rates(learning_rates: ArrayLike) -> Vector:
    """Return learning rates as the block takes them.

    Raises:
        ValueError: unless they are a vector of numbers of at least 0 that are finite in float32.
        TypeError: if they are a function, such as a schedule.
    """
    if callable(learning_rates):
        raise TypeError("run takes the rates of its steps: give run(schedule(np.arange(loop.step, loop.step + 100))).")
    rates = np.asarray(learning_rates, np.float64)
    if rates.ndim != 1:
        raise ValueError(f"The learning rates have shape {rates.shape}; give a vector with one rate for each step.")
    with np.errstate(over="ignore"):
        cast = rates.astype(np.float32)
    _check_each("learning rate", rates, np.isfinite(cast) & (rates >= 0.0), "rates are finite and at least 0")
    return cast


def checked_momentums(momentums: ArrayLike, num_rates: int) -> Vector:
    """Return momentums as the block takes them.

    Raises:
        ValueError: unless there is one for each rate, at least 0 and in float32 below 1.
    """
    values = np.asarray(momentums, np.float64)
    if values.shape != (num_rates,):
        raise ValueError(f"The momentums have shape {values.shape}; give one for each of the {num_rates} rates.")
    cast = values.astype(np.float32)
    _check_each("momentum", values, (values >= 0.0) & (cast < 1.0), "momentums are at least 0 and below 1")
    return cast


def _check_each(name: str, values: NDArray[np.float64], is_good: NDArray[np.bool_], rule: str) -> None:
    if not is_good.all():
        i = int(np.argmin(is_good))
        raise ValueError(f"The {name} at index {i} is {values[i]}; {rule}.")


def momentums_of(schedule: Any, steps: NDArray[np.int64]) -> ArrayLike | None:
    """Return the momentums that a schedule gives for these steps, floats [n], or None if it does not cycle them."""
    return schedule.momentum_at(steps) if hasattr(schedule, "momentum_at") else None
