"""`fit`: epochs, validation, timing, records and progress around a `TrainLoop`."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

import clr_loop
from clr_loop import run_files
from clr_loop.data import Split
from clr_loop.loop import Metrics, TrainLoop
from clr_loop.summaries import SummaryWriter
from clr_loop.timing import Stopwatch

ScheduleFn = Callable[[NDArray[np.int64]], ArrayLike]


class NonFiniteLossError(ArithmeticError):
    """The loss of a step was NaN or infinite.

    Attributes:
        step: int, the 0-based step.
        learning_rate: float, the rate of that step.
        loss: float, NaN or inf.
    """

    def __init__(self, step: int, learning_rate: float, loss: float) -> None:
        super().__init__(
            f"loss must stay finite, received {loss} at step {step} with learning rate {learning_rate:g}; "
            "lower the learning rate"
        )
        self.step, self.learning_rate, self.loss = step, learning_rate, loss


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
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    epoch_seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """What a run gave.

    Attributes:
        settings: JSON types: everything that made the run what it is.
        history: `step` int64 [n]; `learning_rate`, `loss`, `accuracy` float32 [n].
        epochs: a record for each epoch.
        compile_seconds: float, tracing and compiling, before the first step.
        num_examples: int, examples in an epoch.
        target_accuracy: float in 0–1, or None.
        weights_sha256: digest of all variables of model and optimizer.
        device: for example `CPU:0`.
    """

    settings: dict[str, Any]
    history: dict[str, NDArray[Any]]
    epochs: list[EpochRecord]
    compile_seconds: float
    num_examples: int
    target_accuracy: float | None
    weights_sha256: str
    device: str

    @property
    def val_accuracy(self) -> float:
        """Validation accuracy after the last epoch, 0–1."""
        return self.epochs[-1].val_accuracy

    @property
    def epoch_seconds(self) -> list[float]:
        """Seconds of training alone, for each epoch."""
        return [record.epoch_seconds for record in self.epochs]

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
        """Returns the content of `result.json`, JSON types only; the steps are in `history.csv`."""
        return {
            "val_accuracy": self.val_accuracy,
            "val_loss": self.epochs[-1].val_loss,
            "steps": len(self.history["step"]),
            "batch_size": self.settings["batch_size"],
            "epochs": len(self.epochs),
            "epoch_seconds": self.epoch_seconds,
            "compile_seconds": self.compile_seconds,
            "train_seconds": self.train_seconds,
            "examples_per_second": self.examples_per_second,
            "target_accuracy": self.target_accuracy,
            "seconds_to_target": self.seconds_to_target,
            "schedule": self.settings["schedule"],
            "seed": self.settings["seed"],
            "device": self.device,
            "versions": versions(),
            "weights_sha256": self.weights_sha256,
            "val_accuracies": [record.val_accuracy for record in self.epochs],
        }


def fit(
    train_loop: TrainLoop,
    schedule: ScheduleFn,
    validation: Split,
    *,
    epochs: int,
    run_dir: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    target_accuracy: float | None = None,
    on_block: Callable[[int, Metrics], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Trains for a number of epochs, evaluating after each.

    The program is compiled, and that timed, before the first step. An epoch's time is that of its blocks alone, each of
    which ends with its metrics on the host; validation, summaries and files are outside of it.

    Args:
        train_loop: a loop that has taken no step yet.
        schedule: 0-based steps, int64 [n] → learning rates, float [n]; one of `clr_loop.schedules` or any function.
        validation: images and labels to evaluate on.
        epochs: int, at least 1.
        run_dir: where to write config.json, history.csv, epochs.csv, result.json and TensorBoard's events; a directory
            that does not exist or is empty. None writes nothing.
        settings: JSON types, to be kept with the run: names of dataset, model and so on.
        target_accuracy: in 0–1, for `TrainingResult.seconds_to_target`.
        on_block: called after each block of steps with the number of steps taken so far and the block's metrics.
        on_epoch: called after each epoch.

    Raises:
        ValueError: if epochs is below 1, target_accuracy outside 0–1, the loop has taken steps already, or the
            schedule returns a rate that is negative or not finite.
        OSError: if run_dir is not empty or cannot be written to.
        NonFiniteLossError: if a loss is NaN or infinite; what was recorded up to that step is kept.
    """
    _check(train_loop, epochs, target_accuracy)
    settings = {
        **(settings or {}),
        "optimizer": type(train_loop.optimizer).__name__,
        "batch_size": train_loop.batch_size,
        "epochs": epochs,
        "steps_per_epoch": train_loop.steps_per_epoch,
        "seed": train_loop.seed,
        "jit_compile": train_loop.jit_compile,
        "schedule": schedule.to_config() if hasattr(schedule, "to_config") else {"name": repr(schedule)},
    }
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(_Records(run_dir, settings)) if run_dir is not None else None
        compiling = Stopwatch()
        with compiling:
            train_loop.compile()
        history, epoch_records = [], []
        for epoch in range(epochs):
            metrics, seconds = _train_epoch(train_loop, schedule, records, on_block)
            evaluated = train_loop.evaluate(*validation)
            record = EpochRecord(
                epoch=epoch + 1,
                step=train_loop.step - 1,
                learning_rate=float(metrics["learning_rate"][-1]),
                loss=float(metrics["loss"].mean()),
                accuracy=float(metrics["accuracy"].mean()),
                val_loss=evaluated["loss"],
                val_accuracy=evaluated["accuracy"],
                epoch_seconds=seconds,
            )
            history.append(metrics)
            epoch_records.append(record)
            if records is not None:
                records.add_epoch(record)
            if on_epoch is not None:
                on_epoch(record)
        columns = {name: np.concatenate([part[name] for part in history]) for name in history[0]}
        result = TrainingResult(
            settings=settings,
            history={"step": np.arange(train_loop.step), **columns},
            epochs=epoch_records,
            compile_seconds=compiling.seconds,
            num_examples=train_loop.num_examples,
            target_accuracy=target_accuracy,
            weights_sha256=train_loop.weights_sha256(),
            device=train_loop.device,
        )
        if records is not None:
            records.add_result(result)
    return result


