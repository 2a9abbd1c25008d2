"""The files of a run directory: settings, every step, every epoch, the result. Plain JSON and CSV."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP_COLUMNS = ("step", "learning_rate", "loss", "accuracy")


def claim(path: str | os.PathLike[str]) -> Path:
    """Makes a directory for a run and returns it.

    Raises:
        FileExistsError: if it exists and is not empty; nothing in it is touched.
        NotADirectoryError, PermissionError: as `make`.
    """
    directory = make(path)
    if any(directory.iterdir()):
        raise FileExistsError(
            f"output directory {directory} is not empty, and a run is never overwritten; choose another or remove it"
        )
    return directory


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


class RunFiles:
    """Writes `history.csv` and `epochs.csv` while a run goes on. A context manager.

    history.csv: a line for each step: step (0-based), learning_rate, loss, accuracy.
    epochs.csv: a line for each epoch.

    Args:
        directory: an empty directory, from `claim`.
    """

    def __init__(self, directory: Path) -> None:
        self._history = open(directory / "history.csv", "w", newline="")  # noqa: SIM115 (closed in __exit__)
        self._epochs = open(directory / "epochs.csv", "w", newline="")  # noqa: SIM115
        self._history.write(",".join(STEP_COLUMNS) + "\n")
        self._epoch_columns: list[str] = []

    def add_steps(self, first_step: int, metrics: Mapping[str, NDArray[np.float32]]) -> None:
        """Appends a line for each step; nine digits tell any two float32 apart.

        Args:
            first_step: the 0-based step of the first value.
            metrics: float32 [n] each: learning_rate, loss, accuracy.
        """
        columns = [metrics[name].tolist() for name in STEP_COLUMNS[1:]]
        self._history.writelines(
            f"{first_step + i},{rate:.9g},{loss:.9g},{accuracy:.9g}\n"
            for i, (rate, loss, accuracy) in enumerate(zip(*columns, strict=True))
        )
        self._history.flush()

    def add_epoch(self, row: Mapping[str, Any]) -> None:
        """Appends a line for an epoch; the first one's keys, which all must have, become the header."""
        writer = csv.writer(self._epochs, lineterminator="\n")
        if not self._epoch_columns:
            self._epoch_columns = list(row)
            writer.writerow(self._epoch_columns)
        writer.writerow([row[name] for name in self._epoch_columns])
        self._epochs.flush()

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._history.close()
        self._epochs.close()
