"""The arms of a comparison, and their runs."""

from __future__ import annotations

from dataclasses import dataclass

from clr_loop.arguments import checked_types
from clr_loop.runs.result import TrainingResult
from clr_loop.schedules import Schedule


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
