"""How a run goes on: back to its newest checkpoint, and with which schedule from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clr_loop import run_files, schedules, settings
from clr_loop.loop import TrainLoop
from clr_loop.momentum import momentums_of
from clr_loop.records import RunRecords
from clr_loop.settings import ScheduleFn, schedule_config

OnChange = Literal["keep", "replace", "rebase"]


def go_on(
    directory: Path,
    records: RunRecords,
    train_loop: TrainLoop,
    schedule: ScheduleFn,
    now: Mapping[str, Any],
    on_change: OnChange | None,
) -> ScheduleFn:
    """Takes the loop back to its newest checkpoint, if it may go on from there, and returns the schedule from there.

    No file is changed.

    Args:
        directory: of the run.
        records: of the run.
        train_loop: at step 0.
        schedule: the one given.
        now: from `run_settings`.
        on_change: see `training.fit`.

    Raises:
        ValueError, CheckpointError: see `training.fit`.
    """
    saved = settings.read(directory)
    if saved is None:
        records.restore()
        return schedule
    changed, fixed = settings.changes(saved, now)
    if fixed:
        raise ValueError(
            f"a run must keep its settings, received other ones: {'; '.join(fixed)}; use the saved ones "
            "(--on_change=keep)"
        )
    if changed and on_change is None:
        raise ValueError(
            f"the run was begun with other settings: {'; '.join(changed)}; choose --on_change=keep (the saved "
            "schedule), replace (the new one, at the same step) or rebase (the new one, from its step 0)"
        )
    records.restore()
    position, last = train_loop.position, now["epochs"] * train_loop.steps_per_epoch
    if position > last:
        raise ValueError(
            f"epochs must be at least those trained already, received {now['epochs']} for {position} batches of "
            f"{train_loop.steps_per_epoch} an epoch; give more"
        )
    if on_change in ("keep", "rebase") and saved["schedule"] != json.loads(json.dumps(now["schedule"])):
        schedule = _changed(schedule, saved["schedule"], on_change, train_loop.step)
    if train_loop.step > 0:
        has_momentum = momentums_of(schedule, np.arange(1)) is not None
        if has_momentum != ("momentum" in run_files.read_history(directory)):
            raise ValueError(
                "a schedule that cycles the momentum cannot follow one that does not, or the other way round, received "
                f"{schedule_config(schedule)}; choose one like the saved"
            )
    return schedule


def _changed(schedule: ScheduleFn, saved: Mapping[str, Any], on_change: str, step: int) -> ScheduleFn:
    try:
        kept = schedules.from_config(saved)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the saved schedule cannot be used: {error}; choose --on_change=replace") from error
    if on_change == "keep":
        return kept
    if step == 0:
        return schedule
    if not isinstance(schedule, schedules.Schedule):
        raise ValueError("rebase must be given a schedule of clr_loop.schedules, received a function; shift its steps")
    return schedules.join([kept, schedule], boundaries=[step])
