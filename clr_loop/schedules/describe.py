"""What a schedule will do in a run of some length, and three warnings that save a run, before any training.

The warnings: the schedule is longer or shorter than the run, the run does not end where a cycle is low, and the rate
climbs for fewer or more epochs than Smith recommends.

>>> from clr_loop.schedules import Triangular
>>> print(describe(Triangular(0.001, 0.006, 100), total_steps=200, steps_per_epoch=40))
200 steps, 5 epochs: the learning rate starts at 0.001, ends at 0.00105 and is highest (0.006) at step 100
1.00 cycles; the run ends at the end of a cycle
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from clr_loop.arguments import checked_whole, spelled
from clr_loop.schedules.base import NUMPY, Schedule
from clr_loop.schedules.cycles import CosineRestarts, Cyclic, ExpRange, Triangular
from clr_loop.schedules.formulas import (
    Constant,
    ExponentialDecay,
    Joined,
    LinearDecay,
    LinearRamp,
    OneCycle,
    OneTriangle,
)

# We say that a run ends at the low if it ends within this share of the way up.
_NEAR_LOW = 0.1
# Smith, arXiv 1506.01186, section 3.2: a good step_size is 2 to 10 times the steps of an epoch.
_EPOCHS_UP = (2, 10)
# The rates of a longer run are sampled at this many steps.
_NUM_SAMPLES = 2**16


@dataclass(frozen=True)
class Description:
    """What a schedule does in a run. `str` gives it as lines to print, with each warning after `note:`."""

    total_steps: int
    steps_per_epoch: int
    first_lr: float
    last_lr: float
    highest_lr: float
    highest_step: int  # A step that has the highest rate, 0-based.
    num_samples: int | None  # The number of steps that were sampled in a long run; the highest rate is that of these.
    cycles: float | None  # The cycles of the run, with the share of the last one; None without cycles.
    end: str  # Where in its cycle the run ends, in words.
    warnings: tuple[str, ...]  # What may waste the run, each with the value to use instead.

    def __str__(self) -> str:
        length = f"{_count(self.total_steps, 'step')}, {_count(self.total_steps / self.steps_per_epoch, 'epoch')}"
        rates = f"the learning rate starts at {self.first_lr:.3g}, ends at {self.last_lr:.3g} and is highest"
        sampled = "" if self.num_samples is None else f" of the {self.num_samples:,} sampled steps"
        cycles = "" if self.cycles is None else f"{self.cycles:,.2f} cycles; "
        lines = [f"{length}: {rates} ({self.highest_lr:.3g}) at step {self.highest_step:,}{sampled}"]
        return "\n".join([*lines, f"{cycles}the run ends {self.end}", *(f"note: {note}" for note in self.warnings)])


def describe(schedule: Schedule, total_steps: int, steps_per_epoch: int) -> Description:
    """Return what a schedule will do in a run.

    In a run of more than 65,536 steps the highest rate is that of 65,536 steps spread over the run, and of the first
    peak.

    Args:
        schedule: one of `clr_loop.schedules`, or of another subclass of `Schedule`.
        total_steps, steps_per_epoch: int, at least 1.

    Raises:
        ValueError: if a number is below 1.
        TypeError: if a number is not an integer, or the schedule is no `Schedule`.
    """
    total_steps = checked_whole("total_steps", total_steps)
    steps_per_epoch = checked_whole("steps_per_epoch", steps_per_epoch)
    cycles, end, warnings = _look(schedule, total_steps, steps_per_epoch)
    steps, is_sampled = np.arange(min(total_steps, _NUM_SAMPLES)), total_steps > _NUM_SAMPLES
    if is_sampled:
        peak = min(getattr(schedule, "step_size", 0), total_steps - 1)
        steps = np.union1d(np.linspace(0, total_steps - 1, _NUM_SAMPLES - 1, dtype=np.int64), peak)
    rates = schedule.formula(NUMPY, steps)
    top = int(rates.argmax())
    return Description(
        total_steps, steps_per_epoch, float(rates[0]), float(rates[-1]), float(rates[top]), int(steps[top]),
        len(steps) if is_sampled else None, cycles, end, tuple(warnings),
    )  # fmt: skip


_Facts = tuple[float | None, str, list[str]]
"""The cycles of the run, where it ends in words, and what may waste it."""


@singledispatch
def _look(schedule: Schedule, total_steps: int, steps_per_epoch: int) -> _Facts:
    """Return what is known of one kind of schedule; here, of a kind that is none of ours."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"describe was given {schedule!r}, which is not a schedule of clr_loop.schedules.")
    return None, "where the schedule has led it", []


