"""What all schedules share: the call, the momentum and the JSON form.

A schedule writes its formula once, with the few array functions of an `Ops`. `NUMPY` is here; `for_keras` has the
same functions for a TensorFlow graph, so one formula gives the same rates in both.
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clr_loop import display
from clr_loop.arguments import check_names
from clr_loop.schedules.checks import Momentum, Rates, Steps, checked_argument, checked_scale, checked_steps


class Ops(NamedTuple):
    """The array functions that a formula may use besides the operators. `Any` is an array of the library in use."""

    float64: Callable[[Any], Any]  # Converts the dtype.
    where: Callable[[Any, Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    maximum: Callable[[Any, Any], Any]
    cos: Callable[[Any], Any]
    lookup: Callable[[Steps, Any], Any]  # (sorted table, steps) → the index of the last entry not above each step.
    take: Callable[[NDArray[Any], Any], Any]  # (table, indices) → the table's entries.
    scale: Callable[[Callable[[Any], Any], Any], Any]  # Calls a user's scale function, with `checked_scale`.


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

    A subclass of your own needs `formula`; `height` for a momentum, and `cycle_ends` for cycles. A run keeps its import
    path and arguments in config.json, and on resuming you hand the schedule in again.

    Making one raises ValueError if an argument is outside its range, and TypeError if it is of the wrong type. Rates
    are finite floats of at least 0, also in float32; lengths are whole numbers of steps, at least 1.

    Attributes:
        momentum: (low, high) with 0 <= low <= high < 1, or None if the schedule leaves the momentum alone. It is a
            keyword-only argument of the schedules that take it; see `momentum_at`.
    """

    momentum: Momentum | None = None

    def __new__(cls, *arguments: Any, **named: Any) -> Schedule:
        """Make one; an argument with another library's name for it is told ours."""
        check_names(cls.__name__, named, inspect.signature(cls.__init__))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in (argument.name for argument in dataclasses.fields(self)):  # type: ignore[arg-type]
            object.__setattr__(self, name, checked_argument(name, getattr(self, name)))  # Frozen for everybody else.

    def __call__(self, step: ArrayLike) -> Rates:
        """Return the rate at each step.

        A finite schedule holds its last rate past its end, and says so with a `UserWarning`.

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
            what = f"{type(self).__name__} has {self.last_step + 1:,} steps and holds its last rate after them"
            warnings.warn(f"{what}; give it the length of the whole run.", stacklevel=2)
        return self.formula(NUMPY, steps)[()]

    def momentum_at(self, step: ArrayLike) -> Rates | None:
        """Return the momentum at each step: `high` at the lowest rate, `low` at the highest; None without `momentum`.

        It is meant for SGD's momentum or Adam's beta_1. The argument, result and errors are those of a call. Source:
        L. N. Smith, A disciplined approach to neural network hyper-parameters, arXiv 1803.09820, section 4.2.
        """
        steps = checked_steps(step)
        if self.momentum is None:
            return None
        low, high = self.momentum
        return mix(high, low, self.height(NUMPY, steps))[()]

    @property
    def last_step(self) -> int | None:
        """The last step of a finite schedule, which holds its rate after it; None for any other schedule."""
        return self.total_steps - 1 if hasattr(self, "total_steps") else None

    def plot(self, steps: int | None = None, steps_per_epoch: int | None = None) -> display.Drawing:
        """Return a picture of the rates, and of the momentum where there is one; a notebook shows it.

        Args:
            steps: int, at least 1, from step 0. None takes the whole of a finite schedule, the first two cycles of one
                with cycles, and else 1,000 steps.
            steps_per_epoch: int, at least 1, for epochs along the top; None leaves them out.
        """
        return display.picture_of(self, steps, steps_per_epoch)

    def _repr_png_(self) -> bytes:
        return self.plot()._repr_png_()

    def cycle_ends(self, num_steps: int) -> Steps | None:
        """Return after how many steps of a run each whole cycle is done, rising; None without cycles.

        Args:
            num_steps: int, the steps of the run.
        """
        return None

    def formula(self, ops: Ops, steps: Any) -> Any:
        """Return the rates for checked steps, int64 of any shape, as a float64 array of the library of `ops`."""
        raise NotImplementedError

    def height(self, ops: Ops, steps: Any) -> Any:
        """Return the rates as shares of the way from low to high, 0–1. The arguments are those of `formula`."""
        raise NotImplementedError

    def to_config(self) -> dict[str, Any]:
        """Return the schedule's name and arguments as JSON types, for `schedules.from_config`.

        The name of a class of the user's own is its import path, and a function among its arguments is told by its
        own. Both are compared on resuming and never imported.
        """
        kind = type(self)
        config: dict[str, Any] = {"name": kind.__name__ if _is_own(kind) else path_of(kind)}
        for argument in dataclasses.fields(self):  # type: ignore[arg-type]
            config[argument.name] = _plain(getattr(self, argument.name))
        return config


def path_of(value: Any) -> str:
    """Return where a function or a class is defined, or the class of another value."""
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def _is_own(kind: type) -> bool:
    """Return whether a class is one of this package."""
    return kind.__module__.startswith(f"{__package__}.")


def _plain(value: Any) -> Any:
    """Return an argument as JSON types."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Schedule):
        return value.to_config()
    return value if isinstance(value, str | int | float | None) else path_of(value)


def mix(low: float, high: float, share: Any) -> Any:
    """Return the point that lies a share, 0–1, of the way from low to high. Both ends come out exactly."""
    return low * (1.0 - share) + high * share
