"""What the parts of a step hand to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from clr_loop.loop.batches import Batch

Values: TypeAlias = dict[str, tf.Tensor]
Gradient: TypeAlias = tf.Tensor | None
Total: TypeAlias = tf.Tensor | int | None


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by name, where a metric's own are a dictionary those in it, as Keras records them."""
    flattened: dict[str, Any] = {}
    for name, value in values.items():
        flattened.update(flat(value) if isinstance(value, Mapping) else {name: value})
    return flattened


class Result(NamedTuple):
    """What a batch, or a part of one, contributes to an update.

    Attributes:
        gradients: one for each trainable variable, in the model's order; None where the loss does not depend on it.
        losses: `loss` and, for a model with several losses, that of each output, float32 [].
        metrics: the compiled metrics of this batch, by name.
    """

    gradients: Sequence[Gradient]
    losses: Values
    metrics: Values


Gradients: TypeAlias = Callable[..., Result]
"""(batch, total) → `Result`. `total` is the number of examples of the whole batch, if this is a part of it."""
Transform: TypeAlias = Callable[[Gradients], Gradients]
Update: TypeAlias = Callable[[Sequence[Gradient]], tf.Tensor]
"""gradients → int32 [], 1 if the update was taken, 0 if it was skipped."""
Take: TypeAlias = Callable[[Batch, Total], tuple[Result, tf.Tensor]]
