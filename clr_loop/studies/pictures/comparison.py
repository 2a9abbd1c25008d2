"""The pictures of a comparison: what its arms gave, how they were tuned, what a target cost, and loss against rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from clr_loop.runs.result import TrainingResult, direction_of
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.compare import Comparison
from clr_loop.studies.comparison.measures import count, in_words
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.tuning import Search
from clr_loop.studies.pictures.bands import Band, validation_bands
from clr_loop.studies.pictures.canvas import (
    COLORS,
    Picture,
    about,
    arm_looks,
    explain_looks,
    finish,
    is_wide,
    schedule_looks,
    show_range,
    style,
    write_log_ticks,
)
from clr_loop.studies.pictures.tuning import tuning_picture
from clr_loop.studies.range_test.curves import smooth
from clr_loop.studies.range_test.picture import range_test_picture
from clr_loop.studies.range_test.sweep import RangeTest

_TARGET_COSTS = ("steps", "examples", "seconds")


def comparison_pictures(
    comparison: Comparison,
    searches: Sequence[Search] = (),
    noise_scale: NoiseScale | None = None,
    range_tests: Mapping[int, Sequence[RangeTest]] | None = None,
) -> dict[str, Picture]:
    """Return what a comparison has to show, by the names of the pictures' files; range_tests: of each batch size."""
    settings = comparison.runs[0].result.settings
    pictures = {
        "comparison": arms_picture(comparison),
        "comparison.range_test": range_test_picture(range_tests, settings) if range_tests else None,
        "comparison.tuning": tuning_picture(searches, settings) if searches else None,
        "comparison.scaling": _scaling_picture(comparison, noise_scale),
        "comparison.loss_against_rate": _loss_picture(comparison),
    }
    return {name: picture for name, picture in pictures.items() if picture is not None}


def _title(comparison: Comparison) -> str:
    """Return what was compared: `mnist, relu_mlp, Adam, 5 seeds`."""
    return f"{about(comparison.runs[0].result.settings)}, {count(len(comparison.seeds), 'seed')}"


def _draw_band(axes: Axes, x: NDArray[np.float64] | list[int], band: Band, looks: Mapping[str, Any]) -> None:
    """Draw the mean of an arm as a line, and its standard deviation to both sides."""
    axes.plot(x, band.mean, **looks)
    axes.fill_between(x, band.lower, band.upper, color=looks["color"], alpha=0.15, linewidth=0)


def _looks(comparison: Comparison) -> dict[Arm, dict[str, Any]]:
    return arm_looks([summary.arm for summary in comparison.trained])


def arms_picture(comparison: Comparison) -> Picture:
    """Draw the measure against examples and against seconds, its last values by seed, and the learning rates.

    Lines are means over seeds, and bands are as wide as the standard deviation to both sides. Seconds are those of the
    timed seeds, if there are any. After a single validation there is no panel of examples. Rates that span a wide
    range have a linear panel, of those that change, and a logarithmic one, of all.
    """
    arms = [summary.arm for summary in comparison.trained]
    results = [comparison.results(arm) for arm in arms]
    bands = [_measure_band(comparison, of_arm) for of_arm in results]
    timed = [[result.epoch_seconds for result in comparison.results(arm, only_timed=True)] for arm in arms]
    places = {"examples": [band.examples / 1e3 for band in bands]}
    if comparison.timed_seeds and all(timed):
        places["seconds"] = [np.cumsum(seconds, axis=1).mean(axis=0) for seconds in timed]
    is_wide_range = is_wide(np.concatenate([of_arm[0].history["learning_rate"] for of_arm in results]))
    rates = ["rate", "rate_log"] if is_wide_range else ["rate"]
    has_curves = any(len(band.mean) > 1 for band in bands)
    return Picture(
        _title(comparison),
        [list(reversed(places)), ["last", *rates]] if has_curves else [["last", *list(places)[1:]], rates],
        {
            **{name: partial(_draw_measure, comparison, bands, x, name) for name, x in places.items()},
            "last": partial(_draw_last, comparison),
            **{name: partial(_draw_rates, comparison, name, is_wide_range) for name in rates},
        },
    )


def _measure_band(comparison: Comparison, results: Sequence[TrainingResult]) -> Band:
    """Return the measure of one arm at the ends of its epochs."""
    values = np.array([[record.metrics[comparison.measure.name] for record in result.epochs] for result in results])
    return Band.of(results[0].num_examples * np.arange(1, values.shape[1] + 1), values)


