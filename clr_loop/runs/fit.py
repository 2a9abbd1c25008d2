"""`fit`: a run from its first to its last epoch, with Keras callbacks, recorded and resumed.

The program is compiled, and that timed, before the first step. An epoch's seconds are those of its blocks of steps,
each of which ends with its metrics on the host; validation, callbacks and files are not in them. As in Keras,
validation sees the raw weights. Averages of the weights (`use_ema`) take their place after the last checkpoint.

A loop that has taken steps already is trained on: the schedule goes on from its step, unless the options' first_step
says otherwise, and the order of the data from its place. `model.stop_training = True` ends a run earlier, at the end of
an epoch.

Callbacks are called as by Keras' `fit`, but batch hooks once for each block of steps. Logs also hold `learning_rate`
and, at an epoch's end, `epoch_seconds`. `params["schedule"]` is the schedule in force. A callback may raise `StopRun`.
One that sets the learning rate is refused.

A run directory holds config.json, history.csv, epochs.csv, result.json, the models, TensorBoard's events and the folder
`checkpoints`. What was recorded after the checkpoint that a run is resumed from is undone and done again, to the same
bit. Without a checkpoint the run starts afresh, with a warning. A finished run stays as it is: its result is returned,
with a warning, unless more epochs are asked for.

`fit` raises:
    ValueError: if epochs is below 1, profile lies outside the run or has no run_dir, a callback is refused, or the
        schedule returns another number of rates than steps, or one that is negative or not finite. On resuming: if
        settings differ from the saved ones, fewer epochs are asked for than trained, a CSV file was changed, or no
        checkpoint can hold all of the training's state (`TrainLoop.not_resumable`).
    CheckpointError: if the newest checkpoint is of another run or version, or all are damaged.
    OSError: if run_dir holds a run and `resume` is False, is in use, cannot be written to, or loses a file.
    NonFiniteLossError: if a step's loss is NaN or infinite; what was recorded up to that step is kept.
    NonFiniteError: if `val_loss`, or a variable at a checkpoint, is NaN or infinite, at the epoch's end.
    TrainingInterruptedError: if a callback raised `StopRun`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from clr_loop.data.arguments import checked_types
from clr_loop.data.datasets import Examples
from clr_loop.data.order import sha256_of
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.rates import checked_rates, momentums_of
from clr_loop.runs import files as run_files
from clr_loop.runs import progress, snapshots
from clr_loop.runs.checkpoints import Checkpoint, Origin, read_variables, restore
from clr_loop.runs.epochs import NonFiniteError, NonFiniteLossError, Run, StopRun, TrainingInterruptedError, rates_of
from clr_loop.runs.models import save_model
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import Progress, RunRecords, read_result
from clr_loop.runs.result import TrainingResult
from clr_loop.runs.settings import (
    OnChange,
    ScheduleFn,
    check_changes,
    run_settings,
    schedule_config,
    schedule_from_here,
)
from clr_loop.schedules.checks import checked_whole
from clr_loop.schedules.for_keras import CyclicLR

__all__ = ["NonFiniteError", "NonFiniteLossError", "RunOptions", "StopRun", "TrainingInterruptedError", "fit"]

# As many as `TrainLoop.evaluate` takes at once, so that its program need not be traced again.
_TRIED = 1000

_ASSIGNED = "fit assigns the rate of its schedule at every step"
_REFUSED = {
    keras.callbacks.LearningRateScheduler: f"{_ASSIGNED}; give it the schedule instead.",
    keras.callbacks.ReduceLROnPlateau: f"{_ASSIGNED}, so a rate that a callback sets is lost.",
    CyclicLR: f"{_ASSIGNED}; give it the callback's `schedule` instead.",
    keras.callbacks.BackupAndRestore: "fit saves checkpoints of its own; use run_dir and resume=True.",
}
_TAKEN_NAMES = ("step", "epoch", "learning_rate", "momentum", "epoch_seconds", "input_wait_seconds")


@checked_types
def fit(
    loop: TrainLoop,
    schedule: ScheduleFn,
    validation: Examples | tuple[Any, ...] | tf.data.Dataset | None = None,
    *,
    epochs: int,
    test: Examples | tuple[Any, ...] | tf.data.Dataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    options: RunOptions | None = None,
    verbose: progress.Verbose = "auto",
) -> TrainingResult:
    """Train for a number of epochs, evaluate after each, and keep a record; see this module for all that it does.

    Args:
        loop: a new one, or one that has taken steps: schedule and order of the data go on from its place.
        schedule: 0-based steps, int64 [n] → learning rates, float [n]. If it has a method `momentum_at` that returns
            floats [n], they are the momentums of these steps.
        validation: (inputs, targets[, sample_weight]), a dataset of batches, or None.
        epochs: int, at least 1: further epochs; with `resume`, those of the whole run.
        test: like validation; it is looked at once, at the end, and chooses nothing.
        run_dir: a directory that does not exist or is empty, unless `resume`. None writes nothing.
        resume: go on from the newest whole checkpoint in run_dir, or the one that the options name.
        verbose: 0 is silent, 1 shows a bar and lines, 2 lines alone; "auto" is 1 on a terminal and in a notebook.
    """
    options = options or RunOptions()
    run = _planned(loop, schedule, validation, epochs, options, resume, run_dir is not None)
    with progress.shown(verbose) as shown, contextlib.ExitStack() as stack:
        run.callbacks = [*shown, *callbacks]
        _check_callbacks(run.callbacks)
        tested = _as_arguments(test)
        for data in (run.validation, tested):
            _try(loop, data)
        settings = _settings(run, options)
        checkpoint = None
        if run_dir is not None:
            directory = stack.enter_context(run_files.claim(run_dir, resume=resume))
            stack.enter_context(run_files.sole_use(directory))
            checkpoint, result = _taken_up(run, options, directory, settings, resume)
            if result is not None:
                return result
        started = time.perf_counter()
        loop.compile(with_momentums=_has_momentums(run.schedule))
        compile_seconds = time.perf_counter() - started
        return _train(run, settings, checkpoint, partial(_finish, run, options, tested), compile_seconds)


def _planned(
    loop: TrainLoop,
    schedule: ScheduleFn,
    validation: Any,
    epochs: int,
    options: RunOptions,
    resume: bool,
    has_directory: bool,
) -> Run:
    """Return a run that nothing known is wrong with."""
    if options.resume_from is not None and not resume:
        raise ValueError(f"resume_from is {options.resume_from}, but the run is not resumed; give resume=True, too.")
    run = Run(
        loop=loop,
        schedule=schedule,
        validation=_as_arguments(validation),
        epochs=epochs,
        checkpoint_every=loop.steps_per_epoch if options.checkpoint_every is None else options.checkpoint_every,
        validate_every=options.validate_every,
        profile=range(*(options.profile or (0, 0))),
        monitor=options.monitor,
        patience=options.patience,
        first_step=loop.step if options.first_step is None else options.first_step,
        origin=Origin(loop.step, loop.num_skipped),
    )
    _set_lows(run, options)
    _check(run, options, has_directory)
    return run


def _as_arguments(data: Any) -> tuple[Any, ...]:
    """Return examples or a dataset as arguments of `TrainLoop.evaluate`; () for none."""
    return (data,) if isinstance(data, tf.data.Dataset) else tuple(data or ())


def _settings(run: Run, options: RunOptions) -> dict[str, Any]:
    own = {"validation": _digest(run.validation), "first_step": run.first_step}
    return run_settings(run.loop, run.schedule, run.epochs, {**options.to_compare(), **own})


def _taken_up(
    run: Run, options: RunOptions, directory: Path, settings: dict[str, Any], resume: bool
) -> tuple[Checkpoint | None, TrainingResult | None]:
    """Take a run to the checkpoint that it goes on from; return that, and the result if the run is finished."""
    keep = options.keep_checkpoints if run.checkpoint_every else 0
    run.records = RunRecords(directory, run.loop, keep, options.monitor)
    if not resume:
        return None, None
    checkpoint, saved = run.records.find(options.resume_from)
    if run.loop.not_resumable is not None:
        raise ValueError(f"The run cannot be resumed exactly: {run.loop.not_resumable}. Start a new run.")
    if options.first_step is None and saved:  # It is the loop's step when the run began.
        settings["first_step"] = run.first_step = saved.get("first_step", 0)
    check_changes(saved or settings, settings, options.on_change)
    if (result := _finished(run, options, directory, checkpoint, saved)) is not None:
        return checkpoint, result
    if checkpoint is None:
        logging.warning("%s holds no checkpoint to go on from; the run starts afresh", directory)
        return None, None
    _go_back(run, checkpoint, options.on_change)
    _set_lows(run, options)  # The schedule may be another one now.
    settings["schedule"] = schedule_config(run.schedule)
    return checkpoint, None


def _train(
    run: Run,
    settings: dict[str, Any],
    checkpoint: Checkpoint | None,
    finish: Callable[[], dict[str, Any]],
    compile_seconds: float,
) -> TrainingResult:
    loop, records = run.loop, run.records
    with (
        contextlib.nullcontext(Progress(monitor=run.monitor))
        if records is None
        else records.open(checkpoint, settings) as run.progress
    ):
        run.train()
        last = finish()
        result = TrainingResult(
            settings=settings,
            history=run.progress.history(),
            epochs=run.progress.epochs,
            validations=run.progress.validations,
            compile_seconds=compile_seconds,
            num_examples=loop.num_examples,
            num_skipped=loop.num_skipped - run.origin.num_skipped,
            weights_sha256=loop.weights_sha256(),
            device=loop.device,
            **last,
        )
        if records is not None:
            records.add_result(result)
    return result


def _finish(run: Run, options: RunOptions, tested: tuple[Any, ...]) -> dict[str, Any]:
    """Save the final model and the best, and return what `TrainingResult` has of the end beside the training."""
    loop, records = run.loop, run.records
    best = None if records is None else records.best
    if options.restore_best and best is not None:
        _take_weights(loop, best)
    test: dict[str, dict[str, float]] = {}

    def keep(name: str) -> None:
        if records is not None and options.save_models:
            save_model(loop.model, records.directory / name)
        if tested:
            test[name] = loop.evaluate(*tested)

    keep("final")
    if loop.averages is not None and loop.averages.is_there:
        with loop.averaged():
            keep("averaged")
    end = loop.snapshot()
    if best is not None:
        _take_weights(loop, best)
        keep("best")
    loop.restore(end)
    if records is not None and run.snapshot_steps:
        num_done = sum(step <= run.step for step in run.snapshot_steps)
        rows = snapshots.evaluate(loop, records.directory, num_done, run.validation)
        run_files.write_csv(records.directory / f"{run_files.SNAPSHOTS}.csv", rows)
    return {"test": test, "is_timed": options.is_timed}


def _take_weights(loop: TrainLoop, checkpoint: Checkpoint) -> None:
    arrays = read_variables(checkpoint, "model", loop.model.variables)
    for variable, array in zip(loop.model.variables, arrays, strict=True):
        variable.assign(array)


def _set_lows(run: Run, options: RunOptions) -> None:
    """Note after which steps the weights are added to an average, and after which the model is kept as a snapshot.

    Raises:
        ValueError: if there is no such step in the run.
    """
    loop, num_steps = run.loop, run.num_batches
    if loop.options.average != "swa" and not options.snapshots:
        return  # A run may have very many cycles.
    every = run.cycle_ends() or []
    late = [end for end in every if end >= options.average_from * num_steps]
    if loop.options.average == "swa" and not late:
        raise ValueError(
            "average is 'swa', the mean of the weights at the lows of the cycles, but no cycle of the schedule ends "
            f"in the run from {options.average_from:.0%} of its {num_steps:,} steps on; choose other cycles."
        )
    if options.snapshots and not every:
        raise ValueError(f"No cycle of the schedule ends in the {num_steps:,} steps; snapshots are kept at their ends.")
    run.lows = late if loop.options.average == "swa" else []
    run.snapshot_steps = every if options.snapshots else []


def _has_momentums(schedule: ScheduleFn) -> bool:
    return momentums_of(schedule, np.arange(1)) is not None


def _check(run: Run, options: RunOptions, has_directory: bool) -> None:
    """Raise for whatever can be known to be wrong before anything is written."""
    loop, schedule, profile = run.loop, run.schedule, run.profile
    checked_whole("epochs", run.epochs)
    if run.validate_every and not run.validation:
        raise ValueError(f"validate_every is {run.validate_every}, but there is no validation data; give validation.")
    _check_monitor(run, options)
    has_arrays = bool(run.validation) and not isinstance(run.validation[0], tf.data.Dataset)
    if options.snapshots and not (has_directory and has_arrays):
        raise ValueError("snapshots need a run_dir to be kept in, and arrays of validation data to be compared on.")
    if options.restore_best and not (has_directory and run.checkpoint_every):
        raise ValueError(
            "restore_best takes the weights from a checkpoint; give run_dir, and let checkpoints be saved."
        )
    if profile and not has_directory:
        raise ValueError("A profile needs a directory to be written to; give run_dir.")
    if profile and profile.start >= run.num_batches:
        raise ValueError(f"The profile begins at batch {profile.start}, and the run has {run.num_batches}.")
    for name in loop.metric_names:
        if name in _TAKEN_NAMES or name.startswith(("val_", "averaged_")):
            raise ValueError(f"A metric has the name {name}, which the records use for something else; rename it.")
    first_two = run.first_step + np.arange(min(2, run.num_batches))
    checked_rates(rates_of(schedule, first_two))
    if _has_momentums(schedule):
        loop.check_momentum()


def _check_callbacks(callbacks: Sequence[keras.callbacks.Callback]) -> None:
    for callback in keras.tree.flatten(list(callbacks)):
        for kind, reason in _REFUSED.items():
            if isinstance(callback, kind):
                raise ValueError(f"The callback {type(callback).__name__} cannot be used: {reason}")


def _try(loop: TrainLoop, data: tuple[Any, ...]) -> None:
    """Evaluate a little of these data, so that what is wrong with them is known before anything is trained."""
    if data and isinstance(data[0], tf.data.Dataset):
        loop.evaluate(data[0].take(1))
    elif data:
        loop.evaluate(*keras.tree.map_structure(lambda x: None if x is None else x[:_TRIED], data))


def _check_monitor(run: Run, options: RunOptions) -> None:
    """Raise ValueError if epochs cannot be rated as asked."""
    kinds = ["", *(["val_"] if run.validation else []), *(["averaged_val_"] if run.loop.averages else [])]
    names = [f"{kind}{name}" for kind in kinds for name in run.loop.metric_names]
    if run.monitor is not None and run.monitor not in names:
        raise ValueError(f"monitor is {run.monitor}, which no epoch has; choose one of {', '.join(names)}.")
    if run.monitor is None and not run.validation:
        for name in ("patience", "restore_best"):
            if getattr(options, name):
                raise ValueError(f"{name} needs a measure of each epoch; give validation data, or a monitor.")


def _digest(validation: tuple[Any, ...]) -> str | None:
    """Return what tells validation data from other data, as far as that can be known."""
    if validation and isinstance(validation[0], tf.data.Dataset):
        return "a dataset"
    return sha256_of(validation) if validation else None


def _finished(
    run: Run,
    options: RunOptions,
    directory: Path,
    checkpoint: Checkpoint | None,
    saved: Mapping[str, Any] | None,
) -> TrainingResult | None:
    """Return the result of a run that is finished, or None if there is something left to do.

    The loop is taken to the run's end if there is a checkpoint of it.
    """
    if saved is None or run.epochs > saved.get("epochs", 0):
        if checkpoint is None and (directory / run_files.RESULT).is_file():
            raise ValueError(f"The run in {directory} is finished and has no checkpoint to go on from; choose another.")
        return None
    result = read_result(directory)
    if result is None:
        return None
    if run.epochs < len(result.epochs):
        raise ValueError(f"The run in {directory} has more epochs than the {run.epochs} asked for; give more.")
    left = "the model keeps the weights that it had"
    if checkpoint is not None and checkpoint.step == len(result.history["step"]):
        restore(run.loop, checkpoint)
        run.loop.finalize()
        if options.restore_best and run.records is not None and run.records.best is not None:
            _take_weights(run.loop, run.records.best)
        left = "the model has its weights"
    logging.warning("the run in %s is finished: nothing was trained, and %s", directory, left)
    return result


def _go_back(run: Run, checkpoint: Checkpoint, on_change: OnChange | None) -> None:
    """Take the loop to a checkpoint, and find the schedule from there."""
    if checkpoint.position > run.num_batches:
        asked = f"epochs is {run.epochs}, or {run.num_batches} batches"
        raise ValueError(f"{asked}, but {checkpoint.position} were trained already; give more epochs.")
    saved = checkpoint.manifest["settings"]["schedule"]
    run.schedule = schedule_from_here(run.schedule, saved, on_change, run.first_step + checkpoint.step)
    columns = checkpoint.manifest["columns"]
    if columns is not None and ("momentum" in columns) != _has_momentums(run.schedule):
        raise ValueError(
            "A schedule that cycles the momentum cannot follow one that does not, or the other way round; choose one "
            "like the saved."
        )
    restore(run.loop, checkpoint)
    run.origin = checkpoint.origin
