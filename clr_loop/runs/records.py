"""What a run leaves behind: files, TensorBoard's events and checkpoints, all of them at one step; and the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from numpy.typing import NDArray

from clr_loop.loop.loop import Metrics, TrainLoop
from clr_loop.runs import files as run_files
from clr_loop.runs.checkpoints import Checkpoint, CheckpointError, RunCheckpoints, best_of
from clr_loop.runs.events import FINAL, SummaryWriter
from clr_loop.runs.result import Best, EpochRecord, Monitor, TrainingResult
from clr_loop.runs.settings import in_words

# The beginning of a run, whose highest loss is not unusual; of a short run its first quarter.
_FIRST_STEPS = 50
_NOTES_SHAPE = {
    "settings": run_files.CONFIG_SHAPE, "columns": (list, type(None)), "epoch_seconds": (int, float),
    "input_wait_seconds": (int, float), "batch_sizes": list, "records": dict,
}  # fmt: skip
_RESULT_SHAPE = {
    "compile_seconds": (int, float), "num_examples": int, "num_skipped": int, "weights_sha256": str, "device": str,
    "is_timed": bool, "records": dict,
}  # fmt: skip


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        blocks: the metrics of every block of steps.
        epochs: a record for each whole epoch.
        validations: a record for each validation within an epoch.
        epoch_seconds, input_wait_seconds: of training in the epoch that is not whole yet; see `EpochRecord`.
        batch_sizes: the examples of each step of the epoch that is not whole yet.
        best: what epochs are rated by.
        not_means: the metrics that an epoch has no value of; see `TrainLoop.not_means`.
        is_best: whether the last whole epoch is better than all before it.
    """

    blocks: list[Metrics] = field(default_factory=list)
    epochs: list[EpochRecord] = field(default_factory=list)
    validations: list[EpochRecord] = field(default_factory=list)
    epoch_seconds: float = 0.0
    input_wait_seconds: float = 0.0
    best: Best = field(default_factory=Best)
    not_means: Sequence[str] = ()
    is_best: bool = False
    batch_sizes: list[int] = field(default_factory=list)
    _sums: dict[str, float] = field(default_factory=dict)
    _num_examples: int = 0

    def __post_init__(self) -> None:
        for record in self.epochs:
            self.is_best = self.best.is_better(record.metrics)

    def add_steps(self, metrics: Metrics, batch_sizes: NDArray[np.int32]) -> None:
        """Add steps of one epoch: their metrics, float32 [n] each, and their numbers of examples, [n].

        The sums go from step to step, so they have the same bits however the epoch was cut into blocks.
        """
        self.blocks.append(metrics)
        for name, values in metrics.items():
            terms = values.astype(np.float64) * batch_sizes
            self._sums[name] = float(np.cumsum(np.concatenate([[self._sums.get(name, 0.0)], terms]))[-1])
        self._num_examples += int(batch_sizes.sum())
        self.batch_sizes += batch_sizes.tolist()

    def logs(self) -> dict[str, float]:
        """Return the epoch's means so far, weighted by examples, and its last learning rate; {} before its first step.

        A momentum has no mean, and neither have `not_means`.
        """
        if not self._num_examples:
            return {}
        left_out = ("momentum", *self.not_means)
        means = {name: total / self._num_examples for name, total in self._sums.items() if name not in left_out}
        rates = next(block["learning_rate"] for block in reversed(self.blocks) if len(block["learning_rate"]))
        return {**means, "learning_rate": float(rates[-1])}

    def end_epoch(self, record: EpochRecord) -> None:
        """Begin a new epoch after the one that is recorded here."""
        self.epochs.append(record)
        self.is_best = self.best.is_better(record.metrics)
        self.epoch_seconds, self.input_wait_seconds, self._sums, self._num_examples = 0.0, 0.0, {}, 0
        self.batch_sizes = []

    def history(self) -> dict[str, NDArray[Any]]:
        """Return `step` int64 [n] and the metrics of all steps, float32 [n]."""
        columns = {name: np.concatenate([block[name] for block in self.blocks]) for name in self.blocks[0]}
        return {"step": np.arange(len(columns["learning_rate"])), **columns}


