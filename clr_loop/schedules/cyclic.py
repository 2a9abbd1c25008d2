"""Cycles in straight lines: Smith's triangles, and what may be done to their height.

>>> Triangular2(base_lr=0.0, max_lr=1.0, step_size=2)([0, 1, 2, 4, 6, 10])
array([0.  , 0.5 , 1.  , 0.  , 0.5 , 0.25])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from clr_loop.schedules import base
from clr_loop.schedules.base import Momentum, Ops, Rates, Schedule, mix

ScaleFn = Callable[[Rates], ArrayLike]


def _triangular(cycle: Any) -> Any:
    return 1.0 + 0.0 * cycle


def _triangular2(cycle: Any) -> Any:
    return 0.5 ** (cycle - 1.0)  # 0 for the thousands; 2.0 ** cycle would be infinite.


# Plain arithmetic, which a TensorFlow tensor takes as well as an array does.
BUILT_IN_SCALE_FNS: dict[str, ScaleFn] = {"triangular": _triangular, "triangular2": _triangular2}
_SCALE_FNS = dict(BUILT_IN_SCALE_FNS)


def register_scale_fn(name: str, scale_fn: ScaleFn) -> None:
    """Gives a scale function a name, so that `Cyclic` finds it by name and a schedule with it can be serialised.

    Whoever reads the schedule back must have registered the same function under the same name.

    Args:
        name: not registered yet, unless with the same function.
        scale_fn: see `Cyclic`.

    Raises:
        ValueError: if the name has another function already.
        TypeError: if `scale_fn` cannot be called.
    """
    if not callable(scale_fn):
        raise TypeError(f"scale_fn must be a function of an array, received {scale_fn!r}; give one")
    if _SCALE_FNS.setdefault(name, scale_fn) is not scale_fn:
        raise ValueError(f"scale_fn {name!r} must be registered once, received another function; choose another name")


@dataclass(frozen=True)
class Cyclic(Schedule):
    """A rate that climbs in a straight line from base_lr to a peak and back, over and over.

    With `cycle, position = divmod(step, period)` taken in integers, `period = step_size + step_size_down`:

        height = position / step_size                       while climbing (position <= step_size)
        height = (period - position) / step_size_down       while falling
        rate   = base_lr + (max_lr - base_lr) * height * scale_fn(x)

    so the phase is exact at any step an int64 can hold.

    >>> fifths = Cyclic(0.0, 1.0, step_size=1, scale_fn=lambda cycle: 5.0 ** (1 - cycle))
    >>> fifths([1, 3, 5])
    array([1.  , 0.2 , 0.04])

    Args:
        base_lr: float, finite, at least 0: the lowest rate.
        max_lr: float, finite, at least base_lr: the highest rate.
        step_size: int, at least 1: steps of the climbing half of a cycle. Smith recommends 2 to 10 epochs' worth.
        step_size_down: int, at least 1: steps of the falling half; None means `step_size`.
        scale_fn: the peak's share of its full height, 0–1: "triangular" (1 always), "triangular2" (halved after each
            cycle), a name given to `register_scale_fn`, or any function of a float64 array that returns an array of
            the same shape.
        scale_mode: what the function is given as x: "cycle", the number of the cycle, counted from 1, or
            "iterations", the step.
        momentum: (low, high) with 0 <= low <= high < 1, keyword only: see `momentum_at`. None leaves momentum alone.

    Raises:
        ValueError: if an argument is outside its range or the name of `scale_fn` is not registered; when made and when
            called, if `scale_fn` returns another shape, NaN or a value outside 0–1.
        TypeError: if a rate is not a number, a step size not an integer, `scale_fn` neither a name nor a function.

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, sections 3.1 and 3.2.
    A function of the 1-based cycle or of the step is the CLR repository's (B. Kenstler) and PyTorch's `CyclicLR`'s.
    """

    base_lr: float
    max_lr: float
    step_size: int
    step_size_down: int | None = None
    scale_fn: str | ScaleFn = "triangular"
    scale_mode: Literal["cycle", "iterations"] = "cycle"
    momentum: Momentum | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._check(base.checked_rate, "base_lr", "max_lr")
        self._check(_checked_scale_fn, "scale_fn")
        self._check(base.checked_length, "step_size")
        if self.step_size_down is not None:
            self._check(base.checked_length, "step_size_down")
        self._check(base.checked_momentum, "momentum")
        base.check_order(self.base_lr, self.max_lr)
        if self.scale_mode not in ("cycle", "iterations"):
            raise ValueError(
                f'scale_mode must be "cycle" or "iterations", received {self.scale_mode!r}; choose one of these'
            )
        self._scale(base.NUMPY, np.arange(2), np.arange(2))  # A function of the wrong kind shows itself at once.

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates; see `Schedule.formula`."""
        return mix(self.base_lr, self.max_lr, self.height(ops, steps))

    def height(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates as shares of the way from base_lr to max_lr; see `Schedule.height`."""
        cycle = steps // self.period
        return self.unscaled_height(ops, steps) * self._scale(ops, cycle, steps)

    def unscaled_height(self, ops: Ops, steps: Any) -> Any:
        """Returns the shares before they are scaled: 0 at a cycle's ends, 1 at its peak."""
        position = steps % self.period
        climbing, falling = position / self.step_size, (self.period - position) / self.down
        return ops.where(position <= self.step_size, climbing, falling)

    def _scale(self, ops: Ops, cycle: Any, steps: Any) -> Any:
        """Returns the peak's share of its full height, for a 0-based cycle and step."""
        scale_fn = _SCALE_FNS[self.scale_fn] if isinstance(self.scale_fn, str) else self.scale_fn
        return ops.scale(scale_fn, ops.float64(cycle + 1 if self.scale_mode == "cycle" else steps))

    @property
    def period(self) -> int:
        """Steps of a whole cycle."""
        return self.step_size + self.down

    @property
    def down(self) -> int:
        """Steps of the falling half."""
        return self.step_size if self.step_size_down is None else self.step_size_down

    def to_config(self) -> dict[str, Any]:
        """Returns the schedule's name and arguments as JSON types.

        Raises:
            ValueError: if `scale_fn` is a function without a registered name.
        """
        if not isinstance(self.scale_fn, str):
            raise ValueError(
                f"scale_fn must have a name to be serialised, received {self.scale_fn!r}; give it one with "
                "register_scale_fn(name, scale_fn) before the schedule is made"
            )
        return super().to_config()


@dataclass(frozen=True)
class Triangular(Cyclic):
    """Every cycle climbs to max_lr. Arguments: see `Cyclic`. Source: arXiv 1506.01186, section 3.1."""

    scale_fn: str | ScaleFn = field(default="triangular", init=False, repr=False)
    scale_mode: Literal["cycle", "iterations"] = field(default="cycle", init=False, repr=False)


@dataclass(frozen=True)
class Triangular2(Cyclic):
    """The climb is halved after each cycle. Arguments: see `Cyclic`. Source: arXiv 1506.01186, section 3.1."""

    scale_fn: str | ScaleFn = field(default="triangular2", init=False, repr=False)
    scale_mode: Literal["cycle", "iterations"] = field(default="cycle", init=False, repr=False)


@dataclass(frozen=True)
class ExpRange(Cyclic):
    """The climb shrinks by gamma at each step. Source: arXiv 1506.01186, section 3.1.

    Args:
        gamma: float in (0, 1], keyword only. The other arguments: see `Cyclic`.
    """

    scale_fn: str | ScaleFn = field(default="triangular", init=False, repr=False)
    scale_mode: Literal["cycle", "iterations"] = field(default="iterations", init=False, repr=False)
    gamma: float = field(kw_only=True)

    def __post_init__(self) -> None:
        self._check(base.checked_factor, "gamma")
        super().__post_init__()

    def _scale(self, ops: Ops, cycle: Any, steps: Any) -> Any:
        return self.gamma ** ops.float64(steps)


def _checked_scale_fn(name: str, value: Any) -> str | ScaleFn:
    """Returns a registered name, a registered function by its name, or another function as it is."""
    if isinstance(value, str):
        if value not in _SCALE_FNS:
            raise ValueError(
                f"{name} must be a function or one of {', '.join(_SCALE_FNS)}, received {value!r}; register it with "
                "register_scale_fn"
            )
        return value
    if not callable(value):
        raise TypeError(f"{name} must be a function of an array or a registered name, received {value!r}; give one")
    return next((known for known, scale_fn in _SCALE_FNS.items() if scale_fn is value), value)
