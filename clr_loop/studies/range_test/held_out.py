"""Held-out examples for a sweep that visits its training examples again and again."""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from clr_loop.arguments import checked_types
from clr_loop.data import AnyDataset, Dataset, Examples, hold_out
from clr_loop.loop.loop import TrainLoop

NUM_STEPS = 1000
"""The steps of a sweep unless told otherwise: 125 for each decade of the default range, enough for noisy curves."""

# Of fewer held-out examples, one alone would move the score by more than half a point.
_LEAST_HELD_OUT = 200

MOST_EPOCHS = 2
"""In a sweep of more epochs than this, what a model has memorized shows in its training score."""


@checked_types
def split(dataset: AnyDataset, batch_size: int, num_steps: int = NUM_STEPS) -> tuple[AnyDataset, Examples | None]:
    """Return what a sweep trains on, and the examples that its score is read on.

    In a sweep of more than two epochs these are a tenth of the training examples, which it does not train on, or up to
    half of them where a tenth is fewer than 200; see `data.hold_out`. Validation examples are left alone, so a
    comparison can still be judged by them. A shorter sweep gets the dataset as it is and None; so does one over a
    stream, or over too few examples to hold any out.

    Raises:
        ValueError: if the training targets are all equal, because every rate learns that.
    """
    if not isinstance(dataset, Dataset):
        return dataset, None
    _check_targets_differ(dataset.train.targets)
    if num_steps * batch_size <= MOST_EPOCHS * dataset.num_examples:
        return dataset, None
    try:
        parts = hold_out(dataset, min(max(0.1, _LEAST_HELD_OUT / dataset.num_examples), 0.5))
    except ValueError:  # A class would be missing on one side.
        return dataset, None
    return (parts, parts.validation) if batch_size <= parts.num_examples else (dataset, None)


def _check_targets_differ(targets: object) -> None:
    leaves = [np.asarray(leaf) for leaf in keras.tree.flatten(targets) if leaf is not None]
    if leaves and all((leaf == leaf[0]).all() for leaf in leaves):
        first = f" ({leaves[0][0]})" if leaves[0][0].ndim == 0 else ""
        raise ValueError(
            f"All training targets are equal{first}, so a model learns them at any rate and a range test finds no "
            "bounds; give data with more than one class or value."
        )


class HeldOutScore:
    """The score on held-out examples, read now and then along a sweep.

    Args:
        name: of the metric or "loss".
    """

    def __init__(self, loop: TrainLoop, examples: Examples, name: str) -> None:
        self._loop, self._examples, self.name = loop, examples, name
        self._steps, self._values = list[int](), list[float]()

    def read(self, step: int) -> None:
        """Read the score as it is before this step."""
        value = self._loop.evaluate(self._examples)[self.name]
        if np.isfinite(value):
            self._steps.append(step)
            self._values.append(-value if self.name == "loss" else value)

    def along(self, num_steps: int) -> NDArray[np.float64]:
        """Return the score before each step, interpolated; NaN if none was finite."""
        if not self._steps:
            return np.full(num_steps, np.nan)
        return np.interp(np.arange(num_steps), self._steps, self._values)
