"""`fit`: epochs, validation, timing, records and progress around a `TrainLoop`."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from clr_loop import run_files
from clr_loop.data import Split
from clr_loop.loop import Metrics, TrainLoop, check_examples, checked_rates, num_classes_of
from clr_loop.momentum import momentum_attribute, momentums_of
from clr_loop.profiling import StepProfiler
from clr_loop.records import Progress, RunRecords
from clr_loop.results import EpochRecord, TrainingResult
from clr_loop.resuming import OnChange, go_on
from clr_loop.schedule_base import checked_whole
from clr_loop.settings import ScheduleFn, run_settings, schedule_config
from clr_loop.timing import Stopwatch

# A block of steps should take about this long: the time in which a run answers a signal or moves its progress bar.
_BLOCK_SECONDS = 1.0
_FIRST_BLOCK_STEPS = 8


class NonFiniteLossError(ArithmeticError):
    """The loss of a step was NaN or infinite.

    Attributes:
        step: int, the 0-based step.
        learning_rate: float, the rate of that step.
        loss: float, NaN or inf.
        checkpoint: the newest checkpoint, from before that step, or None.
    """

    def __init__(self, step: int, learning_rate: float, loss: float, checkpoint: Path | None = None) -> None:
        advice = (
            "lower the learning rate"
            if checkpoint is None
            else f"the checkpoint before it is {checkpoint}; resume from it with a lower rate and --on_change=replace"
        )
        super().__init__(
            f"loss must stay finite, received {loss} at step {step} with learning rate {learning_rate:g}; {advice}"
        )
        self.step, self.learning_rate, self.loss, self.checkpoint = step, learning_rate, loss, checkpoint


class TrainingInterruptedError(Exception):
    """The run was asked to stop before its end, and did so between two steps.

    Attributes:
        step: int, steps taken.
        checkpoint: where the state of that step is saved, or None.
    """

    def __init__(self, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped after {step} steps")
        self.step, self.checkpoint = step, checkpoint


def fit(
    train_loop: TrainLoop,
    schedule: ScheduleFn,
    validation: Split,
    *,
    epochs: int,
    run_dir: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    target_accuracy: float | None = None,
    is_timed: bool = True,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 3,
    resume: bool = False,
    on_change: OnChange | None = None,
    profile: tuple[int, int] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_start: Callable[[ScheduleFn], None] | None = None,
    on_block: Callable[[int, Metrics], None] | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Trains for a number of epochs, evaluating after each.

    The program is compiled, and that timed, before the first step. An epoch's time is that of its blocks alone, each of
    which ends with its metrics on the host; validation, summaries and files are outside of it.

    Args:
        train_loop: a loop that has taken no step yet.
        schedule: 0-based steps, int64 [n] → learning rates, float [n]; one of `clr_loop.schedules` or any function. If
            it has a method `momentum_at` that returns floats [n], they are the momentums of these steps.
        validation: images and labels to evaluate on.
        epochs: int, at least 1.
        run_dir: where to write config.json, history.csv, epochs.csv, result.json, TensorBoard's events and the folder
            `checkpoints`; a directory that does not exist or is empty, unless `resume`. None writes nothing.
        settings: JSON types, to be kept with the run: names of dataset, model and so on. On resuming they must be
            equal, but for a key `command`, which is only kept.
        target_accuracy: in 0–1, for `TrainingResult.seconds_to_target`.
        is_timed: False where other work is known to go on beside the run, so that its seconds do not count.
        checkpoint_every: batches from one checkpoint to the next, at least 1; the run's beginning and end have one too.
            None saves none.
        keep_checkpoints: how many of the newest checkpoints to keep, beside the best by validation accuracy.
        resume: whether to go on from the newest good checkpoint in run_dir; everything recorded after it is undone and
            done again, to the same bit. Where there is no checkpoint the run starts afresh, with a warning.
        on_change: what to do when the schedule, or a version of what the result depends on, is not the one that the run
            was begun with. None: raise; "keep": the saved schedule; "replace": the given one, at the same step;
            "rebase": the given one, its step 0 at the current step. More epochs are always allowed.
        profile: (first, last): profiles these batches into run_dir, which must be given; see `profiling.StepProfiler`.
            The epochs in which they lie take longer for it.
        should_stop: asked before each block, about once a second; True ends the run with a checkpoint.
        on_start: called before the first step with the schedule that the run takes, which `on_change` may have decided.
        on_block: called after each block of steps with the number of batches visited so far and the block's metrics.
        on_epoch: called after each epoch.

    Raises:
        ValueError: if epochs, checkpoint_every or keep_checkpoints is below 1, target_accuracy outside 0–1, profile no
            window or without run_dir, the loop has taken steps already, or the schedule returns a rate that is negative
            or not finite; if, on resuming, the settings differ from the saved ones, or more epochs have been trained
            than are asked for.
        CheckpointError: if the newest checkpoint is of another run, or none of several is whole.
        OSError: if run_dir holds a run and `resume` is False, is held by another process, or cannot be written to.
        NonFiniteLossError: if a loss is NaN or infinite; what was recorded up to that step is kept.
        TrainingInterruptedError: if should_stop returned True.
    """
    _check(train_loop, schedule, validation, epochs, target_accuracy, checkpoint_every)
    if profile is not None and run_dir is None:
        raise ValueError("profile must come with a run_dir to write to, received none; give one")
    settings = run_settings(train_loop, schedule, epochs, settings)
    steps_per_epoch = train_loop.steps_per_epoch
    last = epochs * steps_per_epoch
    with contextlib.ExitStack() as stack:
        records, progress = None, Progress()
        if run_dir is not None:
            directory = stack.enter_context(run_files.claim(run_dir, resume=resume))
            keep = None if checkpoint_every is None else keep_checkpoints
            records = stack.enter_context(RunRecords(directory, train_loop, keep))
            if resume:
                schedule = go_on(directory, records, train_loop, schedule, settings, on_change)
                settings["schedule"] = schedule_config(schedule)
            progress = records.open(settings)
        if on_start is not None:
            on_start(schedule)
        profiler = stack.enter_context(StepProfiler(Path(run_dir), *profile)) if run_dir and profile else None
        compiling = Stopwatch()
        with compiling:
            train_loop.compile(with_momentums=momentums_of(schedule, np.arange(1)) is not None)
        block_steps = _FIRST_BLOCK_STEPS
        while train_loop.position < last:
            if should_stop():
                if records is not None:
                    records.save_checkpoint(progress)
                raise TrainingInterruptedError(train_loop.step, _newest_checkpoint(records))
            position = train_loop.position
            to_epoch_end = steps_per_epoch - position % steps_per_epoch
            to_checkpoint = last if checkpoint_every is None else checkpoint_every - position % checkpoint_every
            num_batches = min(block_steps, train_loop.block_steps, to_epoch_end, to_checkpoint)
            if profiler is not None:
                profiler.at(position)
                num_batches = min(num_batches, profiler.steps_to_boundary(position))
            seconds = _train_block(train_loop, schedule, num_batches, progress, records, on_block)
            if train_loop.num_workers == 1:  # Several must cut the run alike, and their clocks differ.
                block_steps = max(1, round(num_batches * _BLOCK_SECONDS / max(seconds, 1e-3)))
            if num_batches == to_epoch_end:
                _end_epoch(train_loop, validation, progress, records, on_epoch)
            if records is not None and (num_batches == to_checkpoint or train_loop.position == last):
                records.save_checkpoint(progress)
        result = TrainingResult(
            settings=settings,
            history=progress.history(),
            epochs=progress.epochs,
            compile_seconds=compiling.seconds,
            num_examples=train_loop.num_examples,
            target_accuracy=target_accuracy,
            num_skipped=train_loop.num_skipped,
            weights_sha256=train_loop.weights_sha256(),
            device=train_loop.device,
            is_timed=is_timed,
        )
        if records is not None:
            records.add_result(result)
    return result


