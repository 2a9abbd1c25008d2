"""What is decided of a comparison before its first run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clr_loop.arguments import checked_types, checked_whole
from clr_loop.runs import files as run_files
from clr_loop.runs.settings import in_words
from clr_loop.studies.arms import Arm
from clr_loop.studies.comparison import failures
from clr_loop.studies.comparison.effects import FEWEST_SEEDS
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.statistics import LEVELS


@checked_types
@dataclass(frozen=True)
class Plan:
    """What is compared, and for how long.

    Attributes:
        arms: every batch size with every schedule name, each once, the reference of both first.
        seeds: ints in [0, 2**32), each once; 3 or more show the spread.
        epochs: int, at least 1; or the epochs of each batch size, or of each schedule by its name.
        measure: what the arms will be compared by.
        looks: int from 1 to 5, how often the seeds so far are looked at, at equal distances; see `statistics.LEVELS`.

    Raises:
        ValueError: if the arms are not a whole grid, there is no seed, one twice or one out of range, epochs is below
            1, there are not so many levels of looks, or a look would come before the fourth seed.
    """

    arms: Sequence[Arm]
    seeds: Sequence[int]
    epochs: int | Mapping[int, int] | Mapping[str, int]
    measure: Measure = dataclasses.field(default_factory=Measure)
    looks: int = 1

    def __post_init__(self) -> None:
        check_grid(self.arms)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"The seeds are {list(self.seeds)}; give at least one, and each once.")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ValueError(f"The seeds are {list(self.seeds)}; choose them from 0 to 2**32 - 1.")
        for arm in self.arms:
            checked_whole("epochs", self.epochs_of(arm))
        if checked_whole("looks", self.looks) > max(LEVELS):
            raise ValueError(f"looks is {self.looks}; levels are known for at most {max(LEVELS)} looks.")
        if self.looks > 1 and len(self.seeds) < FEWEST_SEEDS * self.looks:
            raise ValueError(
                f"{self.looks} looks at {len(self.seeds)} seeds would come before a verdict is possible; take "
                f"{FEWEST_SEEDS * self.looks} seeds at least, or fewer looks."
            )

    def epochs_of(self, arm: Arm) -> int:
        """Return the epochs of an arm."""
        if isinstance(self.epochs, int):
            return self.epochs
        epochs: Mapping[Any, int] = self.epochs
        return epochs[arm.batch_size] if arm.batch_size in epochs else epochs[arm.schedule_name]

    def order(self, seed: int) -> list[Arm]:
        """Return the arms in the order in which they run with this seed, a permutation that the seed alone decides.

        A machine that slows down or warms up then affects all arms alike, and no arm always comes first.
        """
        return [self.arms[i] for i in np.random.default_rng(seed).permutation(len(self.arms))]

    @property
    def alpha(self) -> float:
        """The level of each look."""
        return LEVELS[self.looks]

    def seeds_between_looks(self) -> list[Sequence[int]]:
        """Return the seeds that are run before each look, in parts as equal as can be."""
        ends = [round(len(self.seeds) * look / self.looks) for look in range(self.looks + 1)]
        return [self.seeds[first:last] for first, last in itertools.pairwise(ends)]

    def to_json(self) -> dict[str, Any]:
        """Return as JSON types what is decided before the first run, but for the rates of the arms."""
        return {
            "epochs of each arm": {arm.label: self.epochs_of(arm) for arm in self.arms},
            "seeds": list(self.seeds),
            "order": "each seed draws the order of its arms: numpy.random.default_rng(seed).permutation(arms)",
            "measure": vars(self.measure),
            "looks": self.looks,
            "level of each look": self.alpha,
            "failures": failures.rule(self.measure.words, self.measure.failure_bound),
            "tests": "Student's t test of each effect and Fisher's exact test of failures, all corrected (Holm)",
        }

    def keep(self, path: Path, rates: Mapping[str, Any]) -> str:
        """Write the plan before the first run, or hold that the one that is there is the same; return it in words.

        Args:
            path: of a JSON file.
            rates: where the rates of the arms come from, JSON types by names that are not those of `to_json`.

        Raises:
            ValueError: if another plan is there.
        """
        content = {**self.to_json(), **rates}
        if path.exists():
            differing = in_words(run_files.read_json(path), content).values()
            if differing:
                raise ValueError(
                    f"{path} was written before the first run, with another plan: {'; '.join(differing)}. Go on with "
                    "that plan, or start a comparison in another directory."
                )
        else:
            run_files.write_json(path, content)
        looks = "one look" if self.looks == 1 else f"{self.looks} looks"
        margin = "no margin" if self.measure.margin is None else f"a margin of {self.measure.margin:g}"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return (
            f"The plan, {path.name} (sha256 {digest[:16]}…), was written before the first run: {len(self.seeds)} "
            f"seeds, {looks} at a level of {self.alpha:g}, {margin}, and the arms in an order that each seed draws."
        )


def check_grid(arms: Sequence[Arm]) -> None:
    """Raise ValueError unless the arms are every batch size with every schedule name, each once."""
    cells = sorted((arm.batch_size, arm.schedule_name) for arm in arms)
    if not arms or cells != sorted(itertools.product(*map(set, zip(*cells, strict=True)))):
        raise ValueError(
            f"The arms {[arm.label for arm in arms]} are not a whole grid; give every batch size with every schedule, "
            "each once."
        )
