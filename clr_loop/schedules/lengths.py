"""Lengths as people give them, in steps, epochs or a share of the run, turned into steps; all else speaks steps."""

from __future__ import annotations

import re
from fractions import Fraction

_LENGTH = re.compile(r"(?P<number>\d+(\.\d+)?)(?P<unit>|st|ep|%)", re.ASCII)


def to_steps(text: str, steps_per_epoch: int, total_steps: int, name: str = "length") -> int:
    """Turns a length into steps: `2000` or `2000st` (steps), `2ep` (epochs), `30%` (of the run).

    Epochs and per cent may have a decimal point; what is not a whole step then is rounded up, so that cycles given as a
    share of the run never leave a few steps over that would begin another.

    >>> [to_steps(text, steps_per_epoch=30, total_steps=450) for text in ("2000", "2000st", "2ep", "30%", "25%")]
    [2000, 2000, 60, 135, 113]

    Args:
        text: a number above 0 and its unit.
        steps_per_epoch, total_steps: int, at least 1: of the run.
        name: of the argument, for the error.

    Returns:
        int, at least 1.

    Raises:
        ValueError: if the text is not such a length, is 0, or is a number of steps that is not whole.
    """
    match = _LENGTH.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{name} must be a length such as 2000 or 2000st (steps), 2ep (epochs) or 30% (of the run), received "
            f"{text!r}; correct it"
        )
    # Exact, because 0.29 * 100 in floating point is not 29.
    number, unit = Fraction(match["number"]), match["unit"]
    if number == 0:
        raise ValueError(f"{name} must be at least 1 step, received {text!r}; give a longer one such as 2ep")
    if unit in ("", "st"):
        if number.denominator != 1:
            raise ValueError(f"{name} must be a whole number of steps, received {text!r}; round it, or add ep or %")
        return int(number)
    return _round_up(number * steps_per_epoch if unit == "ep" else number * total_steps / 100)


def _round_up(number: Fraction) -> int:
    return -(-number.numerator // number.denominator)
