"""The metric that a comparison is about: which way is better, and how to write it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from clr_loop.arguments import checked_types
from clr_loop.runs.result import Reached, TrainingResult, higher_is_better

EPOCH_SECONDS = "epoch_seconds"
"""The measure of a run's speed, the median of its epochs."""


def is_share(name: str) -> bool:
    """Return whether a metric is an accuracy: from 0 to 1, with differences that are written in percentage points."""
    return "accuracy" in name or "acc" in name.split("_")


def in_words(name: str) -> str:
    """Return a metric's name in words: `validation accuracy`, `training loss`."""
    split = "validation" if name.startswith("val_") else "training"
    return f"{split} {name.removeprefix('val_').replace('_', ' ')}"


def count(number: int, thing: str) -> str:
    """Return how many there are of a thing: `1 seed`, `2 seeds`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


@checked_types
@dataclass(frozen=True)
class Measure:
    """The metric that arms are compared by, after the last epoch.

    Attributes:
        name: a metric's name in the results, such as "val_accuracy".
        higher_is_better: None takes what `runs.result.higher_is_better` says of the name.
        target: the value that arms are timed to, or None.
        margin: the smallest difference that matters, above 0, or None; 0.005 is half a point of an accuracy.
        failure_bound: the value beyond which a run has failed; None takes the rule of `failures.failed`.

    All three are in the measure's own unit, that of an accuracy a share from 0 to 1.

    Raises:
        ValueError: if one of them is not finite, or is not a share although the measure is an accuracy; if the margin
            is not above 0.
    """

    name: str = "val_accuracy"
    higher_is_better: bool | None = None
    target: float | None = None
    margin: float | None = None
    failure_bound: float | None = None

    def __post_init__(self) -> None:
        if self.higher_is_better is None:
            object.__setattr__(self, "higher_is_better", higher_is_better(self.name))
        for name in ("target", "margin", "failure_bound"):
            value = getattr(self, name)
            if value is not None and not (0.0 <= value <= 1.0 if self.is_share else math.isfinite(value)):
                needed = "a share from 0 to 1 (0.9 means 90%)" if self.is_share else "a finite number"
                raise ValueError(f"The {name} is {value}, but {self.name} is {needed}; give such a {name}.")
        if self.margin is not None and self.margin <= 0.0:
            raise ValueError(f"The margin is {self.margin:g}; it is the smallest difference that matters, above 0.")

    @property
    def is_share(self) -> bool:
        """Whether it is an accuracy, from 0 to 1."""
        return is_share(self.name)

    @property
    def words(self) -> str:
        """Its name in words: `validation accuracy`."""
        return "epoch seconds" if self.name == EPOCH_SECONDS else in_words(self.name)

    @property
    def form(self) -> str:
        """The format in which its values are written."""
        return ".4f" if self.is_share else ".4g"

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError if the measure is not among these names."""
        if self.name not in names:
            raise ValueError(f"These runs have no measure {self.name}; choose one of {', '.join(names)}.")

    def reach(self, result: TrainingResult) -> Reached | None:
        """Return what a run took until the first validation that reached the target, or None where none did."""
        return None if self.target is None else result.reach(self.name, self.target, self.higher_is_better)
