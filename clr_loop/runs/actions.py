"""What a run does between its blocks of steps: one class for each action, and the list of them in their order."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from clr_loop.runs import snapshots
from clr_loop.runs.errors import NonFiniteError, NonFiniteLossError, TrainingInterruptedError
from clr_loop.runs.options import RunOptions
from clr_loop.runs.result import Best, EpochRecord, Monitor
from clr_loop.runs.run import Action, EveryBatches, Run
from clr_loop.runs.weight_norm import WeightNorm


def actions_of(run: Run, options: RunOptions) -> list[Action]:
    """Return what a run does between its blocks, in this order.

    An epoch is recorded before it is rated, and rated before its checkpoint is saved. A request to stop comes when all
    of this is done.

    Raises:
        ValueError: if an average or snapshots are asked for, and no cycle of the schedule ends in the run.
    """
    actions: list[Action] = []
    if run.loop.options.average == "swa":
        actions.append(AverageWeights(averaged_steps(run, options)))
    if options.snapshots:
        actions.append(SaveSnapshots(snapshot_steps(run)))
    if options.weight_norm_every:
        actions.append(WeightNorm(options.weight_norm_every))
    if options.validate_every:
        actions.append(Validate(options.validate_every))
    actions.append(EndEpoch())
    if options.patience is not None:
        actions.append(StopEarly(options.patience, Monitor(options.monitor, options.mode)))
    every = run.loop.steps_per_epoch if options.checkpoint_every is None else options.checkpoint_every
    if run.records is not None and every:
        actions.append(SaveCheckpoints(every))
    if options.profile is not None:
        actions.append(Profile(range(*options.profile)))
    return [*actions, StopIfAsked(), BeginEpoch(), StopIfAsked()]


def snapshot_steps(run: Run) -> list[int]:
    """Return the steps after which the model is saved as a snapshot. Raises ValueError if there is none."""
    if ends := run.cycle_ends():
        return ends
    raise ValueError(
        f"No cycle of the schedule ends in the {run.num_batches:,} steps; snapshots are kept at their ends."
    )


def averaged_steps(run: Run, options: RunOptions) -> list[int]:
    """Return the steps after which the weights are added to the average. Raises ValueError if there is none."""
    first = options.average_from * run.num_batches
    if steps := [end for end in run.cycle_ends() or [] if end >= first]:
        return steps
    raise ValueError(
        "average is 'swa', the mean of the weights at the lows of the cycles, but no cycle of the schedule ends in the "
        f"run from {options.average_from:.0%} of its {run.num_batches:,} steps on; choose other cycles."
    )


class _AfterSteps(Action):
    """Acts once after each of these steps, rising; a block of skipped updates comes to no new step."""

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = steps

    def begin(self, run: Run) -> None:
        self._last = run.step

    def next_stop(self, run: Run) -> int | None:
        i = bisect.bisect_right(self._steps, run.step)
        return run.position + self._steps[i] - run.step if i < len(self._steps) else None

    def act(self, run: Run) -> None:
        number = bisect.bisect_right(self._steps, run.step)
        if number and self._steps[number - 1] == run.step > self._last:
            self._last = run.step
            self.act_after(run, number)

    def act_after(self, run: Run, number: int) -> None:
        raise NotImplementedError


class AverageWeights(_AfterSteps):
    """Adds the weights to the average at the ends of the cycles, for `StepOptions(average="swa")`."""

    @override
    def act_after(self, run: Run, number: int) -> None:
        run.loop.add_to_average()


class SaveSnapshots(_AfterSteps):
    """Saves the model at the end of each cycle, for an ensemble."""

    @override
    def act_after(self, run: Run, number: int) -> None:
        assert run.records is not None, "fit asks for a directory"
        snapshots.save(run.loop, run.records.directory, number)


class Validate(EveryBatches):
    """Evaluates the model within an epoch that has taken a step, and records that."""

    @override
    def act(self, run: Run) -> None:
        if self.is_due(run) and run.batch and run.progress.logs():
            record = _evaluated(run)
            run.progress.validations.append(record)
            if run.records is not None:
                run.records.add_validation(record)


class EndEpoch(Action):
    """Evaluates the model at the end of an epoch, records the epoch and tells the callbacks."""

    @override
    def next_stop(self, run: Run) -> int:
        return run.position + run.loop.steps_per_epoch - run.batch

    @override
    def act(self, run: Run) -> None:
        if run.batch:
            return
        if not run.progress.logs():  # Every update of the epoch was skipped.
            rate = float(keras.ops.convert_to_numpy(run.loop.optimizer.learning_rate))
            raise NonFiniteLossError(run.step, rate, math.nan, run.sound_checkpoint)
        record = _evaluated(run)
        run.progress.end_epoch(record)
        if run.records is not None:
            run.records.add_epoch(record)
        logs = {**record.metrics, "learning_rate": record.learning_rate, "epoch_seconds": record.epoch_seconds}
        if record.input_wait_seconds:
            logs["input_wait_seconds"] = record.input_wait_seconds
        run.call(run.hooks.on_epoch_end, record.epoch - 1, logs)
        val_loss = record.metrics.get("val_loss", 0.0)
        if not math.isfinite(val_loss):
            raise NonFiniteError(f"val_loss is {val_loss} after epoch {record.epoch}", run.sound_checkpoint)


class StopEarly(Action):
    """Ends the run after so many epochs without a better one; of a schedule with cycles, those in which a cycle ends.

    A climb of the rate makes a model worse for a while, so it is no reason to stop.
    """

    def __init__(self, patience: int, monitor: Monitor) -> None:
        self._patience, self._best = patience, Best(monitor)
        self._num_rated = self._num_cycles = 0
        self._num_worse = -1

    @override
    def begin(self, run: Run) -> None:
        self._cycle_ends = run.cycle_ends()
        if not run.is_extended:
            self.act(run)  # The run may have been killed between its last epoch and its result.

    @override
    def act(self, run: Run) -> None:
        if run.batch == 0:
            self._rate(run.progress.epochs)
            if self._num_worse >= self._patience:
                run.loop.model.stop_training = True

    def _rate(self, epochs: Sequence[EpochRecord]) -> None:
        """Count the epochs since the best, with those that are new."""
        for record in epochs[self._num_rated :]:
            self._num_rated += 1
            if self._cycle_ends is not None:
                num_cycles = int(np.searchsorted(self._cycle_ends, record.step + 1, "right"))
                if num_cycles == self._num_cycles:
                    continue
                self._num_cycles = num_cycles
            self._num_worse = 0 if self._best.is_better(record.metrics) else self._num_worse + 1


class SaveCheckpoints(EveryBatches):
    """Saves the state every few batches, at the end of the run, and after an epoch that is the best so far."""

    @override
    def act(self, run: Run) -> None:
        assert run.records is not None, "there is no such action without records"
        is_best = run.batch == 0 and run.progress.is_best
        if self.is_due(run) or run.is_over or is_best:
            run.records.save_checkpoint(run.progress)
        name = run.records.non_finite_variable
        if name is not None and run.batch == 0:
            what = f"The variable {name} is no longer finite in epoch {len(run.progress.epochs)}"
            raise NonFiniteError(what, run.sound_checkpoint)


class Profile(Action):
    """Profiles a range of batches into the run's directory."""

    def __init__(self, batches: range) -> None:
        self._batches, self._is_on = batches, False

    @override
    def begin(self, run: Run) -> None:
        self.act(run)

    @override
    def next_stop(self, run: Run) -> int | None:
        return next((stop for stop in (self._batches.start, self._batches.stop) if stop > run.position), None)

    @override
    def act(self, run: Run) -> None:
        is_wanted = run.position in self._batches and not run.is_over
        if is_wanted and not self._is_on and run.records is not None:
            tf.profiler.experimental.start(str(run.records.directory))
            self._is_on = True
        elif not is_wanted:
            self.end()

    @override
    def end(self) -> None:
        if self._is_on:
            tf.profiler.experimental.stop()
        self._is_on = False


