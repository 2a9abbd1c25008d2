"""A stopwatch with an injected clock. It knows nothing of TensorFlow: what it measures must end in finished work."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType


class Stopwatch:
    """Adds up the seconds spent inside its `with` blocks.

    >>> ticks = iter([0.0, 2.0, 10.0, 11.5])
    >>> stopwatch = Stopwatch(clock=lambda: next(ticks))
    >>> for _ in range(2):
    ...     with stopwatch:
    ...         pass
    >>> stopwatch.seconds
    3.5

    Args:
        clock: returns seconds as a float; must never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._clock = clock
        self._started = 0.0

    def __enter__(self) -> Stopwatch:
        self._started = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += self._clock() - self._started