def _train_block(
    train_loop: TrainLoop,
    schedule: ScheduleFn,
    num_batches: int,
    progress: Progress,
    records: RunRecords | None,
    on_block: Callable[[int, Metrics], None] | None,
) -> float:
    """Visits the next batches, records their steps, and returns the seconds they took."""
    training = Stopwatch()
    first = train_loop.step
    steps = np.arange(first, first + num_batches)
    rates, momentums = schedule(steps), momentums_of(schedule, steps)
    waited = train_loop.input_wait_seconds
    began = time.time()
    with training:
        metrics = train_loop.run(rates, momentums)
    ended = time.time()
    progress.epoch_seconds += training.seconds
    progress.input_wait_seconds += train_loop.input_wait_seconds - waited
    finite = np.isfinite(metrics["loss"])
    if not finite.all():
        bad = int(np.argmin(finite))
        metrics = {name: values[: bad + 1] for name, values in metrics.items()}
    if records is not None:
        records.add_steps(first, metrics, began, ended)
    if not finite.all():
        rate, loss = float(metrics["learning_rate"][bad]), float(metrics["loss"][bad])
        raise NonFiniteLossError(first + bad, rate, loss, _newest_checkpoint(records))
    progress.blocks.append(metrics)
    if on_block is not None:
        on_block(train_loop.position, metrics)
    return training.seconds


