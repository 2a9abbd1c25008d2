"""The report of a comparison, in Markdown: what was compared, its tables, and what follows."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clr_loop.schedules import Constant, Triangular
from clr_loop.studies.comparison.effects import ArmSummary, Comparison
from clr_loop.studies.comparison.measures import count
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.scaling import fitted_power, largest_scaling_sizes
from clr_loop.studies.comparison.tuning import Search, by_schedule
from clr_loop.studies.range_test.sweep import RangeTest
from clr_loop.studies.report.tables import table_of
from clr_loop.studies.report.tuning import tuning_section
from clr_loop.studies.report.words import amount, conclusions, interval, p_in_words, unit_of, verdict

# "Implementing Cyclic Learning Rates in Keras": (batch size, schedule) → training seconds, validation accuracy.
_ARTICLE_EPOCHS = 15
_ARTICLE = {
    (100, Constant(0.1)): (30.21, 0.7598),
    (2000, Triangular(0.001, 0.006, 2000)): (5.47, 0.8352),
}

_SETTINGS = """\
This report compares settings, not schedules: each arm ran with the learning rates that it was given, and with other
rates the result may be the opposite. `python scripts/compare_batch_sizes.py --tune=8`, with the other flags as they
were, compares schedules: it tunes every arm with the same effort first."""
_TUNED = """\
This report compares schedules, each at its best: every arm ran at the rate at the top of a curve through its trials on
held-out training examples, with the same effort and other seeds."""
_BUDGETS = {
    "epochs": "All arms visit every example equally often.",
    "steps": "All arms take as many steps, rounded to whole epochs.",
    "seconds": "All arms train for about as long, rounded to whole epochs.",
}
_ARMS_NOTE = """\
Times are of training alone, and each epoch ends with its metrics on the host. Each batch size is compiled once, before
the first step. ± is the standard deviation over seeds; the lowest and highest seed are in brackets."""
_TARGET_NOTE = """\
Medians over seeds of what it took until the first validation that reached the target. A seed that did not reach it
counts as infinite, so there is no median where half of the seeds did not."""
_RULE_NOTE = """\
The linear rule multiplies the rate of the first batch size by the ratio of the batch sizes, the square-root rule by its
root. The power is that of a straight line through the tuned rates on logarithmic axes, with its standard error; 1 is
the linear rule, 0.5 the square-root rule, 0 none."""
_EFFECTS_NOTE = """\
Each effect is a difference taken seed by seed (same initial weights, same order of the data), averaged over the levels
of the other factor. ± is its standard deviation over seeds, and the interval is the 95% interval of the mean (Student's
t). p is that of Student's t test, corrected because several effects are tested on one measure (Holm). A difference is
shown where p is at most 0.05. An interval that excludes 0 is not enough, because it is not corrected. If the arms do
not differ, at most one comparison in twenty shows a difference; from fewer than four seeds it may be more.

