"""The mean and the standard deviation over seeds of all that an arm's runs recorded, along the examples visited.

Arms of unlike batch sizes take other numbers of steps, but they visit the same examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clr_loop.runs.result import TrainingResult

MOST_POINTS = 1000
"""TensorBoard shows a random thousand of a longer series."""

RATES = ("learning_rate", "momentum")
"""What a schedule gives to a step; all else was measured at it."""


@dataclass(frozen=True)
class Band:
    """A measure of an arm along its training.

    Attributes:
        examples: int [n], the training examples visited until then, repeated ones included.
        mean: float [n], over seeds.
        sd: float [n], the standard deviation over seeds that the report writes behind ±; 0 of a single seed.
    """

    examples: NDArray[np.int64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]

    @classmethod
    def of(cls, examples: NDArray[np.int64], values: NDArray[np.float64]) -> Band:
        """Return the band of values [seeds, n]."""
        sd = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        return cls(examples, values.mean(axis=0), sd)

    @property
    def lower(self) -> NDArray[np.float64]:
        """The mean minus the standard deviation."""
        return self.mean - self.sd

    @property
    def upper(self) -> NDArray[np.float64]:
        """The mean plus the standard deviation."""
        return self.mean + self.sd


def training_bands(results: Sequence[TrainingResult], num_points: int) -> dict[str, Band]:
    """Return the learning rate, the loss and the metrics of training of one arm.

    The run is cut into equal parts, one for each point, which lies at its end. A part gives the mean over its steps,
    and of a rate the last one. A part within a step gives what the step has.

    Args:
        results: of one arm, one for each seed.
        num_points: equal in all arms of a chart: TensorBoard leaves the outermost 5% of all points on each side out of
            an axis, and of a curve with few points among others with many that would be the peaks.
    """
    histories = [result.history for result in results]
    num_steps = min(len(history["step"]) for history in histories)  # Skipped updates leave a run a little shorter.
    bounds = np.arange(num_points + 1) * num_steps
    starts = bounds[:-1] // num_points
    ends = np.maximum(starts + 1, bounds[1:] // num_points)
    visited = np.append(0, results[0].examples_visited(histories[0]["step"][:num_steps]))
    examples = np.interp(bounds[1:] / num_points, np.arange(num_steps + 1), visited).round().astype(np.int64)

    def points(name: str, values: NDArray[Any]) -> NDArray[np.float64]:
        return values[ends - 1] if name in RATES else np.add.reduceat(values, starts) / (ends - starts)

    return {
        name: Band.of(examples, np.array([points(name, h[name][:num_steps].astype(np.float64)) for h in histories]))
        for name in histories[0]
        if name != "step"
    }


def validation_bands(results: Sequence[TrainingResult]) -> dict[str, Band]:
    """Return the values of an arm's validations, `val_loss` and so on, at each of them; results: one for each seed."""
    records = [result.validated for result in results]
    examples = results[0].examples_visited(np.array([record.step for record in records[0]]))
    names = [name for name in results[0].final if name.startswith("val_")]
    return {
        name: Band.of(examples, np.array([[record.metrics[name] for record in of_seed] for of_seed in records]))
        for name in names
    }
