"""Rates that go back and forth between base_lr and max_lr: Smith's triangles and warm restarts.

>>> Triangular2(base_lr=0.0, max_lr=1.0, step_size=2)([0, 1, 2, 4, 6, 10])
array([0.  , 0.5 , 1.  , 0.  , 0.5 , 0.25])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import override

from clr_loop.schedules.base import NUMPY, Ops, Schedule, mix
from clr_loop.schedules.checks import Momentum, Rates, Steps

ScaleFn = Callable[[Rates], ArrayLike]
_SCALE_FNS: dict[str, ScaleFn] = {}


def register_scale_fn(name: str, scale_fn: ScaleFn) -> None:
    """Give a scale function a name, so that `Cyclic` finds it by name and a schedule with it can be saved.

    A program that loads the schedule must register the same function under the same name first.

    Raises:
        ValueError: if another function has the name already.
        TypeError: if `scale_fn` cannot be called.
    """
    if not callable(scale_fn):
        raise TypeError(f"scale_fn is {scale_fn!r}; it must be a function of an array.")
    if _SCALE_FNS.setdefault(name, scale_fn) is not scale_fn:
        raise ValueError(f"another scale_fn is already registered as {name!r}; choose another name.")


@dataclass(frozen=True)
class Bounded(Schedule):
    """What cycles and decays between two rates have in common: the bounds, and a momentum that mirrors the rate.

    Args:
        base_lr, max_lr: float, the lowest and the highest rate.
        momentum: see `Schedule`.
    """

    base_lr: float
    max_lr: float
    momentum: Momentum | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_lr > self.max_lr:
            raise ValueError(f"base_lr {self.base_lr:g} is above max_lr {self.max_lr:g}; swap the two or raise max_lr.")

    @override
    def formula(self, ops: Ops, steps: Any) -> Any:
        return mix(self.base_lr, self.max_lr, self.height(ops, steps))


@dataclass(frozen=True)
class Triangular(Bounded):
    """A rate that climbs in a straight line from base_lr to max_lr and falls back, over and over.

    With `cycle, position = divmod(step, period)` in integers and `period = step_size + step_size_down`:

        height = position / step_size                       while the rate climbs (position <= step_size)
        height = (period - position) / step_size_down       while it falls
        rate   = base_lr + (max_lr - base_lr) * height * scale

    The integer phase is exact at any step that an int64 can hold. Here the scale is 1; the subclasses have others.

    Args:
        base_lr, max_lr, momentum: see `Bounded`.
        step_size: int, steps of the climbing half of a cycle. Smith recommends 2 to 10 epochs.
        step_size_down: int, steps of the falling half; None means `step_size`.

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, sections 3.1 and 3.2.
    """

    step_size: int
    step_size_down: int | None = None

    @override
    def height(self, ops: Ops, steps: Any) -> Any:
        position = steps % self.period
        climbing, falling = position / self.step_size, (self.period - position) / (self.period - self.step_size)
        return ops.where(position <= self.step_size, climbing, falling) * self.scale(ops, steps // self.period, steps)

    def scale(self, ops: Ops, cycle: Any, steps: Any) -> Any:
        """Return the peak's share of its full height for each 0-based cycle and step."""
        return 1.0

    @override
    def cycle_ends(self, num_steps: int) -> Steps:
        return np.arange(self.period, num_steps + 1, self.period)

    @property
    def period(self) -> int:
        """Steps of a whole cycle."""
        return self.step_size + (self.step_size_down or self.step_size)


@dataclass(frozen=True)
class Triangular2(Triangular):
    """A `Triangular` schedule whose height halves after each cycle. Source: arXiv 1506.01186, section 3.1."""

    def scale(self, ops: Ops, cycle: Any, steps: Any) -> Any:
        """Return 1, 1/2, 1/4 …; it reaches 0 after a thousand cycles, where 2.0 ** cycle would be infinite."""
        return 0.5 ** ops.float64(cycle)


@dataclass(frozen=True)
class ExpRange(Triangular):
    """A `Triangular` schedule whose height is multiplied by `gamma`, in (0, 1], at each step.

    Source: arXiv 1506.01186, section 3.1.
    """

    gamma: float = field(kw_only=True)

    def scale(self, ops: Ops, cycle: Any, steps: Any) -> Any:
        """Return gamma to the power of the step."""
        return self.gamma ** ops.float64(steps)


