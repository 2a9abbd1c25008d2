"""What can be known to be wrong with a run before anything is written."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from clr_loop.arguments import checked_whole
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.own_step import has_own
from clr_loop.loop.rates import checked_rates, momentums_of
from clr_loop.loop.state import kept
from clr_loop.runs import snapshots
from clr_loop.runs.actions import averaged_steps, snapshot_steps
from clr_loop.runs.options import RunOptions
from clr_loop.runs.result import higher_is_better
from clr_loop.runs.run import Run, rates_of
from clr_loop.runs.settings import FREE, ScheduleFn
from clr_loop.schedules.for_keras import CyclicLR

# As many as `TrainLoop.evaluate` takes at once, so that its program need not be traced again.
_NUM_EVALUATED = 1000

_ASSIGNED = "fit assigns the rate of its schedule at every step"
_REFUSED = {
    keras.callbacks.LearningRateScheduler: f"{_ASSIGNED}; give it the schedule instead.",
    keras.callbacks.ReduceLROnPlateau: f"{_ASSIGNED}, so a rate that a callback sets is lost.",
    CyclicLR: f"{_ASSIGNED}; give it the callback's `schedule` instead.",
    keras.callbacks.BackupAndRestore: "fit saves checkpoints of its own; use run_dir and resume=True.",
}
_TAKEN_NAMES = ("step", "epoch", "learning_rate", "momentum", "epoch_seconds", "input_wait_seconds")


def _check_takes_steps(schedule: Any) -> None:
    """Raise TypeError for a function of something else, such as Keras' (epoch, rate), and for a schedule's class."""
    try:
        parameters = inspect.signature(schedule)
    except ValueError:  # A function of C does not say.
        return
    try:
        parameters.bind(None)
    except TypeError as error:
        what = f"the class {schedule.__name__}" if isinstance(schedule, type) else f"a function of {parameters}"
        raise TypeError(
            f"schedule is {what}; give a schedule such as Triangular(0.001, 0.006, 2000), or a function that takes an "
            "array of steps alone and returns their rates."
        ) from error


def check_run(run: Run, options: RunOptions, has_directory: bool, resume: bool, overwrite: bool) -> None:
    """Raise ValueError if the run cannot be made as asked."""
    loop, schedule = run.loop, run.schedule
    profile = None if options.profile is None else range(*options.profile)
    if options.resume_from is not None and not resume:
        raise ValueError(f"resume_from is {options.resume_from}, but the run is not resumed; give resume=True, too.")
    if resume and overwrite:
        raise ValueError("resume and overwrite were both given; choose one of them.")
    checked_whole("epochs", run.epochs)
    if options.validate_every and not run.validation:
        raise ValueError(
            f"validate_every is {options.validate_every}, but there is no validation data; give validation."
        )
    _check_monitor(run, options)
    has_arrays = bool(run.validation) and not isinstance(run.validation[0], tf.data.Dataset)
    if options.snapshots and not (has_directory and has_arrays):
        raise ValueError("snapshots need a run_dir to be kept in, and arrays of validation data to be compared on.")
    if options.restore_best and not (has_directory and options.checkpoint_every != 0):
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
    _check_takes_steps(schedule)
    checked_rates(rates_of(schedule, first_two))
    if has_momentums(schedule):
        loop.check_momentum()
    if loop.options.average == "swa":
        averaged_steps(run, options)
    if options.snapshots:
        snapshot_steps(run)
        snapshots.check(loop, _some(loop, run.validation))


def _check_monitor(run: Run, options: RunOptions) -> None:
    """Raise ValueError if epochs cannot be rated as asked."""
    kinds = ["", *(["val_"] if run.validation else []), *(["averaged_val_"] if run.loop.averages else [])]
    names = [f"{kind}{name}" for kind in kinds for name in run.loop.metric_names]
    names = [name for name in names if name not in run.loop.not_means]
    if run.validation and any(has_own(run.loop.model, step) for step in ("train_step", "test_step")):
        names = [name for name in names if not name.startswith("val_")]
        names += [f"val_{name}" for name in try_evaluation(run.loop, run.validation)]
    if options.monitor is not None and options.monitor not in names:
        raise ValueError(f"monitor is {options.monitor}, which no epoch has; choose one of {', '.join(names)}.")
    if options.monitor is not None and options.mode == "auto":
        higher_is_better(options.monitor)
    if options.monitor is None and not run.validation:
        for name in ("patience", "restore_best"):
            if getattr(options, name):
                raise ValueError(f"{name} needs a measure of each epoch; give validation data, or a monitor.")


def check_callbacks(callbacks: Sequence[keras.callbacks.Callback], has_directory: bool) -> None:
    """Raise ValueError for a callback whose work the run does itself, or that its checkpoints would suffer from."""
    for callback in keras.tree.flatten(list(callbacks)):
        for kind, reason in _REFUSED.items():
            if isinstance(callback, kind):
                raise ValueError(f"The callback {type(callback).__name__} cannot be used: {reason}")
        if isinstance(callback, keras.callbacks.SwapEMAWeights) and callback.swap_on_epoch and has_directory:
            raise ValueError(
                "The callback SwapEMAWeights cannot be used: with swap_on_epoch it leaves the averages in the model "
                "between two epochs, where checkpoints are saved. Use StepOptions(average=0.99), whose model is saved "
                "as averaged.keras."
            )


def try_evaluation(loop: TrainLoop, *sets: tuple[Any, ...]) -> dict[str, float]:
    """Evaluate a little of each set, so that what is wrong with it is known before anything is trained."""
    values: dict[str, float] = {}
    with kept([*loop.model.non_trainable_variables, *loop.other_variables]):
        for data in filter(None, sets):
            values = loop.evaluate(*([data[0].take(1)] if isinstance(data[0], tf.data.Dataset) else _some(loop, data)))
    return values


def _some(loop: TrainLoop, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    number = max(_NUM_EVALUATED // loop.batch_size, 1) * loop.batch_size  # Some models take whole batches alone.
    return keras.tree.map_structure(lambda x: None if x is None else x[:number], arrays)


def check_workers(run: Run, settings: Mapping[str, Any], options: RunOptions) -> None:
    """Raise ValueError, in all workers, if they were not told to train the same run."""
    here = {"settings", "profile", "is_timed", "save_models"}  # Each worker may have its own.
    facts = {name: value for name, value in dataclasses.asdict(options).items() if name not in here}
    facts |= {name: value for name, value in settings.items() if name not in FREE}
    variables = [[variable.dtype, list(variable.shape)] for variable in run.loop.model.variables]
    own = {"epochs": run.epochs, "variables": variables, "data_sha256": run.loop.data_sha256()}
    run.loop.check_workers_alike({**facts, **own})


def has_momentums(schedule: ScheduleFn) -> bool:
    """Return whether a schedule cycles the momentum, too."""
    return momentums_of(schedule, np.arange(1)) is not None
