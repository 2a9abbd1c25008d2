"""Values over seeds, and what they come to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """Values over seeds, at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def sd(self) -> float | None:
        """The sample standard deviation, or None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def in_words(self, form: str, factor: float = 1.0) -> str:
        """Return the mean and, of several values, ± the standard deviation, both times a factor."""
        mean = format(self.mean * factor, form)
        return mean if self.sd is None else f"{mean} ± {format(self.sd * factor, form.lstrip('+'))}"

    def to_json(self) -> dict[str, Any]:
        """Return the values, how many they are, and what they come to, as JSON types."""
        own = {name: getattr(self, name) for name in ("values", "mean", "sd", "median")}
        return {**own, "n": len(self.values), "min": min(self.values), "max": max(self.values)}