@_look.register
def _(schedule: Constant, total_steps: int, steps_per_epoch: int) -> _Facts:
    return None, "at the rate it began with", []


@_look.register
def _(schedule: ExponentialDecay, total_steps: int, steps_per_epoch: int) -> _Facts:
    return None, f"after {(total_steps - 1) / schedule.decay_steps:,.3g} decays", []


@_look.register
def _(schedule: LinearRamp, total_steps: int, steps_per_epoch: int) -> _Facts:
    return None, *_against_length(schedule, "ramp", total_steps)


@_look.register
def _(schedule: LinearDecay, total_steps: int, steps_per_epoch: int) -> _Facts:
    return None, *_against_length(schedule, "decay", total_steps)


@_look.register(OneCycle)
@_look.register(OneTriangle)
def _(schedule: OneCycle | OneTriangle, total_steps: int, steps_per_epoch: int) -> _Facts:
    cycles = min(total_steps / schedule.total_steps, 1.0)
    return cycles, *_against_length(schedule, "cycle", total_steps)


def _against_length(
    schedule: LinearRamp | LinearDecay | OneCycle | OneTriangle, what: str, total_steps: int
) -> tuple[str, list[str]]:
    """Return where the run ends, and a warning if the schedule has another length than the run."""
    too_many, last_lr = total_steps - schedule.total_steps, f"{_rate(schedule, total_steps - 1):.3g}"
    if too_many == 0:
        return f"at the end of the {what}", []
    end, but = f"after the {what}", f"the rate is held at {last_lr} for the last {_count(too_many, 'step')}"
    if too_many < 0:
        end, but = f"before the {what} does", f"the rate ends at {last_lr}, before the {what} does"
    lengths = f"the run has {total_steps} steps and the schedule {schedule.total_steps}"
    return end, [f"{lengths}: {but}; use {spelled(total_steps=total_steps)}"]


@_look.register
def _(schedule: Joined, total_steps: int, steps_per_epoch: int) -> _Facts:
    parts = [(part, start, min(end, total_steps)) for part, start, end in schedule.parts() if start < total_steps]
    facts = [_look(part, end - start, steps_per_epoch) for part, start, end in parts]
    cycles = [cycles for cycles, _, _ in facts if cycles is not None]
    warnings = [
        f"from step {start:,}: {warning}"
        for (_, start, _), (_, _, of_part) in zip(parts, facts, strict=True)
        for warning in of_part
    ]
    if len(parts) < len(schedule.schedules):
        late = schedule.boundaries[len(parts) - 1]
        warnings.append(f"the run ends before boundary {late}; give a boundary below {total_steps}")
    return sum(cycles) if cycles else None, facts[-1][1], warnings


# --- Cycles ---


@_look.register
def _(schedule: CosineRestarts, total_steps: int, steps_per_epoch: int) -> _Facts:
    cycle, position, length = (int(x) for x in schedule.place(NUMPY, np.array(total_steps - 1)))
    height, cycles, notes = (1.0 + math.cos(math.pi * position / length)) / 2.0, cycle + (position + 1) / length, []
    end = f"while the rate falls, {height:.0%} of the way from low to high"
    if position + 1 == length:
        end = "at the end of a cycle"
    elif height > _NEAR_LOW and schedule.base_lr < schedule.max_lr:
        number = max(round(cycles), 1)
        units = number if schedule.t_mul == 1 else (schedule.t_mul**number - 1) // (schedule.t_mul - 1)
        if total_steps * schedule.t_mul ** (number - 1) < 5 * units**2:
            number = units = 1  # Whole steps would leave too many of the last cycle out.
        first, last_lr = math.ceil(total_steps / units), f"{_rate(schedule, total_steps - 1):.3g}"
        advice = f"for {_whole_cycles(number)} use {spelled(first_cycle_steps=first)}"
        notes = [f"the run ends at {last_lr} and not at the low of a cycle; {advice}"]
    return cycles, end, notes


