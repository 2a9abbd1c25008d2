"""The files of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clr_loop.runs import files as run_files
from clr_loop.studies.arms import ArmRun
from clr_loop.studies.comparison.compare import ArmSummary, Comparison
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.pictures.canvas import Format, Picture, save, to_png
from clr_loop.studies.pictures.comparison import comparison_pictures
from clr_loop.studies.report.sections import Context, latex, markdown
from clr_loop.studies.report.tensorboard import FOLDER, write_events


def write(comparison: Comparison, output_dir: Path, context: Context, figure_format: Format = "png") -> None:
    """Write comparison.json, .csv and .tex, arms.csv, report.md, the pictures, and all of them for TensorBoard.

    The directory must exist. The pictures are comparison.png and, where there is something to draw, beside it
    comparison.range_test.png, .tuning.png, .scaling.png and .loss_against_rate.png; and each of them in figure_format.
    """
    measure, text = comparison.measure, markdown(comparison, context)
    pictures = comparison_pictures(comparison, context.searches, context.noise_scale, context.range_tests)
    (output_dir / "report.md").write_text(f"{text}\n{_picture_section(pictures)}")
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
    run_files.write_csv(output_dir / "arms.csv", [_csv_row_of_arm(arm) for arm in comparison.arms])
    (output_dir / "comparison.tex").write_text(latex(comparison))
    panels: dict[str, bytes] = {}
    for name, picture in pictures.items():
        save(picture.together(), output_dir / f"{name}.png", figure_format)
        tag = name.removeprefix("comparison.")
        panels |= {f"{tag}/{panel}": to_png(figure) for panel, figure in picture.alone().items()}
    write_events(comparison, output_dir / FOLDER, text, panels, context.noise_scale)


def _picture_section(pictures: Mapping[str, Picture]) -> str:
    """Return the section of the report that shows the pictures, which lie beside it."""
    embedded = [f"![{picture.title}]({name}.png)" for name, picture in pictures.items()]
    return "\n\n".join(["## Pictures", *embedded]) + "\n"


def _csv_row_of_arm(arm: ArmSummary) -> dict[str, Any]:
    """Return what a paper has of an arm."""
    final, failures = arm.final, arm.failures
    return {
        "arm": arm.arm.label,
        "batch_size": arm.arm.batch_size,
        "schedule": arm.arm.schedule_name,
        **{name: final.to_json()[name] for name in ("n", "mean", "sd", "median", "min", "max")},
        "failures": failures.num_failed,
        "runs": failures.num_runs,
        "failures_at_most": failures.interval_95[1],
        "epoch_seconds": arm.times and arm.times.epoch_seconds,
        "train_seconds": arm.times and arm.times.train_seconds.mean,
    }


def _csv_row(run: ArmRun, measure: Measure, is_timed: bool) -> dict[str, Any]:
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
