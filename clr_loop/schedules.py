"""Learning-rate schedules: pure functions from a 0-based step to a learning rate, in float64 NumPy.

A schedule is checked once, when it is made; after that it cannot fail and has no state. It knows nothing of
TensorFlow: the training loop only ever sees the rates that it returned.

>>> triangle = Triangular(base_lr=0.001, max_lr=0.006, step_size=2000)
>>> triangle([0, 1000, 2000, 4000])
array([0.001 , 0.0035, 0.006 , 0.001 ])
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Steps = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True)
class Constant:
    """The same rate at every step.

    Args:
        learning_rate: float, finite, at least 0.

    Raises:
        ValueError: if `learning_rate` is negative, infinite or NaN.
        TypeError: if it is not a number.
    """

    learning_rate: float

    def __post_init__(self) -> None:
        _check_rate("learning_rate", self.learning_rate)

    def __call__(self, step: ArrayLike) -> Rates:
        """Returns the rate at each step; see `Cyclic.__call__`."""
        return np.full_like(_steps(step), self.learning_rate, dtype=np.float64)[()]

    def warnings(self, total_steps: int) -> list[str]:
        """Returns what a reader of a run of `total_steps` should know: of a constant rate, nothing."""
        return []

    def to_config(self) -> dict[str, Any]:
        """Returns the schedule's name and arguments as JSON types."""
        return _config(self)


@dataclass(frozen=True)
class Cyclic:
    """A rate that climbs in a straight line from base_lr to a peak and back, over and over.

    With `cycle, position = divmod(step, period)` taken in integers, `period = step_size + step_size_down`:

        height = position / step_size                       while climbing (position <= step_size)
        height = (period - position) / step_size_down       while falling
        rate   = base_lr + (max_lr - base_lr) * height * scale(cycle, step)

    so the phase is exact at any step an int64 can hold. Use one of the subclasses, which choose the scale.

    Args:
        base_lr: float, finite, at least 0: the lowest rate.
        max_lr: float, finite, at least base_lr: the highest rate.
        step_size: int, at least 1: steps of the climbing half of a cycle. Smith recommends 2 to 10 epochs' worth.
        step_size_down: int, at least 1: steps of the falling half; None means `step_size`.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if a rate is not a number or a step size not an integer.

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, sections 3.1 and 3.2.
    """

    base_lr: float
    max_lr: float
    step_size: int
    step_size_down: int | None = None

    def __post_init__(self) -> None:
        _check_rate("base_lr", self.base_lr)
        _check_rate("max_lr", self.max_lr)
        if self.base_lr > self.max_lr:
            raise ValueError(
                f"base_lr must not be above max_lr, received base_lr {self.base_lr:g} and max_lr {self.max_lr:g}; "
                "exchange them or raise max_lr"
            )
        _check_length("step_size", self.step_size)
        if self.step_size_down is not None:
            _check_length("step_size_down", self.step_size_down)

    def __call__(self, step: ArrayLike) -> Rates:
        """Returns the rate at each step.

        Args:
            step: int or integer array of any shape, each at least 0.

        Returns:
            float64, of the shape of `step`.

        Raises:
            TypeError: if `step` is not of an integer type.
            ValueError: if a step is negative.
        """
        steps = _steps(step)
        cycle, position = np.divmod(steps, self.period)
        climbing = position <= self.step_size
        height = np.where(climbing, position / self.step_size, (self.period - position) / self._down)
        height = height * self._scale(cycle, steps)
        # Weighing the two ends, rather than adding to one, makes base_lr and max_lr come out exactly.
        return (self.base_lr * (1.0 - height) + self.max_lr * height)[()]

    def _scale(self, cycle: Steps, step: Steps) -> Rates:
        """Returns the peak's share of its full height, 0 to 1, for a 0-based cycle and step."""
        raise NotImplementedError

    @property
    def period(self) -> int:
        """Steps of a whole cycle."""
        return self.step_size + self._down

    @property
    def _down(self) -> int:
        return self.step_size if self.step_size_down is None else self.step_size_down

    def warnings(self, total_steps: int) -> list[str]:
        """Returns what a reader of a run of `total_steps` should know, a sentence each; empty if nothing."""
        if total_steps >= self.period:
            return []
        share = f"{total_steps:,} steps are {total_steps / self.period:.0%} of one cycle of {self.period:,} steps"
        last = f"{float(self(max(total_steps - 1, 0))):.4g}"
        if total_steps <= self.step_size:
            what = f"the rate only climbs, from {self.base_lr:g} to {last}, and never reaches max_lr {self.max_lr:g}"
        else:
            what = f"the rate ends at {last} and never comes back to base_lr {self.base_lr:g}"
        return [f"{share}: {what}; for two whole cycles --step_size={max(total_steps // 4, 1)}"]

    def to_config(self) -> dict[str, Any]:
        """Returns the schedule's name and arguments as JSON types."""
        return _config(self)


