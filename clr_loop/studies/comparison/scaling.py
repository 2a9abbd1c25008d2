"""How tuned rates, and the steps to a target, go with the batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from clr_loop.studies.comparison.effects import Comparison
from clr_loop.studies.comparison.tuning import Search


def fitted_power(searches: Sequence[Search]) -> tuple[float, float | None] | None:
    """Fit rate = constant · batch_size ** exponent to the tuned rates of one schedule; None from a single batch size.

    Returns:
        The exponent and its standard error, which is None from two batch sizes: a line always goes through them.
    """
    if len(searches) < 2:
        return None
    sizes = np.log([search.arm.batch_size for search in searches])
    fit = stats.linregress(sizes, np.log([search.learning_rate for search in searches]))
    return float(fit.slope), float(fit.stderr) if len(searches) > 2 else None


def largest_scaling_sizes(comparison: Comparison) -> dict[str, int]:
    """Return for each schedule the largest batch size whose steps to the target are below twice the perfect ones.

    Perfect scaling takes the examples that the smallest batch size takes. A schedule whose smallest batch size does not
    reach the target is left out.
    """
    largest = {}
    for name, arms in comparison.by_schedule().items():
        examples = {arm.arm.batch_size: arm.median_to_target("steps") * arm.arm.batch_size for arm in arms}
        perfect = next(iter(examples.values()))
        if math.isfinite(perfect):
            largest[name] = max(size for size, taken in examples.items() if taken <= 2 * perfect)
    return largest
