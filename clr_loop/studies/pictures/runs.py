"""The pictures of a run: its schedule before it, its curves, and its snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from clr_loop.runs.result import Best, EpochRecord, Monitor, TrainingResult, direction_of
from clr_loop.schedules import Schedule
from clr_loop.studies.pictures.bands import RATES
from clr_loop.studies.pictures.canvas import (
    COLORS,
    Picture,
    about,
    add_epochs,
    finish,
    is_wide,
    show_range,
    write_log_ticks,
)

_RATE_PANELS = (*RATES, "learning_rate_log")
# A picture cannot show more points.
_MOST_POINTS = 10_000


def training_picture(result: TrainingResult, monitor: Monitor = Monitor()) -> Picture:
    """Draw the learning rate and every metric of a run over its steps, and the values of each validation.

    The values of averaged weights are beside them, and a line at the end of the epoch that the monitor rates best.
    """
    names = [name for name in result.history if name != "step"]
    if is_wide(result.history["learning_rate"]):
        names.insert(1, "learning_rate_log")
    best = _best_epoch(result, monitor)
    panels = {name: partial(_draw_curve, result, name, best) for name in names}
    size = (9, 1.4 + 2.4 * len(names))
    return Picture(_title(result.settings), [[name] for name in names], panels, size=size, shares_x=True)


def _title(settings: Mapping[str, Any]) -> str:
    return f"{about(settings)}, batch {settings['batch_size']}, seed {settings['seed']}"


def _best_epoch(result: TrainingResult, monitor: Monitor) -> EpochRecord | None:
    """Return the epoch that the monitor rates best, the first of several; None if it rates none."""
    best = Best(monitor)
    return next(reversed([record for record in result.epochs if best.is_better(record.metrics)]), None)


def _draw_curve(result: TrainingResult, name: str, best: EpochRecord | None, axes: Axes) -> None:
    metric = name.removesuffix("_log")
    steps, values = result.history["step"], result.history[metric]
    looks = {"lw": 1.5} if name in _RATE_PANELS else {"lw": 0.7, "alpha": 0.6, "label": "training, each step"}
    axes.plot(steps, values, color=COLORS[0], **looks)
    steps_validated = [record.step for record in result.validated]
    validated = {
        label: [record.metrics[tag] for record in result.validated]
        for label, tag in (("validation", f"val_{metric}"), ("validation, averaged weights", f"averaged_val_{metric}"))
        if tag in result.final
    }
    for (label, seen), form, color in zip(validated.items(), ("o-", "s--"), COLORS[1:3], strict=False):
        axes.plot(steps_validated, seen, form, color=color, ms=4, label=label)
    if best is not None and name not in _RATE_PANELS:
        axes.axvline(best.step, color="black", lw=1, ls=":", label=f"best epoch: {best.epoch}")
    if name == "learning_rate_log" or (name == "loss" and not (values <= 0).any()):
        axes.set_yscale("log")
    elif name not in _RATE_PANELS:
        curves = [values, *map(np.array, validated.values())]
        later = np.concatenate([curve[len(curve) // 2 :] for curve in curves])
        show_range(axes, later, np.concatenate(curves), direction_of(name) != "min")
    if name == "learning_rate":
        axes.set_ylim(bottom=0)
        add_epochs(axes, result.settings["steps_per_epoch"])
    axes.set(xlabel="step", ylabel=metric.replace("_", " "))
    finish(axes, metric)
    if axes.get_yscale() == "log":
        write_log_ticks(axes.yaxis)


def snapshots_picture(rows: Sequence[Mapping[str, float]], settings: Mapping[str, Any]) -> Picture:
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


def schedule_picture(
    schedule: Schedule, num_steps: int, steps_per_epoch: int | None, title: str, warnings: Sequence[str] = ()
) -> Picture:
    """Draw a schedule over a run before it is run: its rates, also on a logarithmic axis if they span a wide range.

    Args:
        schedule: its momentum is drawn where it has one.
        num_steps: int, at least 1, of the run.
        steps_per_epoch: int, for the epochs along the top, or None.
        title: of the picture.
        warnings: sentences to write under it.
    """
    steps = _sampled(num_steps)
    rates, momentums = schedule(steps), schedule.momentum_at(steps)
    curves = {"learning rate": rates}
    curves |= {"log learning rate": rates} if is_wide(rates) else {}
    curves |= {} if momentums is None else {"momentum": momentums}
    panels = {name: partial(_draw_schedule, steps, values, steps_per_epoch, name) for name, values in curves.items()}
    size = (9, 1.2 + 3.2 * len(curves) + 0.3 * len(warnings))
    return Picture(title, [[name] for name in curves], panels, size=size, shares_x=True, warnings=warnings)


def _sampled(num_steps: int) -> NDArray[np.int64]:
    """Return the steps of a run; of a long one some all over it, at uneven distances.

    Even distances would draw other cycles than there are.
    """
    if num_steps <= _MOST_POINTS:
        return np.arange(num_steps)
    even = np.linspace(0, num_steps, _MOST_POINTS, endpoint=False)
    uneven = even + np.random.default_rng(0).uniform(0, num_steps / _MOST_POINTS, _MOST_POINTS)
    return np.unique([0, *uneven.astype(np.int64), num_steps - 1])


def _draw_schedule(
    steps: NDArray[np.int64], values: NDArray[np.float64], steps_per_epoch: int | None, name: str, axes: Axes
) -> None:
    axes.plot(steps, values, color=COLORS[0], marker="." if len(values) <= 100 else "")
    axes.set(xlabel="step", ylabel=name.removeprefix("log "), yscale="log" if name.startswith("log") else "linear")
    finish(axes)
    if name == "learning rate":
        axes.set_ylim(bottom=0)
        if steps_per_epoch is not None:
            add_epochs(axes, steps_per_epoch)
