"""A schedule as Keras' own kind of schedule: `Adam(schedule.as_keras())`.

The formula is the schedule's own, run with TensorFlow's functions: the phase in int64, the rest in float64, and only
the rate itself in float32. So it stays right at steps where float32 can no longer tell one from the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from clr_loop import schedules
from clr_loop.schedules.base import Ops, checked_scale
from clr_loop.schedules.cyclic import BUILT_IN_SCALE_FNS


def _scale(scale_fn: Callable[[Any], Any], x: tf.Tensor) -> tf.Tensor:
    if scale_fn in BUILT_IN_SCALE_FNS.values():
        return scale_fn(x)
    scaled = tf.numpy_function(lambda values: checked_scale(scale_fn, values), [x], tf.float64)
    return tf.ensure_shape(scaled, x.shape)


TENSORFLOW = Ops(
    float64=lambda tensor: tf.cast(tensor, tf.float64),
    where=tf.where,
    minimum=tf.minimum,
    maximum=tf.maximum,
    cos=tf.cos,
    # tf.searchsorted wants a row of values; a table is short, so each step is compared with all of it.
    lookup=lambda table, steps: tf.reduce_sum(tf.cast(steps[..., tf.newaxis] >= table, tf.int64), axis=-1) - 1,
    take=tf.gather,
    scale=_scale,
)


@keras.saving.register_keras_serializable(package="clr_loop")
class KerasSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of `clr_loop.schedules` for any Keras optimizer, eager, in a graph and under XLA.

    It is saved with the model, and loaded with it wherever `clr_loop.schedules.for_keras` was imported before. It sets
    the learning rate alone; `momentum` and the warning past a finite schedule's end stay with the schedule itself.

    A user's own scale function is Python, and goes into a graph as a call back to it: the same function in the same
    float64 NumPy, but XLA cannot compile that. Where Keras would use XLA, as it does by itself on a GPU, such a model
    needs `compile(jit_compile=False)`; to be saved, it needs a name for the function (`schedules.register_scale_fn`).
    A negative step has no rate; here, where a graph cannot raise, what it gives is undefined.

    Args:
        schedule: any schedule of `clr_loop.schedules`.

    Raises:
        TypeError: if `schedule` is something else.
    """

    def __init__(self, schedule: schedules.Schedule) -> None:
        super().__init__()
        if not isinstance(schedule, schedules.Schedule):
            raise TypeError(f"schedule must be of clr_loop.schedules, received {schedule!r}; give one of these")
        self.schedule = schedule

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate of each step.

        Args:
            step: integers of any dtype and shape: a Python int, an array, a tensor or a variable.

        Returns:
            float32, of the shape of `step`.
        """
        steps = tf.cast(keras.ops.convert_to_tensor(step), tf.int64)
        return tf.cast(self.schedule.formula(TENSORFLOW, steps), tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns JSON types. Raises ValueError if the schedule has a function without a registered name."""
        return {"schedule": self.schedule.to_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> KerasSchedule:
        """Makes the schedule that `get_config` wrote; raises as `schedules.from_config`."""
        return cls(schedules.from_config(config["schedule"]))
