"""A run directory: who holds it, and its files of settings, steps, epochs and result. Plain JSON and CSV."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

CONFIG, RESULT, HISTORY, EPOCHS = "config.json", "result.json", "history.csv", "epochs.csv"


@contextlib.contextmanager
def claim(
    path: str | os.PathLike[str], kind: str = "run", *, resume: bool = False, overwrite: bool = False
) -> Iterator[Path]:
    """Holds a directory for one process, until left or until the process dies; makes it if it does not exist.

    The lock file in it, `<kind>.lock`, stays and says what the directory is. Within a process it can be claimed again
    by whoever holds it already.

    Args:
        path: of the directory.
        kind: what it is for; a directory of another kind is never taken.
        resume: allows one that holds something of this kind.
        overwrite: allows one that holds something of this kind, and removes all that is in it.

    Raises:
        ValueError: if both resume and overwrite are given.
        FileExistsError: if it is not empty and neither is given, or what it holds is not of this kind; nothing in it is
            touched.
        NotADirectoryError, PermissionError: as `make`.
        BlockingIOError: if another process holds it.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other, received both; choose one")
    directory = make(path)
    _content(directory, kind, resume or overwrite)  # A directory that is refused is not even given a lock.
    lock = filelock.FileLock(directory / f"{kind}.lock", blocking=False, is_singleton=True)
    try:
        with lock:
            content = _content(directory, kind, resume or overwrite)
            if overwrite:
                for file in content:
                    shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
            yield directory
    except filelock.Timeout as error:
        raise BlockingIOError(
            f"output directory {directory} is held by another process; wait for it to end or choose another"
        ) from error


def _content(directory: Path, kind: str, is_wanted: bool) -> list[Path]:
    """Returns what a directory holds, if that allows to claim it."""
    lock = directory / f"{kind}.lock"
    content = [file for file in directory.iterdir() if file != lock]
    if content and not lock.exists():
        raise FileExistsError(f"output directory {directory} is not empty and holds no {kind}; choose another")
    if content and not is_wanted:
        raise FileExistsError(
            f"output directory {directory} already holds a {kind}; choose another, --overwrite to remove it or, where "
            "the script has it, --resume to go on"
        )
    return content


def make(path: str | os.PathLike[str]) -> Path:
    """Makes a directory, if it is not there yet, and returns it.

    Raises:
        NotADirectoryError: if a file has its name.
        PermissionError: if it cannot be made or written to.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"output directory {directory} cannot be made: a file has its name; choose another"
        ) from error
    except OSError as error:
        raise PermissionError(
            f"output directory {directory} cannot be made: {error.strerror}; choose a place that can be written to"
        ) from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"output directory {directory} cannot be written to; choose another")
    return directory


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole: under another name first, then renamed, so that no reader sees half of it."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ValueError: if the file is missing or holds anything else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it or start a new run") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, received a {type(content).__name__}; restore it")
    return content


def only_differing(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns both without the entries in which they agree; one that a side lacks is None there.

    >>> only_differing({"a": 1, "b": 2}, {"a": 1, "b": 3})
    ({'b': 2}, {'b': 3})
    """
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    return {name: saved.get(name) for name in names}, {name: now.get(name) for name in names}


class RunFiles:
    """Writes `history.csv` and `epochs.csv` while a run goes on. A context manager.

    history.csv: a line for each step: step (0-based), then its metrics.
    epochs.csv: a line for each epoch.
    What these files hold already stays.

    Args:
        directory: a claimed directory.
    """

    def __init__(self, directory: Path) -> None:
        self._history = _GrowingCsv(directory / HISTORY)
        self._epochs = _GrowingCsv(directory / EPOCHS)

    def add_steps(self, first_step: int, metrics: Mapping[str, NDArray[np.float32]]) -> None:
        """Appends a line for each step; nine digits tell any two float32 apart.

        Args:
            first_step: the 0-based step of the first value.
            metrics: name → float32 [n]; the same names each time.
        """
        columns = [values.tolist() for values in metrics.values()]
        form = ",".join(["%d", *["%.9g"] * len(columns)]) + "\n"
        rows = zip(range(first_step, first_step + len(columns[0])), *columns, strict=True)
        self._history.append(["step", *metrics], "".join([form % row for row in rows]))

    def add_epoch(self, row: Mapping[str, float]) -> None:
        """Appends a line for an epoch; the same names each time."""
        self._epochs.append(list(row), ",".join(map(repr, row.values())) + "\n")

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._history.close()
        self._epochs.close()


class _GrowingCsv:
    """A CSV file that is appended to; its header is written with its first lines."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", newline="")  # noqa: SIM115 (closed by close)

    def append(self, header: Sequence[str], lines: str) -> None:
        if self._file.tell() == 0:
            self._file.write(",".join(header) + "\n")
        self._file.write(lines)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_history(directory: Path) -> dict[str, NDArray[Any]]:
    """Reads `history.csv`: `step` int64 [n], every other column float32 [n], to the bit; {} if it holds nothing yet.

    Raises:
        ValueError: if it holds anything else.
    """
    with _naming(directory / HISTORY):
        header, rows = _read_csv(directory / HISTORY)
        columns = zip(*rows, strict=True) if rows else ([] for _ in header)
        return {
            name: np.array(column, np.int64 if name == "step" else np.float32)
            for name, column in zip(header, columns, strict=True)
        }


def read_epochs(directory: Path) -> list[dict[str, float]]:
    """Reads `epochs.csv`: a dictionary for each epoch.

    Raises:
        ValueError: if it holds anything else.
    """
    with _naming(directory / EPOCHS):
        header, rows = _read_csv(directory / EPOCHS)
        return [dict(zip(header, map(json.loads, row), strict=True)) for row in rows]


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Adds the name of the file to an error in reading it."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or start a new run") from error


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    if not path.exists():
        return [], []
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    return (rows[0], rows[1:]) if rows else ([], [])


def growing_files(directory: Path) -> dict[str, int]:
    """Returns the size in bytes of each file that grows in the course of a run: the CSV files and TensorBoard's events.

    Cutting the files back to these sizes undoes all that was recorded since.
    """
    paths = [directory / HISTORY, directory / EPOCHS, *_event_files(directory)]
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths if path.exists()}


def cut_back(directory: Path, sizes: Mapping[str, int]) -> None:
    """Takes the growing files back to sizes that `growing_files` returned, and removes those that came later.

    Raises:
        ValueError: if a file is missing or shorter; nothing is changed.
    """
    for name, size in sizes.items():
        path = directory / name
        found = path.stat().st_size if path.is_file() else 0
        if found < size:
            raise ValueError(f"{path} must have at least {size} bytes, received {found}; restore it or start a new run")
    for name in growing_files(directory):
        if name in sizes:
            os.truncate(directory / name, sizes[name])
        else:
            (directory / name).unlink()


def _event_files(directory: Path) -> list[Path]:
    return [path for place in (".", "train", "validation") for path in (directory / place).glob("*tfevents*")]
