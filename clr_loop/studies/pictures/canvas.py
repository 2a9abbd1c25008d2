"""What all pictures have in common: panels, legends, colors, axes and files. There is no window and no global state."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

from clr_loop.studies.arms import Arm
from clr_loop.studies.comparison.measures import is_share

Format = Literal["png", "svg", "pdf"]

# Okabe and Ito's palette, whose colors the color-blind can tell apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

# Six each: a constant rate, the cycles, and their controls.
_LINES = ("solid", (0, (5, 2)), (0, (1, 1.3)), (0, (6, 2, 1, 2)), (0, (9, 3)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))
_MARKERS = ("o", "^", "s", "v", "D", "P")

# Inches. TensorBoard shrinks pictures to some 350 pixels, where letters can be read in one of this size.
_ALONE = (5.2, 3.9)
# So the widest fits into the cell of a notebook, some 900 pixels, and need not be shrunk there.
_NOTEBOOK_DPI = 75


@dataclass(frozen=True, repr=False)
class Picture:
    """Panels that are drawn together as a file, or each alone, to be read at thumbnail size.

    Attributes:
        title: what it shows: data, model, optimizer, seeds.
        rows: the names of the panels, row by row.
        panels: name → what draws it.
        note: above the legend, which has each label of the panels once.
        size: inches, of the whole.
        shares_x: whether all panels have one axis of steps or rates.
        warnings: sentences to write under it.
    """

    title: str
    rows: Sequence[Sequence[str]]
    panels: Mapping[str, Callable[[Axes], None]]
    note: str = ""
    size: tuple[float, float] = (12.0, 9.0)
    shares_x: bool = False
    warnings: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"Picture({self.title!r})"

    def _repr_png_(self) -> bytes:
        return to_png(self.together(), _NOTEBOOK_DPI)

    def together(self) -> Figure:
        """Return all panels in one figure."""
        figure = new_figure(*self.size)
        for name, axes in mosaic(figure, self.rows, self.shares_x).items():
            self.panels[name](axes)
            if self.shares_x and name not in self.rows[-1]:
                axes.set_xlabel("")
        self._finish(figure)
        return figure

    def alone(self) -> dict[str, Figure]:
        """Return a figure of each panel, by its name."""
        figures = {name: new_figure(*_ALONE) for name in self.panels}
        for name, figure in figures.items():
            self.panels[name](figure.subplots())
            self._finish(figure, is_short=True)
        return figures

    def _finish(self, figure: Figure, is_short: bool = False) -> None:
        """Write title and legend, which has as many columns as fit; in short, without a long note and explanations."""
        letters = int(11 * figure.get_figwidth())
        labeled: dict[str, Any] = {}
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                labeled.setdefault(label.partition(":")[0] if is_short and len(label) > 24 else label, handle)
        if labeled:
            handles = list(labeled.values())
            wrapped = [textwrap.fill(label, letters - 8, subsequent_indent="    ") for label in labeled]
            columns = max(1, letters // (max(map(len, labeled)) + 8))
            note = None if is_short and len(self.note) > letters else textwrap.fill(self.note, letters) or None
            figure.legend(
                handles, wrapped, loc="outside lower center", ncols=columns, title=note, fontsize=9, handlelength=3.2
            )
        if self.warnings and not is_short:
            lines = [line for each in self.warnings for line in textwrap.wrap(each, 120, subsequent_indent="    ")]
            figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize="small", color=COLORS[1])
        figure.suptitle(textwrap.fill(self.title, letters), fontsize=11)


class _Figure(Figure):
    """A figure that a notebook shows, too."""

    def _repr_png_(self) -> bytes:
        return to_png(self, _NOTEBOOK_DPI)


def save(figure: Figure, path: Path, figure_format: Format = "png") -> None:
    """Write a picture as a PNG file and, where another format is asked for, in that format beside it."""
    for suffix in dict.fromkeys((".png", f".{figure_format}")):
        figure.savefig(path.with_suffix(suffix))


def to_png(figure: Figure, dpi: float | None = None) -> bytes:
    """Return a picture in PNG format, with the figure's own dots per inch unless others are given."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi or "figure")
    return file.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    figure = _Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def mosaic(figure: Figure, rows: Sequence[Sequence[str]], shares_x: bool = False) -> dict[str, Axes]:
    """Make a row of named panels for each of these; all rows are equally wide."""
    width = math.lcm(*map(len, rows))
    cells: list[Any] = [[name for name in row for _ in range(width // len(row))] for row in rows]
    return dict(figure.subplot_mosaic(cells, sharex=shares_x))


def finish(axes: Axes, measure: str = "") -> None:
    """Draw a grid, and write an accuracy in percent."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    if is_share(measure):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def style(i: int) -> dict[str, Any]:
    """Return the color and line style of the i-th of many curves."""
    turn, place = divmod(i, len(COLORS))
    return {"color": COLORS[place], "linestyle": ("solid", "dashed", "dotted")[turn % 3]}


def schedule_looks(i: int) -> dict[str, Any]:
    """Return the line and the marker of the i-th schedule, which tell six apart in gray, too."""
    return {"linestyle": _LINES[i % len(_LINES)], "marker": _MARKERS[i % len(_MARKERS)]}


def arm_looks(arms: Sequence[Arm]) -> dict[Arm, dict[str, Any]]:
    """Return how each arm is drawn: the color says the batch size, lighter if it is larger; the line, the schedule."""
    sizes = sorted({arm.batch_size for arm in arms})
    names = list(dict.fromkeys(arm.schedule_name for arm in arms))
    # Plasma gets lighter at an even pace, so that gray tells its colors apart. Its last fifth is too light for a line.
    colors = dict(zip(sizes, colormaps["plasma"](np.linspace(0.0, 0.8, len(sizes))), strict=True))
    return {
        arm: {"color": to_hex(colors[arm.batch_size]), **schedule_looks(names.index(arm.schedule_name))} for arm in arms
    }


def about(settings: Mapping[str, Any]) -> str:
    """Return what was trained, as far as the settings say: `mnist, relu_mlp, Adam`."""
    return ", ".join(str(settings[name]) for name in ("dataset", "model", "optimizer") if settings.get(name))


def is_wide(rates: NDArray[Any]) -> bool:
    """Return whether the rates span more than a decade and a half, so that a linear axis hides the low ones."""
    above = rates[rates > 0]
    return len(above) > 0 and bool(above.max() > 10**1.5 * above.min())


def explain_looks(axes: Axes, looks: Mapping[Arm, Mapping[str, Any]]) -> None:
    """Put what the lines and the colors of arms mean into the legend: the schedules, and then the batch sizes."""
    lines = {arm.schedule_name: {**of_arm, "color": "black"} for arm, of_arm in looks.items()}
    colors = {arm.batch_size: {"color": of_arm["color"], "lw": 5} for arm, of_arm in looks.items()}
    sizes = {f"batch {size}": colors[size] for size in sorted(colors)}
    for label, look in {**lines, **sizes}.items():
        axes.plot([], [], label=label, **look)


def write_log_ticks(axis: Axis) -> None:
    """Write a few round numbers along a logarithmic axis, where Matplotlib may write "9×10⁻¹" or a single power."""
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 500 * low else (1.0,)
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]) if high < 5 * low else LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1000 else f"{value:.4g}")


def add_epochs(axes: Axes, steps_per_epoch: int) -> None:
    """Write epochs along the top."""
    to_epochs = (lambda step: step / steps_per_epoch, lambda epoch: epoch * steps_per_epoch)
    axes.secondary_xaxis("top", functions=to_epochs).set_xlabel("epoch")


def show_range(axes: Axes, decisive: NDArray[Any], every: NDArray[Any], is_higher_better: bool) -> None:
    """Let the decisive values take at least half of the axis: the others may be far worse."""
    sign = 1.0 if is_higher_better else -1.0
    every, decisive = (sign * values[np.isfinite(values)] for values in (every, decisive))
    if len(decisive) and np.ptp(every) > 0:
        high, low = every.max(), decisive.min()
        low = max(every.min(), 2.0 * low - high)
        margin = 0.05 * (high - low)
        axes.set_ylim(*sorted((sign * (low - margin), sign * (high + margin))))
