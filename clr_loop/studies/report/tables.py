"""Tables in Markdown, which also read well in a terminal, and in LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from tabulate import tabulate


def table_of(rows: Sequence[Mapping[str, str]], form: Literal["github", "latex_booktabs"] = "github") -> str:
    """Return the table of rows, at least one, that all have the names of the first; LaTeX needs its package booktabs.

    >>> print(table_of([{"arm": "constant", "s": "2.02"}]))
    | arm      | s    |
    |----------|------|
    | constant | 2.02 |
    """
    return tabulate([dict(row) for row in rows], headers="keys", tablefmt=form, disable_numparse=True)
