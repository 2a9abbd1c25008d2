"""The picture of each thing that has one, for its `plot()`."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from clr_loop.arguments import checked_whole
from clr_loop.runs.result import TrainingResult
from clr_loop.schedules import Schedule, describe
from clr_loop.studies.comparison.compare import Comparison
from clr_loop.studies.pictures.canvas import Picture
from clr_loop.studies.pictures.comparison import arms_picture
from clr_loop.studies.pictures.runs import schedule_picture, training_picture
from clr_loop.studies.range_test.picture import range_test_picture
from clr_loop.studies.range_test.sweep import RangeTest

# The steps of a schedule that has neither an end nor cycles, and those in which cycles are looked for.
_STEPS, _MOST_STEPS = 1000, 2**20


@singledispatch
def picture_of(thing: Any) -> Picture:
    """Return the picture of a result, a range test or a comparison; of a schedule, see `Schedule.plot`."""
    raise TypeError(f"{thing!r} has no picture.")


@picture_of.register
def _(schedule: Schedule, steps: int | None = None, steps_per_epoch: int | None = None) -> Picture:
    num_steps = _length_of(schedule) if steps is None else checked_whole("steps", steps)
    if steps_per_epoch is None:
        return schedule_picture(schedule, num_steps, None, type(schedule).__name__)
    warnings = describe(schedule, num_steps, steps_per_epoch).warnings
    return schedule_picture(schedule, num_steps, steps_per_epoch, type(schedule).__name__, warnings)


def _length_of(schedule: Schedule) -> int:
    """Return how many steps show what a schedule does."""
    if schedule.last_step is not None:
        return schedule.last_step + 1
    ends = schedule.cycle_ends(_MOST_STEPS)
    return _STEPS if ends is None or not len(ends) else int(ends[:2][-1])


@picture_of.register
def _(result: TrainingResult) -> Picture:
    return training_picture(result)


@picture_of.register
def _(test: RangeTest) -> Picture:
    return range_test_picture({test.settings["batch_size"]: [test]}, test.settings)


@picture_of.register
def _(comparison: Comparison) -> Picture:
    return arms_picture(comparison)
