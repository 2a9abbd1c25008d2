"""What a comparison leaves behind: the table, the effects, in words what follows and what does not, and its files."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clr_loop.runs import files as run_files
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies import plots
from clr_loop.studies.comparison import ArmSummary, Comparison, Effect, Run, Sample
from clr_loop.studies.tables import markdown_table

# "Implementing Cyclic Learning Rates in Keras": (batch size, schedule) → training seconds, validation accuracy.
ARTICLE_EPOCHS = 15
ARTICLE = {
    (100, Constant(0.1)): (30.21, 0.7598),
    (2000, Triangular(0.001, 0.006, 2000)): (5.47, 0.8352),
}


def write(comparison: Comparison, output_dir: Path, dataset: str, model: str) -> None:
    """Writes comparison.json, comparison.csv, report.md and comparison.png into an existing directory."""
    (output_dir / "report.md").write_text(markdown(comparison, dataset, model))
    run_files.write_json(
        output_dir / "comparison.json",
        {
            "runs": [{"arm": run.arm.label, **run.result.to_json()} for run in comparison.runs],
            "arms": [arm.to_json() for arm in comparison.arms],
            "effects": [effect.to_json() for effect in comparison.effects],
        },
    )
    with open(output_dir / "comparison.csv", "w", newline="") as file:
        rows = [_csv_row(run, run.seed in comparison.timed_seeds) for run in comparison.runs]
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    curves = []
    for arm in comparison.arms:
        runs = [run for run in comparison.runs if run.arm == arm.arm]
        results = [run.result for run in runs]
        timed = [run.result for run in runs if run.seed in comparison.timed_seeds]
        curves.append(
            plots.ArmCurves(
                label=arm.arm.label,
                seconds=np.cumsum([result.epoch_seconds for result in timed], axis=1),
                examples=results[0].num_examples * np.arange(1, len(results[0].epochs) + 1),
                val_accuracy=np.array([[record.val_accuracy for record in result.epochs] for result in results]),
                learning_rates=results[0].history["learning_rate"],
            )
        )
    plots.comparison(curves).savefig(output_dir / "comparison.png")


def markdown(comparison: Comparison, dataset: str, model: str) -> str:
    """Returns the report of a comparison; its article column only where the settings are the article's own.

    Args:
        comparison: at least one arm.
        dataset, model: their names.
    """
    first = comparison.runs[0].result
    num_seeds = len({run.seed for run in comparison.runs})
    num_epochs = len(first.epochs)
    is_article = (dataset, model, num_epochs, first.settings["optimizer"]) == (
        "mnist", "article_mlp", ARTICLE_EPOCHS, "Adam",
    )  # fmt: skip
    versions = ", ".join(f"{name} {number}" for name, number in first.to_json()["versions"].items())
    head = (
        f"{dataset}, {model}, {first.settings['optimizer']}, {_count(num_epochs, 'epoch')}, "
        f"{_count(num_seeds, 'seed')} an arm; on {first.device}; {versions}."
    )
    notes = f"{_ARMS_NOTE}{_times_note(comparison)}{_bounds_note(first.settings)}"
    sections = [
        f"# Batch size and learning-rate schedule\n\n{head}",
        f"## Arms\n\n{_arms_table(comparison, is_article)}\n\n{notes}",
        f"## Effects\n\n{_effects_table(comparison.effects)}\n\n{_EFFECTS_NOTE}" if comparison.effects else "",
        "## What follows\n\n" + "\n".join(f"- {sentence}" for sentence in conclusions(comparison)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def conclusions(comparison: Comparison) -> list[str]:
    """Returns what follows from a comparison and what does not, a sentence or two each."""
    # First the question itself, then which of the two changes did it.
    effects = sorted(comparison.effects, key=lambda effect: effect.factor != "both")
    said = [_sentence(effect, comparison) for effect in effects]
    said += [f"{arm.arm.label}: {warning}." for arm in comparison.arms for warning in arm.warnings]
    accuracy = [effect for effect in comparison.effects if effect.measure == "val_accuracy"]
    if any(effect.factor == "interaction" and effect.beyond_spread for effect in accuracy):
        said.append(
            "Where batch size and schedule interact, read the cells of the table: the averages above mix unlike cases."
        )
    return said or ["One arm alone: there is nothing to compare it with."]


_ARMS_NOTE = (
    "Times are of training alone, each epoch ending with its metrics on the host; compilation is done once for a batch "
    "size, before the first step. ± is the standard deviation over seeds; in brackets the lowest and the highest seed. "
    "Train s to a validation accuracy: the median of the seeds that reached it, k of n."
)
_EFFECTS_NOTE = (
    "Each effect is a difference taken seed by seed (same initial weights, same order of the data), averaged over the "
    "levels of the other factor; ± is its standard deviation over seeds, and the interval is that of the mean at 95 % "
    "(Student's t). An interval that holds 0 is called within the spread: the seeds alone could have made it."
)


def _arms_table(comparison: Comparison, is_article: bool) -> str:
    header = [
        "arm", "updates", "epoch s (median)", "train s", "compile s", "examples/s", "validation accuracy",
        f"train s to {100 * comparison.target_accuracy:.4g} %",
    ]  # fmt: skip
    if is_article:
        header.append("the article")
    rows = []
    for arm in comparison.arms:
        row = [
            arm.arm.label,
            f"{arm.steps:,}",
            f"{arm.epoch_seconds:.3f}",
            _plus_minus(arm.train_seconds, ".2f"),
            f"{arm.compile_seconds:.1f}",
            f"{arm.examples_per_second:,.0f}",
            f"{_plus_minus(arm.val_accuracy, '.4f')} (n={len(arm.val_accuracy.values)}) "
            f"[{min(arm.val_accuracy.values):.4f}, {max(arm.val_accuracy.values):.4f}]",
            _to_target(arm),
        ]
        if is_article:
            figures = ARTICLE.get((arm.arm.batch_size, arm.arm.schedule))
            row.append(f"{figures[0]:.2f} s, {figures[1]:.4f}" if figures else "–")
        rows.append(row)
    return markdown_table(header, rows)


def _times_note(comparison: Comparison) -> str:
    """Which seeds the times are of, if not of all; see `--parallel` of the script."""
    untimed = sorted({run.seed for run in comparison.runs} - set(comparison.timed_seeds))
    if not untimed:
        return ""
    return (
        f"\n\nTimes are of {_seeds(comparison.timed_seeds)} alone: {_seeds(untimed)} ran side by side with others and "
        "count for accuracy only."
    )


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _bounds_note(settings: Mapping[str, Any]) -> str:
    """Where the bounds of the cycles came from, if not from the flags; see `--bounds` of the script."""
    prefix = "range_test_batch_"
    found = [f"{name.removeprefix(prefix)} `{value}`" for name, value in settings.items() if name.startswith(prefix)]
    return f"\n\nCycles as an LR range test suggested for each batch size: {'; '.join(found)}." if found else ""


def _effects_table(effects: Sequence[Effect]) -> str:
    rows = []
    for effect in effects:
        half = effect.sample.half_width
        interval = "–" if half is None else f"{effect.sample.mean - half:+.4f} … {effect.sample.mean + half:+.4f}"
        rows.append(
            [
                _MEASURE_NAMES[effect.measure],
                effect.factor.replace("_", " "),
                effect.change,
                _plus_minus(effect.sample, "+.4f"),
                interval,
                _verdict(effect),
            ]
        )
    return markdown_table(["measure", "factor", "change", "effect", "95 % interval", "verdict"], rows)


_MEASURE_NAMES = {"val_accuracy": "validation accuracy", "epoch_seconds": "epoch seconds"}


def _verdict(effect: Effect) -> str:
    if effect.sample.sd is None:
        return "one seed: no spread"
    return "beyond the spread" if effect.beyond_spread else "within the spread"


def _sentence(effect: Effect, comparison: Comparison) -> str:
    if effect.factor == "interaction":
        subject = f"Whether the schedule's effect on {_MEASURE_NAMES[effect.measure]} depends on the batch size"
    else:
        subject = f"{effect.change[0].upper()}{effect.change[1:]}, {_MEASURE_NAMES[effect.measure]}"
    if effect.measure == "val_accuracy":
        amount = f"{_plus_minus(effect.sample, '+.2f', 100)} points"
    else:
        amount = f"{_plus_minus(effect.sample, '+.3f')} s"
    if effect.sample.sd is None:
        return f"{subject}: {amount}, from one seed; nothing follows, run more seeds."
    if not effect.beyond_spread:
        return f"{subject}: {amount}, within the spread over seeds; no difference is shown."
    if effect.factor == "interaction":
        return f"{subject}: it does, by {amount}, beyond the spread over seeds."
    if effect.measure == "val_accuracy":
        direction = "better" if effect.sample.mean > 0 else "worse"
    else:
        direction = "faster" if effect.sample.mean < 0 else "slower"
        if effect.arms:
            seconds = {arm.arm.label: arm.epoch_seconds for arm in comparison.arms}
            changed, reference = effect.arms
            direction += f" ({seconds[reference] / seconds[changed]:.2f} times the speed)"
    return f"{subject}: {amount}, {direction}, beyond the spread over seeds."


def _to_target(arm: ArmSummary) -> str:
    num_seeds, num_reached = len(arm.train_seconds.values), len(arm.seconds_to_target)
    if not num_reached:
        return f"not reached, 0 of {num_seeds}"
    return f"{statistics.median(arm.seconds_to_target):.2f} ({num_reached} of {num_seeds})"


def _plus_minus(sample: Sample, form: str, factor: float = 1.0) -> str:
    mean = format(sample.mean * factor, form)
    return mean if sample.sd is None else f"{mean} ± {format(sample.sd * factor, form.lstrip('+'))}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _csv_row(run: Run, is_timed: bool) -> dict[str, Any]:
    result = run.result
    times = {
        "median_epoch_seconds": result.median_epoch_seconds,
        "train_seconds": result.train_seconds,
        "compile_seconds": result.compile_seconds,
        "examples_per_second": result.examples_per_second,
        "seconds_to_target": "" if result.seconds_to_target is None else result.seconds_to_target,
    }
    return {
        "arm": run.arm.label,
        "batch_size": run.arm.batch_size,
        "schedule": run.arm.schedule_name,
        "seed": run.seed,
        "steps": len(result.history["step"]),
        "val_accuracy": result.val_accuracy,
        "val_loss": result.epochs[-1].val_loss,
        **(times if is_timed else dict.fromkeys(times, "")),
        "weights_sha256": result.weights_sha256,
    }
