"""The epochs of a run: blocks of steps, validation, Keras callbacks, and where each of them is recorded."""

from __future__ import annotations

import bisect
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.rates import momentums_of
from clr_loop.runs import snapshots
from clr_loop.runs.checkpoints import Checkpoint, Origin
from clr_loop.runs.records import Progress, RunRecords
from clr_loop.runs.result import EpochRecord, rating
from clr_loop.runs.settings import ScheduleFn
from clr_loop.schedules import Schedule

# A block of steps should take about this long: the time in which a run answers a signal or moves its progress bar.
_BLOCK_SECONDS = 1.0
_FIRST_BLOCK_STEPS = 8
# The beginning of a run, whose highest loss is not unusual; of a short run its first quarter.
_FIRST_STEPS = 50


class NonFiniteError(ArithmeticError):
    """A variable or a measure was NaN or infinite at the end of an epoch.

    Attributes:
        checkpoint: the newest checkpoint from before the loss rose, or None; see `Run.sound_checkpoint`.
    """

    def __init__(self, what: str, checkpoint: Checkpoint | None) -> None:
        advice = "start again with a lower learning rate"
        if checkpoint is not None:
            advice = (
                f"lower the learning rate from step {checkpoint.step} on, whose checkpoint is from before the loss "
                f"rose (--resume --resume_from={checkpoint.step} --on_change=replace)"
            )
        super().__init__(f"{what}; {advice}.")
        self.checkpoint = None if checkpoint is None else checkpoint.directory


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