class RunRecords:
    """Keeps everything that a run gives in a claimed directory.

    `find` says where an earlier process left the run. `open` takes the files there, or to an empty beginning.
    `keep_checkpoints` of the newest checkpoints are kept, beside the best; 0 saves none.
    """

    def __init__(self, directory: Path, loop: TrainLoop, keep_checkpoints: int, monitor: Monitor = Monitor()) -> None:
        self.directory = directory
        self._loop = loop
        self._is_saving = keep_checkpoints > 0
        # A run that saves none may still go on from those that are there.
        self.checkpoints = RunCheckpoints(directory / run_files.CHECKPOINTS, loop, max(keep_checkpoints, 1), monitor)
        self._monitor = monitor
        self._growing = run_files.GrowingFiles(directory)
        self.non_finite_variable: str | None = None

    def find(self, step: int | None) -> tuple[Checkpoint | None, dict[str, Any] | None]:
        """Return the newest whole checkpoint and the settings that the run was started with, None where there is none.

        With a step, the checkpoint is the one of that step. Its settings hold, and a config.json that differs from them
        is named in a warning.

        Raises:
            CheckpointError: as `RunCheckpoints.newest_whole`.
        """
        config = self.directory / run_files.CONFIG
        try:
            written: dict[str, Any] | None = run_files.read_json(config, run_files.CONFIG_SHAPE)
        except ValueError:
            written = None
        checkpoint = self.checkpoints.newest_whole(step)
        if checkpoint is None:
            return None, written
        try:
            _check_notes(checkpoint.manifest)
        except ValueError as error:
            raise CheckpointError(f"The checkpoint {checkpoint.directory} is of no run: {error}.") from error
        saved = checkpoint.manifest["settings"]
        if written is None or in_words(saved, written):
            logging.warning("%s is gone, damaged or changed; the settings in the checkpoint hold", config)
        return checkpoint, saved

    @contextlib.contextmanager
    def open(self, checkpoint: Checkpoint | None, settings: Mapping[str, Any]) -> Iterator[Progress]:
        """Take the files to a checkpoint, or begin afresh; yield the progress made until there.

        Args:
            checkpoint: from `find`, or None for a new run; then what an earlier run has left is removed.
            settings: JSON types, for config.json.

        Raises:
            ValueError: if the CSV files have lost what they held at the checkpoint.
        """
        progress = Progress(best=Best(self._monitor), not_means=self._loop.not_means)
        self._settings, self._columns = settings, None
        if checkpoint is None:
            run_files.clear(self.directory)
        else:
            manifest, self.checkpoints.origin = checkpoint.manifest, checkpoint.origin
            self._growing.take_back(manifest["records"])
            progress, self._columns = self._read_progress(manifest), manifest["columns"]
            self.checkpoints.forget_later(checkpoint)
        run_files.unfinish(self.directory)
        run_files.write_json(self.directory / run_files.CONFIG, settings)
        shown = flat(settings) if checkpoint is None else None
        with (
            contextlib.ExitStack() as stack,
            contextlib.closing(run_files.RunFiles(self.directory)) as self._files,
            SummaryWriter(self.directory, shown) as self._summaries,
        ):
            stack.callback(self.checkpoints.settle)
            self._growing.notes()
            if checkpoint is None:
                self.save_checkpoint(progress)
            yield progress

    def _read_progress(self, manifest: Mapping[str, Any]) -> Progress:
        history = run_files.read_history(self.directory)
        epochs, validations = read_epochs(self.directory)
        seconds = manifest["epoch_seconds"], manifest["input_wait_seconds"]
        progress = Progress([], epochs, validations, *seconds, Best(self._monitor), self._loop.not_means)
        if history:
            begin = epochs[-1].step + 1 if epochs else 0
            del history["step"]
            progress.blocks.append({name: values[:begin] for name, values in history.items()})
            sizes = np.array(manifest["batch_sizes"], np.int32)
            progress.add_steps({name: values[begin:] for name, values in history.items()}, sizes)
        return progress

    def add_steps(self, first_step: int, metrics: Metrics, began: float, ended: float) -> None:
        """Record a block of steps that ran from `began` to `ended`, in seconds since 1970."""
        self._columns = list(metrics)
        self._files.add_steps(first_step, metrics)
        self._summaries.add_steps(first_step, metrics, began, ended)

    def add_epoch(self, record: EpochRecord) -> None:
        """Record a whole epoch. Raises OSError if a file of the run is gone."""
        self._growing.check()
        self._files.add_epoch(record.to_row())
        self._summaries.add_scalars("wall_time", record.step, {"epoch_seconds": record.epoch_seconds})
        self._show_validation(record)

    def add_validation(self, record: EpochRecord) -> None:
        """Record a validation within an epoch."""
        self._files.add_validation(record.to_row())
        self._show_validation(record)

    def _show_validation(self, record: EpochRecord) -> None:
        values = {n.replace("val_", "", 1): v for n, v in record.metrics.items() if n.startswith(("val_", "averaged_"))}
        if values:
            self._summaries.add_scalars("validation", record.step, values)

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values of training to TensorBoard alone, as `train/<name>`."""
        self._summaries.add_scalars("train", step, values)

    def save_checkpoint(self, progress: Progress) -> None:
        """Save the state of the run, if it keeps checkpoints; see `RunCheckpoints.save`.

        A state with a variable that is not finite is not saved; `non_finite_variable` names it from then on.
        """
        if not self._is_saving:
            return
        notes = {
            "settings": self._settings,
            "columns": self._columns,
            "epoch_seconds": progress.epoch_seconds,
            "input_wait_seconds": progress.input_wait_seconds,
            "batch_sizes": progress.batch_sizes,
            "records": self._growing.notes(),
        }
        is_whole_epoch = progress.epochs and not progress.epoch_seconds
        non_finite = self.checkpoints.save(progress.epochs[-1].metrics if is_whole_epoch else {}, notes)
        self.non_finite_variable = non_finite or self.non_finite_variable

    def sound_checkpoint(self, progress: Progress) -> Checkpoint | None:
        """Return the newest checkpoint whose loss, that of the step after it, is no higher than as the run began.

        A run seldom becomes NaN at once: the checkpoint right before may hold weights that are huge already.
        """
        if not progress.blocks or "loss" not in progress.blocks[0]:
            return self.checkpoints.newest if progress.blocks else None
        losses = np.concatenate([block["loss"] for block in progress.blocks])
        usual = losses[: min(_FIRST_STEPS, -(-len(losses) // 4))].max()
        kept = self.checkpoints.kept
        return next((c for c in reversed(kept) if c.step == 0 or losses[min(c.step, len(losses) - 1)] <= usual), None)

    @property
    def best(self) -> Checkpoint | None:
        """The checkpoint of the best epoch; None if there is none of an epoch that can be rated."""
        try:
            return best_of(self.checkpoints.kept, self._monitor)
        except ValueError:
            return None

    def add_result(self, result: TrainingResult) -> None:
        """Record the end."""
        self._files.verify()
        self._growing.verify()
        self.checkpoints.settle()
        final = {name: value for name, value in result.final.items() if name in _measures(self._settings)}
        if result.is_timed:
            final["epoch_seconds"] = result.median_epoch_seconds
        self._summaries.add_scalars(FINAL, result.epochs[-1].step, final)
        records = run_files.digests(self.directory)
        run_files.write_json(self.directory / run_files.RESULT, {**result.to_json(), "records": records})


def read_result(directory: Path) -> TrainingResult | None:
    """Read a finished run's result; None if there is none. Raises ValueError if a file is damaged or missing."""
    path = directory / run_files.RESULT
    if not path.is_file():
        return None
    content = run_files.read_json(path, _RESULT_SHAPE)
    settings = run_files.read_json(directory / run_files.CONFIG, run_files.CONFIG_SHAPE)
    elsewhere = ("settings", "history", "epochs", "validations")
    own = {attribute.name for attribute in fields(TrainingResult)}.difference(elsewhere)
    try:
        known, on_disk = content["records"], run_files.digests(directory)
        for name in [name for name in {**known, **on_disk} if on_disk.get(name) != known.get(name)]:
            raise ValueError(f"{directory / name} is gone or was changed after the run; restore it or run it again.")
        epochs, validations = read_epochs(directory)
        content.setdefault("test", {})  # Version 0.2.0 had none.
        kept = {name: content[name] for name in own}
        return TrainingResult(settings, run_files.read_history(directory), epochs, validations=validations, **kept)
    except KeyError as error:
        what = f"The files of the run in {directory} lack {error}"
        raise ValueError(f"{what}; restore them or run it again.") from error