@dataclass(frozen=True)
class Cyclic(Triangular):
    """A `Triangular` schedule whose height a function of your own scales.

    >>> fifths = Cyclic(0.0, 1.0, step_size=1, scale_fn=lambda cycle: 5.0 ** (1 - cycle))
    >>> fifths([1, 3, 5])
    array([1.  , 0.2 , 0.04])

    Args:
        scale_fn: the peak's share of its full height, 0–1: a function that maps a float64 array to an array of the same
            shape, or a name given to `register_scale_fn`. None means 1. If the function returns anything else, making
            or calling the schedule raises ValueError.
        scale_mode: its argument: "cycle" (the cycle's number, counted from 1) or "iterations" (the step).

    Source: the CLR repository (B. Kenstler) and PyTorch's `CyclicLR` have the same functions.
    """

    scale_fn: str | ScaleFn | None = None
    scale_mode: Literal["cycle", "iterations"] = "cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "scale_fn", _checked_scale_fn(self.scale_fn))
        self.scale(NUMPY, np.arange(2), np.arange(2))  # A function of the wrong kind shows itself at once.

    def scale(self, ops: Ops, cycle: Any, steps: Any) -> Any:
        """Return what the scale function returns."""
        if self.scale_fn is None:
            return 1.0
        scale_fn = _SCALE_FNS[self.scale_fn] if isinstance(self.scale_fn, str) else self.scale_fn
        return ops.scale(scale_fn, ops.float64(cycle + 1 if self.scale_mode == "cycle" else steps))

    def to_config(self) -> dict[str, Any]:
        """Return JSON types; raise ValueError if `scale_fn` is a function without a registered name."""
        if callable(self.scale_fn):
            what = f"scale_fn {self.scale_fn!r} has no name, so the schedule cannot be saved"
            raise ValueError(f"{what}; call register_scale_fn(name, scale_fn) before you make the schedule.")
        return super().to_config()


def _checked_scale_fn(value: Any) -> str | ScaleFn | None:
    """Return a registered name, the name of a registered function, or any other function as it is."""
    if isinstance(value, str) and value not in _SCALE_FNS:
        known = f"the registered names are {sorted(_SCALE_FNS)}"
        raise ValueError(f"scale_fn is {value!r}, and {known}; call register_scale_fn({value!r}, your_function) first.")
    if value is not None and not isinstance(value, str) and not callable(value):
        raise TypeError(f"scale_fn is {value!r}; it must be a function of an array or a registered name.")
    return next((known for known, scale_fn in _SCALE_FNS.items() if scale_fn is value), value)


@dataclass(frozen=True)
class CosineRestarts(Bounded):
    """Half a cosine from max_lr down toward base_lr, restarted over and over: SGDR.

    Cycle i, counted from 0, has `first_cycle_steps * t_mul**i` steps. At the step `position` of its `length`:

        rate = base_lr + (max_lr - base_lr) * m_mul**i * (1 + cos(pi * position / length)) / 2

    Args:
        base_lr, max_lr, momentum: see `Bounded`.
        first_cycle_steps: int, at least 1.
        t_mul: int, at least 1: each cycle is this many times as long as the one before.
        m_mul: float in (0, 1]: each cycle starts at this share of the height of the one before.

    Source: I. Loshchilov and F. Hutter, SGDR, arXiv 1608.03983, section 3; m_mul is from Keras' `CosineDecayRestarts`.
    """

    first_cycle_steps: int
    t_mul: int = 1
    m_mul: float = 1.0

    @override
    def height(self, ops: Ops, steps: Any) -> Any:
        cycle, position, length = self.place(ops, steps)
        return self.m_mul ** ops.float64(cycle) * (1.0 + ops.cos(math.pi * (ops.float64(position) / length))) / 2.0

    @override
    def cycle_ends(self, num_steps: int) -> Steps:
        if self.t_mul == 1:
            return np.arange(self.first_cycle_steps, num_steps + 1, self.first_cycle_steps)
        return self._starts[1:][self._starts[1:] <= num_steps]

    def place(self, ops: Ops, steps: Any) -> tuple[Any, Any, Any]:
        """Return each step's cycle and its position in it, both counted from 0, and the length of that cycle."""
        if self.t_mul == 1:
            return steps // self.first_cycle_steps, steps % self.first_cycle_steps, float(self.first_cycle_steps)
        cycle = ops.lookup(self._starts, steps)
        return cycle, steps - ops.take(self._starts, cycle), ops.take(self._lengths, cycle)

    @cached_property
    def _starts(self) -> Steps:
        """The first steps of all cycles that begin within int64. Each is at least twice as long as the one before."""
        starts = [0]
        while starts[-1] * self.t_mul + self.first_cycle_steps < 2**63:
            starts.append(starts[-1] * self.t_mul + self.first_cycle_steps)
        return np.array(starts, np.int64)

    @cached_property
    def _lengths(self) -> Rates:
        return self.first_cycle_steps * np.power(float(self.t_mul), np.arange(len(self._starts)))
