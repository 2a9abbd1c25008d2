"""How a run is kept, resumed and observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clr_loop.arguments import checked_choice, checked_integer, checked_number, checked_types, checked_whole
from clr_loop.runs.settings import OnChange


@checked_types
@dataclass(frozen=True)
class RunOptions:
    """How a run is kept, resumed and observed.

    Attributes:
        settings: JSON types to keep with the run, such as the names of dataset and model. On resuming they must be
            equal, except for the key `command`.
        checkpoint_every: batches from one checkpoint to the next; the beginning, the end and each epoch that is the
            best so far have one, too. None saves one each epoch, 0 saves none.
        keep_checkpoints: int, at least 1: how many of the newest to keep, beside the best.
        monitor: the metric of an epoch that says which is the best, such as "val_loss"; whether more is better follows
            from the name. None takes `val_accuracy` or, where there is none, `val_loss`.
        patience: int, at least 1: stop after so many epochs without a better one. Of a schedule with cycles, only
            epochs in which a cycle ends count and are compared. None does not stop.
        restore_best: whether the run ends with the weights of the best epoch, which needs checkpoints.
        snapshots: whether to save the model at the end of each cycle, in the folder `snapshots`, and to evaluate each
            and the ensembles of the last 1, 2 … of them at the end, into snapshots.csv. It needs one array of inputs
            or a nest of them as validation data.
        average_from: float from 0 to 1, for `StepOptions(average="swa")`: the share of the run's steps from which on
            the lows of the cycles count.
        save_models: whether to write final.keras and, where there is one, best.keras and averaged.keras at the end.
        validate_every: batches from one validation to the next, beside that at each epoch's end. These are recorded in
            validations.csv and `TrainingResult.validations`. 0 adds none.
        weight_norm_every: batches from one writing of the weights' norm to TensorBoard (`train/weight_norm`) to the
            next. 0 writes none.
        first_step: int, at least 0: the step of the schedule at which the run begins. None goes on from the loop's own
            step, which is 0 for a loop that has not taken one; 0 begins the schedule anew.
        on_change: what to do on resuming if the schedule, or a version of what the result depends on, has changed.
            None: raise. "keep": take the saved schedule. "replace": take the given one, at the same step. "rebase":
            take the given one, its step 0 at the current step. More epochs are always allowed.
        resume_from: int, the step of the checkpoint to go on from; what was done after it is undone. None takes the
            newest. It needs `fit(resume=True)`.
        profile: (first, last): profile the batches first … last - 1 into the run directory, for TensorBoard's profile
            page (package tensorboard-plugin-profile). Their epochs take longer.
        is_timed: False where other work goes on beside the run, so that its seconds do not count.

    Raises:
        ValueError: if a value is out of its range.
        TypeError: if a number is not a whole one.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_every: int | None = None
    keep_checkpoints: int = 3
    monitor: str | None = None
    patience: int | None = None
    restore_best: bool = False
    snapshots: bool = False
    average_from: float = 0.5
    save_models: bool = True
    validate_every: int = 0
    weight_norm_every: int = 0
    first_step: int | None = None
    on_change: OnChange | None = None
    resume_from: int | None = None
    profile: tuple[int, int] | None = None
    is_timed: bool = True

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and checked_integer("checkpoint_every", self.checkpoint_every) < 0:
            raise ValueError(f"checkpoint_every is {self.checkpoint_every}; give a number of batches, or 0 for never.")
        checked_whole("keep_checkpoints", self.keep_checkpoints)
        checked_number("average_from", self.average_from, 0.0, 1.0, "it is a share of the run, from 0 to 1")
        if self.patience is not None:
            checked_whole("patience", self.patience)
        checked_whole("validate_every", self.validate_every, low=0)
        checked_whole("weight_norm_every", self.weight_norm_every, low=0)
        if self.first_step is not None:
            checked_whole("first_step", self.first_step, low=0)
        if self.on_change is not None:
            checked_choice("on_change", self.on_change, "keep", "replace", "rebase")
        if self.resume_from is not None:
            checked_whole("resume_from", self.resume_from, low=0)
        if self.profile is not None and not 0 <= self.profile[0] < self.profile[1]:
            raise ValueError(f"profile is {self.profile}; give (first, last) with 0 <= first < last, as in (100, 200).")