class BeginEpoch(Action):
    """Tells the callbacks that an epoch begins, or goes on after a run is resumed."""

    @override
    def begin(self, run: Run) -> None:
        if not run.is_over:
            run.call(run.hooks.on_epoch_begin, run.position // run.loop.steps_per_epoch)

    @override
    def act(self, run: Run) -> None:
        if run.batch == 0:
            self.begin(run)


class StopIfAsked(Action):
    """Ends the run, with a checkpoint, if a callback has raised `StopRun` in any worker: all stop at the same step."""

    @override
    def begin(self, run: Run) -> None:
        self.act(run)

    @override
    def act(self, run: Run) -> None:
        if run.is_over or not any(run.loop.sum_over_workers(run.is_stopping)):
            return
        newest = None
        if run.records is not None:
            run.records.save_checkpoint(run.progress)
            newest = run.records.checkpoints.newest
        raise TrainingInterruptedError(run.step, None if newest is None else newest.directory)


def _evaluated(run: Run) -> EpochRecord:
    """Evaluate the model, and its average if there is one; return the epoch as it stands."""
    loop, progress = run.loop, run.progress
    metrics = progress.logs()
    rate = metrics.pop("learning_rate")
    if run.validation:
        run.call(run.hooks.on_test_begin)
        run.call(run.hooks.on_test_batch_begin, 0)
        validation = run.evaluate()
        run.call(run.hooks.on_test_batch_end, 0, dict(validation))
        run.call(run.hooks.on_test_end, dict(validation))
        metrics |= {f"val_{name}": value for name, value in validation.items()}
    if run.validation and loop.averages is not None:
        averaged = dict.fromkeys(loop.metric_names, math.nan)
        if loop.averages.is_there:
            with loop.averaged():
                averaged = run.evaluate()
        metrics |= {f"averaged_val_{name}": value for name, value in averaged.items()}
    epoch = (run.position - 1) // loop.steps_per_epoch
    return EpochRecord(epoch + 1, run.step - 1, rate, metrics, progress.epoch_seconds, progress.input_wait_seconds)
