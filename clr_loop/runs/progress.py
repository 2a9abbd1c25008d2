"""What a run shows on its way: a bar, which also says what is done between its steps, and a table of its epochs."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import keras
from tqdm import tqdm

from clr_loop.display import in_notebook
from clr_loop.runs.lines import VALUE, Columns, terminal_width, wrapped
from clr_loop.schedules import Schedule, describe

# The bar has one line; the lines of the epochs have every metric.
_MOST_SHOWN = 3

Verbose = Literal["auto", 0, 1, 2]


@contextlib.contextmanager
def shown(verbose: Verbose) -> Iterator[list[keras.callbacks.Callback]]:
    """Hold the callbacks that show a run; see `fit` for `verbose`."""
    if verbose == "auto":
        verbose = 1 if in_notebook() or sys.stderr.isatty() else 0
    bar = [ProgressBar(is_asked=True)] if verbose == 1 else []
    try:
        yield [EpochLines(), *bar] if verbose else []
    finally:
        for each in bar:
            each.close()


class ProgressBar(keras.callbacks.Callback):
    """Shows a bar with the latest rate and metrics, on a terminal or in a notebook.

    It says that the run is compiled from when it is made until training begins, and when it is validated.

    Args:
        label: what stands before the bar.
        is_asked: whether to write a bar to a file, too.
    """

    def __init__(self, label: str = "", is_asked: bool = False) -> None:
        super().__init__()
        self._label = label
        file, is_hidden = (sys.stdout, False) if in_notebook() else (sys.stderr, False if is_asked else None)
        self._bar = tqdm(
            desc=self._saying("compiling"), unit="step", bar_format="{desc} …", disable=is_hidden, leave=False,
            dynamic_ncols=True, file=file,
        )  # fmt: skip

    def _saying(self, doing: str) -> str:
        return ": ".join(word for word in (self._label, doing) if word)

    def _say(self, doing: str) -> None:
        self._bar.set_description_str(self._saying(doing))

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: D102 (Keras')
        self._bar.bar_format, self._bar.total = None, self.params["epochs"] * self.params["steps"]
        self._bar.unpause()  # The clock starts with training.
        self._say("")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: D102
        self._first = epoch * self.params["steps"]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: D102
        values = dict(logs or {})
        values = {"lr": values.pop("learning_rate", math.nan), "loss": values.pop("loss", math.nan), **values}
        words = [f"{name} {value:.4g}" for name, value in values.items() if not math.isnan(value)]
        self._bar.set_postfix_str(", ".join(words[:_MOST_SHOWN]), refresh=False)
        self._bar.update(self._first + batch + 1 - self._bar.n)

    def on_test_begin(self, logs: Any = None) -> None:  # noqa: D102
        self._say("validating")

    def on_test_end(self, logs: Any = None) -> None:  # noqa: D102
        self._say("")

    def on_train_end(self, logs: Any = None) -> None:  # noqa: D102
        self.close()

    def close(self) -> None:
        """Erase the bar."""
        self._bar.close()


class EpochLines(keras.callbacks.Callback):
    """Prints what the schedule will do, and then a table with a row for each epoch and a column for each metric.

    A metric that is NaN after the first epoch, such as the loss of a model whose `train_step` returns none, has none.
    """

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: D102
        self._columns: Columns | None = None
        epochs, steps = self.params["epochs"], self.params["steps"]
        first = self.params["first_step"]
        if isinstance(self.params["schedule"], Schedule):
            _print(wrapped(str(describe(self.params["schedule"], first + epochs * steps, steps))))
        if first:
            _print(wrapped(f"the schedule goes on at step {first} (RunOptions(first_step=0) begins it again)"))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: D102
        metrics = dict(logs)
        rate, seconds = metrics.pop("learning_rate"), metrics.pop("epoch_seconds")
        waited = metrics.pop("input_wait_seconds", None)
        cells = {"epoch": f"{epoch + 1}/{self.params['epochs']}", "lr": f"{rate:.4g}"}
        cells |= {name: f"{value:#.4g}" for name, value in metrics.items()} | {"seconds": f"{seconds:.2f}"}
        cells |= {} if waited is None else {"waiting": f"{waited / seconds:.0%}"}
        if self._columns is None:
            self._columns = _columns(self.params["epochs"], metrics, has_waited=waited is not None)
            _print(self._columns.header())
        _print(self._columns.row(cells))


def _columns(epochs: int, metrics: Mapping[str, float], has_waited: bool) -> Columns:
    """Return the columns of the table. Keras hands metrics over in alphabetical order; here the validation is last."""
    known = [name for name, value in metrics.items() if not math.isnan(value)]

    def own(name: str) -> str:
        return name.removeprefix("averaged_").removeprefix("val_")

    ordered = sorted(known, key=lambda name: (own(name) != name, not name.endswith("loss"), name))
    dearest = sorted(ordered, key=lambda name: (own(name) != "loss", "loss" in own(name), own(name)))
    widths = {"epoch": len(f"{epochs}/{epochs}"), **dict.fromkeys(["lr", *ordered], VALUE), "seconds": 0}
    columns = Columns(widths | ({"waiting": 0} if has_waited else {}), terminal_width(), dearest[1:])
    if columns.left_out:
        _print(wrapped(f"note: the terminal is too narrow for {', '.join(columns.left_out)}"))
    return columns


def _print(line: str) -> None:
    """Print a line at once, above a bar."""
    tqdm.write(line)
    sys.stdout.flush()
