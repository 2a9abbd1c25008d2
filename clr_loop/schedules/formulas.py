"""Rates that do not cycle, schedules one after another, and every schedule by its name.

>>> ramp = LinearRamp(start_lr=0.0, end_lr=0.1, total_steps=5)
>>> ramp([0, 1, 4])
array([0.   , 0.025, 0.1  ])
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from typing_extensions import override

from clr_loop.arguments import checked_whole
from clr_loop.schedules.base import NUMPY, Ops, Schedule, mix
from clr_loop.schedules.checks import Momentum, Rates, Steps, checked_steps
from clr_loop.schedules.cycles import Bounded, CosineRestarts, Cyclic, ExpRange, Triangular, Triangular2


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate at every step."""

    learning_rate: float

    @override
    def formula(self, ops: Ops, steps: Any) -> Any:
        return 0.0 * ops.float64(steps) + self.learning_rate


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """A rate that is multiplied by decay_rate over and over: smoothly, or in stairs.

        rate = learning_rate * decay_rate ** (step / decay_steps)        rounded down to whole stairs with staircase

    Args:
        learning_rate: float, the first rate.
        decay_steps: int, at least 1: after so many steps the rate is multiplied once.
        decay_rate: float in (0, 1].
        staircase: bool, whether the rate is held in between.

    Source: Keras has the same formula under this name; it is what Smith compares cycles with ("exp" and "fixed" with
    steps), arXiv 1506.01186, section 4.1.
    """

    learning_rate: float
    decay_steps: int
    decay_rate: float
    staircase: bool = False

    @override
    def formula(self, ops: Ops, steps: Any) -> Any:
        times = steps // self.decay_steps if self.staircase else ops.float64(steps) / self.decay_steps
        return self.learning_rate * self.decay_rate ** ops.float64(times)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """One climb and one long fall to a rate far below the first; then the last rate is held.

    With `peak = pct_start * total_steps - 1`, which may lie between two steps, and `last = total_steps - 1`:

        rate goes from max_lr / div_factor to max_lr                               over steps 0 to peak
        rate goes from max_lr to max_lr / (div_factor * final_div_factor)          over steps peak to last

    each along half a cosine or a straight line. If pct_start * total_steps is below 1, the first step is already past
    the peak. If pct_start is 1, the rate only climbs.

    Args:
        max_lr: float.
        total_steps: int, steps of the whole run.
        pct_start: float in 0–1: the share of steps that climbs.
        div_factor: float, at least 1: max_lr over the first rate.
        final_div_factor: float, above 0: the first rate over the last, which must not be above max_lr.
        anneal: "cos" or "linear".
        momentum: see `Schedule`.

    Source: L. N. Smith and N. Topin, Super-Convergence, arXiv 1708.07120, section 3; the two phases and their lengths
    are those of PyTorch's `OneCycleLR`, the cosine is fastai's.
    """

    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: Literal["cos", "linear"] = "cos"
    momentum: Momentum | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.div_factor * self.final_div_factor < 1.0:
            rule = f"times div_factor {self.div_factor:g} it must be at least 1, or the rate ends above max_lr"
            raise ValueError(f"final_div_factor is {self.final_div_factor:g}; {rule}.")

    @override
    def formula(self, ops: Ops, steps: Any) -> Any:
        height = self.height(ops, steps)
        first, final = self.max_lr / self.div_factor, self.max_lr / self.div_factor / self.final_div_factor
        climbing = ops.float64(steps) < self.peak
        return ops.where(climbing, mix(first, self.max_lr, height), mix(final, self.max_lr, height))

    @override
    def height(self, ops: Ops, steps: Any) -> Any:
        last = self.total_steps - 1
        position = ops.float64(ops.minimum(steps, last))
        # A phase without length has no steps, so its divisor does not matter as long as it is not 0.
        climbed = position / (self.peak or 1.0)
        fallen = (position - self.peak) / (last - self.peak or 1.0)
        share = ops.where(position < self.peak, climbed, 1.0 - fallen)
        return share if self.anneal == "linear" else (1.0 - ops.cos(math.pi * share)) / 2.0

    @override
    def cycle_ends(self, num_steps: int) -> Steps:
        return np.array([self.total_steps] if self.total_steps <= num_steps else [], np.int64)

    @property
    def peak(self) -> float:
        """The place of max_lr, in steps; below 0 if it comes before the first step."""
        return self.pct_start * self.total_steps - 1.0