def versions() -> dict[str, str]:
    """Returns the versions of what a result depends on."""
    return {
        "clr_loop": clr_loop.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": version("numpy"),
    }


def _train_epoch(
    train_loop: TrainLoop,
    schedule: ScheduleFn,
    records: _Records | None,
    on_block: Callable[[int, Metrics], None] | None,
) -> tuple[Metrics, float]:
    """Takes an epoch's steps; returns their metrics and the seconds they took."""
    training = Stopwatch()
    parts: list[Metrics] = []
    first = train_loop.step
    end = first + train_loop.steps_per_epoch
    while first < end:
        steps = np.arange(first, min(first + train_loop.block_steps, end))
        rates = schedule(steps)
        began = time.time()
        with training:
            metrics = train_loop.run(rates)
        ended = time.time()
        finite = np.isfinite(metrics["loss"])
        num_good = len(steps) if finite.all() else int(np.argmin(finite)) + 1
        if records is not None:
            records.add_steps(first, {name: values[:num_good] for name, values in metrics.items()}, began, ended)
        if not finite.all():
            bad = num_good - 1
            raise NonFiniteLossError(first + bad, float(metrics["learning_rate"][bad]), float(metrics["loss"][bad]))
        if on_block is not None:
            on_block(train_loop.step, metrics)
        parts.append(metrics)
        first = train_loop.step
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, training.seconds


class _Records:
    """Everything that a run leaves behind, on its way to disk: the files and TensorBoard's events."""

    def __init__(self, run_dir: Path, settings: Mapping[str, Any]) -> None:
        self._directory = run_files.claim(run_dir)
        run_files.write_json(self._directory / "config.json", {**settings, "versions": versions()})
        flat = {**settings, **settings["schedule"], "schedule": settings["schedule"]["name"]}
        del flat["name"]
        self._stack = contextlib.ExitStack()
        self._files = self._stack.enter_context(run_files.RunFiles(self._directory))
        self._summaries = self._stack.enter_context(SummaryWriter(self._directory, flat))

    def add_steps(self, first_step: int, metrics: Metrics, began: float, ended: float) -> None:
        self._files.add_steps(first_step, metrics)
        self._summaries.add_steps(first_step, metrics, began, ended)

    def add_epoch(self, record: EpochRecord) -> None:
        self._files.add_epoch(dataclasses.asdict(record))
        validation = {"loss": record.val_loss, "accuracy": record.val_accuracy}
        self._summaries.add_epoch(record.step, record.epoch_seconds, validation)

    def add_result(self, result: TrainingResult) -> None:
        run_files.write_json(self._directory / "result.json", result.to_json())
        final = {
            "final/validation_accuracy": result.val_accuracy,
            "final/epoch_seconds": float(np.median(result.epoch_seconds)),
        }
        if result.seconds_to_target is not None:
            final["final/seconds_to_target"] = result.seconds_to_target
        self._summaries.add_final(result.epochs[-1].step, final)

    def __enter__(self) -> _Records:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def _check(train_loop: TrainLoop, epochs: int, target_accuracy: float | None) -> None:
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, received {epochs}; give the number of times to visit the data")
    if target_accuracy is not None and not 0.0 <= target_accuracy <= 1.0:
        raise ValueError(f"target_accuracy must be from 0 to 1, received {target_accuracy}; 0.9 means 90 %")
    if train_loop.step != 0:
        raise ValueError(
            f"the loop must not have taken a step yet, received one at step {train_loop.step}; make a new one"
        )
