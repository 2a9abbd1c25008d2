"""What every schedule has, whatever its formula: the call, momentum, description, JSON, Keras, and the checks.

A schedule writes its formula once, with the few array functions of an `Ops`. `NUMPY` stands here; the room
`keras_schedule` has those of a TensorFlow graph, and so the same text gives the same rates there.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    import keras

    from clr_loop.schedules.describe import Description

# Two halves of this still fit an int64.
_LONGEST = 2**61

Steps = NDArray[np.int64]
Rates = NDArray[np.float64]
Momentum = tuple[float, float]


@dataclass(frozen=True)
class Ops:
    """The array functions, beside the operators, that a formula may use. `Any` is an array of the library at hand.

    Attributes:
        float64: array → float64 array of the same shape.
        where, minimum, maximum, cos: as NumPy's.
        lookup: (sorted table, steps) → the index of the last entry that is not above each step.
        take: (table, indices) → the table's entries.
        scale: (function of a NumPy array, float64 array) → what the function returns, checked by `checked_scale`.
    """

    float64: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    maximum: Callable[[Any, Any], Any]
    cos: Callable[[Any], Any]
    lookup: Callable[[Steps, Any], Any]
    take: Callable[[NDArray[Any], Any], Any]
    scale: Callable[[Callable[[Any], Any], Any], Any]


def checked_scale(scale_fn: Callable[[Any], Any], x: Rates) -> Rates:
    """Returns `scale_fn(x)` as float64.

    Raises:
        ValueError: if it is not of the shape of `x`, or holds NaN or a value outside 0–1.
    """
    name = getattr(scale_fn, "__name__", repr(scale_fn))
    values = np.asarray(scale_fn(x), np.float64)
    if values.shape != np.shape(x):
        raise ValueError(
            f"scale_fn {name} must return one value for each of its argument, received shape {values.shape} for "
            f"{np.shape(x)}; compute it from the argument with NumPy"
        )
    bad = ~((values >= 0.0) & (values <= 1.0))  # True for NaN too.
    if bad.any():
        i = np.unravel_index(np.argmax(bad), bad.shape)
        raise ValueError(
            f"scale_fn {name} must return values from 0 to 1, received {values[i]} for {np.asarray(x)[i]:g}; "
            "it is the share of the way from base_lr to max_lr"
        )
    return values


NUMPY = Ops(
    float64=lambda array: np.asarray(array, np.float64),
    where=np.where,
    minimum=np.minimum,
    maximum=np.maximum,
    cos=np.cos,
    lookup=lambda table, steps: np.searchsorted(table, steps, side="right") - 1,
    take=np.take,
    scale=checked_scale,
)


class Schedule:
    """A pure function from a 0-based step to a learning rate. Its subclasses are frozen dataclasses.

    Attributes:
        momentum: (low, high), or None where the schedule leaves the optimizer's momentum alone.
    """

    momentum: Momentum | None = None

    def __call__(self, step: ArrayLike) -> Rates:
        """Returns the rate at each step.

        A finite schedule holds its last rate past its end and says so by a `UserWarning`. A library that logged it
        would decide for its user; Python's warnings can be silenced or made an error by whoever calls, and are shown
        once for each calling line without the schedule having to remember that it warned.

        Args:
            step: int or integer array of any shape, each at least 0.

        Returns:
            float64, of the shape of `step`.

        Raises:
            TypeError: if `step` is not of an integer type.
            ValueError: if a step is negative.
        """
        steps = checked_steps(step)
        if self.last_step is not None and steps.size and steps.max() > self.last_step:
            warnings.warn(
                f"{type(self).__name__} ends after {self.last_step + 1:,} steps and holds its last rate from there on; "
                "give it the length of the whole run",
                stacklevel=2,
            )
        return self.formula(NUMPY, steps)[()]

    def momentum_at(self, step: ArrayLike) -> Rates | None:
        """Returns the momentum at each step: `high` at the lowest rate, `low` at the highest.

        It is meant for SGD's momentum or Adam's beta_1. Source: L. N. Smith, A disciplined approach to neural network
        hyper-parameters, arXiv 1803.09820, section 4.2.

        Args:
            step: as for the call.

        Returns:
            float64, of the shape of `step`; None where the schedule has no `momentum`.

        Raises:
            As the call.
        """
        steps = checked_steps(step)
        if self.momentum is None:
            return None
        low, high = self.momentum
        return mix(high, low, self.height(NUMPY, steps))[()]

    @property
    def last_step(self) -> int | None:
        """The step after which the rate is held, or None if there is no such step."""
        return None

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates for checked steps, int64 of any shape, as a float64 array of the library of `ops`."""
        raise NotImplementedError

    def height(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates as shares of the way from the low to the high, 0–1. Arguments: see `formula`."""
        raise NotImplementedError

    def describe(self, total_steps: int, steps_per_epoch: int) -> Description:
        """Returns what the schedule will do in a run of this length; see `description.describe`."""
        from clr_loop.schedules import describe as description

        return description.describe(self, total_steps, steps_per_epoch)

    def to_config(self) -> dict[str, Any]:
        """Returns the schedule's name and arguments as JSON types; `schedules.from_config` makes it from them."""
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}  # type: ignore[arg-type]
        return {
            "name": type(self).__name__,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()},
        }

    def as_keras(self) -> keras.optimizers.schedules.LearningRateSchedule:
        """Returns the schedule for a Keras optimizer, `Adam(schedule.as_keras())`; see `keras_schedule`.

        Raises:
            ModuleNotFoundError: if TensorFlow or Keras is not installed; nothing else here needs them.
        """
        from clr_loop.schedules.for_keras import KerasSchedule

        return KerasSchedule(self)

    def _check(self, check: Callable[[str, Any], Any], *names: str) -> None:
        """Checks fields of a frozen dataclass and keeps them as Python numbers, which JSON and int64 arrays need."""
        for name in names:
            object.__setattr__(self, name, check(name, getattr(self, name)))


