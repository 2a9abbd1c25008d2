"""Draws results with matplotlib's Agg canvas: no window, no global state."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from clr_loop.runs.result import TrainingResult
from clr_loop.studies.measures import is_share
from clr_loop.studies.smoothing import smooth

if TYPE_CHECKING:  # Scripts that draw other pictures need no statistics, which take a second to import.
    from clr_loop.studies.effects import Comparison
    from clr_loop.studies.noise_scale import NoiseScale
    from clr_loop.studies.tuning import Search

# Okabe and Ito's palette, whose colors the color-blind can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def training_curves(result: TrainingResult) -> Figure:
    """Draw the learning rate and every metric of a run over its steps, and the validation's values at each epoch."""
    steps = result.history["step"]
    names = [name for name in result.history if name != "step"]
    figure = _figure(9, 2.7 * len(names))
    for axes, name in zip(_panels(figure, names), names, strict=True):
        width, alpha = (1.5, 1.0) if name == "learning_rate" else (0.6, 0.5)
        values = result.history[name]
        axes.plot(steps, values, color=_COLORS[0], linewidth=width, alpha=alpha, label="training, each step")
        validated = [(e.step, e.metrics[f"val_{name}"]) for e in result.epochs if f"val_{name}" in e.metrics]
        if validated:
            axes.plot(*zip(*validated, strict=True), "o-", color=_COLORS[1], ms=4, label="validation, each epoch")
            axes.legend(loc="best")
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[-1].set_xlabel("step")
    return figure


