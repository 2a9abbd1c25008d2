"""The arms of a comparison, their runs, and what the seed of a run decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clr_loop.data.arguments import checked_types
from clr_loop.runs.result import TrainingResult
from clr_loop.schedules import Schedule

MakeModel = Callable[[int], Any]
"""seed → a fresh compiled Keras model."""


@checked_types
@dataclass(frozen=True)
class Arm:
    """A batch size with a schedule."""

    batch_size: int
    schedule_name: str
    schedule: Schedule

    @property
    def label(self) -> str:
        """The name for people: `triangular, batch 2000`."""
        return f"{self.schedule_name}, batch {self.batch_size}"

    @property
    def directory(self) -> str:
        """The name for files: `triangular_batch_2000`."""
        return f"{self.schedule_name}_batch_{self.batch_size}"


@dataclass(frozen=True)
class ArmRun:
    """The run of an arm with one seed, and its result."""

    arm: Arm
    seed: int
    result: TrainingResult


def initial_state(make_model: MakeModel, seed: int) -> dict[str, Any]:
    """Return what a seed decides in the `Snapshot` of a loop at step 0; the model itself is not kept."""
    from clr_loop.loop.state import values_of  # Only here, because arms can be compared without TensorFlow.

    return {"model": values_of(make_model(seed).variables), "seed": seed}
