"""What a run depends on, as it is kept in config.json, and what in it has changed since."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

import clr_loop
from clr_loop import run_files
from clr_loop.loop import TrainLoop

ScheduleFn = Callable[[NDArray[np.int64]], ArrayLike]

# The weights of a run can follow a change of these from some step on; of these they do not depend at all.
_CHANGEABLE = ("schedule", "versions")
_FREE = ("epochs", "command")


def run_settings(
    train_loop: TrainLoop, schedule: ScheduleFn, epochs: int, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns what a run depends on, as JSON types: the caller's settings and those that are known here."""
    return {
        **(settings or {}),
        "optimizer": type(train_loop.optimizer).__name__,
        "batch_size": train_loop.batch_size,
        "epochs": epochs,
        "steps_per_epoch": train_loop.steps_per_epoch,
        "seed": train_loop.seed,
        "jit_compile": train_loop.jit_compile,
        "schedule": schedule_config(schedule),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of what a result depends on."""
    return {
        "clr_loop": clr_loop.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": version("numpy"),
    }


def schedule_config(schedule: ScheduleFn) -> dict[str, Any]:
    """Returns a schedule's name and arguments; of a function, or a schedule with one inside, where it is defined."""
    try:
        return schedule.to_config()  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        named = schedule if hasattr(schedule, "__qualname__") else type(schedule)
        return {"name": f"{named.__module__}.{named.__qualname__}"}


def read(directory: Path) -> dict[str, Any] | None:
    """Reads the settings of the run in a directory; None if it has none yet.

    Raises:
        ValueError: if they are not what `run_settings` returns.
    """
    path = directory / run_files.CONFIG
    if not path.exists():
        return None
    saved = run_files.read_json(path)
    if not (isinstance(saved.get("schedule"), dict) and isinstance(saved.get("epochs"), int)):
        raise ValueError(f"{path} must hold the settings of a run, received others; restore it or start a new run")
    return saved


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns in words what differs between the saved settings and those of today.

    Args:
        saved: from `read`.
        now: from `run_settings`.

    Returns:
        What can change in mid-run (the schedule, versions), and what cannot. The number of epochs and the key `command`
        are not compared.
    """
    # Through JSON, as the saved ones came: a tuple is a list there.
    before, after = run_files.only_differing(saved, json.loads(json.dumps(now)))
    found: tuple[list[str], list[str]] = ([], [])
    for name in before:
        if name in _FREE:
            continue
        pair = before[name], after[name]
        if all(isinstance(side, dict) for side in pair):
            pair = run_files.only_differing(*pair)
        found[name not in _CHANGEABLE].append(f"{name} {pair[0]}, now {pair[1]}")
    return found
