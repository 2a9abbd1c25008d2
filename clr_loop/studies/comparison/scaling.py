"""What a comparison says about batch sizes: what a target cost, how rates were tuned, and how they go with the size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from clr_loop.studies.comparison.effects import ArmSummary, Comparison
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.tuning import Search
from clr_loop.studies.report.tables import table_of

_TARGET_NOTE = """\
Medians over seeds of what it took until the first validation that reached the target. A seed that did not reach it
counts as infinite, so there is no median where half of the seeds did not."""
_RULE_NOTE = """\
The linear rule multiplies the rate of the first batch size by the ratio of the batch sizes, the square-root rule by its
root. The power is that of a straight line through the tuned rates on logarithmic axes, with its standard error; 1 is
the linear rule, 0.5 the square-root rule, 0 none."""


@dataclass(frozen=True)
class Power:
    """rate = constant · batch_size ** exponent, fitted through tuned rates.

    Attributes:
        exponent: float.
        standard_error: float, of the exponent; None from two batch sizes, through which a line always goes.
    """

    exponent: float
    standard_error: float | None

    def __str__(self) -> str:
        """`0.43 ± 0.08`."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:.2f}"
        return f"{self.exponent:.2f}{error}"


def fitted_power(searches: Sequence[Search]) -> Power | None:
    """Fit a power of the batch size to the best rates of one schedule; None from a single batch size."""
    if len(searches) < 2:
        return None
    sizes = np.log([search.arm.batch_size for search in searches])
    fit = stats.linregress(sizes, np.log([search.best.learning_rate for search in searches]))
    return Power(float(fit.slope), float(fit.stderr) if len(searches) > 2 else None)


def by_schedule(searches: Sequence[Search]) -> dict[str, list[Search]]:
    """Return the searches of each schedule by its name, in their order."""
    names = dict.fromkeys(search.arm.schedule_name for search in searches)
    return {name: [search for search in searches if search.arm.schedule_name == name] for name in names}


def to_target(comparison: Comparison) -> str:
    """Return the section of the report on the target; "" if there is none."""
    measure = comparison.measure
    if measure.target is None:
        return ""
    title = f"## To {measure.words} {measure.target:.4g}"
    if not any(arm.num_reached for arm in comparison.arms):
        finals = [arm.final.mean for arm in comparison.arms]
        best = max(finals) if measure.higher_is_better else min(finals)
        return f"{title}\n\nNot reached by any arm; the best mean after the last epoch is {best:.4g}."
    return f"{title}\n\n{table_of([_target_row(arm) for arm in comparison.arms])}\n\n{_TARGET_NOTE}"


def _target_row(arm: ArmSummary) -> dict[str, str]:
    forms = {"steps": ",.0f", "examples": ",.0f", "seconds": ".2f"}
    medians = {what: arm.median_to_target(what) for what in forms}
    told = {what: format(m, forms[what]) if math.isfinite(m) else "not reached" for what, m in medians.items()}
    return {"arm": arm.arm.label, "seeds that reached it": f"{arm.num_reached} of {len(arm.reached)}", **told}


def tuning(searches: Sequence[Search]) -> str:
    """Return the section of the report on tuning; "" if nothing was tuned."""
    if not searches:
        return ""
    rows = [_tuning_row(search) for search in searches]
    trials = [trial for search in searches for trial in search.trials]
    diverged = sum(trial.value is None for trial in trials)
    cost = (
        f"Tuning took {len(trials)} trial runs, with {sum(trial.seconds for trial in trials):.0f} seconds of training"
        f"{f'; {diverged} of them diverged' if diverged else ''}. The highest rate of each schedule was tuned; the "
        "base_lr of a cycle is a fourth of it, and its step_size makes two whole cycles unless it was given."
    )
    sections = [f"## Tuning\n\n{table_of(rows)}\n\n{textwrap.fill(cost, 120)}"]
    powers = {name: fitted_power(found) for name, found in by_schedule(searches).items()}
    if any(powers.values()):
        told = "; ".join(f"{name} {power}" for name, power in powers.items())
        sections.append(f"## Rate against batch size\n\n{_rule_table(searches)}\n\nFitted power: {told}. {_RULE_NOTE}")
    return "\n\n".join(sections)


def _tuning_row(search: Search) -> dict[str, str]:
    edge = f"at its {search.edge} edge" if search.edge else "inside"
    form = ".4f" if search.measure.is_share else ".4g"
    return {
        "arm": search.arm.label,
        "best rate": f"{search.best.learning_rate:g}",
        f"{search.measure.words}, held out": format(search.best.value, form),
        "trials": f"{len(search.trials)}{' (widened)' if search.widened else ''}",
        "rates tried": f"{search.trials[0].learning_rate:g} … {search.trials[-1].learning_rate:g}",
        "best in the grid": edge,
    }


def _rule_table(searches: Sequence[Search]) -> str:
    rows = []
    for name, found in by_schedule(searches).items():
        first = found[0]
        for search in found:
            ratio = search.arm.batch_size / first.arm.batch_size
            rows.append(
                {
                    "schedule": name,
                    "batch size": str(search.arm.batch_size),
                    "tuned": f"{search.best.learning_rate:g}",
                    "linear rule": f"{first.best.learning_rate * ratio:.3g}",
                    "square-root rule": f"{first.best.learning_rate * math.sqrt(ratio):.3g}",
                }
            )
    return table_of(rows)


def noise(comparison: Comparison, found: NoiseScale | None) -> str:
    """Return the section of the report on the gradient noise scale; "" if it was not measured."""
    if found is None:
        return ""
    words = (
        f"Along a run of {comparison.arms[0].arm.label}: {found}. Up to about this batch size, a batch twice as large "
        "should take little more than half the steps; far above it, hardly fewer."
    )
    largest = _scaling_limits(comparison)
    if largest:
        told = ", ".join(f"{size} ({name})" for name, size in largest.items())
        words += f" Measured, steps to the target stay below twice those of perfect scaling up to batch {told}."
    return f"## Gradient noise scale\n\n{textwrap.fill(words, 120)}"


def _scaling_limits(comparison: Comparison) -> dict[str, int]:
    """Return for each schedule the largest batch size whose steps to the target are below twice the perfect ones.

    Perfect scaling takes the examples that the smallest batch size takes.
    """
    found = {}
    for name in dict.fromkeys(arm.arm.schedule_name for arm in comparison.arms):
        arms = sorted(
            (arm for arm in comparison.arms if arm.arm.schedule_name == name), key=lambda arm: arm.arm.batch_size
        )
        examples = [arm.median_to_target("steps") * arm.arm.batch_size for arm in arms]
        if math.isfinite(examples[0]):
            found[name] = max(a.arm.batch_size for a, e in zip(arms, examples, strict=True) if e <= 2 * examples[0])
    return found