Where none is shown, there are two cases. If the whole interval lies within one standard deviation of 0, the change does
less than another seed does, and the verdict names the far end of the interval: a larger difference is not likely. Every
other case is undecided, and the verdict names the number of seeds from which one or the other is always said. A power
of 80% means that four such comparisons in five show a difference of this size. It is based on the observed standard
deviation, so it is rough if the seeds are few. Decide on the number of seeds before the first run: looking at some
and then adding more makes a false difference more likely."""


@dataclass(frozen=True)
class Context:
    """What a report tells beside the comparison.

    Attributes:
        dataset, model: their names.
        budget: what the arms have in common: "epochs", "steps" or "seconds".
        searches: how each arm was tuned; () if none was.
        noise_scale: of the first arm, if it was measured.
        range_tests: those of each batch size that bounds or tuning began with.
    """

    dataset: str
    model: str
    budget: Literal["epochs", "steps", "seconds"] = "epochs"
    searches: Sequence[Search] = ()
    noise_scale: NoiseScale | None = None
    range_tests: Mapping[int, Sequence[RangeTest]] = dataclasses.field(default_factory=dict)


def markdown(comparison: Comparison, context: Context) -> str:
    """Return the report of a comparison; it has the article's column only where the settings are the article's own."""
    scope = _TUNED if context.searches else _SETTINGS
    sections = [
        f"# Batch size and learning rate\n\n{scope}\n\n{_head(comparison, context)}",
        f"## Arms\n\n{_arms_table(comparison, context)}\n\n{_arms_notes(comparison)}",
        target_section(comparison),
        tuning_section(context.searches),
        _rule_section(context.searches),
        _noise_section(comparison, context.noise_scale),
        f"## Effects\n\n{_effects_table(comparison)}\n\n{_EFFECTS_NOTE}" if comparison.effects else "",
        "## What follows\n\n" + "\n".join(f"- {sentence}" for sentence in conclusions(comparison)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(comparison: Comparison, context: Context) -> str:
    first = comparison.runs[0].result
    lengths = sorted({len(run.result.epochs) for run in comparison.runs})
    epochs = count(lengths[0], "epoch") if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} epochs"
    versions = ", ".join(f"{name} {number}" for name, number in first.settings["versions"].items())
    return (
        f"{context.dataset}, {context.model}, {first.settings['optimizer']}, {epochs}, "
        f"{count(len(comparison.seeds), 'seed')} an arm; on {first.device}; {versions}. {_BUDGETS[context.budget]}"
    )


def _is_article(comparison: Comparison, context: Context) -> bool:
    epochs = {len(run.result.epochs) for run in comparison.runs}
    optimizer = comparison.runs[0].result.settings["optimizer"]
    settings = (context.dataset, context.model, epochs, optimizer, comparison.measure.name)
    return settings == ("mnist", "article_mlp", {_ARTICLE_EPOCHS}, "Adam", "val_accuracy")


def _arms_table(comparison: Comparison, context: Context) -> str:
    measure, is_article = comparison.measure, _is_article(comparison, context)
    rows = []
    for arm in comparison.arms:
        values = arm.final.values
        spread = f"(n={len(values)}) [{min(values):{measure.form}}, {max(values):{measure.form}}]"
        row = {
            "arm": arm.arm.label,
            "updates": f"{arm.steps:,}",
            "epoch s (median)": f"{arm.epoch_seconds:.3f}",
            "train s": arm.train_seconds.in_words(".2f"),
            "compile s": f"{arm.compile_seconds:.1f}",
            "examples/s": f"{arm.examples_per_second:,.0f}",
            measure.words: f"{arm.final.in_words(measure.form)} {spread}",
        }
        if is_article:
            seconds, accuracy = _ARTICLE.get((arm.arm.batch_size, arm.arm.schedule), (None, None))
            row["the article"] = "–" if seconds is None else f"{seconds:.2f} s, {accuracy:.4f}"
        rows.append(row)
    return table_of(rows)


def _arms_notes(comparison: Comparison) -> str:
    """Say what the columns hold, which seeds the times are of, and where the bounds of the cycles came from."""
    notes = [_ARMS_NOTE]
    untimed = [seed for seed in comparison.seeds if seed not in comparison.timed_seeds]
    if untimed:
        timed, others = (
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            for seeds in (comparison.timed_seeds, untimed)
        )
        notes.append(
            f"Times are of {timed} alone: {others} ran side by side with others and count for the "
            f"{comparison.measure.words} only."
        )
    prefix, settings = "range_test_batch_", comparison.runs[0].result.settings
    bounds = [f"{name.removeprefix(prefix)} `{value}`" for name, value in settings.items() if name.startswith(prefix)]
    if bounds:
        notes.append(f"An LR range test for each batch size suggested the cycles: {'; '.join(bounds)}.")
    return "\n\n".join(notes)


def target_section(comparison: Comparison) -> str:
    """Return the section on what the target cost; "" if there is no target."""
    measure = comparison.measure
    if measure.target is None:
        return ""
    title = f"## To {measure.words} {measure.target:.4g}"
    if any(arm.num_reached for arm in comparison.arms):
        return f"{title}\n\n{table_of([_target_row(arm) for arm in comparison.arms])}\n\n{_TARGET_NOTE}"
    finals = [arm.final.mean for arm in comparison.arms]
    best = max(finals) if measure.higher_is_better else min(finals)
    return f"{title}\n\nNot reached by any arm; the best mean after the last epoch is {best:.4g}."


def _target_row(arm: ArmSummary) -> dict[str, str]:
    forms = {"steps": ",.0f", "examples": ",.0f", "seconds": ".2f"}
    medians = {what: arm.median_to_target(what) for what in forms}
    cells = {what: format(m, forms[what]) if math.isfinite(m) else "not reached" for what, m in medians.items()}
    return {"arm": arm.arm.label, "seeds that reached it": f"{arm.num_reached} of {len(arm.reached)}", **cells}


def _rule_section(searches: Sequence[Search]) -> str:
    """Return the section on the rate against the batch size; "" unless a schedule was tuned at two."""
    rows, powers = [], []
    for name, of_schedule in by_schedule(searches).items():
        power, first = fitted_power(of_schedule), of_schedule[0]
        if power is not None:
            exponent, error = power
            powers.append(f"{name} {exponent:.2f}" + ("" if error is None else f" ± {error:.2f}"))
        for search in of_schedule:
            ratio = search.arm.batch_size / first.arm.batch_size
            row = {
                "schedule": name,
                "batch size": str(search.arm.batch_size),
                "tuned": f"{search.learning_rate:g}",
                "linear rule": f"{first.learning_rate * ratio:.3g}",
                "square-root rule": f"{first.learning_rate * math.sqrt(ratio):.3g}",
            }
            rows.append(row)
    if not powers:
        return ""
    return f"## Rate against batch size\n\n{table_of(rows)}\n\nFitted power: {'; '.join(powers)}. {_RULE_NOTE}"


def _noise_section(comparison: Comparison, noise_scale: NoiseScale | None) -> str:
    """Return the section on the gradient noise scale; "" if it was not measured."""
    if noise_scale is None:
        return ""
    text = (
        f"Along a run of {comparison.arms[0].arm.label}: {noise_scale}. Up to about this batch size, a batch twice as "
        "large should take little more than half the steps; far above it, hardly fewer."
    )
    largest = [f"{size} ({name})" for name, size in largest_scaling_sizes(comparison).items()]
    if largest:
        text += (
            " Measured, steps to the target stay below twice those of perfect scaling up to batch "
            f"{', '.join(largest)}."
        )
    return f"## Gradient noise scale\n\n{textwrap.fill(text, 120)}"


def _effects_table(comparison: Comparison) -> str:
    measure = comparison.measure
    return table_of(
        [
            {
                "measure": unit_of(effect, measure).words,
                "factor": effect.factor.replace("_", " "),
                "change": effect.change,
                "effect": amount(effect, measure),
                "95% interval": interval(effect, measure),
                "p (corrected)": p_in_words(effect.p_corrected),
                "verdict": verdict(effect, measure),
            }
            for effect in comparison.effects
        ]
    )
