"""The flags that choose a schedule. Each argument of a schedule is a flag of the same name."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import flags
from numpy.typing import ArrayLike, NDArray

from clr_loop import schedules
from clr_loop.commands import model_flags, terminal
from clr_loop.data import functions, sha256_of

FLAGS = flags.FLAGS

SCHEDULES: dict[str, type[schedules.Schedule]] = {
    "constant": schedules.Constant,
    "triangular": schedules.Triangular,
    "triangular2": schedules.Triangular2,
    "exp_range": schedules.ExpRange,
    "one_cycle": schedules.OneCycle,
    "cosine_restarts": schedules.CosineRestarts,
    "linear_ramp": schedules.LinearRamp,
    "exponential_ramp": schedules.ExponentialRamp,
    "exponential_decay": schedules.ExponentialDecay,
    "one_triangle": schedules.OneTriangle,
    "linear_decay": schedules.LinearDecay,
    "cosine_decay": schedules.CosineDecay,
}

_LENGTHS = ("step_size", "step_size_down", "first_cycle_steps", "total_steps", "decay_steps")
UNITS = "2000 or 2000st (steps), 2ep (epochs) or 30% (of the run)"

flags.DEFINE_float("learning_rate", 0.1, "constant: the rate; exponential_decay: the first rate.")
flags.DEFINE_float("base_lr", 0.001, "Cycles and decays: the lowest rate.")
flags.DEFINE_float("max_lr", 0.006, "Cycles and decays: the highest rate.")
flags.DEFINE_string("step_size", "2000", f"Triangles: the climbing half of a cycle, usually 2 to 10 epochs; {UNITS}.")
flags.DEFINE_string("step_size_down", None, f"Triangles: the falling half, if it is not step_size; {UNITS}.")
flags.DEFINE_float("gamma", 0.9999, "exp_range: what the height of the cycle is multiplied by at each step, in (0, 1].")
flags.DEFINE_float("pct_start", 0.3, "one_cycle: the share of steps in which the rate climbs, 0 to 1.")
flags.DEFINE_float("div_factor", 25.0, "one_cycle: max_lr over the first rate.")
flags.DEFINE_float("final_div_factor", 1e4, "one_cycle: the first rate over the last.")
flags.DEFINE_enum("anneal", "cos", ("cos", "linear"), "one_cycle: the shape of its two halves.")
flags.DEFINE_string("first_cycle_steps", "50%", f"cosine_restarts: the first cycle; {UNITS}.")
flags.DEFINE_integer("t_mul", 1, "cosine_restarts: how many times longer each cycle is than the one before.")
flags.DEFINE_float("m_mul", 1.0, "cosine_restarts: how many times higher each cycle is than the one before, in (0, 1].")
flags.DEFINE_float("start_lr", 1e-7, "Ramps: the first rate.")
flags.DEFINE_float("end_lr", 10.0, "Ramps: the last rate.")
flags.DEFINE_string(
    "total_steps", "100%", f"Of one_cycle, one_triangle, ramps, linear_decay and cosine_decay: their length; {UNITS}."
)
flags.DEFINE_string("decay_steps", "1ep", f"exponential_decay: how often the rate is multiplied; {UNITS}.")
flags.DEFINE_float("decay_rate", 0.9, "exponential_decay: what the rate is multiplied by, in (0, 1].")
flags.DEFINE_bool("staircase", False, "exponential_decay: hold the rate in between.")
flags.DEFINE_string(
    "warmup", None, f"Climb to the schedule's first rate in so many steps first, which it does not count; {UNITS}."
)

_NAMES = ", ".join(SCHEDULES)


def is_schedule(name: str) -> bool:
    """Return whether --schedule can be this."""
    return name in SCHEDULES or ":" in name


def define_schedule() -> None:
    """Define --schedule."""
    flags.DEFINE_string(
        "schedule",
        "triangular",
        f"{_NAMES}; or package.module:function, a function that returns a schedule of clr_loop or a function of steps. "
        "It gets those of steps_per_epoch and the schedules' flags, such as --max_lr and --total_steps, that it has "
        "parameters for.",
    )
    flags.register_validator("schedule", is_schedule, message=f"must be {_NAMES}, or package.module:function")


@dataclass(frozen=True, eq=False)
class OwnSchedule(schedules.Schedule):
    """A function of the user's, steps → rates, which a function of the user's has made from these arguments."""

    name: str
    arguments: Mapping[str, Any]
    function: Callable[[NDArray[np.int64]], ArrayLike]

    def __post_init__(self) -> None:
        """Raise ValueError if the function does not return a rate for each step."""
        self.formula(None, np.arange(2))

    def formula(self, ops: Any, steps: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the rates; see `Schedule.formula`."""
        rates = np.asarray(functions.guarded(f"schedule {self.name} failed", self.function, steps), np.float64)
        if rates.shape != steps.shape:
            raise ValueError(
                f"schedule {self.name}: its function returned rates of shape {rates.shape} for steps of shape "
                f"{steps.shape}; it takes an array of steps and returns a rate for each."
            )
        return rates

    def to_config(self) -> dict[str, Any]:
        """Return the name and what tells one function from another: a digest of the rates of the first epoch."""
        first_epoch = self.formula(None, np.arange(self.arguments["steps_per_epoch"]))
        return {"name": self.name, "first_epoch_sha256": sha256_of(first_epoch)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process make it again."""
        return _make_own, (self.name, self.arguments)


def _make_own(name: str, arguments: Mapping[str, Any]) -> schedules.Schedule:
    made = functions.call(name, "schedule", **arguments)
    if isinstance(made, schedules.Schedule):
        return made
    if not callable(made):
        returns = "a schedule of clr_loop or a function of steps"
        raise ValueError(f"schedule {name} must return {returns}, but it returned {reprlib.repr(made)}.")
    return OwnSchedule(name, arguments, made)


def make(
    name: str, steps_per_epoch: int, total_steps: int, defaults: Mapping[str, str] | None = None
) -> schedules.Schedule:
    """Make a schedule for a run of this length, after its warm-up; `defaults` stand for flags that are not given."""
    warmup = FLAGS.warmup and schedules.to_steps(FLAGS.warmup, steps_per_epoch, total_steps, "warmup")
    if warmup and not 2 <= warmup < total_steps:
        raise ValueError(f"warmup is {warmup} steps; give at least 2, and fewer than the {total_steps} of the run.")
    total_steps -= warmup or 0
    instead, given = defaults or {}, {argument: FLAGS[argument] for argument in arguments_of(name)}
    arguments: dict[str, Any] = {
        argument: instead[argument] if argument in instead and not flag.present else flag.value
        for argument, flag in given.items()
    }
    for argument, value in arguments.items():
        if argument in _LENGTHS and value is not None:
            arguments[argument] = schedules.to_steps(value, steps_per_epoch, total_steps, argument)
    if "momentum" in arguments:  # One number is the optimizer's.
        arguments["momentum"] = tuple(model_flags.momentums()) if len(model_flags.momentums()) == 2 else None
    if name in SCHEDULES:
        schedule = SCHEDULES[name](**arguments)
    else:
        present = {argument: value for argument, value in arguments.items() if value is not None}
        schedule = _make_own(name, {**present, "steps_per_epoch": steps_per_epoch})
    if not warmup:
        return schedule
    first = float(schedule(0))
    return schedules.join([schedules.LinearRamp(first / warmup, first, warmup), schedule], [warmup])


def check(names: Sequence[str]) -> None:
    """Raise ValueError for a schedule's flag that was given although none of the named schedules takes it.

    A function of the user is imported here, and may import TensorFlow itself.
    """
    if any(name not in SCHEDULES for name in names):
        terminal.import_tensorflow()
    used = {argument for name in names for argument in arguments_of(name)}
    for flag in sorted({argument for name in SCHEDULES for argument in arguments_of(name)} - used):
        if FLAGS[flag].present and not (flag == "momentum" and len(model_flags.momentums()) == 1):
            takers = ", ".join(name for name in SCHEDULES if flag in arguments_of(name))
            raise ValueError(
                f"--{flag} means nothing to {', '.join(names)}; remove it or choose one that takes it: {takers}."
            )


def arguments_of(name: str) -> list[str]:
    """Return the names of a schedule's arguments, which are those of its flags."""
    if name not in SCHEDULES:
        of_all = {argument for known in SCHEDULES for argument in arguments_of(known)}
        return [argument for argument in functions.parameters_of(name, "schedule") if argument in of_all]
    return [field.name for field in dataclasses.fields(SCHEDULES[name]) if field.init]  # type: ignore[arg-type]
