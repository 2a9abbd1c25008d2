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
from typing import NamedTuple

import numpy as np

from clr_loop.arguments import checked_whole
from clr_loop.schedules.base import NUMPY, Schedule
from clr_loop.schedules.checks import Steps
from clr_loop.schedules.cycles import CosineRestarts, Cyclic, ExpRange, Triangular
from clr_loop.schedules.formulas import Constant, ExponentialDecay, Joined, LinearRamp, OneCycle

# We say that a run ends at the low if it ends within this share of the way up.
_NEAR_LOW = 0.1
# Smith, arXiv 1506.01186, section 3.2: a good step_size is 2 to 10 times the steps of an epoch.
_EPOCHS_UP = (2, 10)
# We look at up to this many steps, and as many peaks, of a user's own scale function.
_NUM_SAMPLES = 2**15


@dataclass(frozen=True)
class Description:
    """What a schedule does in a run. `str` gives it as lines to print, with each warning after `note:`."""

    total_steps: int
    steps_per_epoch: int
    first_lr: float
    last_lr: float
    highest_lr: float
    highest_step: int  # A step that has the highest rate, 0-based.
    num_samples: int | None  # The number of steps looked at, if the highest rate is only that of a sample.
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

    The cost does not grow with the number of steps. The highest rate is exact, except for a user's own `scale_fn`, or
    kind of schedule, in a run of more than 32,768 steps: there we look at up to 65,536 steps spread over the run.

    Args:
        schedule: one of `clr_loop.schedules`, or of another subclass of `Schedule`.
        total_steps, steps_per_epoch: int, at least 1.

    Raises:
        ValueError: if a number is below 1.
        TypeError: if a number is not an integer, or the schedule is no `Schedule`.
    """
    total_steps = checked_whole("total_steps", total_steps)
    steps_per_epoch = checked_whole("steps_per_epoch", steps_per_epoch)
    seen = _look(schedule, total_steps, steps_per_epoch)
    rates = schedule.formula(NUMPY, seen.tops)
    first_lr, last_lr, highest_lr = _rate(schedule, 0), _rate(schedule, total_steps - 1), float(rates.max())
    return Description(
        total_steps, steps_per_epoch, first_lr, last_lr, highest_lr, int(seen.tops[rates.argmax()]),
        len(seen.tops) if seen.is_sampled else None, seen.cycles, seen.end, tuple(seen.warnings),
    )  # fmt: skip


class _Look(NamedTuple):
    tops: Steps  # One of these steps has the highest rate.
    cycles: float | None
    end: str
    warnings: list[str]
    is_sampled: bool = False  # The tops are only a sample of the steps.


@singledispatch
def _look(schedule: Schedule, total_steps: int, steps_per_epoch: int) -> _Look:
    """Return what is known of one kind of schedule; here, of a kind that is none of ours."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"describe was given {schedule!r}, which is not a schedule of clr_loop.schedules.")
    steps = np.linspace(0, total_steps - 1, min(total_steps, _NUM_SAMPLES), dtype=np.int64)
    return _Look(steps, None, "where the schedule has led it", [], is_sampled=len(steps) < total_steps)


@_look.register
def _(schedule: Constant, total_steps: int, steps_per_epoch: int) -> _Look:
    return _Look(np.array([0]), None, "at the rate it began with", [])


@_look.register
def _(schedule: ExponentialDecay, total_steps: int, steps_per_epoch: int) -> _Look:
    return _Look(np.array([0]), None, f"after {(total_steps - 1) / schedule.decay_steps:,.3g} decays", [])


@_look.register
def _(schedule: LinearRamp, total_steps: int, steps_per_epoch: int) -> _Look:
    tops = np.array([0, min(total_steps, schedule.total_steps) - 1])
    return _Look(tops, None, *_against_length(schedule, "ramp", total_steps))


@_look.register
def _(schedule: OneCycle, total_steps: int, steps_per_epoch: int) -> _Look:
    last = min(total_steps, schedule.total_steps) - 1
    tops = np.clip([0, math.floor(schedule.peak), math.ceil(schedule.peak)], 0, last)
    return _Look(tops, (last + 1) / schedule.total_steps, *_against_length(schedule, "cycle", total_steps))