@dataclass(frozen=True)
class Triangular(Cyclic):
    """Every cycle climbs to max_lr. Arguments: see `Cyclic`. Source: arXiv 1506.01186, section 3.1."""

    def _scale(self, cycle: Steps, step: Steps) -> Rates:
        return np.ones_like(step, dtype=np.float64)


@dataclass(frozen=True)
class Triangular2(Cyclic):
    """The climb is halved after each cycle. Arguments: see `Cyclic`. Source: arXiv 1506.01186, section 3.1."""

    def _scale(self, cycle: Steps, step: Steps) -> Rates:
        # 2**-1100 is 0 in float64 already; the bound keeps the exponent within ldexp's C int.
        return np.ldexp(1.0, -np.minimum(cycle, 1100).astype(np.int32))


@dataclass(frozen=True)
class ExpRange(Cyclic):
    """The climb shrinks by gamma at each step. Source: arXiv 1506.01186, section 3.1.

    Args:
        gamma: float in (0, 1], keyword only. The other arguments: see `Cyclic`.
    """

    gamma: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_number("gamma", self.gamma)
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma must be above 0 and at most 1, received {self.gamma}; a usual value is 0.9999")

    def _scale(self, cycle: Steps, step: Steps) -> Rates:
        return np.power(self.gamma, step.astype(np.float64))


@dataclass(frozen=True)
class LinearRamp:
    """A rate that goes from start_lr to end_lr in equal differences, `np.linspace` over total_steps."""

    start_lr: float
    end_lr: float
    total_steps: int

    def __call__(self, step: ArrayLike) -> Rates:
        """Returns the rate at each step."""
        return np.linspace(self.start_lr, self.end_lr, self.total_steps)[_steps(step)]


@dataclass(frozen=True)
class ExponentialRamp:
    """A rate that goes from start_lr to end_lr in equal ratios, `np.geomspace` over total_steps."""

    start_lr: float
    end_lr: float
    total_steps: int

    def __call__(self, step: ArrayLike) -> Rates:
        """Returns the rate at each step."""
        return np.geomspace(self.start_lr, self.end_lr, self.total_steps)[_steps(step)]


Schedule = Constant | Cyclic
"""Any schedule of this module. The training loop itself takes any callable of steps."""


def _config(schedule: Any) -> dict[str, Any]:
    return {"name": type(schedule).__name__, **dataclasses.asdict(schedule)}


def _steps(step: ArrayLike) -> Steps:
    steps = np.asarray(step)
    if not np.issubdtype(steps.dtype, np.integer):
        raise TypeError(f"step must be an integer or an array of integers, received {steps.dtype}; steps count updates")
    if steps.size and steps.min() < 0:
        raise ValueError(f"step must be at least 0, received {steps.min()}; steps are counted from 0")
    return steps.astype(np.int64)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, received {value!r}")


def _check_rate(name: str, value: Any) -> None:
    _check_number(name, value)
    if not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{name} must be a finite number of at least 0, received {value}; give a rate such as 0.001")


def _check_length(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number of steps, received {value!r}")
    if value < 1:
        raise ValueError(
            f"{name} must be at least 1 step, received {value}; it is half a cycle, usually 2 to 10 epochs"
        )
