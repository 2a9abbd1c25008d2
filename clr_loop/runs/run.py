"""A run under way: blocks of steps, and after each block the actions that are due."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from clr_loop.loop.loop import Metrics, TrainLoop
from clr_loop.loop.rates import momentums_of
from clr_loop.runs.checkpoints import Checkpoint, Origin
from clr_loop.runs.errors import NonFiniteLossError, StopRun
from clr_loop.runs.records import Progress, RunRecords
from clr_loop.runs.settings import ScheduleFn
from clr_loop.schedules import Schedule

# A block of steps should take about this long: the time in which a run answers a signal or moves its progress bar.
_BLOCK_SECONDS = 1.0
_FIRST_BLOCK_STEPS = 8


class Action:
    """Something that a run does between its blocks of steps. It sees the run, and keeps what it needs itself."""

    def begin(self, run: Run) -> None:
        """Prepare, before the first block."""

    def next_stop(self, run: Run) -> int | None:
        """Return the next position, in batches of the run, at which a block must end; None if any will do.

        It must follow from the place of the run alone: several workers cut the run alike, or they wait forever.
        """

    def act(self, run: Run) -> None:
        """Do what is due at this place; called after each block, in the order in which the actions are listed."""

    def end(self) -> None:
        """Clean up, after the last block or after an error."""


class EveryBatches(Action):
    """An action that is due at every n-th batch of the run."""

    def __init__(self, every: int) -> None:
        self._every = every

    @override
    def next_stop(self, run: Run) -> int:
        return run.position + self._every - run.position % self._every

    def is_due(self, run: Run) -> bool:
        """Return whether the run stands at an n-th batch."""
        return run.position % self._every == 0


@dataclass
class Run:
    """A run: what to train, how far it has come, and where that is recorded.

    Attributes:
        loop, schedule, epochs: as for `fit`; epochs are those of the whole run.
        validation: the arguments of `TrainLoop.evaluate`; () for none.
        validation_batch_size: see `RunOptions`.
        first_step: the step of the schedule at which the run begins; see `RunOptions`.
        origin: where the loop stood when the run began. The run's own steps and batches are counted from there.
        records, progress: where to keep what is done, if anywhere, and what has been done.
        is_extended: whether a run goes on that was asked for fewer epochs before.
        is_stopping: whether a callback has asked this worker to stop.
    """

    loop: TrainLoop
    schedule: ScheduleFn
    epochs: int
    validation: tuple[Any, ...] = ()
    first_step: int = 0
    origin: Origin = field(default_factory=Origin)
    validation_batch_size: int | None = None
    records: RunRecords | None = None
    progress: Progress = field(default_factory=Progress)
    is_extended: bool = False
    is_stopping: bool = False
    _block_steps: int = _FIRST_BLOCK_STEPS
    _has_warned: bool = False

    # --- Where the run stands ---

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

    @property
    def batch(self) -> int:
        """Batches of the current epoch that the run has visited; 0 between two epochs."""
        return self.position % self.loop.steps_per_epoch

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: all epochs are done, or a callback has set `model.stop_training`."""
        is_between = self.batch == 0 and bool(self.progress.epochs)
        return self.position >= self.num_batches or (is_between and self.loop.model.stop_training)

    @property
    def sound_checkpoint(self) -> Checkpoint | None:
        """See `RunRecords.sound_checkpoint`; None without records."""
        return None if self.records is None else self.records.sound_checkpoint(self.progress)

    def cycle_ends(self) -> list[int] | None:
        """Return after how many steps of the run each cycle of its schedule ends; None for a plain function."""
        if not isinstance(self.schedule, Schedule):
            return None
        ends = self.schedule.cycle_ends(self.first_step + self.num_batches)
        return None if ends is None else (ends[ends > self.first_step] - self.first_step).tolist()

    def evaluate(self) -> dict[str, float]:
        """Evaluate the model on the validation data."""
        arguments = dict(zip(("inputs", "targets", "sample_weight"), self.validation, strict=False))
        return self.loop.evaluate(**arguments, batch_size=self.validation_batch_size)

    # --- Training ---

    def train(self, actions: Sequence[Action], callbacks: Sequence[keras.callbacks.Callback]) -> None:
        """Train what is left. The errors of training are those of `fit`."""
        self.hooks = keras.callbacks.CallbackList(
            list(callbacks),
            model=self.loop.model,
            epochs=self.epochs,
            steps=self.loop.steps_per_epoch,
            schedule=self.schedule,
            first_step=self.first_step,
            verbose=0,
            add_history=True,
        )
        self.loop.model.stop_training = False
        self.call(self.hooks.on_train_begin)
        try:
            self._train(actions)
        except BaseException:
            with contextlib.suppress(Exception):  # Callbacks close their files there; the first error is what counts.
                self._end_hooks()
            raise
        self._end_hooks()

    def _train(self, actions: Sequence[Action]) -> None:
        with contextlib.ExitStack() as stack:
            for action in actions:
                stack.callback(action.end)
                action.begin(self)
            while not self.is_over:
                self._take(self._batches_to_stop(actions))
                for action in actions:
                    action.act(self)
            self.loop.finalize()

    def _end_hooks(self) -> None:
        epochs = self.progress.epochs
        self.call(self.hooks.on_train_end, dict(epochs[-1].metrics) if epochs else {})

    def call(self, hook: Callable[..., None], *arguments: Any) -> None:
        """Call a hook of the callbacks; one may ask to stop, which the run does when the block is recorded."""
        rates = self._rates()
        try:
            hook(*arguments)
        except StopRun:
            self.is_stopping = True
        if self._rates() != rates:
            for optimizer, rate in zip(self.loop.optimizers, rates, strict=True):
                optimizer.learning_rate = rate
            self._warn_once(hook.__name__)

    def _warn_once(self, hook: str) -> None:
        if not self._has_warned:
            warnings.warn(
                f"A callback set the learning rate in {hook}, which changes nothing: fit assigns the rate of its "
                "schedule at every step. Give it that schedule instead.",
                stacklevel=3,
            )
        self._has_warned = True

    def _rates(self) -> list[float]:
        return [float(keras.ops.convert_to_numpy(optimizer.learning_rate)) for optimizer in self.loop.optimizers]

    def _batches_to_stop(self, actions: Sequence[Action]) -> int:
        """Return how many batches to visit until the first action must act, or a second is over."""
        stops = [stop for action in actions if (stop := action.next_stop(self)) is not None]
        return min(self._block_steps, self.loop.block_steps, *(s - self.position for s in [*stops, self.num_batches]))

    def _take(self, num_batches: int) -> None:
        """Visit the next batches, record their steps and tell the callbacks."""
        loop, batch, first = self.loop, self.batch, self.step
        self.call(self.hooks.on_train_batch_begin, batch)
        steps = self.first_step + np.arange(first, first + num_batches)
        rates, momentums = rates_of(self.schedule, steps), momentums_of(self.schedule, steps)
        waited, began, started = loop.input_wait_seconds, time.time(), time.perf_counter()
        metrics = loop.run(rates, momentums)
        seconds = time.perf_counter() - started
        self.progress.epoch_seconds += seconds
        self.progress.input_wait_seconds += loop.input_wait_seconds - waited
        losses = _losses(metrics)
        num_finite = len(losses) if np.isfinite(losses).all() else int(np.argmin(np.isfinite(losses)))
        metrics = {name: values[: num_finite + 1] for name, values in metrics.items()}
        if self.records is not None:
            self.records.add_steps(first, metrics, began, began + seconds)
        self.progress.add_steps(metrics, loop.batch_sizes[: num_finite + 1])
        if loop.num_workers == 1:  # Several must cut the run alike, and their clocks differ.
            self._block_steps = max(1, round(num_batches * _BLOCK_SECONDS / max(seconds, 1e-3)))
        self.call(self.hooks.on_train_batch_end, batch + num_batches - 1, self.progress.logs())
        if num_finite < len(losses):
            rate, loss = float(metrics["learning_rate"][num_finite]), float(losses[num_finite])
            raise NonFiniteLossError(first + num_finite, rate, loss, self.sound_checkpoint)


def _losses(metrics: Metrics) -> NDArray[np.float32]:
    """Return the loss of each step; where there are several, as of a GAN, their sum, and 0 where there is none."""
    losses = [metrics["loss"]] if "loss" in metrics else [v for name, v in metrics.items() if name.endswith("loss")]
    return np.sum([np.zeros_like(metrics["learning_rate"]), *losses], axis=0)


def rates_of(schedule: ScheduleFn, steps: NDArray[np.int64]) -> ArrayLike:
    """Return a schedule's rates. Raises ValueError if they are not one for each step."""
    rates = schedule(steps)
    if np.shape(rates) != steps.shape:
        raise ValueError(
            f"The schedule returned rates of shape {np.shape(rates)} for {len(steps)} steps; it takes an array of "
            "steps and returns an array with a rate for each."
        )
    return rates