def _against_length(schedule: LinearRamp | OneCycle, what: str, total_steps: int) -> tuple[str, list[str]]:
    """Return where the run ends, and a warning if the schedule has another length than the run."""
    too_many, last_lr = total_steps - schedule.total_steps, f"{_rate(schedule, total_steps - 1):.3g}"
    if too_many == 0:
        return f"at the end of the {what}", []
    end, but = f"after the {what}", f"the rate is held at {last_lr} for the last {_count(too_many, 'step')}"
    if too_many < 0:
        end, but = f"before the {what} does", f"the rate ends at {last_lr}, before the {what} does"
    lengths = f"the run has {total_steps} steps and the schedule {schedule.total_steps}"
    return end, [f"{lengths}: {but}; use --total_steps={total_steps}"]


@_look.register
def _(schedule: Joined, total_steps: int, steps_per_epoch: int) -> _Look:
    parts = [(part, start, min(end, total_steps)) for part, start, end in schedule.parts() if start < total_steps]
    looks = [(start, _look(part, end - start, steps_per_epoch)) for part, start, end in parts]
    cycles = [look.cycles for _, look in looks if look.cycles is not None]
    notes = [f"from step {start:,}: {note}" for start, look in looks for note in look.warnings]
    if len(parts) < len(schedule.schedules):
        late = schedule.boundaries[len(parts) - 1]
        notes.append(f"the run ends before boundary {late}; give a boundary below {total_steps}")
    tops = np.concatenate([start + look.tops for start, look in looks])
    is_sampled = any(look.is_sampled for _, look in looks)
    return _Look(tops, sum(cycles) if cycles else None, looks[-1][1].end, notes, is_sampled)


# --- Cycles ---


@_look.register
def _(schedule: CosineRestarts, total_steps: int, steps_per_epoch: int) -> _Look:
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
        advice = f"for {_whole_cycles(number)} use --first_cycle_steps={first}"
        notes = [f"the run ends at {last_lr} and not at the low of a cycle; {advice}"]
    return _Look(np.array([0]), cycles, end, notes)


@_look.register
def _(schedule: Triangular, total_steps: int, steps_per_epoch: int) -> _Look:
    up, period, position = schedule.step_size, schedule.period, (total_steps - 1) % schedule.period
    height = min(position / up, (period - position) / (period - up))
    end = f"while the rate {'climbs' if position < up else 'falls'}, {height:.0%} of the way from low to high"
    if position == period - 1:
        end = "at the end of a cycle"
    tops, notes = _tops(schedule, total_steps), []
    if schedule.base_lr < schedule.max_lr:
        is_low = position == period - 1 or height <= _NEAR_LOW
        notes = _notes(schedule, total_steps, steps_per_epoch, is_low)
    return _Look(tops, total_steps / period, end, notes, isinstance(schedule, Cyclic) and len(tops) < total_steps)


def _tops(schedule: Triangular, total_steps: int) -> Steps:
    """Return steps of which one has the highest rate, or a sample of steps for a user's own scale function."""
    first_peak = min(schedule.step_size, total_steps - 1)
    if isinstance(schedule, ExpRange) and schedule.gamma < 1.0:
        turn = min(-1.0 / math.log(schedule.gamma), first_peak)  # Where step * gamma**step stops growing.
        return np.array([0, math.floor(turn), math.ceil(turn)])
    if not isinstance(schedule, Cyclic):
        return np.array([0, first_peak])
    num_peaks = (total_steps - 1 + schedule.period - schedule.step_size) // schedule.period
    every, peaks = (np.linspace(0, n - 1, min(n, _NUM_SAMPLES), dtype=np.int64) for n in (total_steps, num_peaks))
    return np.union1d(every, peaks * schedule.period + schedule.step_size)


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
    flags = f"--step_size={up}" if is_symmetric else f"--step_size={up} --step_size_down={down}"
    return up, f"for {_whole_cycles(total_steps // (up + down))} use {flags}"


def _rate(schedule: Schedule, step: int) -> float:
    return float(schedule.formula(NUMPY, np.array(step)))


def _count(number: float, unit: str) -> str:
    """Return "1 step", "450 steps", "2.5 epochs"."""
    digits = f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"
    return f"{digits} {unit}" + ("" if digits == "1" else "s")


def _whole_cycles(number: int) -> str:
    return {1: "one whole cycle", 2: "two whole cycles"}.get(number, f"{number:,} whole cycles")
