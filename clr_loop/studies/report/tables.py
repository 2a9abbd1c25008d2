"""Tables in Markdown that also read well in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded to one width.

    >>> print(markdown_table(["arm", "s"], [["constant", "2.02"]]))
    | arm      | s    |
    | -------- | ---- |
    | constant | 2.02 |
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def table_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the Markdown table of rows, at least one, that all have the names of the first."""
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])
