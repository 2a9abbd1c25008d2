"""Values over seeds, and what they come to."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """Values over seeds. Where there is none, its mean and median are NaN, and its words a dash."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values) if self.values else math.nan

    @property
    def sd(self) -> float | None:
        """The sample standard deviation, or None for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def in_words(self, form: str, factor: float = 1.0) -> str:
        """Return the mean and, of several values, ± the standard deviation, both times a factor."""
        mean = format(self.mean * factor, form) if self.values else "–"
        return mean if self.sd is None else f"{mean} ± {format(self.sd * factor, form.lstrip('+'))}"

    def median_in_words(self, form: str) -> str:
        """Return the median."""
        return format(self.median, form) if self.values else "–"

    def range_in_words(self, form: str) -> str:
        """Return the lowest and the highest value: `[0.6520, 0.9349]`; "" where there is none."""
        return f"[{min(self.values):{form}}, {max(self.values):{form}}]" if self.values else ""

    def to_json(self) -> dict[str, Any]:
        """Return the values, how many they are, and what they come to, as JSON types; None where there is none."""
        if not self.values:
            return {"values": (), "n": 0, **dict.fromkeys(("mean", "sd", "median", "min", "max"))}
        own = {name: getattr(self, name) for name in ("values", "mean", "sd", "median")}
        return {**own, "n": len(self.values), "min": min(self.values), "max": max(self.values)}