@dataclass(frozen=True)
class LinearRamp(Schedule):
    """A ramp from start_lr to end_lr in equal steps, like `numpy.linspace`; then end_lr is held.

    Args:
        start_lr, end_lr: float, the first and the last rate, in either order.
        total_steps: int, at least 2: steps of the ramp, including the first and the last.
    """

    start_lr: float
    end_lr: float
    total_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps < 2:
            raise ValueError("total_steps is 1; a ramp needs at least 2 steps, one for each end.")

    @override
    def formula(self, ops: Ops, steps: Any) -> Any:
        return mix(self.start_lr, self.end_lr, self._share(ops, steps))

    def _share(self, ops: Ops, steps: Any) -> Any:
        last = self.total_steps - 1
        return ops.minimum(steps, last) / last


@dataclass(frozen=True)
class ExponentialRamp(LinearRamp):
    """A ramp from start_lr to end_lr, both above 0, by equal factors, like `numpy.geomspace`; then end_lr is held."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_lr", "end_lr"):
            if getattr(self, name) == 0.0:
                raise ValueError(f"{name} is 0; no factor leads to or from 0, so start or end at 1e-7 or so.")

    @override
    def formula(self, ops: Ops, steps: Any) -> Any:
        share = self._share(ops, steps)
        return self.start_lr ** (1.0 - share) * self.end_lr**share


# --- Controls for cycles: the same highest, lowest and mean rate ---


@dataclass(frozen=True)
class LinearDecay(Bounded):
    """A fall from max_lr to base_lr in equal steps, without a climb before it; then base_lr is held.

        rate = base_lr + (max_lr - base_lr) * (1 - step / (total_steps - 1))

    Beside cycles with the same bounds it tells what the climbs are worth. Its mean rate over the run is that of whole
    triangles, the middle between the bounds.

    Args:
        base_lr, max_lr, momentum: see `Bounded`.
        total_steps: int, at least 1: steps of the whole run.
    """

    total_steps: int

    @override
    def height(self, ops: Ops, steps: Any) -> Any:
        return 1.0 - self._share(ops, steps)

    def _share(self, ops: Ops, steps: Any) -> Any:
        last = self.total_steps - 1
        return ops.minimum(steps, last) / (last or 1)


@dataclass(frozen=True)
class CosineDecay(LinearDecay):
    """A fall from max_lr to base_lr along half a cosine, without a climb before it; then base_lr is held.

        rate = base_lr + (max_lr - base_lr) * (1 + cos(pi * step / (total_steps - 1))) / 2

    Its mean rate over the run is the middle between the bounds. The arguments are those of `LinearDecay`.

    Source: I. Loshchilov and F. Hutter, SGDR, arXiv 1608.03983, section 3, without restarts. Keras' `CosineDecay` has
    the same formula for decay_steps = total_steps - 1, alpha = base_lr / max_lr.
    """

    @override
    def height(self, ops: Ops, steps: Any) -> Any:
        return (1.0 + ops.cos(math.pi * self._share(ops, steps))) / 2.0


@dataclass(frozen=True)
class OneTriangle(Bounded):
    """The `Triangular` schedule whose single cycle fills the run; then its last rate is held.

    Beside two cycles or more it tells what the repeats are worth.

    Args:
        base_lr, max_lr, momentum: see `Bounded`.
        total_steps: int, at least 1: steps of the whole run. If it is odd, the climb has one step more than the fall.
    """

    total_steps: int

    @override
    def height(self, ops: Ops, steps: Any) -> Any:
        triangle = Triangular(self.base_lr, self.max_lr, self.step_size, max(self.total_steps // 2, 1))
        return triangle.height(ops, ops.minimum(steps, self.total_steps - 1))

    @override
    def cycle_ends(self, num_steps: int) -> Steps:
        return np.array([self.total_steps] if self.total_steps <= num_steps else [], np.int64)

    @property
    def step_size(self) -> int:
        """Steps of the climb."""
        return (self.total_steps + 1) // 2


# --- One after another ---


def _within(ops: Ops, steps: Any, start: int, end: int) -> Any:
    """Return steps as one schedule counts them, held at its bounds, so that no schedule sees a step of another."""
    return ops.minimum(ops.maximum(steps - start, 0), end - start - 1)


@dataclass(frozen=True)
class Joined(Schedule):
    """Schedules one after another, each counting from 0 at its boundary. `join(schedules, boundaries)` makes one.

    Use it for a warm-up before cycles, for a fall to zero after them, or for other bounds from some step on.

    If only some schedules cycle the momentum, each of the others holds it: at the first value of the next schedule that
    cycles it or, if none follows, at the last value of the one before.

    >>> join([LinearRamp(0.0, 0.1, total_steps=5), Constant(0.1)], boundaries=[5])([0, 1, 4, 5, 100])
    array([0.   , 0.025, 0.1  , 0.1  , 0.1  ])

    Args:
        schedules: two or more.
        boundaries: the first step of each schedule except the first, rising, each at least 1.
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "boundaries", tuple(checked_whole("boundary", b) for b in self.boundaries))
        for schedule in self.schedules:
            if not isinstance(schedule, Schedule):
                raise TypeError(f"join was given {schedule!r}, which is not a schedule of clr_loop.schedules.")
        if len(self.schedules) < 2 or len(self.boundaries) != len(self.schedules) - 1:
            what = f"join was given {len(self.schedules)} schedules and {len(self.boundaries)} boundaries"
            raise ValueError(f"{what}; give two or more schedules, and the step at which each but the first begins.")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"the boundaries {list(self.boundaries)} do not rise; each must be above the one before.")

    @override
    def formula(self, ops: Ops, steps: Any) -> Any:
        rates: Any = None
        for schedule, start, end in self.parts():
            part = schedule.formula(ops, _within(ops, steps, start, end))
            rates = part if rates is None else ops.where(steps >= start, part, rates)
        return rates

    def momentum_at(self, step: ArrayLike) -> Rates | None:
        """Return the momentum at each step, or None if no schedule cycles it."""
        steps, turn = checked_steps(step), 0
        momentums: Any = None
        for schedule, start, end in self.parts():
            part = schedule.momentum_at(_within(NUMPY, steps, start, end))
            if part is not None:  # Its turn begins where that of the one before ends.
                momentums = part if momentums is None else np.where(steps >= turn, part, momentums)
                turn = end
        return None if momentums is None else momentums[()]

    def cycle_ends(self, num_steps: int) -> Steps | None:
        """Return after how many steps each whole cycle of each part is done; None if no part has cycles."""
        parts = [(part, start, min(end, num_steps) - start) for part, start, end in self.parts() if start < num_steps]
        of_parts = [start + ends for part, start, steps in parts if (ends := part.cycle_ends(steps)) is not None]
        return np.concatenate(of_parts) if of_parts else None

    def parts(self) -> Iterator[tuple[Schedule, int, int]]:
        """Yield each schedule with its first step, and the step after its last."""
        return zip(self.schedules, (0, *self.boundaries), (*self.boundaries, 2**62), strict=True)

    @property
    def last_step(self) -> int | None:
        """The last step of the last schedule if that is finite, else None."""
        last = self.schedules[-1].last_step
        return None if last is None else self.boundaries[-1] + last

    def to_config(self) -> dict[str, Any]:
        """Return the schedules' names and arguments as JSON types; raise ValueError as `Cyclic.to_config` does."""
        schedules = [schedule.to_config() for schedule in self.schedules]
        return {"name": "Joined", "schedules": schedules, "boundaries": list(self.boundaries)}


