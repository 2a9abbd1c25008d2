"""Keras callbacks of the scripts: the progress bar, the printed lines, and the end by a signal.

This module imports Keras, so scripts import it after `terminal.start_tensorflow`.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import keras
from tqdm import tqdm

from clr_loop.runs.fit import StopRun
from clr_loop.schedules import describe
from shared import terminal


class ProgressBar(keras.callbacks.Callback):
    """Shows a bar with the latest rate and metrics, unless stderr is no terminal."""

    def __init__(self, description: str = "") -> None:
        super().__init__()
        self._description = description

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: D102 (Keras')
        total = self.params["epochs"] * self.params["steps"]
        self._bar = tqdm(
            total=total, desc=self._description, unit="step", disable=None, leave=False, dynamic_ncols=True
        )

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: D102
        self._first = epoch * self.params["steps"]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: D102
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in (logs or {}).items()}, refresh=False)
        self._bar.update(self._first + batch + 1 - self._bar.n)

    def on_train_end(self, logs: Any = None) -> None:  # noqa: D102
        self._bar.close()


class RunLines(keras.callbacks.Callback):
    """Prints what the schedule will do, and then a line for each epoch with every metric."""

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: D102
        epochs, steps = self.params["epochs"], self.params["steps"]
        terminal.say(str(describe(self.params["schedule"], epochs * steps, steps)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: D102
        metrics = dict(logs)
        rate, seconds = metrics.pop("learning_rate"), metrics.pop("epoch_seconds")
        waited = metrics.pop("input_wait_seconds", 0.0)
        # Keras hands logs over in alphabetical order; the loss comes first here, and the validation last.
        names = sorted(
            metrics, key=lambda name: (name.startswith(("val_", "averaged_")), not name.endswith("loss"), name)
        )
        words = "  ".join(f"{name} {metrics[name]:#.4g}" for name in names)
        waiting = f", {waited / seconds:.0%} of it waiting for input" if waited else ""
        head = f"epoch {epoch + 1:3d}/{self.params['epochs']}  lr {rate:.4g}"
        terminal.say(f"{head}  {words}  {seconds:.2f} s{waiting}")


class SignalWatch(keras.callbacks.Callback):
    """Ends the run, on all workers, between two blocks after a SIGINT or SIGTERM; a second one ends it at once.

    Attributes:
        received: the signal's number, or None where another worker received it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None
        # Not only when training begins: until then TensorFlow's own handler of several workers would swallow a SIGTERM.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Raise StopRun if a signal has come."""
        if self.received is not None:
            raise StopRun

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        print("stopping after this block of steps; once more stops at once", file=sys.stderr, flush=True)
