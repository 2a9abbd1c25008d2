"""A comparison as TensorBoard shows it: a run for each arm, over the examples visited, beside the report itself.

An arm's run has the mean over its seeds of all that they recorded and, of what was measured, the mean minus and plus
the standard deviation. The seeds' own runs, over steps, are in folders of their own.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from clr_loop.runs import events
from clr_loop.runs.events import Chart
from clr_loop.runs.records import flat
from clr_loop.runs.result import direction_of
from clr_loop.studies.comparison.compare import Comparison
from clr_loop.studies.comparison.measures import in_words
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.pictures.bands import MOST_POINTS, RATES, Band, training_bands, validation_bands

FOLDER = "report"
"""Where it is, in the directory of a comparison."""

_CHANGING = "mean/changing_learning_rate"


def write_events(
    comparison: Comparison, directory: Path, text: str, pictures: Mapping[str, bytes], noise_scale: NoiseScale | None
) -> None:
    """Write the report, its pictures, the charts and the columns of TensorBoard's pages, and a run for each arm.

    Args:
        comparison: what is shown.
        directory: for all of it; earlier events there are replaced.
        text, pictures: the report in Markdown, and pictures in PNG format by their tags.
        noise_scale: if it was measured.
    """
    final = comparison.runs[0].result.final
    names = [name for name in final if name.startswith("val_")] or list(final)
    names.sort(key=lambda name: name != comparison.measure.name)  # The measure first.
    results = {summary.arm: comparison.results(summary.arm) for summary in comparison.trained}
    num_seeds = len(comparison.seeds)
    mean_of = {"seed": f"mean of {num_seeds}" if num_seeds > 1 else "one"}
    settings = {arm: {**flat(of_arm[0].settings), **mean_of} for arm, of_arm in results.items()}
    rows = [*(flat(run.result.settings) for run in comparison.runs), *settings.values()]
    better = {name: direction_of(name) != "min" for name in names}
    if comparison.timed_seeds:
        better["epoch_seconds"] = False
    events.write_report(directory, text, pictures, _charts(comparison), rows, better)
    num_points = min(MOST_POINTS, max(len(run.result.history["step"]) for run in comparison.runs))
    for summary in comparison.trained:
        place, of_arm = directory / summary.arm.directory, results[summary.arm]
        means = {name: statistics.fmean(result.final[name] for result in of_arm) for name in names}
        if summary.times is not None:
            means["epoch_seconds"] = summary.times.epoch_seconds
        events.write_means(place, settings[summary.arm], means)
        for bands in (training_bands(of_arm, num_points), validation_bands(of_arm)):
            _write_bands(place, bands)
    if noise_scale is not None:
        examples = np.array(noise_scale.steps) * comparison.arms[0].arm.batch_size
        events.write_curves(directory / "noise_scale", examples, {"noise_scale": np.array(noise_scale.batch_sizes)})


def _write_bands(place: Path, bands: Mapping[str, Band]) -> None:
    curves = {}
    for name, band in bands.items():
        curves[f"mean/{name}"] = band.mean
        if name not in RATES:
            curves |= {f"mean_minus_sd/{name}": band.lower, f"mean_plus_sd/{name}": band.upper}
        if name == "learning_rate" and np.ptp(band.mean) > 0:
            curves[_CHANGING] = band.mean
    if curves:
        events.write_curves(place, next(iter(bands.values())).examples, curves)


def _charts(comparison: Comparison) -> dict[str, list[Chart]]:
    """Return rows of charts, one below the other over the same examples: rates, loss, and the other metrics."""
    first, num_seeds = comparison.runs[0].result, len(comparison.seeds)
    spread = f"mean ± standard deviation of {num_seeds} seeds" if num_seeds > 1 else "one seed"
    rates = [name for name in RATES if name in first.history]
    is_changing = {bool(np.ptp(run.result.history["learning_rate"])) for run in comparison.runs}
    of_rates = [Chart(name.replace("_", " "), f"mean/{name}") for name in rates]
    if len(is_changing) == 2:  # A constant rate may be so high that a cycle beside it looks flat.
        of_rates.append(Chart("learning rate of the arms that change it", _CHANGING))
    charts = {f"by examples visited, {first.num_examples:,} an epoch": of_rates}
    for name in first.history:
        if name not in ("step", *rates):
            charts[f"{name.replace('_', ' ')}: {spread}"] = [
                Chart(in_words(tag), *(f"{line}/{tag}" for line in ("mean", "mean_minus_sd", "mean_plus_sd")))
                for tag in (name, f"val_{name}")
                if tag in first.final
            ]
    return charts
