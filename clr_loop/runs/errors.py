"""The ways in which a run ends early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clr_loop.arguments import spelled
from clr_loop.runs.checkpoints import Checkpoint


class NonFiniteError(ArithmeticError):
    """A variable or a measure was NaN or infinite at the end of an epoch.

    Attributes:
        checkpoint: the newest checkpoint from before the loss rose, or None; see `RunRecords.sound_checkpoint`.
    """

    def __init__(self, what: str, checkpoint: Checkpoint | None) -> None:
        advice = "start again with a lower learning rate"
        if checkpoint is not None:
            back = {"resume_from": checkpoint.step, "on_change": "replace"}
            advice = (
                f"lower the learning rate from step {checkpoint.step} on, whose checkpoint is from before the loss "
                f"rose ({spelled(resume=True, options=back)})"
            )
        super().__init__(f"{what}; {advice}.")
        self.checkpoint = None if checkpoint is None else checkpoint.directory

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickles it: an error of its kind with its words, and not what they were made of."""
        return _again, (type(self), str(self)), self.__dict__


class NonFiniteLossError(NonFiniteError):
    """The loss of a step was NaN or infinite.

    Attributes:
        step: int, the 0-based step.
        learning_rate: float, the rate of that step.
        loss: float, NaN or inf.
        checkpoint: as of `NonFiniteError`.
    """

    def __init__(self, step: int, learning_rate: float, loss: float, checkpoint: Checkpoint | None = None) -> None:
        super().__init__(f"The loss is {loss} at step {step} with learning rate {learning_rate:g}", checkpoint)
        self.step, self.learning_rate, self.loss = step, learning_rate, loss


class StopRun(Exception):  # noqa: N818 (It is a request, no error.)
    """A callback raises this to stop the run before the next block of steps, with a checkpoint."""


class TrainingInterruptedError(Exception):
    """A callback stopped the run before its end.

    Attributes:
        step: int, steps taken.
        checkpoint: where the state of that step is saved, or None.
    """

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped after {step} steps")
        self.step, self.checkpoint = step, checkpoint


def _again(kind: type[NonFiniteError], words: str) -> NonFiniteError:
    error = kind.__new__(kind)
    error.args = (words,)
    return error
