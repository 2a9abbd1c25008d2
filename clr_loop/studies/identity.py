"""Whether two runs are the same to the last bit: weights, every step, every epoch, every point in TensorBoard."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.runs.records import read_result
from clr_loop.runs.result import TrainingResult

_TAGS = {"train": ("learning_rate", "loss", "accuracy", "momentum"), "validation": ("loss", "accuracy")}


def differences(run_dir: Path, other_dir: Path) -> list[str]:
    """Returns what differs between two finished runs, a line each; [] if they are bit-identical.

    Compared are the digest of all variables, `history.csv`, `epochs.csv` without its seconds, and TensorBoard's points
    of every step and every validation, each with how often it is there.

    Args:
        run_dir, other_dir: run directories.

    Raises:
        ValueError: if one of them holds no finished run.
    """
    ours, theirs = _result(run_dir), _result(other_dir)
    found = []
    if ours.weights_sha256 != theirs.weights_sha256:
        found.append(f"weights_sha256: {ours.weights_sha256} and {theirs.weights_sha256}")
    for name in sorted({*ours.history, *theirs.history}):
        a, b = ours.history.get(name, np.empty(0)), theirs.history.get(name, np.empty(0))
        if not np.array_equal(a, b):
            found.append(f"history.csv, {name}: {_first_difference(a.tolist(), b.tolist())}")
    untimed = [
        [dataclasses.replace(record, epoch_seconds=0.0, input_wait_seconds=0.0) for record in run.epochs]
        for run in (ours, theirs)
    ]
    if untimed[0] != untimed[1]:
        found.append(f"epochs.csv: {_first_difference(*untimed)}")
    for place, tags in _TAGS.items():
        for tag in tags:
            points = [_points(directory / place, tag) for directory in (run_dir, other_dir)]
            if points[0] != points[1]:
                found.append(f"TensorBoard, {place}/{tag}: {_first_difference(*points)}")
    return found


def _result(directory: Path) -> TrainingResult:
    result = read_result(directory)
    if result is None:
        raise ValueError(f"{directory} must hold a finished run, received none; finish it with --resume")
    return result


def _points(directory: Path, tag: str) -> list[tuple[int, float]]:
    """The (step, value) of a tag in the order of their steps."""
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0}).Reload()
    if tag not in events.Tags()["scalars"]:
        return []
    return sorted((event.step, event.value) for event in events.Scalars(tag))


def _first_difference(a: list[Any], b: list[Any]) -> str:
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} values"
    i = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    return f"at {i}, {a[i]} and {b[i]}"
