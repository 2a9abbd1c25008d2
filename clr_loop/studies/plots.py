"""Draws results with matplotlib's Agg canvas: no window, no global state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from clr_loop.runs.result import TrainingResult, higher_is_better
from clr_loop.studies.measures import is_share
from clr_loop.studies.smoothing import smooth

if TYPE_CHECKING:  # Scripts that draw other pictures need no statistics, which take a second to import.
    from clr_loop.studies.effects import Comparison, Run
    from clr_loop.studies.noise_scale import NoiseScale
    from clr_loop.studies.tuning import Search, Trial

# Okabe and Ito's palette, whose colors the color-blind can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def training_curves(result: TrainingResult) -> Figure:
    """Draw the learning rate and every metric of a run over its steps, and the values of each validation."""
    history, settings = result.history, result.settings
    panels = [(name, "log" if name == "loss" and not (history[name] <= 0).any() else "linear") for name in history]
    panels = [panel for panel in panels if panel[0] != "step"]
    if _is_wide(history["learning_rate"]):
        panels.insert(1, ("learning_rate", "log"))
    figure = _figure(9, 1 + 2.4 * len(panels))
    for axes, (name, scale) in zip(_panels(figure, [name for name, _ in panels]), panels, strict=True):
        is_rate = name in ("learning_rate", "momentum")
        width, alpha = (1.5, 1.0) if is_rate else (0.7, 0.6)
        axes.plot(history["step"], history[name], color=_COLORS[0], lw=width, alpha=alpha, label="training, each step")
        if scale == "log":
            axes.set_yscale("log")
        validated = [(e.step, e.metrics[f"val_{name}"]) for e in result.validated if f"val_{name}" in e.metrics]
        if validated:
            axes.plot(*zip(*validated, strict=True), "o-", color=_COLORS[1], ms=4, label="validation")
            axes.legend(loc="best")
        if scale == "linear" and not is_rate:
            values, seen = history[name], [value for _, value in validated]
            later = np.append(values[len(values) // 2 :], seen[len(seen) // 2 :])
            _show_range(axes, later, np.append(values, seen), higher_is_better(name))
    figure.axes[0].set_ylim(bottom=0)
    _add_epochs(figure.axes[0], settings["steps_per_epoch"])
    figure.axes[-1].set_xlabel("step")
    figure.suptitle(f"{_about(settings)}, batch {settings['batch_size']}, seed {settings['seed']}")
    return figure


def comparison(compared: Comparison) -> Figure:
    """Draw the measure against seconds and against examples, its last values by seed, and the learning rates.

    Lines are means over seeds, and bands are as wide as the standard deviation to both sides. Seconds are those of the
    timed seeds. After a single epoch there is no panel of examples. Rates that span much have a linear panel, of those
    that change, and a logarithmic one, of all.
    """
    arms = [summary.arm for summary in compared.arms]
    results = [{run.seed: run.result for run in compared.runs if run.arm == arm} for arm in arms]
    firsts = [of_seed[compared.timed_seeds[0]] for of_seed in results]
    histories = [first.history["learning_rate"] for first in firsts]
    is_wide = _is_wide(np.concatenate(histories))
    rates = ["rate", "log rate"] if is_wide else ["rate"]
    is_long = any(len(first.epochs) > 1 for first in firsts)
    figure = _figure(12, 9)
    panels = _rows(figure, [["seconds", "examples"], ["last", *rates]] if is_long else [["last", "seconds"], rates])
    over = [panels[name] for name in ("seconds", "examples") if name in panels]
    _draw_means(compared, results, over)
    _draw_last(compared, panels["last"])
    bounds = [(history.min(), history.max()) for history in histories]
    for i, (first, history) in enumerate(zip(firsts, histories, strict=True)):
        epochs = np.linspace(0, len(first.epochs), len(history), endpoint=False)
        # Arms of one schedule may share a curve; a narrower line lets the one below be seen on both sides.
        width = 1.5 + 3.0 * sum(np.allclose(bounds[i], other, rtol=0.05) for other in bounds[i + 1 :])
        for name in rates:
            panels[name].plot(epochs, history, linewidth=width, **_style(i))
    for name in rates:
        panels[name].set(xlabel="epoch", ylabel="learning rate", yscale="linear" if name == "rate" else "log")
    changing = [high for low, high in bounds if low < high]
    panels["rate"].set_ylim(0, 1.05 * max(changing) if is_wide and changing else None)
    _finish(panels.values())
    _finish(over, compared.measure.name)
    num_seeds = len(results[0])
    bands = f"line: mean of {num_seeds} seeds; band: ± standard deviation" if num_seeds > 1 else "one seed"
    handles = panels["seconds"].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, title=bands)
    figure.suptitle(f"{_about(firsts[0].settings)}: {compared.measure.words}")
    return figure


def policies(runs: Sequence[Run], measure: str, title: str) -> Figure:
    """Draw a measure at each validation, its mean and range over seeds, and the learning rates, over steps."""
    figure = _figure(10, 8)
    curves, rates = _panels(figure, [measure, "learning_rate"])
    every = []
    for i, arm in enumerate(dict.fromkeys(run.arm for run in runs)):
        results = [run.result for run in runs if run.arm == arm]
        steps = [record.step + 1 for record in results[0].validated]
        values = np.array([[record.metrics[measure] for record in result.validated] for result in results])
        mean = values.mean(axis=0)
        curves.plot(steps, mean, label=arm.schedule_name, **_style(i))
        curves.plot(steps[-1], mean[-1], "o", color=_style(i)["color"])
        curves.fill_between(steps, values.min(axis=0), values.max(axis=0), color=_style(i)["color"], alpha=0.15, lw=0)
        rates.plot(results[0].history["step"], results[0].history["learning_rate"], **_style(i))
        every.append(values)
    _show_range(
        curves,
        np.concatenate([values[:, values.shape[1] // 3 :].ravel() for values in every]),
        np.concatenate([values.ravel() for values in every]),
        higher_is_better(measure),
    )
    curves.legend(loc="lower right", title="line: mean; band: range over seeds; dot: the end")
    rates.set(yscale="log", xlabel="step")
    figure.suptitle(textwrap.fill(title, 110))
    return figure


def _draw_means(compared: Comparison, results: Sequence[Mapping[int, TrainingResult]], panels: Sequence[Axes]) -> None:
    """Draw the measure against the timed seeds' seconds and, in a second panel, against thousands of examples."""
    every, later = [], []
    for i, of_seed in enumerate(results):
        values = np.array([[e.metrics[compared.measure.name] for e in result.epochs] for result in of_seed.values()])
        mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
        seconds = np.cumsum([of_seed[seed].epoch_seconds for seed in compared.timed_seeds], axis=1).mean(axis=0)
        thousands = of_seed[compared.timed_seeds[0]].num_examples / 1e3 * np.arange(1, len(mean) + 1)
        label = compared.arms[i].arm.label
        for axes, x in zip(panels, (seconds, thousands), strict=False):
            axes.plot(x, mean, marker="." if len(mean) > 1 else "o", label=label, **_style(i))
            axes.fill_between(x, mean - sd, mean + sd, color=_style(i)["color"], alpha=0.15, linewidth=0)
        every += [mean - sd, mean + sd]
        later += [bound[(len(mean) - 1) // 2 :] for bound in every[-2:]]
    x_labels = ("training seconds, without compilation and validation", "thousands of examples")
    for axes, x_label in zip(panels, x_labels, strict=False):
        axes.set(xlabel=x_label, ylabel=compared.measure.words)
        axes.set_xlim(0, 1.05 * axes.dataLim.x1)
        _show_range(axes, np.concatenate(later), np.concatenate(every), bool(compared.measure.higher_is_better))


def _draw_last(compared: Comparison, axes: Axes) -> None:
    """Draw the last value of each seed, and their mean and standard deviation, in a row for each arm."""
    for i, summary in enumerate(compared.arms):
        final, color = summary.final, _style(i)["color"]
        heights = i + np.linspace(-0.25, 0.25, len(final.values) + 2)[1:-1]
        axes.plot(final.values, heights, "o", color=color, alpha=0.5, markeredgewidth=0)
        axes.errorbar(final.mean, i, xerr=final.sd, fmt="|", color=color, ms=22, mew=2, capsize=4)
        text = f"{final.mean:.2%}" if compared.measure.is_share else f"{final.mean:.4g}"
        axes.annotate(text, (final.mean, i - 0.28), ha="center", va="bottom", color=color)
    axes.set_yticks(range(len(compared.arms)), [summary.arm.label for summary in compared.arms])
    axes.set_ylim(len(compared.arms) - 0.5, -0.7)
    axes.margins(x=0.15)
    axes.set_xlabel(f"{compared.measure.words} after the last epoch\n(dots: seeds; bar: mean ± standard deviation)")
    if compared.measure.is_share:
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))


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
    # A rate that is far too high or too low would press the best and its neighbors into a line.
    around: list[Trial] = []
    for search in searches:
        place = search.trials.index(search.best)
        around += search.trials[max(place - 1, 0) : place + 2]
    every, near = (
        np.array([trial.value for trial in trials if trial.value is not None])
        for trials in ([trial for search in searches for trial in search.trials], around)
    )
    _show_range(panels[0], near, every, bool(searches[0].measure.higher_is_better))
    panels[0].set_ylabel(f"{searches[0].measure.words}, held out")
    panels[0].legend(title="star: the best")
    figure.suptitle("Trials of every arm, each with one seed")
    _finish(panels, searches[0].measure.name)
    return figure


