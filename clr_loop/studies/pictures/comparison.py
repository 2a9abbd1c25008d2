"""The pictures of a comparison: what its arms gave, how they were tuned, what a target cost, and loss against rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from clr_loop.runs.result import TrainingResult, higher_is_better
from clr_loop.studies.comparison.effects import Comparison, Run
from clr_loop.studies.comparison.measures import in_words
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.tuning import Search, Trial
from clr_loop.studies.pictures.bands import Band, validation_bands
from clr_loop.studies.pictures.canvas import COLORS, Picture, about, finish, is_wide, show_range, style
from clr_loop.studies.range_test import sweep as range_test
from clr_loop.studies.range_test.smoothing import smooth
from clr_loop.studies.range_test.sweep import RangeTest


def pictures(
    compared: Comparison,
    searches: Sequence[Search] = (),
    noise_scale: NoiseScale | None = None,
    range_tests: Mapping[int, Sequence[RangeTest]] | None = None,
) -> dict[str, Picture]:
    """Return what a comparison has to show, by the names of the pictures' files; range_tests: of each batch size."""
    settings = compared.runs[0].result.settings
    found = {
        "comparison": comparison(compared),
        "comparison.range_test": range_test.picture(range_tests, settings) if range_tests else None,
        "comparison.tuning": tuning(compared, searches),
        "comparison.scaling": scaling(compared, noise_scale),
        "comparison.loss_against_rate": loss_against_rate(compared),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


def _about(compared: Comparison) -> str:
    """Return what was compared: `mnist, relu_mlp, Adam, 5 seeds`."""
    num_seeds = len({run.seed for run in compared.runs})
    return f"{about(compared.runs[0].result.settings)}, {num_seeds} seed{'s' if num_seeds > 1 else ''}"


def comparison(compared: Comparison) -> Picture:
    """Draw the measure against examples and against seconds, its last values by seed, and the learning rates.

    Lines are means over seeds, and bands are as wide as the standard deviation to both sides. Seconds are those of the
    timed seeds. After a single validation there is no panel of examples. Rates that span much have a linear panel, of
    those that change, and a logarithmic one, of all.
    """
    arms = [summary.arm for summary in compared.arms]
    results = [[run.result for run in compared.runs if run.arm == arm] for arm in arms]
    histories = [of_arm[0].history["learning_rate"] for of_arm in results]
    rates = ["rate", "rate_log"] if is_wide(np.concatenate(histories)) else ["rate"]
    bands = [_measure_band(compared, of_arm) for of_arm in results]
    timed = [[r.result for r in compared.runs if r.arm == arm and r.seed in compared.timed_seeds] for arm in arms]
    seconds = [_seconds(of_arm) for of_arm in timed]
    is_long = any(len(band.mean) > 1 for band in bands)
    return Picture(
        _about(compared),
        [["seconds", "examples"], ["last", *rates]] if is_long else [["last", "seconds"], rates],
        {
            "examples": partial(_draw_bands, compared, bands, [band.examples / 1e3 for band in bands], "examples"),
            "seconds": partial(_draw_bands, compared, bands, seconds, "seconds"),
            "last": partial(_draw_last, compared),
            **{name: partial(_draw_rates, compared, histories, name) for name in rates},
        },
    )


def _measure_band(compared: Comparison, results: Sequence[TrainingResult]) -> Band:
    """Return the measure of one arm at the ends of its epochs."""
    values = np.array([[record.metrics[compared.measure.name] for record in result.epochs] for result in results])
    examples = results[0].num_examples * np.arange(1, values.shape[1] + 1)
    return Band.of(examples, values)


def _seconds(timed: Sequence[TrainingResult]) -> NDArray[np.float64]:
    """Return the mean training seconds until the end of each epoch."""
    return np.cumsum([result.epoch_seconds for result in timed], axis=1).mean(axis=0)


def _draw_bands(
    compared: Comparison, bands: Sequence[Band], places: Sequence[NDArray[np.float64]], what: str, axes: Axes
) -> None:
    for i, (band, x) in enumerate(zip(bands, places, strict=True)):
        label = compared.arms[i].arm.label
        axes.plot(x, band.mean, marker="." if len(x) > 1 else "o", label=label, **style(i))
        axes.fill_between(x, band.lower, band.upper, color=style(i)["color"], alpha=0.15, linewidth=0)
        if len(x) == 1:
            axes.annotate(f" {label}", (x[0], band.mean[0]), color=style(i)["color"], va="bottom")
    bounds = [bound for band in bands for bound in (band.lower, band.upper)]
    later = [bound[(len(bound) - 1) // 2 :] for bound in bounds]
    show_range(axes, np.concatenate(later), np.concatenate(bounds), bool(compared.measure.higher_is_better))
    words = {"examples": "thousands of examples", "seconds": "training seconds, without compilation and validation"}
    axes.set(xlabel=words[what], ylabel=compared.measure.words)
    axes.set_xlim(0, (1.05 if len(places[0]) > 1 else 1.5) * axes.dataLim.x1)
    if len(compared.arms[0].final.values) > 1:
        axes.set_title("line: mean over seeds; band: ± standard deviation", fontsize=10)
    finish(axes, compared.measure.name)


def _draw_last(compared: Comparison, axes: Axes) -> None:
    """Draw the last value of each seed, and their mean and standard deviation, in a row for each arm."""
    for i, summary in enumerate(compared.arms):
        final, color = summary.final, style(i)["color"]
        heights = i + np.linspace(-0.25, 0.25, len(final.values) + 2)[1:-1]
        axes.plot(final.values, heights, "o", color=color, alpha=0.5, markeredgewidth=0)
        axes.errorbar(final.mean, i, xerr=final.sd, fmt="|", color=color, ms=22, mew=2, capsize=4)
    form, factor, unit = (".2f", 100.0, " %") if compared.measure.is_share else (".4g", 1.0, "")
    labels = [f"{summary.arm.label}\n{summary.final.in_words(form, factor)}{unit}" for summary in compared.arms]
    axes.set_yticks(range(len(compared.arms)), labels, fontsize=9)
    axes.set_ylim(len(compared.arms) - 0.4, -0.6)
    axes.margins(x=0.1)
    many = len(compared.arms[0].final.values) > 1
    dots = "dots: seeds; bar: mean ± standard deviation" if many else "one seed"
    axes.set_xlabel(f"{compared.measure.words} after the last epoch\n({dots})")
    finish(axes)
    if compared.measure.is_share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_rates(compared: Comparison, histories: Sequence[NDArray[np.float32]], panel: str, axes: Axes) -> None:
    """Draw the rates over epochs: all of them or, on a linear axis beside a logarithmic one, those that change."""
    bounds = [(history.min(), history.max()) for history in histories]
    changing = [low < high for low, high in bounds]
    is_part = panel == "rate" and is_wide(np.concatenate(histories)) and any(changing)
    first = [next(run.result for run in compared.runs if run.arm == summary.arm) for summary in compared.arms]
    for i, history in enumerate(histories):
        if changing[i] or not is_part:
            epochs = np.linspace(0, len(first[i].epochs), len(history), endpoint=False)
            # Arms of one schedule may share a curve; a narrower line lets the one below be seen on both sides.
            width = 1.5 + 3.0 * sum(np.allclose(bounds[i], other, rtol=0.05) for other in bounds[i + 1 :])
            axes.plot(epochs, history, linewidth=width, label=compared.arms[i].arm.label, **style(i))
    axes.set(xlabel="epoch", ylabel="learning rate", yscale="linear" if panel == "rate" else "log")
    if is_part:
        axes.set_ylim(bottom=0)
        axes.set_title("the arms whose rate changes" if not all(changing) else "", fontsize=10)
    finish(axes)


def policies(runs: Sequence[Run], measure: str, title: str) -> Picture:
    """Draw a measure at each validation, mean ± standard deviation over seeds, and the learning rates, over steps."""
    panels = {"measure": partial(_draw_policies, runs, measure), "rate": partial(_draw_rates_over_steps, runs)}
    is_one = len({run.seed for run in runs}) == 1
    spread = "line: one seed" if is_one else "line: mean over seeds; band: ± standard deviation"
    return Picture(title, [["measure"], ["rate"]], panels, f"{spread}; dot: the end", (10, 8), shares_x=True)


def _draw_policies(runs: Sequence[Run], measure: str, axes: Axes) -> None:
    bands = []
    for i, arm in enumerate(dict.fromkeys(run.arm for run in runs)):
        results = [run.result for run in runs if run.arm == arm]
        steps = [record.step + 1 for record in results[0].validated]
        band = validation_bands(results)[measure]
        axes.plot(steps, band.mean, label=arm.schedule_name, **style(i))
        axes.plot(steps[-1], band.mean[-1], "o", color=style(i)["color"])
        axes.fill_between(steps, band.lower, band.upper, color=style(i)["color"], alpha=0.15, lw=0)
        bands.append(np.array([band.lower, band.upper]))
    later = np.concatenate([ends[:, ends.shape[1] // 3 :].ravel() for ends in bands])
    show_range(axes, later, np.concatenate([ends.ravel() for ends in bands]), higher_is_better(measure))
    axes.set(xlabel="step", ylabel=in_words(measure))
    finish(axes, measure)


def _draw_rates_over_steps(runs: Sequence[Run], axes: Axes) -> None:
    for i, arm in enumerate(dict.fromkeys(run.arm for run in runs)):
        history = next(run.result.history for run in runs if run.arm == arm)
        axes.plot(history["step"], history["learning_rate"], label=arm.schedule_name, **style(i))
    axes.set(yscale="log", xlabel="step", ylabel="learning rate")
    finish(axes)


def tuning(compared: Comparison, searches: Sequence[Search]) -> Picture | None:
    """Draw the held-out measure against the highest rate, a panel for each batch size and a line for each schedule."""
    if not searches:
        return None
    sizes = list(dict.fromkeys(search.arm.batch_size for search in searches))
    rows = [[f"batch {size}" for size in sizes[i : i + 3]] for i in range(0, len(sizes), 3)]
    return Picture(
        f"{about(compared.runs[0].result.settings)}: trials of one seed, on held-out training examples",
        rows,
        {f"batch {size}": partial(_draw_trials, searches, size) for size in sizes},
        "star: the best",
        (4.2 * len(rows[0]), 0.8 + 3.4 * len(rows)),
    )


def _draw_trials(searches: Sequence[Search], size: int, axes: Axes) -> None:
    names = list(dict.fromkeys(search.arm.schedule_name for search in searches))
    measure = searches[0].measure
    # A rate that is far too high or too low would press the best and its neighbors into a line.
    around: list[Trial] = []
    for search in searches:
        place = search.trials.index(search.best)
        around += search.trials[max(place - 1, 0) : place + 2]
    every, near = (
        np.array([trial.value for trial in trials if trial.value is not None])
        for trials in ([trial for search in searches for trial in search.trials], around)
    )
    show_range(axes, near, every, bool(measure.higher_is_better))
    for search in [search for search in searches if search.arm.batch_size == size]:
        color = COLORS[names.index(search.arm.schedule_name) % len(COLORS)]
        tried = [(trial.learning_rate, np.nan if trial.value is None else trial.value) for trial in search.trials]
        axes.plot(*zip(*tried, strict=True), "o-", color=color, ms=4, label=search.arm.schedule_name)
        best = tried[search.trials.index(search.best)]
        axes.plot(*best, "*", color=color, ms=14)
        diverged = [rate for rate, value in tried if not np.isfinite(value)]
        if diverged:
            worst = [axes.get_ylim()[0 if measure.higher_is_better else 1]] * len(diverged)
            axes.plot(diverged, worst, "X", color=color, ms=8, clip_on=False, zorder=3, label="cross: diverged")
    axes.set(xscale="log", title=f"batch {size}", xlabel="highest learning rate", ylabel=f"{measure.words}, held out")
    finish(axes, measure.name)


def scaling(compared: Comparison, noise_scale: NoiseScale | None) -> Picture | None:
    """Draw steps, examples and seconds to the target against the batch size, where a schedule reached it at two."""
    reached_by = [arm.arm.schedule_name for arm in compared.arms if np.isfinite(arm.median_to_target("steps"))]
    if len(reached_by) == len(set(reached_by)):
        return None
    target = f"{compared.measure.words} {compared.measure.target:.4g}"
    names = ("steps", "examples", "seconds")
    return Picture(
        f"{_about(compared)}: to {target}; a seed that does not reach it counts as infinite",
        [names],
        {what: partial(_draw_to_target, compared, noise_scale, what) for what in names},
        size=(13, 4.8),
    )


def _draw_to_target(compared: Comparison, noise_scale: NoiseScale | None, what: str, axes: Axes) -> None:
    sizes = sorted({arm.arm.batch_size for arm in compared.arms})
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"{what} to the target, median over seeds")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    names = list(dict.fromkeys(arm.arm.schedule_name for arm in compared.arms))
    for name, color in zip(names, COLORS * len(names), strict=False):
        arms = sorted((a for a in compared.arms if a.arm.schedule_name == name), key=lambda a: a.arm.batch_size)
        medians = [arm.median_to_target(what) for arm in arms]
        reached = [median if np.isfinite(median) else np.nan for median in medians]
        axes.plot([arm.arm.batch_size for arm in arms], reached, "o-", color=color, label=name)
        if what == "steps" and np.isfinite(medians[0]):
            perfect = [medians[0] * sizes[0] / size for size in sizes]
            axes.plot(sizes, perfect, ":", color=color, label=f"{name}, perfect scaling")
    middle = np.median(noise_scale.batch_sizes) if noise_scale is not None else np.inf
    if what == "steps" and np.isfinite(middle):
        axes.axvline(middle, color="gray", linestyle="--", label="gradient noise scale, median")
    finish(axes)


def loss_against_rate(compared: Comparison) -> Picture | None:
    """Draw the smoothed loss of each arm against its learning rate, the first seed's, where the rate changes."""
    first = min(run.seed for run in compared.runs)
    runs = [run for run in compared.runs if run.seed == first and np.ptp(run.result.history["learning_rate"]) > 0]
    if not runs:
        return None
    return Picture(
        f"{about(runs[0].result.settings)}, seed {first}: loss against learning rate",
        [["loss"]],
        {"loss": partial(_draw_loss, compared, runs)},
        "dot: the end of the run",
        (8, 5),
    )


def _draw_loss(compared: Comparison, runs: Sequence[Run], axes: Axes) -> None:
    arms = [summary.arm for summary in compared.arms]
    for run in runs:
        history, looks = run.result.history, style(arms.index(run.arm))
        loss = smooth(history["loss"].astype(np.float64), max(len(history["loss"]) / 80, 1.0))
        axes.plot(history["learning_rate"], loss, label=run.arm.label, **looks)
        axes.plot(history["learning_rate"][-1], loss[-1], "o", color=looks["color"])
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", yscale="log")
    finish(axes)