def read_epochs(directory: Path) -> list[list[EpochRecord]]:
    """Read the records of the epochs, and those of the validations within them."""
    names = run_files.EPOCHS, run_files.VALIDATIONS
    return [[EpochRecord.from_row(row) for row in run_files.read_epochs(directory, name)] for name in names]


def _check_notes(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError unless a manifest has the notes of a run: sizes and digests of files that must be there."""
    run_files.check_shape(manifest, _NOTES_SHAPE, "its manifest")
    records, sizes = manifest["records"], manifest["batch_sizes"]
    run_files.check_shape(records, {name: {"size": int, "sha256": str} for name in records}, "records")
    needed = [run_files.HISTORY] * (manifest["step"] > 0)
    if min([note["size"] for note in records.values()], default=0) < 0 or not {*needed} <= {*records}:
        raise ValueError("records does not say what the files held")
    if not all(type(size) is int and size > 0 for size in sizes) or manifest["settings"]["first_step"] < 0:
        raise ValueError("batch_sizes or first_step is no whole number")


def _measures(settings: Mapping[str, Any]) -> list[str]:
    """Return the names of the values that runs are compared by."""
    prefix = "val_" if settings["validation"] else ""
    return [f"{prefix}{name}" for name in settings["metric_names"]]


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as one table: the schedule's arguments beside the others."""
    schedule = dict(settings["schedule"])
    name = schedule.pop("name")
    return {**settings, **schedule, "schedule": name}