@dataclass
class Run:
    """A run on its way: what to do, where to keep what is done, and what has been done already.

    Attributes:
        loop, schedule, epochs, callbacks: as for `fit`.
        first_step: the step of the schedule at which the run begins; see `RunOptions`.
        validation: the arguments of `TrainLoop.evaluate`; () for none.
        checkpoint_every, validate_every: batches from one checkpoint, or validation, to the next; 0 for none.
        profile: the batches to profile; empty for none.
        monitor, patience: see `RunOptions`.
        origin: where the loop stood when the run began. The run's own steps and batches are counted from there.
        lows: the steps after which the weights are added to the average; empty for no such average.
        snapshot_steps: the steps after which the model is saved as a snapshot; empty for none.
        records, progress: where to keep what is done, if anywhere, and what has been done.
    """

    loop: TrainLoop
    schedule: ScheduleFn
    validation: tuple[Any, ...]
    epochs: int
    checkpoint_every: int
    validate_every: int
    profile: range
    callbacks: Sequence[keras.callbacks.Callback] = ()
    monitor: str | None = None
    patience: int | None = None
    first_step: int = 0
    origin: Origin = field(default_factory=Origin)
    lows: Sequence[int] = ()
    snapshot_steps: Sequence[int] = ()
    records: RunRecords | None = None
    progress: Progress = field(default_factory=Progress)
    _block_steps: int = _FIRST_BLOCK_STEPS
    _is_stopping: bool = False
    _is_profiling: bool = False
    _num_rated: int = 0
    _num_cycles: int = 0
    _num_in_vain: int = -1
    _best: float = -math.inf
    _spoiled: str | None = None

    @property
    def num_batches(self) -> int:
        """Batches of the whole run."""
        return self.epochs * self.loop.steps_per_epoch

    @property
    def step(self) -> int:
        """Steps that the run has taken."""
        return self.loop.step - self.origin.step

    @property
    def position(self) -> int:
        """Batches that the run has visited."""
        return self.loop.position - self.origin.position

    def cycle_ends(self) -> list[int] | None:
        """Return after how many steps of the run each cycle of its schedule ends; None for a plain function."""
        if not isinstance(self.schedule, Schedule):
            return None
        ends = self.schedule.cycle_ends(self.first_step + self.num_batches)
        return None if ends is None else (ends[ends > self.first_step] - self.first_step).tolist()

    def train(self) -> None:
        """Visit the epochs that are left. The errors of training are those of `fit`."""
        self._hooks = keras.callbacks.CallbackList(
            list(self.callbacks),
            model=self.loop.model,
            epochs=self.epochs,
            steps=self.loop.steps_per_epoch,
            schedule=self.schedule,
            first_step=self.first_step,
            verbose=0,
        )
        self.loop.model.stop_training = False
        self._call(self._hooks.on_train_begin)
        try:
            while self.position < self.num_batches:
                self._stop_if_asked()
                self._epoch()
                if self.loop.model.stop_training:
                    break
        finally:
            self._profile(is_on=False)
        self.loop.finalize()
        self._call(self._hooks.on_train_end, dict(self.progress.epochs[-1].metrics))

    def _epoch(self) -> None:
        """Visit what is left of the current epoch."""
        loop, every = self.loop, self.checkpoint_every
        epoch = self.position // loop.steps_per_epoch
        end = (epoch + 1) * loop.steps_per_epoch
        self._call(self._hooks.on_epoch_begin, epoch)
        while self.position < end:
            self._stop_if_asked()
            before = self.step
            self._block(end)
            has_moved = self.step > before  # A block that was skipped whole comes to no new step.
            if has_moved and _next(self.lows, self.step - 1) == self.step:
                loop.add_to_average()
            if has_moved and _next(self.snapshot_steps, self.step - 1) == self.step and self.records is not None:
                number = bisect.bisect_right(self.snapshot_steps, self.step)
                snapshots.save(loop, self.records.directory, number)
            if self.validate_every and self.position % self.validate_every == 0 and self.position < end:
                self._validate_within(epoch)
            if every and self.position % every == 0 and self.position < end:
                self._save()
        self._end_epoch(epoch)
        if self.patience is not None and self._epochs_in_vain() >= self.patience:
            loop.model.stop_training = True
        is_last = self.position >= self.num_batches or loop.model.stop_training
        if every and (self.position % every == 0 or is_last or self.progress.is_best):
            self._save()
        if self._spoiled is not None:
            what = f"The variable {self._spoiled} is no longer finite in epoch {epoch + 1}"
            raise NonFiniteError(what, self.sound_checkpoint)

    def _block(self, end: int) -> None:
        """Visit and record the next batches, at most to this position."""
        loop, progress = self.loop, self.progress
        num_batches = self._num_batches(end)
        batch, first = self.position % loop.steps_per_epoch, self.step
        self._call(self._hooks.on_train_batch_begin, batch)
        steps = self.first_step + np.arange(first, first + num_batches)
        rates, momentums = rates_of(self.schedule, steps), momentums_of(self.schedule, steps)
        waited, began, started = loop.input_wait_seconds, time.time(), time.perf_counter()
        metrics = loop.run(rates, momentums)
        seconds = time.perf_counter() - started
        progress.epoch_seconds += seconds
        progress.input_wait_seconds += loop.input_wait_seconds - waited
        losses = [metrics["loss"]] if "loss" in metrics else [v for n, v in metrics.items() if n.endswith("loss")]
        loss = np.sum([np.zeros_like(metrics["learning_rate"]), *losses], axis=0)  # Of a GAN, say, that of both.
        is_bad = ~np.isfinite(loss)
        if is_bad.any():
            metrics = {name: values[: np.argmax(is_bad) + 1] for name, values in metrics.items()}
        if self.records is not None:
            self.records.add_steps(first, metrics, began, began + seconds)
        progress.add_steps(metrics, loop.batch_sizes[: len(metrics["learning_rate"])])
        if is_bad.any():
            step = int(np.argmax(is_bad))
            rate = float(metrics["learning_rate"][step])
            raise NonFiniteLossError(first + step, rate, float(loss[step]), self.sound_checkpoint)
        if loop.num_workers == 1:  # Several must cut the run alike, and their clocks differ.
            self._block_steps = max(1, round(num_batches * _BLOCK_SECONDS / max(seconds, 1e-3)))
        self._call(self._hooks.on_train_batch_end, batch + num_batches - 1, progress.logs())

    def _num_batches(self, end: int) -> int:
        """Return how many batches to visit in one call: to a checkpoint, a validation or a border of the profile."""
        position, window = self.position, self.profile
        self._profile(position in window)
        stops = [position + n - position % n for n in (self.checkpoint_every, self.validate_every) if n]
        following = [_next(steps, self.step) for steps in (self.lows, self.snapshot_steps)]
        stops += [position + step - self.step for step in following if step is not None]
        to_borders = [border - position for border in (end, *stops, window.start, window.stop) if border > position]
        return min(self._block_steps, self.loop.block_steps, *to_borders)

    def _profile(self, is_on: bool) -> None:
        if is_on and not self._is_profiling and self.records is not None:
            tf.profiler.experimental.start(str(self.records.directory))
        elif self._is_profiling and not is_on:
            tf.profiler.experimental.stop()
        self._is_profiling = is_on

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate, record the epoch and tell the callbacks."""
        loop = self.loop
        if not self.progress.logs():  # Every update of the epoch was skipped.
            rate = float(keras.ops.convert_to_numpy(loop.optimizer.learning_rate))
            raise NonFiniteLossError(self.step, rate, math.nan, self.sound_checkpoint)
        record = self._record(epoch)
        metrics = record.metrics
        self.progress.end_epoch(record)
        if self.records is not None:
            self.records.add_epoch(record)
        logs = {**metrics, "learning_rate": record.learning_rate, "epoch_seconds": record.epoch_seconds}
        if record.input_wait_seconds:
            logs["input_wait_seconds"] = record.input_wait_seconds
        self._call(self._hooks.on_epoch_end, epoch, logs)
        if not math.isfinite(metrics.get("val_loss", 0.0)):
            raise NonFiniteError(f"val_loss is {metrics['val_loss']} after epoch {epoch + 1}", self.sound_checkpoint)

    def _validate_within(self, epoch: int) -> None:
        """Evaluate and record that, within an epoch that has taken a step."""
        if self.progress.logs():
            record = self._record(epoch)
            self.progress.validations.append(record)
            if self.records is not None:
                self.records.add_validation(record)

    def _record(self, epoch: int) -> EpochRecord:
        """Evaluate, and return the epoch as it stands."""
        progress = self.progress
        metrics = progress.logs()
        rate = metrics.pop("learning_rate")
        metrics |= {f"val_{name}": value for name, value in self._evaluate().items()}
        if self.loop.averages is not None and self.validation:
            metrics |= {f"averaged_val_{name}": value for name, value in self._evaluate_average().items()}
        seconds = progress.epoch_seconds, progress.input_wait_seconds
        return EpochRecord(epoch + 1, self.step - 1, rate, metrics, *seconds)

    def _evaluate_average(self) -> dict[str, float]:
        if self.loop.averages is None or not self.loop.averages.is_there:
            return dict.fromkeys(self.loop.metric_names, math.nan)
        with self.loop.averaged():
            return self.loop.evaluate(*self.validation)

    def _evaluate(self) -> dict[str, float]:
        if not self.validation:
            return {}
        self._call(self._hooks.on_test_begin)
        metrics = self.loop.evaluate(*self.validation)
        self._call(self._hooks.on_test_end, dict(metrics))
        return metrics

    def _epochs_in_vain(self) -> int:
        """Return how many epochs came after the best; of a schedule with cycles only those in which a cycle ended.

        A climb of the rate makes a model worse for a while, so it is no reason to stop.
        """
        for record in self.progress.epochs[self._num_rated :]:  # The last alone; all after resuming.
            self._num_rated += 1
            if self._cycle_ends is not None:
                num_cycles = int(np.searchsorted(self._cycle_ends, record.step + 1, "right"))
                if num_cycles == self._num_cycles:
                    continue
                self._num_cycles = num_cycles
            found = rating(record.metrics, self.monitor)
            value = -math.inf if found is None else found
            self._num_in_vain = 0 if value > self._best else self._num_in_vain + 1
            self._best = max(self._best, value)
        return self._num_in_vain

    @functools.cached_property
    def _cycle_ends(self) -> list[int] | None:
        return self.cycle_ends()

    @property
    def sound_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint whose loss, that of the step after it, was no higher than at the beginning of the run.

        A run seldom becomes NaN at once: the checkpoint right before may hold weights that are huge already.
        """
        if self.records is None or not self.progress.blocks:
            return None
        if "loss" not in self.progress.blocks[0]:
            return self.records.checkpoints.newest
        losses = np.concatenate([block["loss"] for block in self.progress.blocks])
        usual = losses[: min(_FIRST_STEPS, -(-len(losses) // 4))].max()
        kept = self.records.checkpoints.kept
        return next((c for c in reversed(kept) if c.step == 0 or losses[min(c.step, len(losses) - 1)] <= usual), None)

    @property
    def _newest_checkpoint(self) -> Path | None:
        newest = self.records.checkpoints.newest if self.records is not None else None
        return newest.directory if newest is not None else None

    def _save(self) -> None:
        if self.records is not None:
            self._spoiled = self.records.save_checkpoint(self.progress) or self._spoiled

    def _call(self, hook: Callable[..., None], *arguments: Any) -> None:
        try:
            hook(*arguments)
        except StopRun:
            self._is_stopping = True  # When the block, and an epoch that ends with it, are recorded.

    def _stop_if_asked(self) -> None:
        if any(self.loop.sum_over_workers(self._is_stopping)):  # All stop at the same step.
            self._save()
            raise TrainingInterruptedError(self.step, self._newest_checkpoint)


def _next(steps: Sequence[int], after: int) -> int | None:
    """Return the first of rising steps that comes after this one, without a look at all of them."""
    i = bisect.bisect_right(steps, after)
    return steps[i] if i < len(steps) else None


def rates_of(schedule: ScheduleFn, steps: NDArray[np.int64]) -> ArrayLike:
    """Return a schedule's rates. Raises ValueError if they are not one for each step."""
    rates = schedule(steps)
    if np.shape(rates) != steps.shape:
        raise ValueError(
            f"The schedule returned rates of shape {np.shape(rates)} for {len(steps)} steps; it takes an array of "
            "steps and returns an array with a rate for each."
        )
    return rates
