"""How a run is taken up again: the checkpoint that it goes on from, its settings, and its schedule from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from absl import logging

from clr_loop.runs import files as run_files
from clr_loop.runs.checkpoints import Checkpoint, load_weights, restore
from clr_loop.runs.checks import has_momentums
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import RunRecords, read_result
from clr_loop.runs.result import TrainingResult
from clr_loop.runs.run import Run
from clr_loop.runs.settings import OnChange, check_changes, schedule_config, schedule_from_here


def take_up(
    run: Run, records: RunRecords, options: RunOptions, settings: dict[str, Any]
) -> tuple[Checkpoint | None, TrainingResult | None]:
    """Take a run, and its settings, to the checkpoint that it goes on from.

    Returns:
        The checkpoint, None if there is none and the run starts afresh; and the result if the run is finished.
    """
    checkpoint, saved = records.find(options.resume_from)
    if run.loop.not_resumable is not None:
        raise ValueError(f"The run cannot be resumed exactly: {run.loop.not_resumable}. Start a new run.")
    if options.first_step is None and saved:  # It is the loop's step when the run began.
        settings["first_step"] = run.first_step = max(saved["first_step"], 0)
    check_changes(saved or settings, settings, options.on_change)
    if saved is not None and run.epochs <= saved.get("epochs", 0):
        result = _finished(run, records, options, checkpoint)
        if result is not None:
            return checkpoint, result
    elif checkpoint is None and (records.directory / run_files.RESULT).is_file():
        where = records.directory
        raise ValueError(f"The run in {where} is finished and has no checkpoint to go on from; choose another.")
    if checkpoint is None:
        logging.warning("%s holds no checkpoint to go on from; the run starts afresh", records.directory)
        return None, None
    run.is_extended = saved is not None and run.epochs > saved["epochs"]
    _go_back(run, checkpoint, options.on_change)
    settings["schedule"] = schedule_config(run.schedule)
    return checkpoint, None


def _finished(
    run: Run, records: RunRecords, options: RunOptions, checkpoint: Checkpoint | None
) -> TrainingResult | None:
    """Return the result of a finished run, None if there is none; take the loop to its end if a checkpoint is there."""
    result = read_result(records.directory)
    if result is None:
        return None
    if run.epochs < len(result.epochs):
        raise ValueError(f"The run in {records.directory} has more epochs than the {run.epochs} asked for; give more.")
    what = "the model keeps the weights that it had"
    if checkpoint is not None and checkpoint.step == len(result.history["step"]):
        restore(run.loop, checkpoint)
        run.loop.finalize()
        if options.restore_best and records.best is not None:
            load_weights(run.loop.model, records.best)
        what = "the model has its weights"
    logging.warning("the run in %s is finished: nothing was trained, and %s", records.directory, what)
    return result


def _go_back(run: Run, checkpoint: Checkpoint, on_change: OnChange | None) -> None:
    """Take the loop to a checkpoint, and find the schedule from there."""
    if checkpoint.position > run.num_batches:
        asked = f"epochs is {run.epochs}, or {run.num_batches} batches"
        raise ValueError(f"{asked}, but {checkpoint.position} were trained already; give more epochs.")
    saved: Mapping[str, Any] = checkpoint.manifest["settings"]["schedule"]
    run.schedule = schedule_from_here(run.schedule, saved, on_change, run.first_step + checkpoint.step)
    columns = checkpoint.manifest["columns"]
    if columns is not None and ("momentum" in columns) != has_momentums(run.schedule):
        raise ValueError(
            "A schedule that cycles the momentum cannot follow one that does not, or the other way round; choose one "
            "like the saved."
        )
    restore(run.loop, checkpoint)
    run.origin = checkpoint.origin