join = Joined


# --- By name ---

_KINDS = (
    Constant, Cyclic, Triangular, Triangular2, ExpRange, OneCycle, CosineRestarts, LinearRamp, ExponentialRamp,
    ExponentialDecay, LinearDecay, CosineDecay, OneTriangle, Joined,
)  # fmt: skip
SCHEDULES: dict[str, type[Schedule]] = {kind.__name__: kind for kind in _KINDS}


def from_config(config: Mapping[str, Any], known: Sequence[Schedule] = ()) -> Schedule:
    """Make the schedule that `to_config` wrote.

    >>> from_config({"name": "LinearRamp", "start_lr": 0.0, "end_lr": 1.0, "total_steps": 3})(1)
    np.float64(0.5)

    Args:
        config: from `to_config`.
        known: schedules that are returned where their own config is equal; a class of yours is made in no other way.

    Raises:
        ValueError: if no schedule has that name or those arguments, or the schedule refuses a value.
        TypeError: if the schedule refuses the type of a value.
    """
    for schedule in known:
        with contextlib.suppress(ValueError):  # One with a function inside has no config.
            if schedule.to_config() == config:
                return schedule
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in SCHEDULES:
        if "." in str(name):
            raise ValueError(f"{name} is not a schedule of clr_loop, so it cannot be made again from its name.")
        raise ValueError(f"no schedule is named {name!r}; the names are {', '.join(SCHEDULES)}.")
    kind = SCHEDULES[name]
    if "schedules" in arguments:
        arguments["schedules"] = [from_config(part, known) for part in arguments["schedules"]]
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{name} cannot be made from the arguments {sorted(arguments)}: {error}.") from error
    return kind(**arguments)
