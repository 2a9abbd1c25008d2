"""The picture of LR range tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from clr_loop.studies.comparison.measures import count
from clr_loop.studies.pictures.canvas import COLORS, Picture, about, finish
from clr_loop.studies.range_test.suggestions import suggest
from clr_loop.studies.range_test.sweep import RangeTest

_STYLES = {
    "base_lr": ("black", "solid"),
    "max_lr": ("black", "dashed"),
    "steepest": ("dimgray", "dotted"),
    "valley": ("dimgray", "dashdot"),
}


def range_test_picture(tests: Mapping[int, Sequence[RangeTest]], settings: Mapping[str, Any]) -> Picture:
    """Draw the curves of range tests over the logarithm of the rate, and what they suggest.

    Args:
        tests: batch size → the test of each seed; a column of panels for each batch size.
        settings: names of dataset, model and optimizer.
    """
    first, *others = tests.values()
    columns = {f"batch {size}": of_size for size, of_size in tests.items()}
    names = {place: _measures(of_size[0]) for place, of_size in columns.items()}  # A long sweep is scored elsewhere.
    panels = {
        f"{name}, {place}": partial(_draw_sweeps, columns[place], name, place if others else "")
        for place, of_place in names.items()
        for name in of_place
    }
    stacks = [[f"{name}, {place}" for name in of_place] for place, of_place in names.items()]
    rows = [list(row) for row in itertools.zip_longest(*stacks, fillvalue=".")]
    note = "a color for each seed; gray: from the lowest to the highest; smoothed: exponential average to both sides"
    title = ", ".join(filter(None, [about(settings), *(columns if not others else ()), count(len(first), "seed")]))
    return Picture(f"LR range test: {title}", rows, panels, note, (max(10, 5.2 * len(columns)), 4 * len(rows) + 1))


def _measures(test: RangeTest) -> list[str]:
    """Return what is drawn of a sweep: its loss and its score."""
    return [name for name in test.columns() if f"smoothed_{name}" in test.columns()]


def _draw_sweeps(tests: Sequence[RangeTest], name: str, place: str, axes: Axes) -> None:
    """Draw one measure of one batch size; its place is named where there are others beside it."""
    top = _set_loss_limits(tests, name, axes) if "loss" in name else np.inf
    points = "held-out examples" if name.startswith("val_") else "each batch"
    for test, color in zip(tests, COLORS * len(tests), strict=False):
        columns = test.columns()
        rates, smoothed = columns["learning_rate"], columns[f"smoothed_{name}"]
        axes.plot(rates, columns[name], color=color, linewidth=0.7, alpha=0.6, label=f"thin: {points}")
        axes.plot(rates, smoothed, color=color, linewidth=2, label="bold: smoothed")
        for end in np.flatnonzero(np.isfinite(smoothed))[-1:]:
            looks: dict[str, Any] = {"color": color, "ms": 9, "mec": "black", "clip_on": False, "zorder": 3}
            axes.plot(rates[end], min(smoothed[end], top), "X", label="cross: end of sweep", **looks)
    suggestions = [each for each in suggest([test.curve for test in tests]) if each.learning_rate is not None]
    for suggestion in sorted(suggestions, key=lambda each: each.learning_rate or 0.0):
        color, line = _STYLES[suggestion.name]
        rate = "" if place else f" {suggestion.learning_rate:.2g}"
        label = f"{suggestion.name}{rate}: {suggestion.explanation}"
        axes.axvline(suggestion.learning_rate or 0.0, color=color, linestyle=line, linewidth=1.5, label=label)
        axes.axvspan(suggestion.known_rates[0], suggestion.known_rates[-1], color=color, alpha=0.07, linewidth=0)
    pair = [f"{each.name} {each.learning_rate:.2g}" for each in suggestions if each.name in ("base_lr", "max_lr")]
    axes.set_title(f"{place}: {', '.join(pair)}" if place else "", fontsize=10)
    axes.set(xscale="log", xlabel="learning rate", ylabel=name.replace("_", " "))
    axes.margins(x=0)
    finish(axes, name)


def _set_loss_limits(tests: Sequence[RangeTest], name: str, axes: Axes) -> float:
    """Let the axis end at most as far above the start as it begins below it; return its end.

    A spike would press everything else to the floor.
    """
    curves = [test.columns()[f"smoothed_{name}"] for test in tests]
    smoothed = [curve[np.isfinite(curve)] for curve in curves]
    if not all(map(len, smoothed)):
        return np.inf
    start, low = max(values[0] for values in smoothed), min(0.0, *(values.min() for values in smoothed))
    top = min(2.0 * start - low, max(values.max() for values in smoothed) + 0.2 * (start - low))
    axes.set_ylim(low, top if start > low else None)
    return top
