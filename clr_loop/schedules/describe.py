"""What a schedule will do in a run of a given length, and what in it may waste the run: known before training.

>>> from clr_loop.schedules import Triangular
>>> for line in describe(Triangular(0.001, 0.006, 2000), total_steps=450, steps_per_epoch=30).lines()[:3]:
...     print(line)
450 steps, 15 epochs: learning rate 0.001 at first, 0.00212 at last; highest 0.00212, at step 449
0.11 cycles; the run ends while the rate climbs, at 22 % of the way from low to high
note: 450 steps, step_size 2000: the rate only climbs, to 0.00212; for two whole cycles --step_size=112
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import singledispatch

import numpy as np

from clr_loop.schedules import base
from clr_loop.schedules.formulas import (
    Constant,
    CosineRestarts,
    Cyclic,
    ExpRange,
    Joined,
    LinearRamp,
    OneCycle,
    Schedule,
)

# A run that ends within this share of the way up is called to end at the low.
_NEAR_LOW = 0.1
# A highest rate of less than this share of the way up has not come near max_lr.
_NEAR_HIGH = 0.5
# Smith, arXiv 1506.01186, section 3.2: good results with a step_size of 2 to 10 times the steps of an epoch.
_EPOCHS_UP = (2, 10)


@dataclass(frozen=True)
class Description:
    """What a schedule does in a run.

    Attributes:
        total_steps: int, steps of the run.
        steps_per_epoch: int.
        first_lr, last_lr: float, rates of the first and the last step.
        highest_lr: float, the highest rate of the run.
        highest_step: int, the first step that has it, 0-based.
        cycles: float, cycles completed, with the share of the last; None for a schedule without cycles.
        end: in words, where in its cycle the run ends.
        warnings: what may waste the run, a sentence each, with the value to use instead.
    """

    total_steps: int
    steps_per_epoch: int
    first_lr: float
    last_lr: float
    highest_lr: float
    highest_step: int
    cycles: float | None
    end: str
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns the description for printing, warnings last, each as a `note:`."""
        epochs = self.total_steps / self.steps_per_epoch
        length = f"{_steps(self.total_steps)}, {epochs:.4g} epoch{'' if epochs == 1 else 's'}"
        cycles = "" if self.cycles is None else f"{self.cycles:.2f} cycles; "
        return [
            f"{length}: learning rate {self.first_lr:.3g} at first, {self.last_lr:.3g} at last; "
            f"highest {self.highest_lr:.3g}, at step {self.highest_step:,}",
            f"{cycles}the run ends {self.end}",
            *(f"note: {warning}" for warning in self.warnings),
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def describe(schedule: Schedule, total_steps: int, steps_per_epoch: int) -> Description:
    """Returns what a schedule will do in a run.

    The rates are looked at step by step, in pieces, so the figures hold for any scale function too.

    Args:
        schedule: one of `clr_loop.schedules`.
        total_steps: int, at least 1.
        steps_per_epoch: int, at least 1.

    Raises:
        ValueError: if a number is below 1.
        TypeError: if a number is not an integer, or the schedule is of an unknown kind.
    """
    total_steps = base.checked_whole("total_steps", total_steps)
    steps_per_epoch = base.checked_whole("steps_per_epoch", steps_per_epoch)
    highest_step, highest_lr = _highest(schedule, total_steps)
    first_lr, last_lr = schedule.formula(base.NUMPY, np.array([0, total_steps - 1])).tolist()
    cycles, end = _end(schedule, total_steps)
    warnings = _warnings(schedule, total_steps, steps_per_epoch)
    return Description(
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        first_lr=first_lr,
        last_lr=last_lr,
        highest_lr=highest_lr,
        highest_step=highest_step,
        cycles=cycles,
        end=end,
        warnings=tuple(warnings),
    )


def _highest(schedule: Schedule, total_steps: int) -> tuple[int, float]:
    piece = 2**20
    best_step, best_lr = 0, -1.0
    for first in range(0, total_steps, piece):
        rates = schedule.formula(base.NUMPY, np.arange(first, min(first + piece, total_steps)))
        i = int(np.argmax(rates))
        if rates[i] > best_lr:
            best_step, best_lr = first + i, float(rates[i])
    return best_step, best_lr


# --- Where the run ends: cycles completed, and the place in words ---


@singledispatch
def _end(schedule: Schedule, total_steps: int) -> tuple[float | None, str]:
    raise TypeError(f"schedule must be of clr_loop.schedules, received {schedule!r}; give one of these")


@_end.register
def _(schedule: Constant, total_steps: int) -> tuple[float | None, str]:
    return None, "with the rate that it began with"


@_end.register
def _(schedule: Cyclic, total_steps: int) -> tuple[float | None, str]:
    cycles = total_steps / schedule.period
    position = (total_steps - 1) % schedule.period
    if total_steps % schedule.period == 0:
        return cycles, "with the end of a cycle"
    height = f"{float(schedule.unscaled_height(base.NUMPY, np.array(position))):.0%}".replace("%", " %")
    if position == schedule.step_size:
        return cycles, "at the peak of a cycle"
    way = "climbs" if position < schedule.step_size else "falls"
    return cycles, f"while the rate {way}, at {height} of the way from low to high"


@_end.register
def _(schedule: CosineRestarts, total_steps: int) -> tuple[float | None, str]:
    cycle, position, length = (float(x) for x in schedule.place(base.NUMPY, np.array(total_steps - 1)))
    if position + 1 == length:
        return cycle + 1, "with the end of a cycle"
    return cycle + (position + 1) / length, f"after {int(position) + 1:,} of the {int(length):,} steps of a cycle"


@_end.register
def _(schedule: OneCycle, total_steps: int) -> tuple[float | None, str]:
    cycles = min(total_steps / schedule.total_steps, 1.0)
    if total_steps >= schedule.total_steps:
        return cycles, "with the cycle" if total_steps == schedule.total_steps else "after the cycle"
    return cycles, "while the rate climbs" if total_steps - 1 < schedule.peak else "while the rate falls"


@_end.register
def _(schedule: LinearRamp, total_steps: int) -> tuple[float | None, str]:
    if total_steps == schedule.total_steps:
        return None, "with the ramp"
    return None, "after the ramp" if total_steps > schedule.total_steps else "before the ramp does"


@_end.register
def _(schedule: Joined, total_steps: int) -> tuple[float | None, str]:
    ends = [_end(part, steps) for part, _, steps in _parts(schedule, total_steps)]
    counts = [cycles for cycles, _ in ends if cycles is not None]
    return sum(counts) if counts else None, ends[-1][1]


# --- What may waste the run ---


@singledispatch
def _warnings(schedule: Schedule, total_steps: int, steps_per_epoch: int) -> list[str]:
    return []


@_warnings.register
def _(schedule: Cyclic, total_steps: int, steps_per_epoch: int) -> list[str]:
    if schedule.base_lr == schedule.max_lr:
        return []
    up, advice = schedule.step_size, _whole_cycles(schedule, total_steps, steps_per_epoch)
    found = []
    last_lr = float(schedule.formula(base.NUMPY, np.array(total_steps - 1)))
    if total_steps <= up:
        what = f"{_steps(total_steps)}, step_size {up}: the rate only climbs, to {last_lr:.3g}"
        found.append(f"{what}; {advice.text}")
    elif not _ends_low(schedule, total_steps):
        found.append(
            f"{_steps(total_steps)}, step_size {up}: the run ends at {last_lr:.3g} and not at the cycle's low, where "
            f"Smith finishes; {advice.text}"
        )
    if total_steps > up:
        found += _scaled_away(schedule, total_steps)
    epochs = up / steps_per_epoch
    if not _EPOCHS_UP[0] <= epochs <= _EPOCHS_UP[1]:
        value = advice.text
        if not advice.within_epochs:
            value = f"train for {2 * _EPOCHS_UP[0]} epochs or more, which hold one whole cycle"
        found.append(f"step_size {up} is {epochs:.3g} epochs, Smith recommends 2 to 10; {value}")
    return found


@_warnings.register
def _(schedule: CosineRestarts, total_steps: int, steps_per_epoch: int) -> list[str]:
    if schedule.base_lr == schedule.max_lr or _ends_at_a_low(schedule, total_steps):
        return []
    cycle, position, length = (float(x) for x in schedule.place(base.NUMPY, np.array(total_steps - 1)))
    for number in range(max(round(cycle + (position + 1) / length), 1), 0, -1):
        # Rounded up: one step too few in a cycle would end the run with the first, high rates of another.
        first = -(-total_steps // sum(schedule.t_mul**i for i in range(number)))
        if _ends_at_a_low(dataclasses.replace(schedule, first_cycle_steps=first), total_steps):
            break
    return [
        f"{_steps(total_steps)}, first_cycle_steps {schedule.first_cycle_steps}: the run ends at "
        f"{float(schedule.formula(base.NUMPY, np.array(total_steps - 1))):.3g} and not at the cycle's low; "
        f"for {_count(number)} --first_cycle_steps={first}"
    ]


@_warnings.register
def _(schedule: OneCycle, total_steps: int, steps_per_epoch: int) -> list[str]:
    missing = "before it comes to max_lr" if total_steps - 1 < schedule.peak else "before it is down"
    found = _other_length(schedule, schedule.total_steps, total_steps, missing)
    if not found and schedule.pct_start == 1.0 and total_steps > 1:
        found.append(f"pct_start 1: the rate only climbs, to {schedule.max_lr:.3g}; for a fall --pct_start=0.3")
    around_peak = np.clip([math.floor(schedule.peak), math.ceil(schedule.peak)], 0, schedule.last_step)
    if not found and schedule.height(base.NUMPY, around_peak).max() < _NEAR_HIGH:
        found.append(
            f"total_steps {total_steps}, pct_start {schedule.pct_start:g}: the rate never comes near max_lr "
            f"{schedule.max_lr:.3g}; train for more steps or raise --pct_start"
        )
    return found


@_warnings.register
def _(schedule: LinearRamp, total_steps: int, steps_per_epoch: int) -> list[str]:
    missing = f"before it comes to end_lr {schedule.end_lr:.3g}"
    return _other_length(schedule, schedule.total_steps, total_steps, missing)


@_warnings.register
def _(schedule: Joined, total_steps: int, steps_per_epoch: int) -> list[str]:
    found = [
        f"from step {first:,}: {warning}"
        for part, first, steps in _parts(schedule, total_steps)
        for warning in _warnings(part, steps, steps_per_epoch)
    ]
    late = [boundary for boundary in schedule.boundaries if boundary >= total_steps]
    if late:
        found.append(f"{_steps(total_steps)}, boundary {late[0]}: the run ends before it; give one below {total_steps}")
    return found


def _parts(schedule: Joined, total_steps: int) -> Iterator[tuple[Schedule, int, int]]:
    """Yields each schedule that a run comes to, with its first step and the number of its steps."""
    starts = [0, *schedule.boundaries]
    ends = [*schedule.boundaries, total_steps]
    for part, first, end in zip(schedule.schedules, starts, ends, strict=True):
        if first < total_steps:
            yield part, first, min(end, total_steps) - first


def _other_length(schedule: Schedule, length: int, total_steps: int, what_is_missing: str) -> list[str]:
    """What to say of a finite schedule in a run of another length."""
    if total_steps == length:
        return []
    last = float(schedule.formula(base.NUMPY, np.array(total_steps - 1)))
    if total_steps < length:
        what = f"the rate ends at {last:.3g}, {what_is_missing}"
    else:
        what = f"the last {_steps(total_steps - length)} hold {last:.3g}"
    return [f"{_steps(total_steps)}, total_steps {length}: {what}; --total_steps={total_steps}"]


def _scaled_away(schedule: Cyclic, total_steps: int) -> list[str]:
    """What to say of a scale that keeps even the first cycle far from max_lr."""
    first_cycle = np.arange(min(schedule.period, total_steps))
    height = float(schedule.height(base.NUMPY, first_cycle).max())
    if height >= _NEAR_HIGH:
        return []
    highest = base.mix(schedule.base_lr, schedule.max_lr, height)
    what = f"the scale keeps the first peak down at {highest:.3g}, far from max_lr {schedule.max_lr:.3g}"
    if isinstance(schedule, ExpRange):
        gamma = 0.9 ** (1.0 / schedule.step_size)
        return [f"gamma {schedule.gamma:g}: {what}; for a first peak at 90 % --gamma={gamma:.8g}"]
    return [f"{what}; give a scale_fn that begins near 1"]


# --- The step_size to use instead ---


@dataclass(frozen=True)
class _Advice:
    text: str
    within_epochs: bool


def _ends_low(schedule: Cyclic, total_steps: int) -> bool:
    last = np.array(total_steps - 1)
    return (
        total_steps % schedule.period == 0 or float(schedule.unscaled_height(base.NUMPY, last)) <= _NEAR_LOW
    ) and total_steps > schedule.step_size


def _ends_at_a_low(schedule: CosineRestarts, total_steps: int) -> bool:
    _, position, length = (float(x) for x in schedule.place(base.NUMPY, np.array(total_steps - 1)))
    return position + 1 == length or (1.0 + math.cos(math.pi * position / length)) / 2.0 <= _NEAR_LOW


def _with_cycles(schedule: Cyclic, total_steps: int, cycles: int) -> Cyclic:
    """The same schedule with lengths for this many whole cycles in the run, its halves in the same proportion."""
    period = total_steps // cycles
    if schedule.step_size_down is None:
        return dataclasses.replace(schedule, step_size=period // 2)
    up = min(max(round(period * schedule.step_size / schedule.period), 1), period - 1)
    return dataclasses.replace(schedule, step_size=up, step_size_down=period - up)


def _whole_cycles(schedule: Cyclic, total_steps: int, steps_per_epoch: int) -> _Advice:
    """The lengths that come nearest to what was meant: whole cycles first, 2 to 10 epochs up, then their number."""
    if total_steps < 2:
        return _Advice("one step cannot hold a cycle; train for more", within_epochs=False)
    meant = total_steps / schedule.period if total_steps > schedule.step_size else 2.0
    low, high = (epochs * steps_per_epoch for epochs in _EPOCHS_UP)
    share_up = schedule.step_size / schedule.period
    # Around what was meant, and around the fewest and the most cycles that keep to 2 to 10 epochs.
    centres = (meant, total_steps * share_up / high, total_steps * share_up / low)
    numbers = {1, 2} | {int(centre) + offset for centre in centres for offset in range(-3, 5)}

    def cost(number: int) -> tuple[bool, bool, float]:
        other = _with_cycles(schedule, total_steps, number)
        return not _ends_low(other, total_steps), not low <= other.step_size <= high, abs(number - meant)

    best = min((number for number in numbers if 1 <= number <= total_steps // 2), key=cost)
    chosen = _with_cycles(schedule, total_steps, best)
    down = "" if chosen.step_size_down is None else f" --step_size_down={chosen.step_size_down}"
    return _Advice(f"for {_count(best)} --step_size={chosen.step_size}{down}", low <= chosen.step_size <= high)


def _steps(number: int) -> str:
    return f"{number:,} step" + ("s" if number != 1 else "")


def _count(cycles: int) -> str:
    words = {1: "one whole cycle", 2: "two whole cycles", 3: "three whole cycles"}
    return words.get(cycles, f"{cycles:,} whole cycles")
