"""The pictures of single runs and of schedules, of LR range tests, and of the benchmark."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from clr_loop.runs.result import TrainingResult, higher_is_better
from clr_loop.studies.pictures.canvas import (
    COLORS,
    Picture,
    about,
    add_epochs,
    finish,
    is_wide,
    mosaic,
    new_figure,
    show_range,
)

_RATES = ("learning_rate", "learning_rate_log", "momentum")


def training_curves(result: TrainingResult) -> Picture:
    """Draw the learning rate and every metric of a run over its steps, and the values of each validation."""
    names = [name for name in result.history if name != "step"]
    if is_wide(result.history["learning_rate"]):
        names.insert(1, "learning_rate_log")
    panels = {name: partial(_draw_curve, result, name) for name in names}
    size = (9, 1.4 + 2.4 * len(names))
    return Picture(_title(result.settings), [[name] for name in names], panels, size=size, shares_x=True)


def _title(settings: Mapping[str, Any]) -> str:
    return f"{about(settings)}, batch {settings['batch_size']}, seed {settings['seed']}"


def _draw_curve(result: TrainingResult, name: str, axes: Axes) -> None:
    metric = name.removesuffix("_log")
    steps, values = result.history["step"], result.history[metric]
    looks = {"lw": 1.5} if name in _RATES else {"lw": 0.7, "alpha": 0.6, "label": "training, each step"}
    axes.plot(steps, values, color=COLORS[0], **looks)
    validated = [(r.step, r.metrics[f"val_{metric}"]) for r in result.validated if f"val_{metric}" in r.metrics]
    if validated:
        axes.plot(*zip(*validated, strict=True), "o-", color=COLORS[1], ms=4, label="validation")
    if name == "learning_rate_log" or (name == "loss" and not (values <= 0).any()):
        axes.set_yscale("log")
    elif name not in _RATES:
        seen = [value for _, value in validated]
        later = np.append(values[len(values) // 2 :], seen[len(seen) // 2 :])
        show_range(axes, later, np.append(values, seen), higher_is_better(name))
    if name == "learning_rate":
        axes.set_ylim(bottom=0)
        add_epochs(axes, result.settings["steps_per_epoch"])
    axes.set(xlabel="step", ylabel=metric.replace("_", " "))
    finish(axes, metric)


def snapshots(rows: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> Picture:
    """Draw each metric of a run's snapshots and of the ensembles of its last ones; rows: see `runs.snapshots`."""
    names = [name for name in rows[0] if f"ensemble_{name}" in rows[0]]
    panels = {name: partial(_draw_snapshots, rows, name) for name in names}
    title, size = f"{_title(settings)}: snapshots and their ensembles", (8, 1.4 + 2.6 * len(names))
    return Picture(title, [[name] for name in names], panels, size=size, shares_x=True)


def _draw_snapshots(rows: Sequence[Mapping[str, float]], name: str, axes: Axes) -> None:
    cycles = [row["cycle"] for row in rows]
    axes.plot(cycles, [row[name] for row in rows], "o-", color=COLORS[0], label="the snapshot alone")
    joint = [row[f"ensemble_{name}"] for row in rows]
    axes.plot(cycles, joint, "s--", color=COLORS[1], label="ensemble from this cycle to the last")
    axes.set(xlabel="cycle", xticks=cycles, ylabel=name.replace("_", " "))
    finish(axes, name)


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
    curves = {"learning rate": rates}
    curves |= {"log learning rate": rates} if is_wide(rates) else {}
    curves |= {} if momentums is None else {"momentum": momentums}
    figure = new_figure(9, 1.2 + 3.2 * len(curves) + 0.3 * len(notes))
    panels = mosaic(figure, [[name] for name in curves], shares_x=True)
    for name, values in curves.items():
        panels[name].plot(steps, values, color=COLORS[0], marker="." if len(values) <= 100 else "")
        panels[name].set(ylabel=name.removeprefix("log "), yscale="log" if name.startswith("log") else "linear")
        finish(panels[name])
    panels["learning rate"].set_ylim(bottom=0)
    add_epochs(panels["learning rate"], steps_per_epoch)
    figure.axes[-1].set_xlabel("step")
    figure.suptitle(title)
    if notes:
        lines = [line for note in notes for line in textwrap.wrap(note, 120, subsequent_indent="    ")]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize="small", color=COLORS[1])
    return figure


class Sweeps(NamedTuple):
    """LR range tests of one batch size.

    Attributes:
        seeds: for each seed [n] each: learning_rate, loss, smoothed_loss, and other measures raw and smoothed likewise.
        bands: name of a suggestion → lowest, middle and highest rate over the seeds.
        explanations: name of a suggestion → how it was found.
    """

    seeds: Sequence[Mapping[str, NDArray[Any]]]
    bands: Mapping[str, tuple[float, float, float]]
    explanations: Mapping[str, str]


