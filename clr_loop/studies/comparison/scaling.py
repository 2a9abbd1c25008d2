"""How tuned rates, and the steps to a target, go with the batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from clr_loop.studies.comparison.compare import Comparison
from clr_loop.studies.comparison.tuning import Search


def fitted_power(searches: Sequence[Search]) -> tuple[float, float, float] | None:
    """Fit rate = constant · batch_size ** exponent to the tuned rates of one schedule.

    Returns:
        The exponent and its 95% interval (Student's t, from the distances to the line); None from fewer than three
        batch sizes, because a line goes through any two.
    """
    if len(searches) < 3:
        return None
    sizes = np.log([search.arm.batch_size for search in searches])
    fit = stats.linregress(sizes, np.log([search.learning_rate for search in searches]))
    margin = float(stats.t.ppf(0.975, len(searches) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - margin, float(fit.slope) + margin


@dataclass(frozen=True)
class Scaling:
    """How the steps of one schedule to a target fall with the batch size.

    Attributes:
        largest: int, the largest batch size whose steps are below twice the perfect ones, or None if the smallest batch
            size does not reach the target. Perfect scaling takes the examples that the smallest batch size takes.
        at_budget: ints, the batch sizes whose median run reaches the target at its last validation, or not at all. More
            steps, or a schedule that ends earlier, would give these another number.
    """

    largest: int | None
    at_budget: tuple[int, ...]


def scaling(comparison: Comparison) -> dict[str, Scaling]:
    """Return the scaling of each schedule by its name."""
    found = {}
    for name, arms in comparison.by_schedule().items():
        steps = {arm.arm.batch_size: arm.median_to_target("steps") for arm in arms}
        perfect = arms[0].arm.batch_size * steps[arms[0].arm.batch_size]
        within = [size for size, taken in steps.items() if math.isfinite(perfect) and size * taken <= 2 * perfect]
        trained = [arm for arm in arms if arm.final.values]
        at_budget = tuple(arm.arm.batch_size for arm in trained if steps[arm.arm.batch_size] >= arm.steps)
        found[name] = Scaling(max(within, default=None), at_budget)
    return found
