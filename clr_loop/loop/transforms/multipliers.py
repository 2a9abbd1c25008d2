"""A learning rate of its own for each variable: that of the step times a factor."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf

from clr_loop.loop import keras_private
from clr_loop.loop.result import Update


def with_multipliers(update: Update, model: keras.Model, multipliers: Mapping[str, float]) -> Update:
    """Multiply the rate of each variable by the factor of the first regex that its path has a match for."""

    def scaled(gradients: Sequence[tf.Tensor | None]) -> tf.Tensor:
        factors = [(variable, _factor(multipliers, variable)) for variable in model.trainable_variables]
        with keras_private.rates_scaled(model.optimizer, factors):
            return update(gradients)

    return scaled


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