def range_test(sweeps: Mapping[str, Sweeps], title: str) -> Picture:
    """Draw the curves of LR range tests over the logarithm of the rate, and what they suggest.

    Args:
        sweeps: name of a column, such as `batch 100` → the tests in it.
        title: what was tested.
    """
    first, *others = sweeps.values()
    names = [name for name in first.seeds[0] if f"smoothed_{name}" in first.seeds[0]]
    panels = {
        f"{name}, {place}": partial(_draw_sweeps, tests, name, place if others else "")
        for name in names
        for place, tests in sweeps.items()
    }
    rows = [[f"{name}, {place}" for place in sweeps] for name in names]
    note = "a color for each seed; gray: from the lowest to the highest; smoothed: exponential average to both sides"
    return Picture(f"LR range test: {title}", rows, panels, note, (max(10, 5.2 * len(sweeps)), 4 * len(names) + 1))


def _draw_sweeps(tests: Sweeps, name: str, place: str, axes: Axes) -> None:
    """Draw one measure of one batch size; its place is named where there are others beside it."""
    # A spike would press all else to the floor, so the axis ends at most as far above the start as it begins below.
    smoothed = [curves["smoothed_loss"][np.isfinite(curves["smoothed_loss"])] for curves in tests.seeds]
    top = np.inf
    if name == "loss" and all(map(len, smoothed)):
        start, low = max(values[0] for values in smoothed), min(0.0, *(values.min() for values in smoothed))
        top = min(2.0 * start - low, max(values.max() for values in smoothed) + 0.2 * (start - low))
        axes.set_ylim(low, top if start > low else None)
    for curves, color in zip(tests.seeds, COLORS * len(tests.seeds), strict=False):
        rates, values = curves["learning_rate"], curves[f"smoothed_{name}"]
        axes.plot(rates, curves[name], color=color, linewidth=0.7, alpha=0.6, label="thin: each batch")
        axes.plot(rates, values, color=color, linewidth=2, label="bold: smoothed")
        for end in np.flatnonzero(np.isfinite(values))[-1:]:
            looks: dict[str, Any] = {"color": color, "ms": 9, "mec": "black", "clip_on": False, "zorder": 3}
            axes.plot(rates[end], min(values[end], top), "X", label="cross: end of sweep", **looks)
    styles = {"base_lr": ("black", "solid"), "max_lr": ("black", "dashed")}
    for suggestion, (low, middle, high) in sorted(tests.bands.items(), key=lambda item: item[1][1]):
        color, line = styles.get(suggestion, ("dimgray", "dotted" if suggestion == "steepest" else "dashdot"))
        label = f"{suggestion}{'' if place else f' {middle:.2g}'}: {tests.explanations[suggestion]}"
        axes.axvline(middle, color=color, linestyle=line, linewidth=1.5, label=label)
        axes.axvspan(low, high, color=color, alpha=0.07, linewidth=0)
    found = [f"{each} {tests.bands[each][1]:.2g}" for each in styles if each in tests.bands]
    axes.set_title(": ".join([place, ", ".join(found)]) if place else "", fontsize=10)
    axes.set(xscale="log", xlabel="learning rate", ylabel=name.replace("_", " "))
    axes.margins(x=0)
    finish(axes, name)


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
    figure = new_figure(6.5 * max(map(len, rows)), 0.4 + 3.2 * len(rows))
    panels = mosaic(figure, rows)
    for row in models.values():
        longest = max(max(seconds) for case in row for seconds in cases[case].values())
        for axes, contenders in ((panels[case], cases[case]) for case in row):
            for i, (label, seconds) in enumerate(contenders.items()):
                median = float(np.median(seconds))
                axes.barh(i, median, color=COLORS[0] if label == "clr_loop" else COLORS[5], height=0.7)
                axes.hlines(i, min(seconds), max(seconds), color="black", linewidth=1)
                axes.annotate(f" {median:.3f}", (max(seconds), i), va="center", fontsize=8)
            axes.set_yticks(range(len(contenders)), list(contenders))
            axes.invert_yaxis()
            axes.set(xlim=(0, 1.12 * longest), xlabel="seconds an epoch, median and range")
    for axes in panels.values():
        finish(axes)
    for case, axes in panels.items():
        axes.set_title(case)
        axes.grid(visible=case not in cases, axis="y")
    if growth:
        axes = panels["against batch size"]
        for color, (label, points) in zip(COLORS, growth.items(), strict=False):
            axes.plot(list(points), list(points.values()), "o-", color=color, label=label)
            axes.set_xscale("log")
            axes.set_xticks(list(points), [f"{size:,}" for size in points])
        axes.set(xlabel="examples per step", ylabel="seconds an epoch")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.suptitle(textwrap.fill(title, int(11 * figure.get_figwidth())))
    return figure
