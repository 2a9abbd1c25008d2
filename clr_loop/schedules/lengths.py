"""Lengths as people give them: steps, epochs or a share of the run. Everything after this counts in steps."""

from __future__ import annotations

import math
import re
from fractions import Fraction

_LENGTH = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>|st|ep|%)", re.ASCII)


def to_steps(text: str, steps_per_epoch: int, total_steps: int, name: str = "length") -> int:
    """Turn a length into steps: `2000` or `2000st` (steps), `2ep` (epochs), `30%` (of the run).

    Epochs and percent may have a decimal point. The result is rounded up, so that cycles given as a share of the run
    never leave a few steps over, which would begin another cycle.

    >>> [to_steps(text, steps_per_epoch=30, total_steps=450) for text in ("2000", "2000st", "2ep", "30%", "25%")]
    [2000, 2000, 60, 135, 113]

    Args:
        text: a number above 0 and its unit.
        steps_per_epoch, total_steps: int, at least 1, of the run.
        name: the argument's name, for the error.

    Returns:
        int, at least 1.

    Raises:
        ValueError: if the text is not such a length, is 0, or is a number of steps that is not whole.
    """
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{name} is {text!r}, which is not a length such as 2000 (steps), 2ep (epochs) or 30%.")
    # Exact, because 0.29 * 100 in floating point is not 29.
    number, unit = Fraction(match["number"]), match["unit"]
    if number == 0:
        raise ValueError(f"{name} is {text!r}; it must be at least 1 step, such as 2ep.")
    if unit in ("", "st") and number.denominator != 1:
        raise ValueError(f"{name} is {text!r}; steps are whole, so round it, or add ep or %.")
    return math.ceil(number * {"ep": Fraction(steps_per_epoch), "%": Fraction(total_steps, 100)}.get(unit, Fraction(1)))
