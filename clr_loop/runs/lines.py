"""Lines that fit a terminal: words that are wrapped, epochs in columns, and how far a series of runs has come."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Hashable, Mapping, Sequence

VALUE = 9  # The width of a value such as 1.234e-05.
_GAP = "  "


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is, or None for a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str) -> str:
    """Return a text whose lines are broken between words on a terminal; what follows a label such as `note:` hangs."""
    width = terminal_width()
    if width is None:
        return text
    lines = []
    for line in text.split("\n"):
        label = re.match(r"\w+:\s+", line)
        hanging = " " * (label.end() if label else 2)
        lines += textwrap.wrap(
            line, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


class Columns:
    """A table that is printed row by row, of numbers under their names.

    Args:
        names: of the columns, each with the width of its values.
        most: the columns of a terminal; None for any number. Where the table is wider, names are broken at their
            underscores. Where that is not enough, columns are left out from the end of `optional`.
        optional: names of columns that may be left out.
    """

    def __init__(self, names: Mapping[str, int], most: int | None, optional: Sequence[str] = ()) -> None:
        self.names, self.left_out = dict(names), list[str]()
        self._headings = {name: [name] for name in names}
        if most is not None and self._width() > most:
            self._headings = {name: _broken(name) for name in names}
        for name in reversed(optional):
            if most is not None and self._width() > most:
                del self.names[name]
                self.left_out.append(name)

    def header(self) -> str:
        """Return the names, in one line or more."""
        height = max(len(self._headings[name]) for name in self.names)
        stacks = {name: [""] * (height - len(self._headings[name])) + self._headings[name] for name in self.names}
        return "\n".join(self.row({name: stack[i] for name, stack in stacks.items()}) for i in range(height))

    def row(self, cells: Mapping[str, str]) -> str:
        """Return a line; a cell that is missing stays empty."""
        return _GAP.join(cells.get(name, "").rjust(self._width_of(name)) for name in self.names).rstrip()

    def _width_of(self, name: str) -> int:
        return max(self.names[name], *map(len, self._headings[name]))

    def _width(self) -> int:
        return sum(map(self._width_of, self.names)) + len(_GAP) * (len(self.names) - 1)


def _broken(name: str) -> list[str]:
    """Return a name in parts of the width of a cell, if it has underscores there to break at."""
    lines = [""]
    for part in re.findall(r"[^_]*_?", name)[:-1]:
        if lines[-1] and len(lines[-1]) + len(part) > VALUE:
            lines.append("")
        lines[-1] += part
    return lines


class RunCount:
    """Says how far a series of runs has come, and about how long the rest will take.

    Args:
        total: the number of runs, those that are only read back among them.
        num_read_back: of runs that go side by side from now on, how many are only read back, which come first; None for
            runs that go one after another.
    """

    def __init__(self, total: int, num_read_back: int | None = None) -> None:
        self._total, self._seen, self._num_trained = total, set[Hashable](), -(num_read_back or 0)
        self._is_parallel = num_read_back is not None
        self._began: float | None = time.monotonic() if self._is_parallel else None

    def start(self, run: Hashable) -> str:
        """Return "run 7 of 44" for a run that is about to be trained."""
        self._began = time.monotonic() if self._began is None else self._began
        self._num_trained += 1
        self._seen.add(run)
        return f"run {len(self._seen)} of {self._total}"

    def end(self, run: Hashable) -> str:
        """Return "run 7 of 44, about 3 min left" for a run that is finished; one that was not started was read back."""
        self._num_trained += self._is_parallel
        self._seen.add(run)
        words = f"run {len(self._seen)} of {self._total}"
        if self._began is None or self._num_trained < 1 or len(self._seen) == self._total:
            return words
        seconds = (time.monotonic() - self._began) / self._num_trained * (self._total - len(self._seen))
        return f"{words}, about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
