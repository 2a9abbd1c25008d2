"""Learning-rate schedules: pure functions from a 0-based step to a learning rate, in float64 NumPy.

A schedule is checked once, when it is made; after that it has no state and cannot fail, but for a function of its
user's. It knows nothing of TensorFlow: the training loop only ever sees the rates that it returned. The cycles in
straight lines have a room of their own, `cyclic`; they are named here too.

>>> triangle = Triangular(base_lr=0.001, max_lr=0.006, step_size=2000)
>>> triangle([0, 1000, 2000, 4000])
array([0.001 , 0.0035, 0.006 , 0.001 ])
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from clr_loop.schedules import base
from clr_loop.schedules.base import Momentum, Ops, Rates, Schedule, Steps, mix
from clr_loop.schedules.cyclic import Cyclic, ExpRange, Triangular, Triangular2, register_scale_fn

__all__ = [
    "Constant", "CosineRestarts", "Cyclic", "ExpRange", "ExponentialRamp", "Joined", "LinearRamp", "OneCycle",
    "Schedule", "Triangular", "Triangular2", "from_config", "join", "register_scale_fn",
]  # fmt: skip


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate at every step.

    Args:
        learning_rate: float, finite, at least 0.

    Raises:
        ValueError: if `learning_rate` is negative, infinite or NaN.
        TypeError: if it is not a number.
    """

    learning_rate: float

    def __post_init__(self) -> None:
        self._check(base.checked_rate, "learning_rate")

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates; see `Schedule.formula`."""
        return 0.0 * ops.float64(steps) + self.learning_rate


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One climb and one long fall, to far below where the climb began; then the last rate is held.

    With `peak = pct_start * total_steps - 1`, which need not be a whole step, and `last = total_steps - 1`:

        rate goes from max_lr / div_factor to max_lr                               over steps 0 to peak
        rate goes from max_lr to max_lr / (div_factor * final_div_factor)          over steps peak to last

    each along half a cosine or a straight line. With pct_start * total_steps below 1 the first step is past the peak
    already; with pct_start 1 the rate only climbs.

    Args:
        max_lr: float, finite, at least 0.
        total_steps: int, at least 1: steps of the whole run.
        pct_start: float in 0–1: the share of steps that climbs.
        div_factor: float, at least 1: max_lr over the first rate.
        final_div_factor: float, above 0: the first rate over the last, which must not be above max_lr.
        anneal: "cos" or "linear".
        momentum: (low, high), keyword only: see `Cyclic`.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if `total_steps` is not an integer or another argument not a number.

    Source: L. N. Smith and N. Topin, Super-Convergence, arXiv 1708.07120, section 3; the two phases and their lengths
    are those of PyTorch's `OneCycleLR`, the cosine that of fastai.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: Literal["cos", "linear"] = "cos"
    momentum: Momentum | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._check(base.checked_rate, "max_lr")
        self._check(base.checked_length, "total_steps")
        self._check(base.checked_share, "pct_start")
        self._check(base.checked_number, "div_factor", "final_div_factor")
        self._check(base.checked_momentum, "momentum")
        if not 1.0 <= self.div_factor < math.inf:
            raise ValueError(
                f"div_factor must be at least 1, received {self.div_factor:g}; the first rate is max_lr over it"
            )
        if not (0.0 < self.final_div_factor < math.inf and self.div_factor * self.final_div_factor >= 1.0):
            raise ValueError(
                f"final_div_factor must be above 0 and keep the last rate below max_lr, received "
                f"{self.final_div_factor:g}; a usual value is 10000"
            )
        if self.anneal not in ("cos", "linear"):
            raise ValueError(f'anneal must be "cos" or "linear", received {self.anneal!r}; choose one of these')

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates; see `Schedule.formula`."""
        height = self.height(ops, steps)
        first, final = self.max_lr / self.div_factor, self.max_lr / self.div_factor / self.final_div_factor
        climbing = ops.float64(steps) < self.peak
        return ops.where(climbing, mix(first, self.max_lr, height), mix(final, self.max_lr, height))

    def height(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates as shares of the way from their phase's low to max_lr; see `Schedule.height`."""
        position = ops.float64(ops.minimum(steps, self.last_step))
        # A phase without length has no steps; whatever it is divided by is not looked at.
        climbed = position / (self.peak or 1.0)
        fallen = (position - self.peak) / (self.last_step - self.peak or 1.0)
        share = ops.where(position < self.peak, climbed, 1.0 - fallen)
        return share if self.anneal == "linear" else (1.0 - ops.cos(math.pi * share)) / 2.0

    @property
    def peak(self) -> float:
        """Where max_lr is reached, in steps; below 0 if before the first."""
        return self.pct_start * self.total_steps - 1.0

    @property
    def last_step(self) -> int:
        """The last step before the rate is held."""
        return self.total_steps - 1


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """Half a cosine from max_lr down towards base_lr, restarted over and over: SGDR.

    Cycle i, counted from 0, has `first_cycle_steps * t_mul**i` steps. At the step `position` of its `length`:

        rate = base_lr + (max_lr - base_lr) * m_mul**i * (1 + cos(pi * position / length)) / 2

    Args:
        base_lr: float, finite, at least 0: the rate that each cycle falls to.
        max_lr: float, finite, at least base_lr: the rate that the first starts at.
        first_cycle_steps: int, at least 1.
        t_mul: int, at least 1: how many times longer each cycle is than the one before.
        m_mul: float in (0, 1]: how many times higher each climb is than the one before.
        momentum: (low, high), keyword only: see `Cyclic`.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if a length or `t_mul` is not an integer or another argument not a number.

    Source: I. Loshchilov and F. Hutter, SGDR, arXiv 1608.03983, section 3; m_mul is Keras' `CosineDecayRestarts`'.
    """

    base_lr: float
    max_lr: float
    first_cycle_steps: int
    t_mul: int = 1
    m_mul: float = 1.0
    momentum: Momentum | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._check(base.checked_rate, "base_lr", "max_lr")
        self._check(base.checked_length, "first_cycle_steps")
        self._check(base.checked_whole, "t_mul")
        self._check(base.checked_factor, "m_mul")
        self._check(base.checked_momentum, "momentum")
        base.check_order(self.base_lr, self.max_lr)

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates; see `Schedule.formula`."""
        return mix(self.base_lr, self.max_lr, self.height(ops, steps))

    def height(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates as shares of the way from base_lr to max_lr; see `Schedule.height`."""
        cycle, position, length = self.place(ops, steps)
        return self.m_mul ** ops.float64(cycle) * (1.0 + ops.cos(math.pi * (ops.float64(position) / length))) / 2.0

    def place(self, ops: Ops, steps: Any) -> tuple[Any, Any, Any]:
        """Returns for each step its cycle and the position in it, both counted from 0, and that cycle's length."""
        if self.t_mul == 1:
            return steps // self.first_cycle_steps, steps % self.first_cycle_steps, float(self.first_cycle_steps)
        cycle = ops.lookup(self._starts, steps)
        return cycle, steps - ops.take(self._starts, cycle), ops.take(self._lengths, cycle)

    @cached_property
    def _starts(self) -> Steps:
        """First steps of all cycles that begin within int64; their lengths at least double, so they are few."""
        starts = [0]
        while starts[-1] * self.t_mul + self.first_cycle_steps < 2**63:
            starts.append(starts[-1] * self.t_mul + self.first_cycle_steps)
        return np.array(starts, np.int64)

    @cached_property
    def _lengths(self) -> Rates:
        return self.first_cycle_steps * np.power(float(self.t_mul), np.arange(len(self._starts)))


# --- Sweeps ---


@dataclass(frozen=True)
class LinearRamp(Schedule):
    """From start_lr to end_lr in equal steps, as `numpy.linspace`; then end_lr is held.

    Args:
        start_lr, end_lr: float, finite, at least 0, in either order: the rates of the first and the last step.
        total_steps: int, at least 2: steps from the one to the other, both counted.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if `total_steps` is not an integer or a rate not a number.
    """

    start_lr: float
    end_lr: float
    total_steps: int

    def __post_init__(self) -> None:
        self._check(base.checked_rate, "start_lr", "end_lr")
        self._check(base.checked_length, "total_steps")
        if self.total_steps < 2:
            raise ValueError(
                f"total_steps must be at least 2 for a ramp, received {self.total_steps}; one step has no start and end"
            )

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates; see `Schedule.formula`."""
        return mix(self.start_lr, self.end_lr, self._share(ops, steps))

    def _share(self, ops: Ops, steps: Any) -> Any:
        return ops.minimum(steps, self.last_step) / self.last_step

    @property
    def last_step(self) -> int:
        """The last step before the rate is held."""
        return self.total_steps - 1


@dataclass(frozen=True)
class ExponentialRamp(LinearRamp):
    """From start_lr to end_lr by equal factors, as `numpy.geomspace`; then end_lr is held.

    Args:
        start_lr, end_lr: float, finite, above 0, in either order. The other argument: see `LinearRamp`.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if `total_steps` is not an integer or a rate not a number.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_lr", "end_lr"):
            if getattr(self, name) == 0.0:
                raise ValueError(f"{name} must be above 0, received 0; no factor leads to or from it, give 1e-7 or so")

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates; see `Schedule.formula`."""
        share = self._share(ops, steps)
        return self.start_lr ** (1.0 - share) * self.end_lr**share


# --- One after another ---


@dataclass(frozen=True)
class Joined(Schedule):
    """Schedules one after another; made by `join`."""

    schedules: tuple[Schedule, ...]
    boundaries: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "boundaries", tuple(base.checked_length("boundary", b) for b in self.boundaries))
        for schedule in self.schedules:
            if not isinstance(schedule, Schedule):
                raise TypeError(f"schedules must be of clr_loop.schedules, received {schedule!r}; give one of these")
        if len(self.schedules) < 2 or len(self.boundaries) != len(self.schedules) - 1:
            raise ValueError(
                f"boundaries must be one fewer than the schedules, of which two are needed, received "
                f"{len(self.boundaries)} for {len(self.schedules)}; give the step at which each schedule but the first "
                "begins"
            )
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"boundaries must rise, received {list(self.boundaries)}; put them in order, none twice")
        if len({schedule.momentum_at(0) is None for schedule in self.schedules}) > 1:
            raise ValueError(
                "schedules must all cycle the momentum or none, received some with and some without; give momentum to "
                "each or to none"
            )

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Returns the rates; see `Schedule.formula`."""
        return self._piecewise(ops, steps, lambda schedule, local: schedule.formula(ops, local))

    def momentum_at(self, step: ArrayLike) -> Rates | None:
        """Returns the momentum at each step, or None if the schedules have none; see `Schedule.momentum_at`."""
        steps = base.checked_steps(step)
        if self.schedules[0].momentum_at(0) is None:
            return None
        return self._piecewise(base.NUMPY, steps, lambda schedule, local: schedule.momentum_at(local))[()]

    def _piecewise(self, ops: Ops, steps: Any, values: Callable[[Schedule, Any], Any]) -> Any:
        result = values(self.schedules[0], ops.minimum(steps, self.boundaries[0] - 1))
        for i, (schedule, start) in enumerate(zip(self.schedules[1:], self.boundaries, strict=True)):
            local = ops.maximum(steps - start, 0)
            if i + 1 < len(self.boundaries):  # No schedule is asked about a step that is not its own.
                local = ops.minimum(local, self.boundaries[i + 1] - start - 1)
            result = ops.where(steps >= start, values(schedule, local), result)
        return result

    @property
    def last_step(self) -> int | None:
        """The last step before the last schedule holds its rate, or None if it never does."""
        last = self.schedules[-1].last_step
        return None if last is None else self.boundaries[-1] + last

    def to_config(self) -> dict[str, Any]:
        """Returns the schedules' names and arguments as JSON types; raises as `Cyclic.to_config`."""
        schedules = [schedule.to_config() for schedule in self.schedules]
        return {"name": "Joined", "schedules": schedules, "boundaries": list(self.boundaries)}


def join(schedules: Sequence[Schedule], boundaries: Sequence[int]) -> Joined:
    """Joins schedules one after another, each counting from 0 at its boundary.

    Other bounds in mid-run, a warm-up before cycles and a fall to zero after them are all this.

    >>> join([LinearRamp(0.0, 0.1, total_steps=5), Constant(0.1)], boundaries=[5])([0, 1, 4, 5, 100])
    array([0.   , 0.025, 0.1  , 0.1  , 0.1  ])

    Args:
        schedules: two or more; all with `momentum` or none.
        boundaries: the first step of each schedule but the first, rising, each at least 1.

    Raises:
        ValueError: if the numbers of schedules and boundaries do not fit, the boundaries do not rise, or some schedules
            cycle the momentum and some do not.
        TypeError: if a boundary is not an integer or a schedule is not one of this module.
    """
    return Joined(tuple(schedules), tuple(boundaries))


SCHEDULES: dict[str, type[Schedule]] = {
    kind.__name__: kind
    for kind in (
        Constant, Cyclic, Triangular, Triangular2, ExpRange,
        OneCycle, CosineRestarts, LinearRamp, ExponentialRamp, Joined,
    )
}  # fmt: skip


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Makes the schedule that `to_config` wrote.

    >>> from_config({"name": "LinearRamp", "start_lr": 0.0, "end_lr": 1.0, "total_steps": 3})(1)
    np.float64(0.5)

    Raises:
        ValueError: if the name is not of this module or the arguments are not its own; else as the schedule.
        TypeError: as the schedule.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in SCHEDULES:
        raise ValueError(f"the schedule's name must be one of {', '.join(SCHEDULES)}, received {name!r}; correct it")
    kind = SCHEDULES[name]
    if "schedules" in arguments:
        arguments["schedules"] = [from_config(part) for part in arguments["schedules"]]
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"arguments of {name} must be its own, received {sorted(arguments)}: {error}") from error
    return kind(**arguments)
