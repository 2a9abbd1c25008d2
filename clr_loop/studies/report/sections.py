"""The report of a comparison, in Markdown: what was compared, its tables, and what follows."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from clr_loop.runs.result import TrainingResult
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies.comparison import failures
from clr_loop.studies.comparison.compare import ArmSummary, ArmTimes, Comparison
from clr_loop.studies.comparison.measures import Measure, count
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.scaling import fitted_power, scaling
from clr_loop.studies.comparison.tuning import Search, by_schedule
from clr_loop.studies.range_test.sweep import RangeTest
from clr_loop.studies.report.tables import table_of
from clr_loop.studies.report.tuning import tuning_section
from clr_loop.studies.report.words import amount, answer, conclusions, confidence, interval, p_in_words, verdict

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
± is the standard deviation over seeds; the lowest and highest seed are in brackets. Mean and median are of all runs."""
_TIMES_NOTE = """\
Times are of training alone, and each epoch ends with its metrics on the host. Each batch size is compiled once, before
the first step."""
_TARGET_NOTE = """\
Medians over seeds of what it took until the first validation that reached the target. A seed that did not reach it
counts as infinite, so there is no median where half of the seeds did not."""
_RULE_NOTE = """\
The linear rule multiplies the rate of the first batch size by the ratio of the batch sizes, the square-root rule by its
root."""
_POWER_NOTE = """\
The power is that of a straight line through the tuned rates on logarithmic axes, and the interval says how far these
few rates settle it: a power inside is not excluded. 1 is the linear rule, 0.5 the square-root rule, 0 the same rate
everywhere."""
_NOISE_NOTE = """\
In brackets is the 95% interval over examples. In the model of the source (McCandlish et al., arXiv 1812.06162) a run
takes S_min · (1 + noise scale / batch size) steps. So at a batch size equal to the noise scale it takes twice the
fewest steps and twice the fewest examples, and a batch twice as large still takes 75% of its steps. It is a rough
guide, and where the noise scale changes along the run it names a range of batch sizes."""
_EFFECTS_NOTE = """\
Each effect is a difference taken seed by seed (same initial weights, same order of the data); that of one factor alone
is averaged over the levels of the other. It speaks of the typical run: seeds with which one of its arms failed are left
out. ± is its standard deviation over seeds, and the interval is that of the mean (Student's t). p is that of Student's
t test, and of Fisher's exact test for failures, corrected over all of them (Holm): if the arms do not differ at all, at
most one comparison in twenty shows anything. An interval that excludes 0 is not enough, because it is not corrected.

A difference that is not shown may still be there; its interval says how large it may be. A power of 80% means that four
such comparisons in five show a difference of this size. It is based on the observed standard deviation, so it is rough
if the seeds are few. The number of seeds must be fixed before the first run: looking at some and then adding more makes
a false difference more likely, unless the looks were planned."""
_TUNED_NOTE = "The interval and p allow for the choice of the rates; see Tuning."


@dataclass(frozen=True)
class Context:
    """What a report tells beside the comparison.

    Attributes:
        dataset, model: their names.
        budget: what the arms have in common: "epochs", "steps" or "seconds".
        searches: how each arm was tuned; () if none was.
        noise_scale: of the first arm, if it was measured.
        range_tests: those of each batch size that bounds or tuning began with.
        plan: what was fixed before the first run, in words; "" if it is not known.
        num_beside: int, how many runs went side by side at most.
    """

    dataset: str
    model: str
    budget: Literal["epochs", "steps", "seconds"] = "epochs"
    searches: Sequence[Search] = ()
    noise_scale: NoiseScale | None = None
    range_tests: Mapping[int, Sequence[RangeTest]] = dataclasses.field(default_factory=dict)
    plan: str = ""
    num_beside: int = 1


