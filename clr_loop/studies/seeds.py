"""What the seed of a run decides: the initial weights, and the order of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from clr_loop.loop.state import values_of

MakeModel = Callable[[int], keras.Model]
"""seed → a fresh compiled model."""


def initial_state(make_model: MakeModel, seed: int) -> dict[str, Any]:
    """Return what a seed decides in the `Snapshot` of a loop at step 0; the model itself is not kept."""
    return {"model": values_of(make_model(seed).variables), "seed": seed}
