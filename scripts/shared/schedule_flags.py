"""The flags that choose a schedule. Each argument of a schedule is a flag of the same name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from clr_loop import schedules

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
}

_LENGTHS = ("step_size", "step_size_down", "first_cycle_steps", "total_steps", "decay_steps")
UNITS = "2000 or 2000st (steps), 2ep (epochs) or 30% (of the run)"

flags.DEFINE_float("learning_rate", 0.1, "constant: the rate; exponential_decay: the first rate.")
flags.DEFINE_float("base_lr", 0.001, "Cycles: the lowest rate.")
flags.DEFINE_float("max_lr", 0.006, "Cycles: the highest rate.")
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
flags.DEFINE_string("total_steps", "100%", f"one_cycle and ramps: their whole length; {UNITS}.")
flags.DEFINE_string("decay_steps", "1ep", f"exponential_decay: how often the rate is multiplied; {UNITS}.")
flags.DEFINE_float("decay_rate", 0.9, "exponential_decay: what the rate is multiplied by, in (0, 1].")
flags.DEFINE_bool("staircase", False, "exponential_decay: hold the rate in between.")
flags.DEFINE_string(
    "warmup", None, f"Climb to the schedule's first rate in so many steps first, which it does not count; {UNITS}."
)
flags.DEFINE_list(
    "momentum", None, "Cycles: low,high, such as 0.85,0.95: SGD's momentum or Adam's beta_1, cycled against the rate."
)


@flags.validator("momentum", message="must be two numbers, low,high, such as 0.85,0.95")
def _are_two_numbers(values: list[str] | None) -> bool:
    try:
        return values is None or len([float(value) for value in values]) == 2
    except ValueError:
        return False


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
        if argument == "momentum" and value is not None:
            arguments[argument] = tuple(float(number) for number in value)
    schedule = SCHEDULES[name](**arguments)
    if not warmup:
        return schedule
    first = float(schedule(0))
    return schedules.join([schedules.LinearRamp(first / warmup, first, warmup), schedule], [warmup])


def check(names: Sequence[str]) -> None:
    """Raise ValueError for a schedule's flag that was given although none of the named schedules takes it."""
    used = {argument for name in names for argument in arguments_of(name)}
    for flag in sorted({argument for name in SCHEDULES for argument in arguments_of(name)} - used):
        if FLAGS[flag].present:
            takers = ", ".join(name for name in SCHEDULES if flag in arguments_of(name))
            raise ValueError(
                f"--{flag} means nothing to {', '.join(names)}; remove it or choose one that takes it: {takers}."
            )


def arguments_of(name: str) -> list[str]:
    """Return the names of a schedule's arguments, which are those of its flags."""
    return [field.name for field in dataclasses.fields(SCHEDULES[name]) if field.init]  # type: ignore[arg-type]
