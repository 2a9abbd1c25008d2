"""`fit`: a run from its first to its last epoch, with Keras callbacks, recorded and resumed.

The program is compiled, and that timed, before the first step. An epoch's seconds are those of its blocks of steps,
each of which ends with its metrics on the host; validation, callbacks and files are not in them. As in Keras,
validation sees the raw weights. Averages of the weights (`use_ema`) take their place after the last checkpoint.
`model.history` is Keras' History of the epochs. An epoch has the means of its steps; AUC, precision and other metrics
that are no means over examples are recorded at each step and in validation, but not for the epoch's training.

A loop that has taken steps already is trained on: the schedule goes on from its step, unless the options' first_step
says otherwise, and the order of the data from its place. `model.stop_training = True` ends a run earlier, at the end of
an epoch.

Callbacks are called as by Keras' `fit`, but batch hooks once for each block of steps and for each validation, and
`on_train_end` also after an error. Logs also hold `learning_rate` and, at an epoch's end, `epoch_seconds`.
`params["schedule"]` is the schedule in force. A callback may raise `StopRun`. Keras' callbacks that set the learning
rate are refused; of others that do so a warning says that it changes nothing.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from clr_loop.arguments import checked_types
from clr_loop.data.datasets import Examples
from clr_loop.data.order import sha256_of
from clr_loop.loop.loop import TrainLoop
from clr_loop.runs import checks, progress, snapshots
from clr_loop.runs import files as run_files
from clr_loop.runs.actions import actions_of
from clr_loop.runs.checkpoints import Checkpoint, Origin, load_weights, restore
from clr_loop.runs.errors import NonFiniteError, NonFiniteLossError, StopRun, TrainingInterruptedError
from clr_loop.runs.models import save_model
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import Progress, RunRecords
from clr_loop.runs.result import Best, Monitor, TrainingResult
from clr_loop.runs.resuming import take_up
from clr_loop.runs.run import Run
from clr_loop.runs.settings import ScheduleFn, run_settings

__all__ = ["NonFiniteError", "NonFiniteLossError", "StopRun", "TrainingInterruptedError", "fit"]


@checked_types
def fit(
    loop: TrainLoop,
    schedule: ScheduleFn,
    validation: Examples | tuple[Any, ...] | tf.data.Dataset | None = None,
    *,
    epochs: int,
    test: Examples | tuple[Any, ...] | tf.data.Dataset | None = None,
    callbacks: keras.callbacks.Callback | Sequence[keras.callbacks.Callback] = (),
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
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
        run_dir: a directory that does not exist or is empty, unless `resume` or `overwrite`. None writes nothing.
        resume: go on from the newest whole checkpoint in run_dir, or the one that the options name.
        overwrite: move what run_dir holds aside (to `run_dir.1`) when this run begins.
        verbose: 0 is silent, 1 shows a bar and lines, 2 lines alone; "auto" is 1 on a terminal and in a notebook.
    """
    options = options or RunOptions()
    run = _planned(loop, schedule, _as_arguments(validation), epochs, options)
    checks.check_run(run, options, run_dir is not None, resume, overwrite)
    with progress.shown(verbose) as shown, contextlib.ExitStack() as stack:
        callbacks = [*shown, *keras.tree.flatten(callbacks)]
        checks.check_callbacks(callbacks, run_dir is not None)
        checks.try_evaluation(loop, run.validation, _as_arguments(test))
        settings, checkpoint = _settings(run, options), None
        if run_dir is not None:
            directory = stack.enter_context(run_files.claim(run_dir, resume=resume or overwrite))
            stack.enter_context(run_files.sole_use(directory))
            run.records = _records(run, directory, options)
            if resume:
                checkpoint, result = take_up(run, run.records, options, settings)
                if result is not None:
                    return result
        started = time.perf_counter()
        loop.compile(with_momentums=checks.has_momentums(run.schedule))
        compile_seconds = time.perf_counter() - started
        with _opened(run, checkpoint, settings, options, resume) as run.progress:
            run.train(actions_of(run, options), callbacks)
            return _finish(run, options, _as_arguments(test), settings, compile_seconds)


