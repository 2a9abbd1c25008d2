"""Tables in CSV files, whose columns are numbers, but for the one that is to be predicted."""

import csv
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Task = Literal["auto", "classification", "regression"]

# A cell without a value, as spreadsheets, pandas and R write it; upper and lower case are alike.
_MISSING = ("", "na", "n/a", "nan", "null", "?")
# Whole numbers of more values than these are rather counts or years than classes.
_MOST_CLASSES = 20


class Table(NamedTuple):
    """What a CSV file holds.

    Attributes:
        inputs: float64 [n, features].
        targets: labels int32 [n], in the order of class_names; for a regression float64 [n, 1].
        feature_names: the names of the columns of the inputs.
        class_names: the classes as the file has them, text in alphabetical order or numbers rising; else ().
    """

    inputs: np.ndarray
    targets: np.ndarray
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]


def read_csv(path: Path, target: str | None, task: Task = "auto") -> Table:
    """Read a CSV file, whose first row names the columns. Commas, semicolons or tabs separate them.

    Args:
        target: the name of the column to predict; all other columns are features.
        task: "classification" makes classes of the target's values, and "regression" takes them as numbers. "auto"
            makes classes of text, and of whole numbers with at most 20 different values.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a row has more or fewer cells than there are columns, a cell is empty or no number, there is no
            such target, no feature or no row, or the first row has no names.
    """
    names, cells, lines = _read(path)
    if target not in names:
        near = difflib.get_close_matches(target or "", names, 1)
        what = f"{path} has no column {target!r}" if target else f"{path} needs a target, the column to predict"
        advice = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"{what}{advice} Its columns are: {', '.join(names)}.")
    if len(names) == 1:
        raise ValueError(f"{path} has only the column {target}; give it columns of features, too.")
    _refuse_missing(path, names, cells, lines)
    columns = dict(zip(names, zip(*cells, strict=True), strict=True))
    labels = columns.pop(str(target))
    inputs = np.stack([_numbers(path, name, column, lines) for name, column in columns.items()], axis=1)
    try:
        values = np.array(labels).astype(np.float64)
    except ValueError:
        if task == "regression":
            _numbers(path, str(target), labels, lines)  # Raises an error that says where the text is.
        values = np.array([label.strip() for label in labels])
    classes, targets = np.unique(values, return_inverse=True)
    is_text = values.dtype.kind == "U"
    looks_so = is_text or (len(classes) <= _MOST_CLASSES and bool((classes % 1 == 0).all()))
    if task == "regression" or (task == "auto" and not looks_so):
        return Table(inputs, values[:, np.newaxis], tuple(columns), ())
    class_names = classes.tolist() if is_text else [f"{number:.15g}" for number in classes]
    return Table(inputs, targets.astype(np.int32), tuple(columns), tuple(class_names))


def _read(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the names of the columns, the rows below them, and the number of the line that each row ends in."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give the path of a CSV file.")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=max(",;\t", key=first.count))
            numbered = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8 ({error}); save it as one.") from error
    if len(numbered) < 2:
        raise ValueError(f"{path} holds no example; write the names of the columns first, and then a row per example.")
    names = [name.strip() for name in numbered[0][1]]
    if all(map(_is_number, names)):
        raise ValueError(f"The first row of {path} holds numbers only; put the names of the columns above it.")
    if "" in names:
        advice = "give it one; pandas leaves its index without a name unless to_csv gets index=False"
        raise ValueError(f"Column {names.index('') + 1} of {path} has no name; {advice}.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path} has two columns named {twice}; rename one of them.")
    for line, row in numbered[1:]:
        if len(row) != len(names):
            raise ValueError(f"Line {line} of {path} has {len(row)} cells for {len(names)} columns; correct that line.")
    return names, [row for _, row in numbered[1:]], [line for line, _ in numbered[1:]]


def _refuse_missing(path: Path, names: Sequence[str], cells: Sequence[Sequence[str]], lines: Sequence[int]) -> None:
    missing = [(i, k) for i, row in enumerate(cells) for k, cell in enumerate(row) if cell.strip().lower() in _MISSING]
    if missing:
        i, k = missing[0]
        rows = len({i for i, _ in missing})
        where = f"the first of them in line {lines[i]}, column {names[k]}"
        what = f"{path} lacks a value in {rows} of its {len(cells)} rows, {where}"
        raise ValueError(f"{what}. Fill such cells in, or leave the rows out.")


def _numbers(path: Path, name: str, column: Sequence[str], lines: Sequence[int]) -> np.ndarray:
    try:
        return np.array(column).astype(np.float64)
    except ValueError:
        i = next(i for i, cell in enumerate(column) if not _is_number(cell))
        what = f"Column {name} of {path} holds text, such as {column[i]!r} in line {lines[i]}, where numbers are needed"
        raise ValueError(f"{what}. Leave the column out, or give it a column of 0 and 1 for each value.") from None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
