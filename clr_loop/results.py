"""What a run gave: a record of each epoch, and the result as a whole."""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EpochRecord:
    """What is known at the end of an epoch.

    Attributes:
        epoch: int, counted from 1.
        step: int, the epoch's last step, 0-based.
        learning_rate: float, of that step.
        loss, accuracy: float, means over the epoch's steps, each before its update; accuracy 0–1.
        val_loss, val_accuracy: float, over the validation split, after the epoch.
        epoch_seconds: float, of training alone.
        input_wait_seconds: float, those of them in which nothing was computed because the next batch was not there yet.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    epoch_seconds: float
    input_wait_seconds: float = 0.0

    @property
    def input_wait_share(self) -> float:
        """The share of the epoch's seconds that was spent in waiting for batches, 0–1."""
        return self.input_wait_seconds / self.epoch_seconds


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave.

    Attributes:
        settings: JSON types: everything that made the run what it is, the versions of its libraries too.
        history: `step` int64 [n]; `learning_rate`, `loss`, `accuracy` float32 [n]; `momentum` too where it was cycled.
        epochs: a record for each epoch.
        compile_seconds: float, tracing and compiling, before the first step.
        num_examples: int, examples in an epoch.
        target_accuracy: float in 0–1, or None.
        num_skipped: int, updates left out because they were not finite.
        weights_sha256: digest of all variables of model and optimizer.
        device: for example `CPU:0`.
        is_timed: bool, whether the run had the machine to itself; if not, its seconds say nothing of the training.
    """

    settings: dict[str, Any]
    history: dict[str, NDArray[Any]]
    epochs: list[EpochRecord]
    compile_seconds: float
    num_examples: int
    target_accuracy: float | None
    num_skipped: int
    weights_sha256: str
    device: str
    is_timed: bool = True

    @property
    def val_accuracy(self) -> float:
        """Validation accuracy after the last epoch, 0–1."""
        return self.epochs[-1].val_accuracy

    @property
    def epoch_seconds(self) -> list[float]:
        """Seconds of training alone, for each epoch."""
        return [record.epoch_seconds for record in self.epochs]

    @property
    def median_epoch_seconds(self) -> float:
        """Median of `epoch_seconds`."""
        return statistics.median(self.epoch_seconds)

    @property
    def train_seconds(self) -> float:
        """Sum of `epoch_seconds`."""
        return sum(self.epoch_seconds)

    @property
    def examples_per_second(self) -> float:
        """Examples trained on per second of training."""
        return self.num_examples * len(self.epochs) / self.train_seconds

    @property
    def seconds_to_target(self) -> float | None:
        """Training seconds until the end of the first epoch whose validation accuracy reaches the target, or None."""
        if self.target_accuracy is None:
            return None
        seconds = np.cumsum(self.epoch_seconds)
        reached = [s for s, e in zip(seconds, self.epochs, strict=True) if e.val_accuracy >= self.target_accuracy]
        return float(reached[0]) if reached else None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `result.json`, JSON types only; settings and steps have files of their own."""
        return {
            "val_accuracy": self.val_accuracy,
            "val_loss": self.epochs[-1].val_loss,
            "steps": len(self.history["step"]),
            "num_skipped": self.num_skipped,
            "num_examples": self.num_examples,
            "batch_size": self.settings["batch_size"],
            "epochs": len(self.epochs),
            "epoch_seconds": self.epoch_seconds,
            "input_wait_shares": [record.input_wait_share for record in self.epochs],
            "compile_seconds": self.compile_seconds,
            "train_seconds": self.train_seconds,
            "examples_per_second": self.examples_per_second,
            "target_accuracy": self.target_accuracy,
            "seconds_to_target": self.seconds_to_target,
            "schedule": self.settings["schedule"],
            "seed": self.settings["seed"],
            "device": self.device,
            "is_timed": self.is_timed,
            "versions": self.settings["versions"],
            "weights_sha256": self.weights_sha256,
            "val_accuracies": [record.val_accuracy for record in self.epochs],
        }

    @classmethod
    def from_json(
        cls,
        content: dict[str, Any],
        settings: dict[str, Any],
        history: dict[str, NDArray[Any]],
        epochs: list[EpochRecord],
    ) -> TrainingResult:
        """Puts a result together again from the files that it was written to."""
        named = {field.name for field in dataclasses.fields(cls)} - {"settings", "history", "epochs"}
        return cls(settings=settings, history=history, epochs=epochs, **{name: content[name] for name in named})
