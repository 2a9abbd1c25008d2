"""The arguments of schedules. Each check returns its value, or raises TypeError or ValueError as `arguments` does."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clr_loop.arguments import checked_choice, checked_number, checked_whole

Steps = NDArray[np.int64]
Rates = NDArray[np.float64]
Momentum = tuple[float, float]


def checked_momentum(name: str, value: Any) -> Momentum:
    """Return (low, high) with 0 <= low <= high < 1, also in float32."""
    if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
        raise TypeError(f"{name} is {value!r}; it must be a pair (low, high) such as (0.85, 0.95).")
    low, high = (checked_number(name, number) for number in value)
    if not (0.0 <= low <= high < 1.0 and np.float32(high) < 1.0):
        raise ValueError(f"{name} is ({low}, {high}); it must have 0 <= low <= high < 1, also in float32.")
    return low, high


def checked_steps(step: ArrayLike) -> Steps:
    """Return steps of any shape as int64."""
    array = np.asarray(step)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"step has the type {array.dtype}; steps count updates and must be integers.")
    steps = array.astype(np.int64)
    if steps.size and steps.min() < 0:  # Also an unsigned step above int64, which has become negative.
        raise ValueError(f"step is {array.flat[steps.argmin()]}; steps are counted from 0, in int64.")
    return steps


def checked_scale(scale_fn: Callable[[Any], Any], x: Rates) -> Rates:
    """Return `scale_fn(x)` as float64; raise ValueError if its shape is not that of `x` or a value is not in 0–1."""
    values, what = np.asarray(scale_fn(x), np.float64), f"scale_fn {getattr(scale_fn, '__name__', scale_fn)} returned"
    if values.shape != np.shape(x):
        raise ValueError(f"{what} shape {values.shape} for {np.shape(x)}; it must return a value for each element.")
    bad = ~((values >= 0.0) & (values <= 1.0))  # True for NaN, too.
    if bad.any():
        value, argument = values[bad][0], np.asarray(x)[bad][0]
        raise ValueError(f"{what} {value} for {argument:g}; it must return shares of the full height, from 0 to 1.")
    return values


_ABOVE_0, _HIGHEST = math.ulp(0.0), sys.float_info.max
_RATE = 0.0, float(np.finfo(np.float32).max), "a learning rate must be finite, at least 0 and at most 3.4e38 (float32)"
_FACTOR = _ABOVE_0, 1.0, "it must be above 0 and at most 1. With 1 every cycle has full height"
# The lowest and the highest value of a schedule's numbers, and the rule that an error says.
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(("learning_rate", "base_lr", "max_lr", "start_lr", "end_lr"), _RATE),
    **dict.fromkeys(("gamma", "m_mul"), _FACTOR),
    "decay_rate": (_ABOVE_0, 1.0, "the rate is multiplied by it, so it must be above 0 and at most 1"),
    "pct_start": (0.0, 1.0, "it is a share and must be from 0 to 1 (0.3 means 30%)"),
    "div_factor": (1.0, _HIGHEST, "it is max_lr over the first rate and must be finite and at least 1"),
    "final_div_factor": (_ABOVE_0, _HIGHEST, "it is the first rate over the last and must be finite and above 0"),
}
_CHOICES = {"anneal": ("cos", "linear"), "scale_mode": ("cycle", "iterations")}


def checked_argument(name: str, value: Any) -> Any:
    """Return an argument of a schedule. It means the same in all of them, so its name decides how it is checked."""
    if value is None and name in ("step_size_down", "momentum"):
        return None
    if name in _RANGES:
        return checked_number(name, value, *_RANGES[name])
    if name in _CHOICES:
        return checked_choice(name, value, *_CHOICES[name])
    if name in ("step_size", "step_size_down", "first_cycle_steps", "total_steps", "decay_steps", "t_mul"):
        return checked_whole(name, value)
    if name == "staircase" and not isinstance(value, bool):
        raise TypeError(f"staircase is {value!r}; it must be True or False.")
    return checked_momentum(name, value) if name == "momentum" else value
