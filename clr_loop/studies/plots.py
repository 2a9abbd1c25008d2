"""Results → figures. Drawn with matplotlib's Agg canvas: no window, no global state."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

# Okabe and Ito's palette, which the colour-blind can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class ArmCurves:
    """What `comparison` draws of one arm.

    Attributes:
        label: name of the arm.
        seconds: float [timed seeds, epochs], training seconds since the start, at each epoch's end.
        examples: int [epochs], examples trained on by then.
        val_accuracy: float [seeds, epochs], 0–1.
        learning_rates: float [steps].
    """

    label: str
    seconds: NDArray[np.float64]
    examples: NDArray[np.int64]
    val_accuracy: NDArray[np.float64]
    learning_rates: NDArray[np.float64]


def training_curves(
    history: Mapping[str, NDArray[Any]],
    val_steps: Sequence[int],
    val_loss: Sequence[float],
    val_accuracy: Sequence[float],
) -> Figure:
    """Draws learning rate, loss and accuracy of a run over its steps.

    Args:
        history: [n] each: step, learning_rate, loss, accuracy (0–1).
        val_steps: the last step of each epoch.
        val_loss, val_accuracy: values at these steps.
    """
    figure = _figure(9, 8)
    rate_axes, loss_axes, accuracy_axes = figure.subplots(3, 1, sharex=True)
    rate_axes.plot(history["step"], history["learning_rate"], color=_COLOURS[0])
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    for axes, name, values in ((loss_axes, "loss", val_loss), (accuracy_axes, "accuracy", val_accuracy)):
        axes.plot(
            history["step"], history[name], color=_COLOURS[0], linewidth=0.6, alpha=0.5, label="training, each step"
        )
        axes.plot(val_steps, values, "o-", color=_COLOURS[1], markersize=4, label="validation, each epoch")
        axes.set_ylabel(name)
        axes.legend(loc="best")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy_axes.set_xlabel("step")
    for axes in (rate_axes, loss_axes, accuracy_axes):
        axes.grid(alpha=0.3)
    return figure


def comparison(arms: Sequence[ArmCurves]) -> Figure:
    """Draws validation accuracy against seconds and against examples, its last values by seed, and the learning rates.

    Lines are means over seeds, bands reach from the lowest to the highest seed.
    """
    figure = _figure(12, 9)
    (by_seconds, by_examples), (last, rates) = figure.subplots(2, 2)
    for i, arm in enumerate(arms):
        colour = _COLOURS[i % len(_COLOURS)]
        _band(by_seconds, arm.seconds.mean(axis=0), arm.val_accuracy, colour, arm.label)
        _band(by_examples, arm.examples / 1e3, arm.val_accuracy, colour, arm.label)
        ends = arm.val_accuracy[:, -1]
        last.plot(np.full(len(ends), i), ends, "o", color=colour, alpha=0.6)
        last.hlines(ends.mean(), i - 0.25, i + 0.25, color=colour, linewidth=2)
        epochs = np.linspace(0, len(arm.examples), len(arm.learning_rates), endpoint=False)
        style = (
            (0, (4, 1.5 * i)) if i else "solid"
        )  # Arms of one schedule often share a curve; dashes let both be seen.
        rates.plot(epochs, arm.learning_rates, color=colour, linestyle=style)
    by_seconds.set(xlabel="training seconds (compilation and validation left out)", ylabel="validation accuracy")
    by_examples.set(xlabel="examples trained on, thousands", ylabel="validation accuracy")
    figure.legend(*by_seconds.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    last.set_xticks(range(len(arms)), [arm.label.replace(", ", "\n") for arm in arms])
    last.set(ylabel="validation accuracy after the last epoch", xlabel="dot: one seed; bar: mean")
    rates.set(xlabel="epoch", ylabel="learning rate", yscale="log")
    for axes in (by_seconds, by_examples, last):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    for axes in (by_seconds, by_examples, last, rates):
        axes.grid(alpha=0.3)
    return figure


def schedule(
    steps: NDArray[np.int64],
    rates: NDArray[np.float64],
    momentums: NDArray[np.float64] | None,
    steps_per_epoch: int,
    title: str,
    notes: Sequence[str] = (),
) -> Figure:
    """Draws a schedule over a run, before it is run.

    Args:
        steps: int [n], rising; of a long run a few thousand are enough.
        rates: float [n], the learning rate of each.
        momentums: float [n], the momentum of each, or None to leave it out.
        steps_per_epoch: steps, for the epochs along the top.
        title: of the picture.
        notes: sentences to write under it.
    """
    axes_count = 1 if momentums is None else 2
    figure = _figure(9, 1.2 + 3.2 * axes_count + 0.3 * len(notes))
    all_axes = figure.subplots(axes_count, 1, sharex=True, squeeze=False)[:, 0]
    curves = [("learning rate", rates)] + ([] if momentums is None else [("momentum", momentums)])
    for axes, (name, values) in zip(all_axes, curves, strict=True):
        axes.plot(steps, values, color=_COLOURS[0], marker="." if len(values) <= 100 else "")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylim(bottom=0)
    epochs = all_axes[0].secondary_xaxis(
        "top", functions=(lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch)
    )
    epochs.set_xlabel("epoch")
    all_axes[-1].set_xlabel("step")
    figure.suptitle(title)
    if notes:
        lines = [line for note in notes for line in textwrap.wrap(note, 120, subsequent_indent="    ")]
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize="small", color=_COLOURS[1])
    return figure


def range_test(
    seeds: Sequence[Mapping[str, NDArray[Any]]], bands: Mapping[str, tuple[float, float, float]], title: str
) -> Figure:
    """Draws the curves of an LR range test over the logarithm of the rate, and what they suggest.

    Args:
        seeds: for each seed [n] each: learning_rate, loss, accuracy (0–1), smoothed_loss, smoothed_accuracy; a NaN
            breaks a line.
        bands: name of a suggestion → lowest, middle and highest rate over the seeds.
        title: what was tested.
    """
    figure = _figure(10, 8)
    loss_axes, accuracy_axes = figure.subplots(2, 1, sharex=True)
    for i, curves in enumerate(seeds):
        colour = _COLOURS[i % len(_COLOURS)]
        for axes, name in ((loss_axes, "loss"), (accuracy_axes, "accuracy")):
            axes.plot(curves["learning_rate"], curves[name], color=colour, linewidth=0.6, alpha=0.3)
            axes.plot(curves["learning_rate"], curves[f"smoothed_{name}"], color=colour, linewidth=2)
    # Room for twice the loss of the beginning: what a diverging loss reaches would press all else to the floor.
    starts = [curves["smoothed_loss"][0] for curves in seeds]
    if np.isfinite(starts).all() and max(starts) > 0.0:
        loss_axes.set_ylim(0.0, 2.0 * max(starts))
    accuracy_axes.set_ylim(0.0, 1.0)
    for axes in (loss_axes, accuracy_axes):
        axes.set_xscale("log")
        axes.margins(x=0)
        axes.grid(alpha=0.3)
    # Neighbours often lie close, so each name has a height of its own, and the lower ones stand to the left.
    for i, (name, (low, middle, high)) in enumerate(sorted(bands.items(), key=lambda item: item[1][1])):
        colour, style = ("black", "solid") if name in ("base_lr", "max_lr") else ("dimgray", "dotted")
        for axes in (loss_axes, accuracy_axes):
            axes.axvline(middle, color=colour, linestyle=style, linewidth=1.2)
            axes.axvspan(low, high, color=colour, alpha=0.07, linewidth=0)
        loss_axes.annotate(
            f"{name} {middle:.2g}",
            (middle, 0.97 - 0.075 * i),
            xycoords=loss_axes.get_xaxis_transform(),
            xytext=(-4 if i < 2 else 4, 0),
            textcoords="offset points",
            horizontalalignment="right" if i < 2 else "left",
            verticalalignment="top",
            color=colour,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
        )
    loss_axes.set_ylabel("loss")
    accuracy_axes.set_ylabel("accuracy")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy_axes.set_xlabel(
        "learning rate (thin: each batch; bold: smoothed; a colour for each seed; grey: over seeds)"
    )
    loss_axes.set_title(f"LR range test: {title}")
    return figure


def benchmark(cases: Mapping[str, Mapping[str, Sequence[float]]], growth: Mapping[str, Mapping[int, float]]) -> Figure:
    """Draws what an epoch costs each contender, a panel for each case, and how the cost falls with the batch size.

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
            axes.barh(i, median, color=_COLOURS[0] if label == "clr_loop" else _COLOURS[5], height=0.7)
            axes.hlines(i, min(seconds), max(seconds), color="black", linewidth=1)
            axes.annotate(f" {median:.3f}", (max(seconds), i), va="center", fontsize=8)
        axes.set_yticks(range(len(contenders)), list(contenders))
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=title, xlabel="seconds an epoch, median and range")
    rest = panels[len(cases) :]
    if growth:
        axes, rest = rest[0], rest[1:]
        for colour, (label, points) in zip(_COLOURS, growth.items(), strict=False):
            axes.plot(list(points), list(points.values()), "o-", color=colour, label=label)
            axes.set_xscale("log")
            axes.set_xticks(list(points), [f"{size:,}" for size in points], rotation=45)
        axes.set(title="against batch size", xlabel="examples per step", ylabel="seconds an epoch")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.legend()
    for axes in rest:
        axes.set_axis_off()
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _band(axes: Axes, x: NDArray[Any], values: NDArray[Any], colour: str, label: str) -> None:
    axes.plot(x, values.mean(axis=0), color=colour, marker=".", label=label)
    axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)
