"""The picture of tuning: what every rate gave, and which one was picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from clr_loop.studies.comparison.measures import count
from clr_loop.studies.comparison.tuning import Search, by_schedule
from clr_loop.studies.pictures.canvas import COLORS, Picture, about, finish, show_range


def tuning_picture(searches: Sequence[Search], settings: Mapping[str, Any]) -> Picture:
    """Draw the held-out measure against the highest rate, a panel for each batch size and a line for each schedule."""
    sizes = list(dict.fromkeys(search.arm.batch_size for search in searches))
    rows = [[f"batch {size}" for size in sizes[i : i + 3]] for i in range(0, len(sizes), 3)]
    seeds = count(len(searches[0].trials[0].values), "seed")
    return Picture(
        f"{about(settings)}: trials of {seeds}, on held-out training examples",
        rows,
        {f"batch {size}": partial(_draw_searches, searches, size) for size in sizes},
        "line: mean; dot: trial; star: picked rate; bar: 95% interval of the best rate",
        (4.2 * len(rows[0]), 0.8 + 3.4 * len(rows)),
    )


def _draw_searches(searches: Sequence[Search], size: int, axes: Axes) -> None:
    measure = searches[0].measure
    every = np.concatenate([_values(search).ravel() for search in searches])
    near = np.concatenate([_near_best(search) for search in searches])
    show_range(axes, near, every, bool(measure.higher_is_better))
    for (name, of_schedule), color in zip(by_schedule(searches).items(), COLORS * len(searches), strict=False):
        for search in of_schedule:
            if search.arm.batch_size == size:
                _draw_search(axes, search, name, color)
    axes.set(xscale="log", title=f"batch {size}", xlabel="highest learning rate", ylabel=f"{measure.words}, held out")
    finish(axes, measure.name)


def _values(search: Search) -> NDArray[np.float64]:
    """Return the value of every trial [rate, seed]; NaN for one that diverged."""
    return np.array([trials.values for trials in search.trials], np.float64)


def _near_best(search: Search) -> NDArray[np.float64]:
    """Return the better two thirds of the trials at the best rate and beside it.

    A trial that failed, or a rate that is far too high, would press those near the best into a line.
    """
    values, place = _values(search), search.trials.index(search.best)
    sign = 1.0 if search.measure.higher_is_better else -1.0
    scores = np.sort(sign * values[max(place - 1, 0) : place + 2], axis=None)  # NaN comes last.
    finite = scores[np.isfinite(scores)]
    return sign * finite[len(finite) // 3 :]


def _draw_search(axes: Axes, search: Search, name: str, color: str) -> None:
    """Draw means and trials, those out of the axis at its worse end, and the picked rate."""
    values, rates = _values(search), np.array([trials.learning_rate for trials in search.trials])
    axes.plot(rates, values.mean(axis=1), "-", color=color, label=name)
    axes.plot(np.repeat(rates, values.shape[1]), values.ravel(), ".", color=color, alpha=0.5)
    peak, is_higher_better = search.peak, search.measure.higher_is_better
    axes.plot(peak.interval, (peak.score, peak.score), "-", color=color, lw=4, alpha=0.4)
    axes.plot(search.learning_rate, peak.score, "*", color=color, ms=14)
    worst = axes.get_ylim()[0 if is_higher_better else 1]
    outside = values < worst if is_higher_better else values > worst
    triangle = ("v", "triangle: further down") if is_higher_better else ("^", "triangle: further up")
    for which, (marker, label) in ((outside, triangle), (np.isnan(values), ("X", "cross: diverged"))):
        of_rates = rates[which.any(axis=1)]
        if len(of_rates):
            at_end = np.full(len(of_rates), worst)
            axes.plot(of_rates, at_end, marker, color=color, ms=8, clip_on=False, zorder=3, label=label)
