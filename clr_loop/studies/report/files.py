"""What a comparison leaves behind: the table, the effects, in words what follows and what does not, and its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clr_loop.runs import files as run_files
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies.comparison import scaling
from clr_loop.studies.comparison.effects import Comparison, Effect, Run
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.tuning import Search
from clr_loop.studies.pictures import comparison as comparison_plots
from clr_loop.studies.pictures.canvas import Format, save, to_png
from clr_loop.studies.range_test.sweep import RangeTest
from clr_loop.studies.report import tensorboard as tensorboard_report
from clr_loop.studies.report.tables import table_of

# "Implementing Cyclic Learning Rates in Keras": (batch size, schedule) → training seconds, validation accuracy.
ARTICLE_EPOCHS = 15
ARTICLE = {
    (100, Constant(0.1)): (30.21, 0.7598),
    (2000, Triangular(0.001, 0.006, 2000)): (5.47, 0.8352),
}

_SETTINGS = """\
This report compares settings, not schedules: each arm ran with the learning rates that it was given, and others may
turn the result around. `python scripts/compare_batch_sizes.py --tune=8`, with the other flags as they were, compares
schedules: it tunes every arm with the same effort first."""
_TUNED = """\
This report compares schedules, each at its best: every arm ran at the best of the rates that were tried with it on
held-out training examples, with the same effort and another seed."""
_BUDGETS = {
    "epochs": "All arms visit every example equally often.",
    "steps": "All arms take as many steps, rounded to whole epochs.",
    "seconds": "All arms train for about as long, rounded to whole epochs.",
}
_ARMS_NOTE = """\
Times are of training alone, and each epoch ends with its metrics on the host. Compilation is done once for a batch
size, before the first step. ± is the standard deviation over seeds; the lowest and highest seed stand in brackets."""
_EFFECTS_NOTE = """\
Each effect is a difference taken seed by seed (same initial weights, same order of the data), averaged over the levels
of the other factor. ± is its standard deviation over seeds, and the interval is that of the mean at 95 % (Student's t).
p is that of Student's t test, corrected because several effects are tested on one measure (Holm). A difference is shown
where p is at most 0.05. An interval that leaves out 0 is not enough, because it is not corrected. If the arms do not
differ, at most one comparison in twenty shows a difference; from fewer than four seeds it may be more.

Where none is shown, there are two cases. If the whole interval lies within one standard deviation of 0, the change does
less than another seed does, and the verdict names the far end of the interval: a larger difference is not likely. Every
other case is undecided, and the verdict names the number of seeds from which one or the other is always said. A power
of 80 % means that four such comparisons in five show a difference of this size. It rests on the standard deviation
that was seen, so it is rough if the seeds are few. Decide on the number of seeds before the first run: looking at some
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


def write(comparison: Comparison, output_dir: Path, context: Context, figure_format: Format = "png") -> None:
    """Write comparison.json, comparison.csv, report.md, the pictures, and all of them for TensorBoard.

    The directory must exist. The pictures are comparison.png and, where there is something to draw, beside it
    comparison.range_test.png, .tuning.png, .scaling.png and .loss_against_rate.png; and each of them in figure_format.
    """
    measure, text = comparison.measure, markdown(comparison, context)
    (output_dir / "report.md").write_text(text)
    content = {
        "measure": vars(measure),
        "runs": [{"arm": run.arm.label, **run.result.to_json()} for run in comparison.runs],
        "arms": [arm.to_json() for arm in comparison.arms],
        "effects": [effect.to_json() for effect in comparison.effects],
        "tuning": [search.to_json() for search in context.searches],
        "noise_scale": None if context.noise_scale is None else vars(context.noise_scale),
    }
    run_files.write_json(output_dir / "comparison.json", content)
    rows = [_csv_row(run, measure, run.seed in comparison.timed_seeds) for run in comparison.runs]
    run_files.write_csv(output_dir / "comparison.csv", rows)
    further = context.searches, context.noise_scale, context.range_tests
    pictures = comparison_plots.pictures(comparison, *further)
    for name, picture in pictures.items():
        save(picture.together(), output_dir / f"{name}.png", figure_format)
    panels = {
        f"{name.removeprefix('comparison.')}/{panel}": to_png(figure)
        for name, picture in pictures.items()
        for panel, figure in picture.alone().items()
    }
    tensorboard_report.show(comparison, output_dir / tensorboard_report.FOLDER, text, panels, context.noise_scale)


def markdown(comparison: Comparison, context: Context) -> str:
    """Return the report of a comparison; it has the article's column only where the settings are the article's own."""
    first = comparison.runs[0].result
    num_seeds = len({run.seed for run in comparison.runs})
    lengths = sorted({len(run.result.epochs) for run in comparison.runs})
    asked = (context.dataset, context.model, lengths, first.settings["optimizer"], comparison.measure.name)
    is_article = asked == ("mnist", "article_mlp", [ARTICLE_EPOCHS], "Adam", "val_accuracy")
    epochs = _count(lengths[0], "epoch") if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} epochs"
    versions = ", ".join(f"{name} {number}" for name, number in first.settings["versions"].items())
    head = (
        f"{context.dataset}, {context.model}, {first.settings['optimizer']}, {epochs}, "
        f"{_count(num_seeds, 'seed')} an arm; on {first.device}; {versions}. {_BUDGETS[context.budget]}"
    )
    scope = _TUNED if context.searches else _SETTINGS
    sections = [
        f"# Batch size and learning rate\n\n{scope}\n\n{head}",
        f"## Arms\n\n{_arms_table(comparison, is_article)}\n\n{_notes(comparison)}",
        scaling.to_target(comparison),
        scaling.tuning(context.searches),
        scaling.noise(comparison, context.noise_scale),
        f"## Effects\n\n{_effects_table(comparison)}\n\n{_EFFECTS_NOTE}" if comparison.effects else "",
        "## What follows\n\n" + "\n".join(f"- {sentence}" for sentence in conclusions(comparison)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def conclusions(comparison: Comparison) -> list[str]:
    """Return what follows from a comparison and what does not, a sentence or two each."""
    # The question itself comes first, then which of the two changes did it.
    effects = sorted(comparison.effects, key=lambda effect: effect.factor != "both")
    said = [_sentence(effect, comparison) for effect in effects]
    said += [f"{arm.arm.label}: {warning}." for arm in comparison.arms for warning in arm.warnings]
    shown = {(effect.measure, effect.factor) for effect in effects if effect.verdict == "shown"}
    if (comparison.measure.name, "interaction") in shown:
        said.append(
            "Batch size and schedule interact, so read the cells of the table: the averages above mix unlike cases."
        )
    return said or ["There is one arm alone, and nothing to compare it with."]


def _arms_table(comparison: Comparison, is_article: bool) -> str:
    measure = comparison.measure
    form = ".4f" if measure.is_share else ".4g"
    rows = []
    for arm in comparison.arms:
        values = arm.final.values
        spread = f"(n={len(values)}) [{min(values):{form}}, {max(values):{form}}]"
        row = {
            "arm": arm.arm.label,
            "updates": f"{arm.steps:,}",
            "epoch s (median)": f"{arm.epoch_seconds:.3f}",
            "train s": arm.train_seconds.in_words(".2f"),
            "compile s": f"{arm.compile_seconds:.1f}",
            "examples/s": f"{arm.examples_per_second:,.0f}",
            measure.words: f"{arm.final.in_words(form)} {spread}",
        }
        if is_article:
            seconds, accuracy = ARTICLE.get((arm.arm.batch_size, arm.arm.schedule), (None, None))
            row["the article"] = "–" if seconds is None else f"{seconds:.2f} s, {accuracy:.4f}"
        rows.append(row)
    return table_of(rows)


def _notes(comparison: Comparison) -> str:
    """Say what the columns hold, which seeds the times are of, and where the bounds of the cycles came from."""
    notes = [_ARMS_NOTE]
    untimed = sorted({run.seed for run in comparison.runs} - set(comparison.timed_seeds))
    if untimed:
        notes.append(
            f"Times are of {_seeds(comparison.timed_seeds)} alone: {_seeds(untimed)} ran side by side with others and "
            f"count for the {comparison.measure.words} only."
        )
    settings: Mapping[str, Any] = comparison.runs[0].result.settings
    prefix = "range_test_batch_"
    found = [f"{name.removeprefix(prefix)} `{value}`" for name, value in settings.items() if name.startswith(prefix)]
    if found:
        notes.append(f"An LR range test for each batch size suggested the cycles: {'; '.join(found)}.")
    return "\n\n".join(notes)


def _effects_table(comparison: Comparison) -> str:
    rows = []
    for effect in comparison.effects:
        words, factor, form, unit = _told(effect, comparison.measure)
        interval = effect.sample.interval_95
        rows.append(
            {
                "measure": words,
                "factor": effect.factor.replace("_", " "),
                "change": effect.change,
                "effect": f"{effect.sample.in_words(form, factor)}{unit}",
                "95 % interval": " … ".join(format(end * factor, form) for end in interval) if interval else "–",
                "p (corrected)": "–" if effect.p_corrected is None else _p(effect.p_corrected),
                "verdict": _verdict(effect, comparison.measure),
            }
        )
    return table_of(rows)


def _told(effect: Effect, measure: Measure) -> tuple[str, float, str, str]:
    """Return how a difference is told: the measure in words, the factor, the format and the unit."""
    if effect.measure == "epoch_seconds":
        return "epoch seconds", 1.0, "+.3f", " s"
    return (measure.words, 100.0, "+.2f", " points") if measure.is_share else (measure.words, 1.0, "+.4g", "")


def _verdict(effect: Effect, measure: Measure) -> str:
    """Return in a few words what the seeds say of an effect."""
    _, factor, form, unit = _told(effect, measure)
    interval = effect.sample.interval_95
    if interval is None:
        return "one seed: no spread"
    if effect.verdict == "undecided":
        return f"undecided: about {effect.seeds_to_tell} seeds would tell"
    if effect.sample.values.count(0.0) == len(effect.sample.values):
        return "no seed differs"
    if effect.verdict == "small":
        far = format(max(map(abs, interval)) * factor, form.lstrip("+"))
        return f"no difference larger than {far}{unit} is likely"
    if effect.factor == "interaction":
        return "shown"
    if effect.measure == "epoch_seconds":
        return "faster" if effect.sample.mean < 0 else "slower"
    return "better" if (effect.sample.mean > 0) == measure.higher_is_better else "worse"


def _sentence(effect: Effect, comparison: Comparison) -> str:
    words, factor, form, unit = _told(effect, comparison.measure)
    amount = f"{effect.sample.in_words(form, factor)}{unit}"
    subject = f"{effect.change[0].upper()}{effect.change[1:]}, {words}"
    verdict = _verdict(effect, comparison.measure)
    if effect.factor == "interaction" and len(comparison.arms) == 4:
        subject = f"Whether the schedule's effect on {words} depends on the batch size"
        verdict = "it does" if effect.verdict == "shown" else verdict
    if effect.p_corrected is None:
        return f"{subject}: {amount}, from one seed; nothing follows, run more seeds."
    if effect.verdict == "shown":
        if effect.arms and effect.measure == "epoch_seconds":
            seconds = {arm.arm.label: arm.epoch_seconds for arm in comparison.arms}
            changed, reference = (seconds[label] for label in effect.arms)
            verdict += f" ({reference / changed:.2f} times the speed)"
        return f"{subject}: {amount}, {verdict} (corrected p {_p(effect.p_corrected)})."
    said = f"{subject}: {amount}; {verdict}."
    if not effect.detectable_difference:
        return said
    found = format(effect.detectable_difference * factor, form.lstrip("+"))
    return (
        f"{said} {len(effect.sample.values)} seeds find a difference of {found}{unit} with 80 % power; half of it "
        f"needs {effect.seeds_for_half} seeds."
    )


def _p(value: float) -> str:
    """Return a p value in words: three decimals, or that it is smaller."""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _csv_row(run: Run, measure: Measure, is_timed: bool) -> dict[str, Any]:
    result = run.result
    names = ("median_epoch_seconds", "train_seconds", "compile_seconds", "examples_per_second")
    reached = measure.reach(result)
    times = {name: getattr(result, name) for name in names} | {"seconds_to_target": reached and reached.seconds}
    return {
        "arm": run.arm.label,
        "batch_size": run.arm.batch_size,
        "schedule": run.arm.schedule_name,
        "seed": run.seed,
        "steps": len(result.history["step"]),
        "steps_to_target": reached and reached.steps,
        **result.final,
        **(times if is_timed else dict.fromkeys(times)),
        "weights_sha256": result.weights_sha256,
    }
