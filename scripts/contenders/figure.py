"""The picture of the benchmark."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clr_loop.studies.pictures.canvas import COLORS, finish, mosaic, new_figure


def benchmark_figure(
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
        for case in row:
            _draw_case(panels[case], cases[case], 1.12 * longest)
    if growth:
        _draw_growth(panels["against batch size"], growth)
    for name, axes in panels.items():
        axes.set_title(name)
    figure.suptitle(textwrap.fill(title, int(11 * figure.get_figwidth())))
    return figure


def _draw_case(axes: Axes, contenders: Mapping[str, Sequence[float]], right: float) -> None:
    for i, (label, seconds) in enumerate(contenders.items()):
        median = float(np.median(seconds))
        axes.barh(i, median, color=COLORS[0] if label == "clr_loop" else COLORS[5], height=0.7)
        axes.hlines(i, min(seconds), max(seconds), color="black", linewidth=1)
        axes.annotate(f" {median:.3f}", (max(seconds), i), va="center", fontsize=8)
    axes.set_yticks(range(len(contenders)), list(contenders))
    axes.invert_yaxis()
    axes.set(xlim=(0, right), xlabel="seconds an epoch, median and range")
    finish(axes)
    axes.grid(visible=False, axis="y")


def _draw_growth(axes: Axes, growth: Mapping[str, Mapping[int, float]]) -> None:
    for color, (label, points) in zip(COLORS, growth.items(), strict=False):
        axes.plot(list(points), list(points.values()), "o-", color=color, label=label)
        axes.set_xscale("log")
        axes.set_xticks(list(points), [f"{size:,}" for size in points])
    axes.set(xlabel="examples per step", ylabel="seconds an epoch")
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.legend()
    finish(axes)