def _as_arguments(data: Any) -> tuple[Any, ...]:
    """Return examples or a dataset as arguments of `TrainLoop.evaluate`; () for none."""
    return (data,) if isinstance(data, tf.data.Dataset) else tuple(data or ())


def _planned(
    loop: TrainLoop, schedule: ScheduleFn, validation: tuple[Any, ...], epochs: int, options: RunOptions
) -> Run:
    first_step = loop.step if options.first_step is None else options.first_step
    origin = Origin(loop.step, loop.num_skipped)
    return Run(loop, schedule, epochs, validation, first_step, origin, options.validation_batch_size)


def _monitor(options: RunOptions) -> Monitor:
    return Monitor(options.monitor, options.mode)


def _records(run: Run, directory: Path, options: RunOptions) -> RunRecords:
    keep = 0 if options.checkpoint_every == 0 else options.keep_checkpoints
    return RunRecords(directory, run.loop, keep, _monitor(options))


def _settings(run: Run, options: RunOptions) -> dict[str, Any]:
    """Return what the run depends on; of validation data what tells them from other data, if that can be known."""
    validation: str | None = None
    if run.validation:
        is_dataset = isinstance(run.validation[0], tf.data.Dataset)
        validation = "a dataset" if is_dataset else sha256_of(run.validation)
    own = {"validation": validation, "first_step": run.first_step}
    return run_settings(run.loop, run.schedule, run.epochs, {**options.to_compare(), **own})


def _opened(
    run: Run, checkpoint: Checkpoint | None, settings: dict[str, Any], options: RunOptions, resume: bool
) -> contextlib.AbstractContextManager[Progress]:
    """Hold the run's files open, if all workers train the same run; the context gives the progress made until then."""
    checks.check_workers(run, settings, options)
    if run.records is None:
        return contextlib.nullcontext(Progress(best=Best(_monitor(options)), not_means=run.loop.not_means))
    directory = run.records.directory
    if not resume and (aside := run_files.set_aside(directory)) is not None:  # It is to be overwritten.
        logging.warning("what was in %s was moved to %s", directory, aside)
    return run.records.open(checkpoint, settings)


def _finish(
    run: Run, options: RunOptions, test: tuple[Any, ...], settings: dict[str, Any], compile_seconds: float
) -> TrainingResult:
    """Save the models, test them, and record the result."""
    loop, records = run.loop, run.records
    tested = _save_and_test(run, options, test)
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
        test=tested,
        is_timed=options.is_timed,
    )
    if records is not None:
        records.add_result(result)
    return result


def _save_and_test(run: Run, options: RunOptions, test: tuple[Any, ...]) -> dict[str, dict[str, float]]:
    """Save the final, averaged and best models and the snapshots' table; return each model's values on the test."""
    loop, records = run.loop, run.records
    best = None if records is None else records.best
    if options.restore_best and best is not None:
        load_weights(loop.model, best)
    values: dict[str, dict[str, float]] = {}

    def keep(name: str) -> None:
        if records is not None and options.save_models:
            save_model(loop.model, records.directory / name)
        if test:
            values[name] = loop.evaluate(*test)

    keep("final")
    if loop.averages is not None and loop.averages.is_there:
        with loop.averaged():
            keep("averaged")
    end = loop.snapshot()
    if best is not None:
        restore(loop, best)  # With the optimizer's state of that epoch.
        keep("best")
    loop.restore(end)
    if records is not None and options.snapshots:
        num_done = sum(step <= run.step for step in run.cycle_ends() or [])
        rows = snapshots.evaluate(loop, records.directory, num_done, run.validation)
        if rows:  # There are none if the run was stopped in its first cycle.
            run_files.write_csv(records.directory / f"{run_files.SNAPSHOTS}.csv", rows)
    return values
