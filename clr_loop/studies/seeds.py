"""What the seed of a run decides: the initial weights, and the order of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from clr_loop.loop.own_step import has_own
from clr_loop.loop.state import values_of
from clr_loop.loop.trial import variables_with_state

MakeModel = Callable[[int], keras.Model]
"""seed → a fresh compiled model."""


def initial_state(make_model: MakeModel, seed: int) -> dict[str, Any]:
    """Return what a seed decides in the `Snapshot` of a loop at step 0; the model itself is not kept.

    Some optimizers, such as ScheduleFreeAdamW, are built with a copy of the weights, so their state is decided, too.
    """
    model = make_model(seed)
    state = {"model": values_of(model.variables), "seed": seed}
    if has_own(model, "train_step"):  # Its optimizers are its own affair.
        return state
    with model.distribute_strategy.scope():
        model.optimizer.build(variables_with_state(model))
    return {**state, "optimizer": values_of(model.optimizer.variables)}