def _scaling(compared: Comparison, noise_scale: NoiseScale | None) -> Figure | None:
    """Draw steps, examples and seconds to the target against the batch size, where a schedule reached it at two."""
    sizes = sorted({arm.arm.batch_size for arm in compared.arms})
    reached_by = [arm.arm.schedule_name for arm in compared.arms if np.isfinite(arm.median_to_target("steps"))]
    if len(reached_by) == len(set(reached_by)):
        return None
    figure = _figure(13, 4.8)
    panels = dict(zip(("steps", "examples", "seconds"), figure.subplots(1, 3, sharex=True), strict=True))
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
    arms = [summary.arm for summary in compared.arms]
    runs = [run for run in compared.runs if run.seed == first and np.ptp(run.result.history["learning_rate"]) > 0]
    if not runs:
        return None
    figure = _figure(8, 5)
    (axes,) = _panels(figure, ["loss"])
    for run in runs:
        history = run.result.history
        loss = smooth(history["loss"].astype(np.float64), max(len(history["loss"]) / 80, 1.0))
        axes.plot(history["learning_rate"], loss, label=run.arm.label, **_style(arms.index(run.arm)))
        axes.plot(history["learning_rate"][-1], loss[-1], "o", color=_style(arms.index(run.arm))["color"])
    axes.set(xlabel="learning rate", ylabel="training loss, smoothed", yscale="log")
    axes.legend(title="dot: the end of the run")
    figure.suptitle(f"{_about(runs[0].result.settings)}, seed {first}")
    return figure


