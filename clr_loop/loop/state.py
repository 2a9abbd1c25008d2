"""All that training changes, as variables; copied to the host and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Snapshot:
    """All that training changes, on the host.

    Attributes:
        model, optimizer: the variables of the model, and of its optimizers.
        seed: int, of the data order.
        step, num_skipped: int, updates that the loop has taken, and those that it has skipped.
        others: variables outside of both that a step reads or changes, such as states of random numbers.
        averages: the average of the weights; num_averaged: how many moments a mean of them holds.
    """

    model: Arrays
    optimizer: Arrays
    seed: int
    step: int = 0
    num_skipped: int = 0
    others: Arrays = field(default_factory=list)
    averages: Arrays = field(default_factory=list)
    num_averaged: int = 0


def values_of(variables: Sequence[Any]) -> Arrays:
    """Return copies of variables on the host."""
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    """Give variables these values. Raises ValueError if there is not one for each."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


@contextlib.contextmanager
def kept(variables: Sequence[Any]) -> Iterator[None]:
    """Put variables back, when this context ends, to the values that they have now."""
    before = values_of(variables)
    try:
        yield
    finally:
        assign(variables, before)