def _end_epoch(
    train_loop: TrainLoop,
    validation: Split,
    progress: Progress,
    records: RunRecords | None,
    on_epoch: Callable[[EpochRecord], None] | None,
) -> None:
    """Evaluates, and records the epoch."""
    metrics = progress.of_this_epoch()
    if not len(metrics["loss"]):
        rate = float(keras.ops.convert_to_numpy(train_loop.optimizer.learning_rate))
        raise NonFiniteLossError(train_loop.step, rate, math.nan, _newest_checkpoint(records))
    evaluated = train_loop.evaluate(*validation)
    record = EpochRecord(
        epoch=len(progress.epochs) + 1,
        step=train_loop.step - 1,
        learning_rate=float(metrics["learning_rate"][-1]),
        loss=float(metrics["loss"].mean()),
        accuracy=float(metrics["accuracy"].mean()),
        val_loss=evaluated["loss"],
        val_accuracy=evaluated["accuracy"],
        epoch_seconds=progress.epoch_seconds,
        input_wait_seconds=progress.input_wait_seconds,
    )
    progress.epochs.append(record)
    progress.epoch_seconds = progress.input_wait_seconds = 0.0
    if records is not None:
        records.add_epoch(record)
    if on_epoch is not None:
        on_epoch(record)


def _newest_checkpoint(records: RunRecords | None) -> Path | None:
    return records.newest_checkpoint if records is not None else None


def _check(
    train_loop: TrainLoop,
    schedule: ScheduleFn,
    validation: Split,
    epochs: int,
    target_accuracy: float | None,
    checkpoint_every: int | None,
) -> None:
    """Raises for whatever can be known to be wrong before anything is written."""
    checked_whole("epochs", epochs)
    if target_accuracy is not None and not 0.0 <= target_accuracy <= 1.0:
        raise ValueError(f"target_accuracy must be from 0 to 1, received {target_accuracy}; 0.9 means 90 %")
    if checkpoint_every is not None:
        checked_whole("checkpoint_every", checkpoint_every)
    if train_loop.position != 0:
        raise ValueError(
            f"the loop must not have taken a step yet, received one at step {train_loop.step}; make a new one"
        )
    checked_rates(schedule(np.arange(1)))
    if momentums_of(schedule, np.arange(1)) is not None:
        momentum_attribute(train_loop.optimizer)
    check_examples(*validation, num_classes_of(train_loop.model, validation.images))
