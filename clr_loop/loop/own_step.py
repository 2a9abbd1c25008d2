"""A step for a model that has a `train_step` of its own: the loop assigns the rate, the model does the rest."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from clr_loop.loop.batches import Batch
from clr_loop.loop.options import StepOptions
from clr_loop.loop.result import Result, Take, Total


def has_own(model: keras.Model, name: str) -> bool:
    """Return whether a model has a method of its own instead of Keras', such as `train_step`."""
    return getattr(type(model), name) is not getattr(keras.Model, name) or name in vars(model)


def optimizers_of(model: keras.Model, names: Sequence[str] | None) -> list[keras.optimizers.Optimizer]:
    """Return the optimizers among a model's attributes, in lists and dicts too; of these attributes alone, if named.

    Raises:
        ValueError: if a named attribute holds no optimizer.
    """
    optimizers: dict[int, keras.optimizers.Optimizer] = {}
    attributes = vars(model) if names is None else {name: getattr(model, name, None) for name in names}
    for name, value in attributes.items():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        own = [each for each in values if isinstance(each, keras.optimizers.Optimizer)]
        if names is not None and not own:
            raise ValueError(f"StepOptions names the optimizer {name!r}, and the model has none of that name.")
        optimizers.update({id(optimizer): optimizer for optimizer in own})
    return list(optimizers.values())


def check_options(options: StepOptions, num_replicas: int) -> None:
    """Raise ValueError for an option that acts inside a step, which a `train_step` of the model's own replaces."""
    asked = {
        "accumulate": options.accumulate > 1,
        "clip_norm": options.clip_norm is not None,
        "rate_multipliers": bool(options.rate_multipliers),
        "transforms": bool(options.transforms),
        "skip_non_finite": options.skip_non_finite,
        "average": options.average not in (None, "swa"),
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    if names:
        raise ValueError(
            f"The model has a train_step of its own, which computes and applies the gradients itself, so "
            f"{names[0]} cannot come in between; leave it out, or do it in the train_step."
        )
    if num_replicas > 1:
        raise ValueError(
            "The model has a train_step of its own, and this loop does not know how to split it among "
            f"{num_replicas} replicas; make the model without a strategy."
        )


def own_step(model: keras.Model, is_bare: bool) -> Take:
    """Return the step that calls the model's `train_step`, whose logs are recorded.

    Args:
        is_bare: whether the data's elements are inputs alone, and no tuple of them.
    """

    def take(batch: Batch, total: Total) -> tuple[Result, tf.Tensor]:
        logs = model.train_step(batch[0] if is_bare else batch)
        return Result([], {}, logs), tf.constant(1)

    return take
