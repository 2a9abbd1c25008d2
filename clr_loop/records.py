"""What a run leaves behind: files, TensorBoard's events, checkpoints; on their way to disk, and back."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import NDArray

from clr_loop import run_files
from clr_loop.checkpoints import Checkpoint, RunCheckpoints
from clr_loop.loop import Metrics, TrainLoop
from clr_loop.results import EpochRecord, TrainingResult
from clr_loop.summaries import SummaryWriter


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        blocks: the metrics of every block of steps.
        epochs: a record for each whole epoch.
        epoch_seconds, input_wait_seconds: float, of training, in the epoch that is not whole yet; see `EpochRecord`.
    """

    blocks: list[Metrics] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    epoch_seconds: float = 0.0
    input_wait_seconds: float = 0.0

    def history(self) -> dict[str, NDArray[Any]]:
        """Returns `step` int64 [n] and the metrics of all steps, float32 [n]."""
        columns = {name: np.concatenate([block[name] for block in self.blocks]) for name in self.blocks[0]}
        return {"step": np.arange(len(columns["loss"])), **columns}

    def of_this_epoch(self) -> Metrics:
        """Returns the metrics of the steps since the last whole epoch."""
        first = self.epochs[-1].step + 1 if self.epochs else 0
        return {name: values[first:] for name, values in self.history().items() if name != "step"}


class RunRecords:
    """Keeps everything that a run gives, in a claimed run directory. A context manager.

        restore   takes the loop back to the newest good checkpoint, if the run is to go on
        open      takes the files back to the same place, and opens them
        add_…     records what has been done since

    Args:
        directory: claimed; empty, or with a run to go on with.
        train_loop: of the run.
        keep_checkpoints: int, at least 1: how many of the newest to keep, beside the best. None saves none.
    """

    def __init__(self, directory: Path, train_loop: TrainLoop, keep_checkpoints: int | None) -> None:
        self._directory = directory
        self._is_saving = keep_checkpoints is not None
        self._checkpoints = None
        # A run that saves none may still go on from those that are there.
        if self._is_saving or (directory / "checkpoints").is_dir():
            self._checkpoints = RunCheckpoints(directory / "checkpoints", train_loop, keep_checkpoints or 1)
        self._restored: Checkpoint | None = None
        self._stack = contextlib.ExitStack()

    @property
    def newest_checkpoint(self) -> Path | None:
        """Where the newest checkpoint is, if there is one."""
        newest = self._checkpoints.newest if self._checkpoints is not None else None
        return newest.directory if newest is not None else None

    def restore(self) -> None:
        """Restores the newest checkpoint that is whole; warns where there is none, and the run starts afresh.

        Raises:
            CheckpointError: if it is of another run, or none of several is whole.
        """
        self._restored = self._checkpoints.restore_newest() if self._checkpoints is not None else None
        if self._restored is None:
            logging.warning("%s holds no checkpoint to go on from; the run starts afresh", self._directory)

    def open(self, settings: Mapping[str, Any]) -> Progress:
        """Opens the files, with what they held at the checkpoint or empty, and returns that.

        Args:
            settings: JSON types, for config.json.

        Raises:
            ValueError: if the files have lost what they held at the checkpoint.
        """
        self._settings = settings
        restored = self._restored
        run_files.cut_back(self._directory, {} if restored is None else restored.manifest["records"])
        history, epochs = read_records(self._directory)
        (self._directory / run_files.RESULT).unlink(missing_ok=True)  # Where it stands, the run is finished.
        run_files.write_json(self._directory / run_files.CONFIG, settings)
        self._files = self._stack.enter_context(run_files.RunFiles(self._directory))
        self._summaries = self._stack.enter_context(
            SummaryWriter(self._directory, _flat(settings) if restored is None else None)
        )
        if restored is None:
            self.save_checkpoint(Progress())
            return Progress()
        history.pop("step", None)
        in_epoch = {name: restored.manifest[name] for name in ("epoch_seconds", "input_wait_seconds")}
        return Progress([history] if history else [], epochs, **in_epoch)

    def add_steps(self, first_step: int, metrics: Metrics, began: float, ended: float) -> None:
        """Records a block of steps that ran from `began` to `ended`, in seconds since 1970."""
        self._files.add_steps(first_step, metrics)
        self._summaries.add_steps(first_step, metrics, began, ended)

    def add_epoch(self, record: EpochRecord) -> None:
        """Records a whole epoch."""
        self._files.add_epoch(dataclasses.asdict(record))
        validation = {"loss": record.val_loss, "accuracy": record.val_accuracy}
        self._summaries.add_epoch(record.step, record.epoch_seconds, validation)

    def save_checkpoint(self, progress: Progress) -> None:
        """Saves the state of the run, if it keeps checkpoints."""
        if self._checkpoints is None or not self._is_saving:
            return
        is_whole_epoch = progress.epochs and not progress.epoch_seconds
        self._checkpoints.save(
            progress.epochs[-1].val_accuracy if is_whole_epoch else None,
            {
                "schedule": self._settings["schedule"],
                "versions": self._settings["versions"],
                "epoch_seconds": progress.epoch_seconds,
                "input_wait_seconds": progress.input_wait_seconds,
                "records": run_files.growing_files(self._directory),
            },
        )

    def add_result(self, result: TrainingResult) -> None:
        """Records the end."""
        run_files.write_json(self._directory / run_files.RESULT, result.to_json())
        final = {"final/validation_accuracy": result.val_accuracy}
        if result.is_timed:
            final["final/epoch_seconds"] = result.median_epoch_seconds
        if result.is_timed and result.seconds_to_target is not None:
            final["final/seconds_to_target"] = result.seconds_to_target
        self._summaries.add_final(result.epochs[-1].step, final)

    def __enter__(self) -> RunRecords:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._checkpoints is not None:
                self._checkpoints.settle()
        finally:
            self._stack.__exit__(kind, error, trace)


def read_records(directory: Path) -> tuple[dict[str, NDArray[Any]], list[EpochRecord]]:
    """Reads `history.csv` and `epochs.csv` of a run."""
    return run_files.read_history(directory), [EpochRecord(**row) for row in run_files.read_epochs(directory)]  # type: ignore[arg-type]


def read_result(directory: Path) -> TrainingResult | None:
    """Reads the result of a finished run back from its directory, or returns None if there is none."""
    if not (directory / run_files.RESULT).is_file():
        return None
    settings = run_files.read_json(directory / run_files.CONFIG)
    return TrainingResult.from_json(
        run_files.read_json(directory / run_files.RESULT), settings, *read_records(directory)
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as one table: the schedule's arguments beside the others."""
    schedule = dict(settings["schedule"])
    name = schedule.pop("name")
    return {**settings, **schedule, "schedule": name}