def mix(low: float, high: float, share: Any) -> Any:
    """Returns the point at a share, 0–1, of the way from low to high.

    Weighing the two ends, rather than adding to one, makes both come out exactly.
    """
    return low * (1.0 - share) + high * share


def checked_steps(step: ArrayLike) -> Steps:
    """Returns steps as int64. Raises as `Schedule.__call__`."""
    steps = np.asarray(step)
    if not np.issubdtype(steps.dtype, np.integer):
        raise TypeError(f"step must be an integer or an array of integers, received {steps.dtype}; steps count updates")
    if steps.size and steps.min() < 0:
        raise ValueError(f"step must be at least 0, received {steps.min()}; steps are counted from 0")
    return steps.astype(np.int64)


def checked_number(name: str, value: Any) -> float:
    """Returns a number as a Python float. Raises TypeError if it is not a number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, received {value!r}; give a number such as 0.5")
    return float(value)


def checked_rate(name: str, value: Any) -> float:
    """Returns a learning rate. Raises ValueError if it is negative, infinite or NaN, TypeError if not a number."""
    rate = checked_number(name, value)
    if not (math.isfinite(rate) and rate >= 0.0):
        raise ValueError(f"{name} must be a finite number of at least 0, received {value}; give a rate such as 0.001")
    return rate


def check_order(base_lr: float, max_lr: float) -> None:
    """Raises ValueError if base_lr is above max_lr."""
    if base_lr > max_lr:
        raise ValueError(
            f"base_lr must not be above max_lr, received base_lr {base_lr:g} and max_lr {max_lr:g}; exchange them or "
            "raise max_lr"
        )


def checked_share(name: str, value: Any) -> float:
    """Returns a number from 0 to 1. Raises ValueError if it is outside, TypeError if not a number."""
    share = checked_number(name, value)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{name} must be from 0 to 1, received {value}; 0.3 means 30 %")
    return share


def checked_factor(name: str, value: Any) -> float:
    """Returns a number above 0 and at most 1. Raises ValueError if it is outside, TypeError if not a number."""
    factor = checked_number(name, value)
    if not 0.0 < factor <= 1.0:
        raise ValueError(f"{name} must be above 0 and at most 1, received {value}; 1 leaves every cycle as high")
    return factor


def checked_integer(name: str, value: Any) -> int:
    """Returns a whole number. Raises TypeError if it is not one."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, received {value!r}; round it")
    return int(value)


def checked_whole(name: str, value: Any) -> int:
    """Returns a whole number of at least 1. Raises ValueError if it is smaller, TypeError if not a whole number."""
    if checked_integer(name, value) < 1:
        raise ValueError(f"{name} must be at least 1, received {value}; raise it")
    return int(value)


def checked_length(name: str, value: Any) -> int:
    """Returns a number of steps. Raises ValueError if it is out of range, TypeError if it is not a whole number."""
    if checked_integer(name, value) < 1:
        raise ValueError(f"{name} must be at least 1 step, received {value}; a cycle usually takes 4 to 20 epochs")
    if value > _LONGEST:
        raise ValueError(f"{name} must be at most {_LONGEST:.0e} steps, received {value}; no run is so long")
    return int(value)


def checked_momentum(name: str, value: Any) -> Momentum | None:
    """Returns (low, high), or None as it is. Raises ValueError if out of order or range, TypeError if not a pair."""
    if value is None:
        return None
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"{name} must be a pair (low, high), received {value!r}; a usual one is (0.85, 0.95)")
    low, high = (checked_number(name, number) for number in value)
    if not 0.0 <= low <= high < 1.0:
        raise ValueError(
            f"{name} must be (low, high) with 0 <= low <= high < 1, received ({low:g}, {high:g}); a usual one is "
            "(0.85, 0.95)"
        )
    return low, high