def _draw_measure(
    comparison: Comparison, bands: Sequence[Band], places: Sequence[NDArray[np.float64]], what: str, axes: Axes
) -> None:
    for (arm, looks), band, x in zip(_looks(comparison).items(), bands, places, strict=True):
        _draw_band(axes, x, band, {**looks, "ms": 3 if len(x) > 1 else 6})
        if len(x) == 1:
            axes.annotate(f" {arm.label}", (x[0], band.mean[0]), color=looks["color"], va="bottom")
    explain_looks(axes, _looks(comparison))
    ends = [end for band in bands for end in (band.lower, band.upper)]
    later = [end[(len(end) - 1) // 2 :] for end in ends]
    show_range(axes, np.concatenate(later), np.concatenate(ends), bool(comparison.measure.higher_is_better))
    words = {"examples": "thousands of examples", "seconds": "training seconds, without compilation and validation"}
    axes.set(xlabel=words[what], ylabel=comparison.measure.words)
    axes.set_xlim(0, (1.05 if len(places[0]) > 1 else 1.5) * axes.dataLim.x1)
    if len(comparison.seeds) > 1:
        axes.set_title("line: mean over seeds; band: ± standard deviation", fontsize=10)
    finish(axes, comparison.measure.name)


def _draw_last(comparison: Comparison, axes: Axes) -> None:
    """Draw the last value of each seed, and their mean and standard deviation, in a row for each arm."""
    measure, looks = comparison.measure, _looks(comparison)
    for i, summary in enumerate(comparison.trained):
        final, color = summary.final, looks[summary.arm]["color"]
        heights = i + np.linspace(-0.25, 0.25, len(final.values) + 2)[1:-1]
        axes.plot(final.values, heights, looks[summary.arm]["marker"], color=color, alpha=0.6, markeredgewidth=0)
        axes.errorbar(final.mean, i, xerr=final.sd, fmt="|", color=color, ms=22, mew=2, capsize=4)
    form, factor, unit = (".2f", 100.0, "%") if measure.is_share else (".4g", 1.0, "")
    gap = "\n" if len(comparison.trained) <= 8 else "  "
    labels = [f"{summary.arm.label}{gap}{summary.final.in_words(form, factor)}{unit}" for summary in comparison.trained]
    axes.set_yticks(range(len(labels)), labels, fontsize=min(9, 170 / len(labels)))
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.locator_params(axis="x", nbins=5)
    dots = "points: seeds;\nbar: mean ± standard deviation" if len(comparison.seeds) > 1 else "one seed"
    axes.set_xlabel(f"{measure.words} after the last epoch\n({dots})")
    finish(axes)
    if measure.is_share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_rates(comparison: Comparison, panel: str, is_wide_range: bool, axes: Axes) -> None:
    """Draw the rates over epochs: all of them or, on a linear axis beside a logarithmic one, those that change."""
    results = [comparison.results(summary.arm)[0] for summary in comparison.trained]
    histories = [result.history["learning_rate"] for result in results]
    bounds = [(history.min(), history.max()) for history in histories]
    changing = [low < high for low, high in bounds]
    is_part = panel == "rate" and is_wide_range and any(changing)
    shown = changing if is_part else [True] * len(changing)
    curves = [history[np.arange(100) * len(history) // 100] for history in histories]
    drawn = {arm: {**looks, "marker": ""} for i, (arm, looks) in enumerate(_looks(comparison).items()) if shown[i]}
    for i, (result, history) in enumerate(zip(results, histories, strict=True)):
        if shown[i]:
            epochs = np.linspace(0, len(result.epochs), len(history), endpoint=False)
            # Arms of one schedule may share a curve; a narrower line lets the one below be seen on both sides.
            width = 1.5 + 2.0 * sum(np.abs(curves[i] - other).max() < 0.05 * other.max() for other in curves[i + 1 :])
            axes.plot(epochs, history, linewidth=width, **drawn[comparison.trained[i].arm])
    explain_looks(axes, drawn)
    axes.set(xlabel="epoch", ylabel="learning rate", yscale="linear" if panel == "rate" else "log")
    if is_part:
        axes.set_ylim(bottom=0)
        axes.set_title("the arms whose rate changes" if not all(changing) else "", fontsize=10)
    finish(axes)


def policies_picture(runs: Sequence[ArmRun], measure: str, title: str) -> Picture:
    """Draw a measure at each validation, mean ± standard deviation over seeds, and the learning rates, over steps."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    results = {arm.schedule_name: [run.result for run in runs if run.arm == arm] for arm in arms}
    panels = {"measure": partial(_draw_policies, results, measure), "rate": partial(_draw_rates_over_steps, results)}
    is_one = len(runs) == len(arms)
    spread = "line: one seed" if is_one else "line: mean over seeds; band: ± standard deviation"
    return Picture(title, [["measure"], ["rate"]], panels, f"{spread}; dot: the end", (10, 8), shares_x=True)


def _draw_policies(results: Mapping[str, Sequence[TrainingResult]], measure: str, axes: Axes) -> None:
    ends = []
    for i, (name, of_policy) in enumerate(results.items()):
        steps = [record.step + 1 for record in of_policy[0].validated]
        band = validation_bands(of_policy)[measure]
        _draw_band(axes, steps, band, {"label": name, **style(i)})
        axes.plot(steps[-1], band.mean[-1], "o", color=style(i)["color"])
        ends += [band.lower, band.upper]
    later = [end[len(end) // 3 :] for end in ends]
    show_range(axes, np.concatenate(later), np.concatenate(ends), direction_of(measure) != "min")
    axes.set(xlabel="step", ylabel=in_words(measure))
    finish(axes, measure)


def _draw_rates_over_steps(results: Mapping[str, Sequence[TrainingResult]], axes: Axes) -> None:
    for i, (name, of_policy) in enumerate(results.items()):
        history = of_policy[0].history
        axes.plot(history["step"], history["learning_rate"], label=name, **style(i))
    axes.set(yscale="log", xlabel="step", ylabel="learning rate")
    finish(axes)


def _scaling_picture(comparison: Comparison, noise_scale: NoiseScale | None) -> Picture | None:
    """Draw steps, examples and seconds to the target against the batch size, where a schedule reached it at two."""
    medians = [[arm.median_to_target("steps") for arm in arms] for arms in comparison.by_schedule().values()]
    if all(np.isfinite(of_schedule).sum() < 2 for of_schedule in medians):
        return None
    costs = _TARGET_COSTS if comparison.timed_seeds else _TARGET_COSTS[:-1]
    return Picture(
        f"{_title(comparison)}: to {comparison.measure.words} {comparison.measure.target:.4g}; a seed that does not "
        "reach it counts as infinite",
        [costs],
        {what: partial(_draw_to_target, comparison, noise_scale, what) for what in costs},
        size=(13, 4.8),
    )


def _draw_to_target(comparison: Comparison, noise_scale: NoiseScale | None, what: str, axes: Axes) -> None:
    by_name = comparison.by_schedule()
    sizes = [arm.arm.batch_size for arm in next(iter(by_name.values()))]
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"{what} to the target, median over seeds")
    medians = {name: np.array([arm.median_to_target(what) for arm in arms]) for name, arms in by_name.items()}
    for i, (name, values) in enumerate(medians.items()):
        reached = np.where(np.isfinite(values), values, np.nan)
        axes.plot(sizes, reached, label=name, color=COLORS[i % len(COLORS)], **schedule_looks(i))
    for i, values in enumerate(medians.values()):
        if what == "steps" and np.isfinite(values[0]):
            perfect = values[0] * sizes[0] / np.array(sizes)
            axes.plot(sizes, perfect, color=COLORS[i % len(COLORS)], lw=0.7, label="thin: perfect scaling")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    write_log_ticks(axes.yaxis)
    middle = np.median(noise_scale.batch_sizes) if noise_scale is not None else np.inf
    if what == "steps" and np.isfinite(middle):
        axes.axvline(middle, color="gray", linestyle="--", label="gradient noise scale, median")
    finish(axes)


def _loss_picture(comparison: Comparison) -> Picture | None:
    """Draw the smoothed loss of each arm against its learning rate, the first seed's, where the rate changes."""
    results = [comparison.results(summary.arm)[0] for summary in comparison.trained]
    if not any(np.ptp(result.history["learning_rate"]) for result in results):
        return None
    return Picture(
        f"{about(results[0].settings)}, seed {comparison.seeds[0]}: loss against learning rate",
        [["loss"]],
        {"loss": partial(_draw_loss, comparison, results)},
        "marker: the end of the run",
        (8, 5),
    )


def _draw_loss(comparison: Comparison, results: Sequence[TrainingResult], axes: Axes) -> None:
    every = zip(_looks(comparison).items(), results, strict=True)
    drawn = {arm: (looks, result) for (arm, looks), result in every if np.ptp(result.history["learning_rate"]) > 0}
    for looks, result in drawn.values():
        rates, losses = result.history["learning_rate"], result.history["loss"]
        smoothed = smooth(losses.astype(np.float64), max(len(losses) / 80, 1.0))
        axes.plot(rates, smoothed, **looks | {"marker": ""})
        axes.plot(rates[-1], smoothed[-1], looks["marker"], color=looks["color"])
    explain_looks(axes, {arm: looks for arm, (looks, _) in drawn.items()})
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", xscale="log", yscale="log")
    write_log_ticks(axes.xaxis)
    write_log_ticks(axes.yaxis)
    finish(axes)
