"""Whether two runs are the same to the last bit: weights, every step, every epoch, every point in TensorBoard."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.arguments import spelled
from clr_loop.runs.records import read_result


def differences(run_dir: Path, other_dir: Path) -> list[str]:
    """Return what differs between two finished runs, a line each; [] if they are bit-identical.

    This compares the digest of all variables, the CSV files without their seconds, and TensorBoard's points of every
    step and every validation, each with how often it is there.

    Args:
        run_dir, other_dir: run directories.

    Raises:
        ValueError: if one of them holds no finished run.
    """
    ours, theirs = _records(run_dir), _records(other_dir)
    differing = {name: _first_difference(ours.get(name, []), theirs.get(name, [])) for name in sorted({*ours, *theirs})}
    return [f"{name}: {words}" for name, words in differing.items() if words]


def _records(run_dir: Path) -> dict[str, list[Any]]:
    """Read what a run has recorded, but for the times: the name of each record → its values."""
    result = read_result(run_dir)
    if result is None:
        raise ValueError(f"{run_dir} holds no finished run; finish it with {spelled(resume=True)}.")
    values: dict[str, list[Any]] = {f"history.csv, {name}": column.tolist() for name, column in result.history.items()}
    values["weights_sha256"] = [result.weights_sha256]
    for name, records in (("epochs.csv", result.epochs), ("validations.csv", result.validations)):
        values[name] = [dataclasses.replace(e, epoch_seconds=0.0, input_wait_seconds=0.0) for e in records]
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        if not tag.endswith("_seconds"):
            values[f"TensorBoard, {tag}"] = sorted((event.step, event.value) for event in events.Scalars(tag))
    return values


def _first_difference(ours: list[Any], theirs: list[Any]) -> str | None:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)} values"
    pairs = enumerate(zip(ours, theirs, strict=True))
    # NaN equals itself here, and -0.0 differs from 0.0.
    return next((f"at {i}, {x} and {y}" for i, (x, y) in pairs if repr(x) != repr(y)), None)