def snapshots(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw each metric of a run's snapshots and of the ensembles of its last ones; rows: see `runs.snapshots`."""
    names = [name for name in rows[0] if f"ensemble_{name}" in rows[0]]
    figure = _figure(8, 1 + 2.6 * len(names))
    for axes, name in zip(_panels(figure, names), names, strict=True):
        cycles = [row["cycle"] for row in rows]
        axes.plot(cycles, [row[name] for row in rows], "o-", color=_COLORS[0], label="the snapshot alone")
        joint = [row[f"ensemble_{name}"] for row in rows]
        axes.plot(cycles, joint, "s--", color=_COLORS[1], label="ensemble from this cycle to the last")
        axes.legend()
    figure.axes[-1].set(xlabel="cycle", xticks=[row["cycle"] for row in rows])
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
    curves = [("learning rate", rates)] * (2 if _is_wide(rates) else 1)
    curves += [] if momentums is None else [("momentum", momentums)]
    figure = _figure(9, 1.2 + 3.2 * len(curves) + 0.3 * len(notes))
    panels = _panels(figure, [name for name, _ in curves])
    for axes, (_, values) in zip(panels, curves, strict=True):
        axes.plot(steps, values, color=_COLORS[0], marker="." if len(values) <= 100 else "")
    panels[0].set_ylim(bottom=0)
    if _is_wide(rates):
        panels[1].set_yscale("log")
    _add_epochs(panels[0], steps_per_epoch)
    panels[-1].set_xlabel("step")
    figure.suptitle(title)
    if notes:
        lines = [line for note in notes for line in textwrap.wrap(note, 120, subsequent_indent="    ")]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize="small", color=_COLORS[1])
    return figure