def comparison(compared: Comparison) -> Figure:
    """Draw the measure against seconds and against examples, its last values by seed, and the learning rates.

    Lines are means over seeds, bands reach from the lowest to the highest seed. Seconds are those of the timed seeds.
    """
    figure = _figure(12, 9)
    by_seconds, by_examples, last, rates = figure.subplots(2, 2).ravel()
    for i, arm in enumerate(summary.arm for summary in compared.arms):
        color = _COLORS[i % len(_COLORS)]
        results = {run.seed: run.result for run in compared.runs if run.arm == arm}
        first = results[compared.timed_seeds[0]]
        values = np.array([[e.metrics[compared.measure.name] for e in result.epochs] for result in results.values()])
        seconds = np.cumsum([results[seed].epoch_seconds for seed in compared.timed_seeds], axis=1).mean(axis=0)
        thousands = first.num_examples / 1e3 * np.arange(1, len(first.epochs) + 1)
        for axes, x in ((by_seconds, seconds), (by_examples, thousands)):
            axes.plot(x, values.mean(axis=0), color=color, marker=".", label=arm.label)
            axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        last.plot(np.full(len(values), i), values[:, -1], "o", color=color, alpha=0.6)
        last.hlines(values[:, -1].mean(), i - 0.25, i + 0.25, color=color, linewidth=2)
        learning_rates = first.history["learning_rate"]
        epochs = np.linspace(0, len(first.epochs), len(learning_rates), endpoint=False)
        # Arms of one schedule often share a curve; dashes let both be seen.
        rates.plot(epochs, learning_rates, color=color, linestyle=(0, (4, 1.5 * i)) if i else "solid")
    words = compared.measure.words
    by_seconds.set(xlabel="training seconds (compilation and validation left out)", ylabel=words)
    by_examples.set(xlabel="examples trained on, thousands", ylabel=words)
    last.set(xlabel="dot: one seed; bar: mean", ylabel=f"{words} after the last epoch")
    last.set_xticks(range(len(compared.arms)), [arm.arm.label.replace(", ", "\n") for arm in compared.arms])
    rates.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    figure.legend(*by_seconds.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    _finish((by_seconds, by_examples, last), compared.measure.name)
    _finish([rates])
    return figure


def further_comparison(
    compared: Comparison, searches: Sequence[Search], noise_scale: NoiseScale | None
) -> dict[str, Figure]:
    """Draw what else a comparison has to show, by the names of the pictures' files."""
    found = {
        "comparison.tuning": _tuning(searches),
        "comparison.scaling": _scaling(compared, noise_scale),
        "comparison.loss_against_rate": _loss_against_rate(compared),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def _tuning(searches: Sequence[Search]) -> Figure | None:
    """Draw the held-out measure against the highest rate, a panel for each batch size and a line for each schedule."""
    sizes = list(dict.fromkeys(search.arm.batch_size for search in searches))
    if not sizes:
        return None
    names = list(dict.fromkeys(search.arm.schedule_name for search in searches))
    figure = _figure(4.2 * len(sizes), 4)
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for search in searches:
        axes = panels[sizes.index(search.arm.batch_size)]
        color = _COLORS[names.index(search.arm.schedule_name) % len(_COLORS)]
        tried = [(trial.learning_rate, np.nan if trial.value is None else trial.value) for trial in search.trials]
        axes.plot(*zip(*tried, strict=True), "o-", color=color, ms=4, label=search.arm.schedule_name)
        axes.plot(search.best.learning_rate, search.best.value, "*", color=color, ms=14)
        axes.set(xscale="log", title=f"batch {search.arm.batch_size}", xlabel="highest learning rate")
    # A rate that is far too high or too low would press the others into a line.
    lows, highs = zip(*map(_around_best, searches), strict=True)
    low, high = min(lows), max(highs)
    panels[0].set_ylim(low - 0.3 * (high - low), high + 0.1 * (high - low))
    panels[0].set_ylabel(f"{searches[0].measure.words}, held out")
    panels[0].legend(title="star: the best")
    _finish(panels, searches[0].measure.name)
    return figure


def _around_best(search: Search) -> tuple[float, float]:
    """Return the lowest and highest value of the best trial and its two neighbors."""
    place = search.trials.index(search.best)
    values = [trial.value for trial in search.trials[max(place - 1, 0) : place + 2] if trial.value is not None]
    return min(values), max(values)


def _scaling(compared: Comparison, noise_scale: NoiseScale | None) -> Figure | None:
    """Draw steps, examples and seconds to the target against the batch size, for two or more of them."""
    sizes = sorted({arm.arm.batch_size for arm in compared.arms})
    if len(sizes) < 2 or not any(np.isfinite(arm.median_to_target("steps")) for arm in compared.arms):
        return None
    figure = _figure(13, 4.8)
    panels = dict(zip(("steps", "examples", "seconds"), figure.subplots(1, 3), strict=True))
    names = list(dict.fromkeys(arm.arm.schedule_name for arm in compared.arms))
    for what, axes in panels.items():
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"{what} to the target, median over seeds")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        for name, color in zip(names, _COLORS * len(names), strict=False):
            arms = sorted((a for a in compared.arms if a.arm.schedule_name == name), key=lambda a: a.arm.batch_size)
            medians = [arm.median_to_target(what) for arm in arms]
            reached = [median if np.isfinite(median) else np.nan for median in medians]
            axes.plot([arm.arm.batch_size for arm in arms], reached, "o-", color=color, label=name)
            if what == "steps" and np.isfinite(medians[0]):
                perfect = [medians[0] * sizes[0] / size for size in sizes]
                axes.plot(sizes, perfect, ":", color=color, label=f"{name}, perfect scaling")
    middle = np.median(noise_scale.batch_sizes) if noise_scale is not None else np.inf
    if np.isfinite(middle):
        panels["steps"].axvline(middle, color="gray", linestyle="--", label="gradient noise scale, median")
    _finish(panels.values())
    figure.legend(*panels["steps"].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    target = f"{compared.measure.target:.4g}"
    figure.suptitle(f"To {compared.measure.words} {target}; a seed that does not reach it counts as infinite")
    return figure


def _loss_against_rate(compared: Comparison) -> Figure | None:
    """Draw the smoothed loss of each arm against its learning rate, the first seed's, where the rate changes."""
    first = min(run.seed for run in compared.runs)
    runs = [run for run in compared.runs if run.seed == first and np.ptp(run.result.history["learning_rate"]) > 0]
    if not runs:
        return None
    figure = _figure(8, 5)
    (axes,) = _panels(figure, ["loss"])
    for run, color in zip(runs, _COLORS * len(runs), strict=False):
        history = run.result.history
        loss = smooth(history["loss"].astype(np.float64), max(len(history["loss"]) / 80, 1.0))
        axes.plot(history["learning_rate"], loss, color=color, label=run.arm.label)
    axes.set(xlabel="learning rate", ylabel=f"training loss, smoothed, seed {first}", yscale="log")
    axes.legend()
    return figure


def schedule(
    steps: NDArray[np.int64],
    rates: NDArray[np.float64],
    momentums: NDArray[np.float64] | None,
    steps_per_epoch: int,
    title: str,
    notes: Sequence[str] = (),
) -> Figure:
    """Draw a schedule over a run before it is run.

    Args:
        steps: int [n], rising; of a long run a few thousand are enough.
        rates: float [n], the learning rate of each.
        momentums: float [n], the momentum of each, or None to leave it out.
        steps_per_epoch: steps, for the epochs along the top.
        title: of the picture.
        notes: sentences to write under it.
    """
    curves = {"learning rate": rates, **({} if momentums is None else {"momentum": momentums})}
    figure = _figure(9, 1.2 + 3.2 * len(curves) + 0.3 * len(notes))
    for axes, values in zip(_panels(figure, list(curves)), curves.values(), strict=True):
        axes.plot(steps, values, color=_COLORS[0], marker="." if len(values) <= 100 else "")
    rate_axes = figure.axes[0]
    rate_axes.set_ylim(bottom=0)
    to_epochs = (lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch)
    rate_axes.secondary_xaxis("top", functions=to_epochs).set_xlabel("epoch")
    figure.axes[-1].set_xlabel("step")
    figure.suptitle(title)
    if notes:
        lines = [line for note in notes for line in textwrap.wrap(note, 120, subsequent_indent="    ")]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize="small", color=_COLORS[1])
    return figure


def range_test(
    seeds: Sequence[Mapping[str, NDArray[Any]]], bands: Mapping[str, tuple[float, float, float]], title: str
) -> Figure:
    """Draw the curves of an LR range test over the logarithm of the rate, and what they suggest.

    Args:
        seeds: for each seed [n] each: learning_rate, loss, smoothed_loss, and other measures raw and smoothed likewise.
        bands: name of a suggestion → lowest, middle and highest rate over the seeds.
        title: what was tested.
    """
    names = [name for name in seeds[0] if f"smoothed_{name}" in seeds[0]]
    figure = _figure(10, 4 * len(names))
    panels = dict(zip(names, _panels(figure, names), strict=True))
    for name, axes in panels.items():
        axes.set_xscale("log")
        axes.margins(x=0)
        for curves, color in zip(seeds, _COLORS * len(seeds), strict=False):
            axes.plot(curves["learning_rate"], curves[name], color=color, linewidth=0.6, alpha=0.3)
            axes.plot(curves["learning_rate"], curves[f"smoothed_{name}"], color=color, linewidth=2)
    # A diverging loss would press all else to the floor, so the range ends as far above the start as it begins below.
    smoothed = [curves["smoothed_loss"][np.isfinite(curves["smoothed_loss"])] for curves in seeds]
    if all(map(len, smoothed)):
        start, low = max(values[0] for values in smoothed), min(0.0, *(values.min() for values in smoothed))
        panels["loss"].set_ylim(low, 2.0 * start - low if start > low else None)
    # Neighbors often lie close, so each name has a height of its own, and the lower ones stand to the left.
    for i, (name, (low, middle, high)) in enumerate(sorted(bands.items(), key=lambda item: item[1][1])):
        color, style = ("black", "solid") if name in ("base_lr", "max_lr") else ("dimgray", "dotted")
        for axes in panels.values():
            axes.axvline(middle, color=color, linestyle=style, linewidth=1.2)
            axes.axvspan(low, high, color=color, alpha=0.07, linewidth=0)
        panels["loss"].text(
            middle,
            0.97 - 0.075 * i,
            f" {name} {middle:.2g} ",
            transform=panels["loss"].get_xaxis_transform(),
            ha="right" if i < 2 else "left",
            va="top",
            color=color,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )
    explained = "thin: each batch; bold: smoothed; a color for each seed; gray: over seeds"
    figure.axes[-1].set_xlabel(f"learning rate ({explained})")
    figure.axes[0].set_title(f"LR range test: {title}")
    return figure


def benchmark(cases: Mapping[str, Mapping[str, Sequence[float]]], growth: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draw what an epoch costs each contender, a panel for each case, and how the cost falls with the batch size.

    Args:
        cases: title → contender → seconds of each timed epoch. A bar ends at the median, its line spans all of them.
        growth: contender → batch size, rising → median seconds of an epoch; empty draws no such panel.
    """
    num_panels = max(len(cases) + bool(growth), 1)
    num_columns = min(num_panels, 2)
    num_rows = -(-num_panels // num_columns)
    figure = _figure(6.5 * num_columns, 3.2 * num_rows)
    panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, (title, contenders) in zip(panels, cases.items(), strict=False):
        for i, (label, seconds) in enumerate(contenders.items()):
            median = float(np.median(seconds))
            axes.barh(i, median, color=_COLORS[0] if label == "clr_loop" else _COLORS[5], height=0.7)
            axes.hlines(i, min(seconds), max(seconds), color="black", linewidth=1)
            axes.annotate(f" {median:.3f}", (max(seconds), i), va="center", fontsize=8)
        axes.set_yticks(range(len(contenders)), list(contenders))
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=title, xlabel="seconds an epoch, median and range")
    if growth:
        axes = panels[len(cases)]
        for color, (label, points) in zip(_COLORS, growth.items(), strict=False):
            axes.plot(list(points), list(points.values()), "o-", color=color, label=label)
            axes.set_xscale("log")
            axes.set_xticks(list(points), [f"{size:,}" for size in points], rotation=45)
        axes.set(title="against batch size", xlabel="examples per step", ylabel="seconds an epoch")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    for axes in panels[len(cases) + bool(growth) :]:
        axes.set_axis_off()
    _finish(panels)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panels(figure: Figure, names: Sequence[str]) -> list[Axes]:
    """Make a panel for each of these, one below the other, over one axis of steps or rates."""
    panels = list(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0])
    for axes, name in zip(panels, names, strict=True):
        axes.set_ylabel(name.replace("_", " "))
        _finish([axes], name)
    return panels


def _finish(panels: Iterable[Axes], measure: str = "") -> None:
    """Draw a grid, and write an accuracy in percent."""
    for axes in panels:
        axes.grid(alpha=0.3)
        if is_share(measure):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
