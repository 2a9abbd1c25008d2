"""The Keras callback that ends a script's run by a signal.

This module imports Keras, so scripts import it after `terminal.start_tensorflow`.
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import keras

from clr_loop.runs.fit import StopRun


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