def range_test(
    seeds: Sequence[Mapping[str, NDArray[Any]]],
    bands: Mapping[str, tuple[float, float, float]],
    title: str,
    explanations: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the curves of an LR range test over the logarithm of the rate, and what they suggest.

    Args:
        seeds: for each seed [n] each: learning_rate, loss, smoothed_loss, and other measures raw and smoothed likewise.
        bands: name of a suggestion → lowest, middle and highest rate over the seeds.
        title: what was tested.
        explanations: name of a suggestion → how it was found.
    """
    names = [name for name in seeds[0] if f"smoothed_{name}" in seeds[0]]
    figure = _figure(10, 4 * len(names) + 1)
    panels = dict(zip(names, _panels(figure, names), strict=True))
    # A spike would press all else to the floor, so the axis ends at most as far above the start as it begins below.
    smoothed = [curves["smoothed_loss"][np.isfinite(curves["smoothed_loss"])] for curves in seeds]
    top = np.inf
    if all(map(len, smoothed)):
        start, low = max(values[0] for values in smoothed), min(0.0, *(values.min() for values in smoothed))
        top = min(2.0 * start - low, max(values.max() for values in smoothed) + 0.2 * (start - low))
        panels["loss"].set_ylim(low, top if start > low else None)
    for name, axes in panels.items():
        axes.set_xscale("log")
        axes.margins(x=0)
        for curves, color in zip(seeds, _COLORS * len(seeds), strict=False):
            rates, values = curves["learning_rate"], curves[f"smoothed_{name}"]
            axes.plot(rates, curves[name], color=color, linewidth=0.7, alpha=0.6, label="thin: each batch")
            axes.plot(rates, values, color=color, linewidth=2, label="bold: exponential average to both sides")
            ends = np.flatnonzero(np.isfinite(values))[-1:]
            height = np.minimum(values[ends], top if name == "loss" else np.inf)
            label = "cross: the end of the sweep, where the loss diverged or the rates ended"
            axes.plot(rates[ends], height, "X", color=color, ms=9, mec="black", clip_on=False, zorder=3, label=label)
    styles = {"base_lr": ("black", "solid"), "max_lr": ("black", "dashed")}
    for name, (low, middle, high) in sorted(bands.items(), key=lambda item: item[1][1]):
        color, style = styles.get(name, ("dimgray", "dotted" if name == "steepest" else "dashdot"))
        text = f"{name} {middle:.2g}" + (f": {explanations[name]}" if explanations else "")
        label = textwrap.fill(text, 110, subsequent_indent="    ")
        for axes in panels.values():
            axes.axvline(middle, color=color, linestyle=style, linewidth=1.5, label=label)
            axes.axvspan(low, high, color=color, alpha=0.07, linewidth=0)
    figure.axes[-1].set_xlabel("learning rate")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = dict(zip(reversed(labels), reversed(handles), strict=True))  # Of all seeds, the first one's lines.
    words = "a color for each seed; gray: from the lowest seed to the highest"
    figure.legend(list(legend.values())[::-1], list(legend)[::-1], loc="outside lower left", title=words, fontsize=9)
    figure.axes[0].set_title(f"LR range test: {title}")
    return figure


def benchmark(
    cases: Mapping[str, Mapping[str, Sequence[float]]], growth: Mapping[str, Mapping[int, float]], title: str = ""
) -> Figure:
    """Draw what an epoch costs each contender, a row of panels for each model, and how the cost falls with the batch.

    Args:
        cases: `<model>, batch <size>` → contender → seconds of each timed epoch. A bar ends at the median, its line
            spans all of them. The panels of a model have one scale.
        growth: contender → batch size, rising → median seconds of an epoch; empty draws no such panel.
        title: of the picture, such as the machine and versions.
    """
    models: dict[str, list[str]] = {}
    for case in cases:
        models.setdefault(case.partition(", batch")[0], []).append(case)
    rows = [*models.values(), *([["against batch size"]] if growth else [])]
    figure = _figure(6.5 * max(map(len, rows)), 0.4 + 3.2 * len(rows))
    panels = _rows(figure, rows)
    for row in models.values():
        longest = max(max(seconds) for case in row for seconds in cases[case].values())
        for axes, contenders in ((panels[case], cases[case]) for case in row):
            for i, (label, seconds) in enumerate(contenders.items()):
                median = float(np.median(seconds))
                axes.barh(i, median, color=_COLORS[0] if label == "clr_loop" else _COLORS[5], height=0.7)
                axes.hlines(i, min(seconds), max(seconds), color="black", linewidth=1)
                axes.annotate(f" {median:.3f}", (max(seconds), i), va="center", fontsize=8)
            axes.set_yticks(range(len(contenders)), list(contenders))
            axes.invert_yaxis()
            axes.set(xlim=(0, 1.12 * longest), xlabel="seconds an epoch, median and range")
    _finish(panels.values())
    for case, axes in panels.items():
        axes.set_title(case)
        axes.grid(visible=case not in cases, axis="y")
    if growth:
        axes = panels["against batch size"]
        for color, (label, points) in zip(_COLORS, growth.items(), strict=False):
            axes.plot(list(points), list(points.values()), "o-", color=color, label=label)
            axes.set_xscale("log")
            axes.set_xticks(list(points), [f"{size:,}" for size in points])
        axes.set(xlabel="examples per step", ylabel="seconds an epoch")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.suptitle(textwrap.fill(title, int(11 * figure.get_figwidth())))
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _rows(figure: Figure, rows: Sequence[Sequence[str]]) -> dict[str, Axes]:
    """Make a row of named panels for each of these; all rows are equally wide."""
    width = math.lcm(*map(len, rows))
    return dict(figure.subplot_mosaic([[name for name in row for _ in range(width // len(row))] for row in rows]))


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
        axes.set_axisbelow(True)
        if is_share(measure):
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _style(i: int) -> dict[str, Any]:
    """Return the color and line style of an arm."""
    turn, place = divmod(i, len(_COLORS))
    return {"color": _COLORS[place], "linestyle": ("solid", "dashed", "dotted")[turn % 3]}


def _about(settings: Mapping[str, Any]) -> str:
    """Return what was trained, as far as the settings say: `mnist, relu_mlp, Adam`."""
    return ", ".join(str(settings[name]) for name in ("dataset", "model", "optimizer") if settings.get(name))


def _is_wide(rates: NDArray[Any]) -> bool:
    """Return whether the rates span more than a decade and a half, so that a linear axis hides the low ones."""
    above = rates[rates > 0]
    return len(above) > 0 and bool(above.max() > 10**1.5 * above.min())


def _add_epochs(axes: Axes, steps_per_epoch: int) -> None:
    """Write epochs along the top."""
    to_epochs = (lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch)
    axes.secondary_xaxis("top", functions=to_epochs).set_xlabel("epoch")


def _show_range(axes: Axes, decisive: NDArray[Any], every: NDArray[Any], is_higher_better: bool) -> None:
    """Let the decisive values take at least half of the axis: the others may be far worse."""
    sign = 1.0 if is_higher_better else -1.0
    every, decisive = (sign * values[np.isfinite(values)] for values in (every, decisive))
    if len(decisive) and np.ptp(every) > 0:
        high, low = every.max(), decisive.min()
        low = max(every.min(), 2.0 * low - high)
        margin = 0.05 * (high - low)
        axes.set_ylim(*sorted((sign * (low - margin), sign * (high + margin))))