@_look.register
def _(schedule: Triangular, total_steps: int, steps_per_epoch: int) -> _Facts:
    up, period, position = schedule.step_size, schedule.period, (total_steps - 1) % schedule.period
    height = min(position / up, (period - position) / (period - up))
    end = f"while the rate {'climbs' if position < up else 'falls'}, {height:.0%} of the way from low to high"
    if position == period - 1:
        end = "at the end of a cycle"
    is_low = position == period - 1 or height <= _NEAR_LOW
    has_cycles = schedule.base_lr < schedule.max_lr
    return total_steps / period, end, _notes(schedule, total_steps, steps_per_epoch, is_low) if has_cycles else []


def _notes(schedule: Triangular, total_steps: int, steps_per_epoch: int, is_low: bool) -> list[str]:
    """Return what may waste the run; `is_low` says whether it ends low."""
    if total_steps == 1:
        return ["the run has 1 step, which cannot hold a cycle; train for more"]
    up, last_lr, notes = schedule.step_size, f"{_rate(schedule, total_steps - 1):.3g}", []
    least, most = (epochs * steps_per_epoch for epochs in _EPOCHS_UP)
    better_up, advice = _advice(schedule, total_steps, least, most)
    if total_steps <= up:
        way = "and the rate ends at" if isinstance(schedule, (Cyclic, ExpRange)) else "so the rate only climbs, to"
        before = f"the run's {total_steps} steps end before the first peak at step {up}"
        notes.append(f"{before}, {way} {last_lr}; {advice}")
    elif not is_low:
        notes.append(f"the run ends at {last_lr} and not at the low of a cycle; {advice}")
    if not least <= up <= most:
        if not least <= better_up <= most:
            advice = f"a cycle with such a climb takes {_count(math.ceil(2 * schedule.period / up), 'epoch')} or more"
        epochs = _count(up / steps_per_epoch, "epoch")
        notes.append(f"step_size {up} is {epochs}, and Smith recommends 2 to 10; {advice}")
    return notes


def _advice(schedule: Triangular, total_steps: int, least: int, most: int) -> tuple[int, str]:
    """Return a better step_size, and the words for it: two whole cycles, or the nearest number of a good length.

    A good step_size lies between `least` and `most`.
    """
    climb, is_symmetric = total_steps * schedule.step_size // schedule.period, schedule.step_size_down is None
    fewest = max(min(2, climb // least), climb // most + 1)
    for number in (*range(fewest, min(fewest + 50, climb // least) + 1), 1):
        period = total_steps // number
        up = period // 2 if is_symmetric else min(math.ceil(period * schedule.step_size / schedule.period), period - 1)
        down = up if is_symmetric else period - up
        if total_steps % (up + down) <= 1 + _NEAR_LOW * up:  # Whole steps leave few over. One cycle always does.
            break
    sizes = {"step_size": up} if is_symmetric else {"step_size": up, "step_size_down": down}
    return up, f"for {_whole_cycles(total_steps // (up + down))} use {spelled(**sizes)}"


def _rate(schedule: Schedule, step: int) -> float:
    return float(schedule.formula(NUMPY, np.array(step)))


def _count(number: float, unit: str) -> str:
    """Return "1 step", "450 steps", "2.5 epochs"."""
    digits = f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"
    return f"{digits} {unit}" + ("" if digits == "1" else "s")


def _whole_cycles(number: int) -> str:
    return {1: "one whole cycle", 2: "two whole cycles"}.get(number, f"{number:,} whole cycles")
