"""A window of steps under TensorFlow's profiler."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

import tensorflow as tf


class StepProfiler:
    """Profiles the batches first … last - 1 of a run. A context manager.

    The trace goes to `plugins/profile` under the directory, where TensorBoard's profile page looks for it (Python
    package tensorboard-plugin-profile).

    Args:
        directory: the run directory.
        first, last: ints, 0 <= first < last: batches visited before the window begins, and when it ends.

    Raises:
        ValueError: if they are not in this order.
    """

    def __init__(self, directory: Path, first: int, last: int) -> None:
        if not 0 <= first < last:
            raise ValueError(f"profile must be FROM:TO with 0 <= FROM < TO, received {first}:{last}; such as 100:200")
        self._directory = directory
        self._window = range(first, last)
        self._running = False

    def steps_to_boundary(self, position: int) -> int:
        """Returns how many batches may be visited from here until the window begins or ends."""
        first, last = self._window.start, self._window.stop
        if position < first:
            return first - position
        return last - position if position < last else sys.maxsize

    def at(self, position: int) -> None:
        """Starts or stops the profiler if the run has come to where the window begins or ends."""
        inside = position in self._window
        if inside and not self._running:
            tf.profiler.experimental.start(str(self._directory))
        elif self._running and not inside:
            tf.profiler.experimental.stop()
        self._running = inside

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            tf.profiler.experimental.stop()