def markdown(comparison: Comparison, context: Context) -> str:
    """Return the report of a comparison; it has the article's column only where the settings are the article's own."""
    scope = _TUNED if context.searches else _SETTINGS
    sections = [
        f"# Batch size and learning rate\n\n**{answer(comparison)}**\n\n{_head(comparison, context)}\n\n{scope}",
        f"## Arms\n\n{table_of(_arms_rows(comparison, context))}\n\n{_arms_notes(comparison.measure)}",
        f"## Times\n\n{table_of(_times_rows(comparison))}\n\n{_times_notes(comparison, context)}",
        target_section(comparison),
        tuning_section(context.searches),
        _rule_section(context.searches),
        _noise_section(comparison, context.noise_scale),
        _effects_section(comparison),
        "## What follows\n\n" + "\n".join(f"- {sentence}" for sentence in conclusions(comparison)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def latex(comparison: Comparison) -> str:
    """Return the arms as a table for a paper; it needs LaTeX's package booktabs."""
    measure = comparison.measure
    rows = [
        {
            "arm": arm.arm.label,
            "n": str(len(arm.final.values)),
            measure.words: arm.final.in_words(measure.form),
            "median": arm.final.median_in_words(measure.form),
            "failed": f"{arm.failures.num_failed} of {arm.failures.num_runs}",
            "s per epoch": f"{arm.times.epoch_seconds:.3f}" if arm.times else "–",
        }
        for arm in comparison.arms
    ]
    return f"{table_of(rows, 'latex_booktabs')}\n"


def _head(comparison: Comparison, context: Context) -> str:
    first = comparison.runs[0].result
    lengths = sorted({len(run.result.epochs) for run in comparison.runs})
    epochs = count(lengths[0], "epoch") if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} epochs"
    versions = ", ".join(f"{name} {number}" for name, number in first.settings["versions"].items())
    return (
        f"{context.dataset}, {context.model}, {first.settings['optimizer']}, {epochs}, "
        f"{count(len(comparison.seeds), 'seed')} an arm; on {_place(first)}; {versions}. {_BUDGETS[context.budget]}"
        f"{context.plan and f' {context.plan}'}"
    )


def _place(result: TrainingResult) -> str:
    threads = result.settings.get("threads")
    return f"{result.device} with {count(threads, 'thread')}" if threads else result.device


def _is_article(comparison: Comparison, context: Context) -> bool:
    epochs = {len(run.result.epochs) for run in comparison.runs}
    optimizer = comparison.runs[0].result.settings["optimizer"]
    settings = (context.dataset, context.model, epochs, optimizer, comparison.measure.name)
    return settings == ("mnist", "article_mlp", {_ARTICLE_EPOCHS}, "Adam", "val_accuracy")


def _arms_rows(comparison: Comparison, context: Context) -> list[dict[str, str]]:
    measure, is_article = comparison.measure, _is_article(comparison, context)
    rows = []
    for arm in comparison.arms:
        final = arm.final
        row = {
            "arm": arm.arm.label,
            measure.words: f"{final.in_words(measure.form)} (n={len(final.values)})",
            "median": f"{final.median_in_words(measure.form)} {final.range_in_words(measure.form)}",
            "failed": str(arm.failures),
        }
        if is_article:
            seconds, accuracy = _ARTICLE.get((arm.arm.batch_size, arm.arm.schedule), (None, None))
            row["the article"] = "–" if seconds is None else f"{seconds:.2f} s, {accuracy:.4f}"
        rows.append(row)
    return rows


def _arms_notes(measure: Measure) -> str:
    """Say what the columns hold, and which runs have failed."""
    rule = failures.rule(measure.words, measure.failure_bound)
    at_most = "In brackets is the upper end of the exact 95% interval of the chance that a run fails."
    return textwrap.fill(f"{_ARMS_NOTE} {rule} {at_most}", 120)


def _times_rows(comparison: Comparison) -> list[dict[str, str]]:
    return [
        {
            "arm": arm.arm.label,
            "updates": f"{arm.steps:,}" if arm.steps else "–",
            **(_times_cells(arm.times) if arm.times else {}),
        }
        for arm in comparison.arms
    ]


def _times_cells(times: ArmTimes) -> dict[str, str]:
    return {
        "epoch s (median)": f"{times.epoch_seconds:.3f}",
        "train s": times.train_seconds.in_words(".2f"),
        "compile s": f"{times.compile_seconds:.1f}",
        "examples/s": f"{times.examples_per_second:,.0f}",
    }


def _times_notes(comparison: Comparison, context: Context) -> str:
    """Say what the columns hold, which seeds the times are of, and where the bounds of the cycles came from."""
    notes = [_TIMES_NOTE]
    untimed = [seed for seed in comparison.seeds if seed not in comparison.timed_seeds]
    if context.num_beside > 1 and comparison.timed_seeds:
        notes.append(f"Up to {context.num_beside} runs went side by side, each on cores of its own.")
    if not comparison.timed_seeds:
        notes = ["No run is timed, because none is known to have had its cores to itself."]
    elif untimed:
        timed, others = (
            f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
            for seeds in (comparison.timed_seeds, untimed)
        )
        notes.append(
            f"Times are of {timed} alone: the runs of {others} are not known to have had their cores to themselves, "
            f"and count for the {comparison.measure.words} only."
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
    finals = [arm.final.mean for arm in comparison.trained]
    best = max(finals) if measure.higher_is_better else min(finals)
    return f"{title}\n\nNot reached by any arm; the best mean after the last epoch is {best:.4g}."


def _target_row(arm: ArmSummary) -> dict[str, str]:
    forms = {"steps": ",.0f", "examples": ",.0f", **({"seconds": ".2f"} if arm.times else {})}
    medians = {what: arm.median_to_target(what) for what in forms}
    cells = {what: format(m, forms[what]) if math.isfinite(m) else "not reached" for what, m in medians.items()}
    return {"arm": arm.arm.label, "seeds that reached it": f"{arm.num_reached} of {len(arm.reached)}", **cells}


def _rule_section(searches: Sequence[Search]) -> str:
    """Return the section on the rate against the batch size; "" unless a schedule was tuned at two."""
    rows, powers = [], []
    for name, of_schedule in by_schedule(searches).items():
        power, first = fitted_power(of_schedule), of_schedule[0]
        if power is not None:
            powers.append("{} {:.2f} ({:.2f} to {:.2f})".format(name, *power))
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
    if len({row["batch size"] for row in rows}) < 2:
        return ""
    fitted = f"\n\nFitted power, with its 95% interval: {'; '.join(powers)}. {_POWER_NOTE}" if powers else ""
    return f"## Rate against batch size\n\n{table_of(rows)}\n\n{_RULE_NOTE}{fitted}"


def _noise_section(comparison: Comparison, noise_scale: NoiseScale | None) -> str:
    """Return the section on the gradient noise scale; "" if it was not measured."""
    if noise_scale is None:
        return ""
    text = f"Along a run of {comparison.arms[0].arm.label}: {noise_scale}. {' '.join(_NOISE_NOTE.split())}"
    scalings = {} if comparison.measure.target is None else scaling(comparison)
    largest = [f"{found.largest} ({name})" for name, found in scalings.items() if found.largest is not None]
    if largest:
        text += (
            " Measured, steps to the target stay below twice those of perfect scaling up to batch "
            f"{', '.join(largest)}."
        )
    at_budget = [f"{', '.join(map(str, of.at_budget))} ({name})" for name, of in scalings.items() if of.at_budget]
    if at_budget:
        text += (
            f" At batch {'; '.join(at_budget)} the median run reaches the target at its last validation or not at all, "
            "so the length of the runs decides there, and not the batch size."
        )
    return f"## Gradient noise scale\n\n{textwrap.fill(text, 120)}"


def _effects_section(comparison: Comparison) -> str:
    """Return the section on what each change did; "" from one arm."""
    if not comparison.effects:
        return ""
    notes = [_EFFECTS_NOTE]
    if any(effect.pick_variance for effect in comparison.effects):
        notes.append(_TUNED_NOTE)
    return "\n\n".join(["## Effects", _effects_table(comparison), *notes])


def _effects_table(comparison: Comparison) -> str:
    alpha = comparison.effects[0].alpha
    return table_of(
        [
            {
                "measure": effect.measure.words,
                "factor": effect.factor.replace("_", " "),
                "change": effect.change,
                "effect": amount(effect),
                "seeds": str(len(effect.differences)),
                f"{confidence(alpha)} interval": interval(effect),
                "p (corrected)": p_in_words(effect.p_corrected),
                "verdict": verdict(effect),
            }
            for effect in comparison.effects
        ]
    )
