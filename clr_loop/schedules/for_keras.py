"""Schedules in Keras' `fit`: `Adam(as_keras(schedule))`, and the CLR repository's callback for Keras 3.

`as_keras` runs the schedule's own formula with TensorFlow's functions: the phase in int64, the rest in float64, and
only the rate itself in float32. It stays right at steps that float32 cannot tell apart.

Importing this module registers `KerasSchedule` with Keras, which a saved model needs to be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from clr_loop.arguments import checked_choice, checked_whole
from clr_loop.schedules.base import Ops, Schedule
from clr_loop.schedules.checks import checked_scale
from clr_loop.schedules.cycles import Cyclic, ExpRange, Triangular, Triangular2
from clr_loop.schedules.formulas import from_config


def _scale(scale_fn: Callable[[Any], Any], x: tf.Tensor) -> tf.Tensor:
    scaled = tf.numpy_function(lambda values: checked_scale(scale_fn, values), [x], tf.float64)
    return tf.ensure_shape(scaled, x.shape)


TENSORFLOW = Ops(
    float64=lambda tensor: tf.cast(tensor, tf.float64),
    where=tf.where,
    minimum=tf.minimum,
    maximum=tf.maximum,
    cos=tf.cos,
    # tf.searchsorted wants a row of values. A table is short, so we compare each step with all of it.
    lookup=lambda table, steps: tf.reduce_sum(tf.cast(steps[..., tf.newaxis] >= table, tf.int64), axis=-1) - 1,
    take=tf.gather,
    scale=_scale,
)


@keras.saving.register_keras_serializable(package="clr_loop")
class KerasSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule for any Keras optimizer, eager, in a graph and under XLA. `as_keras` is its other name.

    It sets only the learning rate. `momentum`, and the warning past the end of a finite schedule, stay with the
    schedule itself. A negative step, which a graph cannot refuse, gives an undefined rate.

    A user's own scale function runs in Python. TensorFlow calls it back from the graph, which XLA cannot compile: where
    Keras would use XLA, as it does by default on a GPU, compile the model with `jit_compile=False`. To save the model,
    register a name for the function (`schedules.register_scale_fn`).

    Raises:
        TypeError: if `schedule` is not a schedule of `clr_loop.schedules`.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise TypeError(f"as_keras was given {schedule!r}, which is not a schedule of clr_loop.schedules.")
        self.schedule = schedule

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the rate of each step: float32, of the shape of `step`, which holds integers of any dtype."""
        steps = tf.cast(keras.ops.convert_to_tensor(step), tf.int64)
        return tf.cast(self.schedule.formula(TENSORFLOW, steps), tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Return JSON types. Raises ValueError if the schedule has a scale function without a registered name."""
        # Keras prints the config of a class that it does not know.
        return {"schedule": self.schedule.to_config(), "to_load_this": "import clr_loop.schedules.for_keras"}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasSchedule:
        """Make the schedule that `get_config` wrote; raises as `schedules.from_config` does."""
        return cls(from_config(config["schedule"]))


as_keras = KerasSchedule


class CyclicLR(keras.callbacks.Callback):
    """The CLR repository's callback (B. Kenstler): it sets the learning rate of `model.fit` before each batch.

        model.fit(x, y, callbacks=[CyclicLR(base_lr=0.001, max_lr=0.006, step_size=2000, mode="triangular2")])

    It takes any Keras optimizer. The cycles follow the optimizer's steps and go on over several calls of `fit`, also
    with a new optimizer. If the optimizer's step counter has moved in between, or a new callback meets an optimizer
    with steps behind it (`BackupAndRestore`, a loaded model), the cycles move by the same number of batches. `_reset`
    starts them again.

    Args:
        base_lr, max_lr, step_size, gamma: see `Triangular` and `ExpRange`; a step_size of 2000.0 will do, too.
        mode: "triangular", "triangular2" or "exp_range"; it matters only without a `scale_fn`.
        scale_fn: as that of `Cyclic`, but a function of one number; None means that of `mode`.
        scale_mode: see `Cyclic`; "iterations" are the batches since the cycles began.

    Attributes:
        history: for each name a list with an entry for each batch: `lr` (its rate), `iterations` (its number, counted
            from 1 and never reset), and everything in its logs, such as `loss`.
        clr_iterations, trn_iterations: int, batches since the cycles began, and batches this callback has seen.
        schedule: the schedule that computes the rates.

    Raises:
        ValueError, TypeError: as `schedules.Schedule` says; ValueError for an unknown `mode`.
    """

    def __init__(
        self,
        base_lr: float = 0.001,
        max_lr: float = 0.006,
        step_size: float = 2000.0,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: Literal["cycle", "iterations"] = "cycle",
    ) -> None:
        super().__init__()
        checked_choice("mode", mode, "triangular", "triangular2", "exp_range")
        self.base_lr, self.max_lr, self.step_size = base_lr, max_lr, step_size
        self.mode, self.gamma, self.scale_fn, self.scale_mode = mode, gamma, scale_fn, scale_mode
        self.trn_iterations = 0
        self.history: dict[str, list[Any]] = {}
        self._last_seen = 0  # The optimizer's step counter, when clr_iterations was right.
        self._reset()

    def _reset(
        self, new_base_lr: float | None = None, new_max_lr: float | None = None, new_step_size: float | None = None
    ) -> None:
        """Start the cycles again, with other bounds if you give any. The next epoch starts at base_lr."""
        self.base_lr = self.base_lr if new_base_lr is None else new_base_lr
        self.max_lr = self.max_lr if new_max_lr is None else new_max_lr
        self.step_size = self.step_size if new_step_size is None else new_step_size
        self.clr_iterations = 0
        is_whole = isinstance(self.step_size, float) and self.step_size.is_integer()
        step_size = checked_whole("step_size", int(self.step_size) if is_whole else self.step_size)
        kinds: dict[str, Callable[..., Triangular]]
        kinds = {"triangular": Triangular, "triangular2": Triangular2, "exp_range": partial(ExpRange, gamma=self.gamma)}
        if self.scale_fn is not None:
            # The original's functions take one number, and `lambda x: 1.` is one of them.
            scale_fn = np.vectorize(self.scale_fn, otypes=[np.float64])
            kinds[self.mode] = partial(Cyclic, scale_fn=scale_fn, scale_mode=self.scale_mode)
        self.schedule = kinds[self.mode](self.base_lr, self.max_lr, step_size)

    def clr(self) -> float:
        """Return the rate of the next batch."""
        return float(self.schedule(self.clr_iterations))

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Raise ValueError if the optimizer has a schedule of its own, or several batches would share one rate."""
        if not isinstance(self._optimizer.get_config().get("learning_rate"), float):
            raise ValueError("the optimizer has a schedule, and CyclicLR sets its rate; make it with a plain number.")
        batches_per_call = getattr(self.model, "steps_per_execution", 1)
        if batches_per_call != 1:
            what = f"the model has steps_per_execution {batches_per_call}, and CyclicLR sets a rate before each batch"
            raise ValueError(f"{what}; compile it with 1, or give the optimizer as_keras(schedule) instead.")

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Follow the optimizer where something else has moved it, and set the rate of the first batch."""
        now = self._optimizer_step()
        if now > 0:  # A new optimizer joins the cycles where they stand.
            batches_per_step = self._optimizer.gradient_accumulation_steps or 1
            self.clr_iterations = max(self.clr_iterations + (now - self._last_seen) * batches_per_step, 0)
        self._last_seen = now
        self._optimizer.learning_rate = self.clr()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Record the batch, and set the rate of the next."""
        self.trn_iterations += 1
        self.clr_iterations += 1
        self._last_seen = self._optimizer_step()
        rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        for name, value in {"lr": rate, "iterations": self.trn_iterations, **(logs or {})}.items():
            self.history.setdefault(name, []).append(value)
        self._optimizer.learning_rate = self.clr()

    @property
    def _optimizer(self) -> keras.optimizers.Optimizer:
        # Mixed precision wraps the optimizer that holds the rate.
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    def _optimizer_step(self) -> int:
        return int(keras.ops.convert_to_numpy(self._optimizer.iterations))
