"""How a run is kept, resumed and observed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from clr_loop.options import names_of, option, options

OnChange = Literal["keep", "replace", "rebase"]


@options
@dataclass(frozen=True)
class RunOptions:
    """How a run is kept, resumed and observed."""

    settings: Mapping[str, Any] = option(
        {},
        "JSON types to keep with the run, such as the names of dataset and model. On resuming they must be equal, "
        "except for the key `command`.",
        resumed="free",  # `settings.check_changes` compares what is in it.
        has_flag=False,
    )
    checkpoint_every: int | None = option(
        None,
        "Batches from one checkpoint to the next; the beginning, the end and each epoch that is the best so far have "
        "one, too. Without a number there is one each epoch. 0 saves none, and then there is no best.keras either.",
        low=0,
        resumed="free",
    )
    keep_checkpoints: int = option(
        3, "How many of the newest checkpoints to keep, beside the best.", low=1, resumed="free"
    )
    monitor: str | None = option(
        None,
        "The metric of an epoch that says which is the best, such as val_loss. Without one it is val_accuracy or, "
        "where there is none, val_loss.",
    )
    mode: Literal["auto", "min", "max"] = option(
        "auto",
        "Whether lower (min) or higher (max) values of the monitor are better. auto knows it of Keras' losses and "
        "metrics by their names, and asks for it otherwise.",
    )
    patience: int | None = option(
        None,
        "Stop after so many epochs without a better one. Of a schedule with cycles, only epochs in which a cycle ends "
        "count and are compared. Without it the run does not stop.",
        low=1,
        resumed="free",
    )
    restore_best: bool = option(
        False, "Whether the run ends with the weights of the best epoch, which needs checkpoints.", resumed="free"
    )
    snapshots: bool = option(
        False,
        "Whether to save the model at the end of each cycle, in the folder snapshots, and to evaluate each and the "
        "ensembles of the last 1, 2, … of them at the end, into snapshots.csv. It needs one array of inputs or a nest "
        "of them as validation data.",
    )
    average_from: float = option(
        0.5,
        "With the average swa, the share of the run's steps from which on the lows of the cycles count.",
        low=0,
        high=1,
    )
    save_models: bool = option(
        True,
        "Whether to write final.keras and, where there is one, best.keras and averaged.keras at the end.",
        resumed="free",
        has_flag=False,
    )
    validate_every: int = option(
        0,
        "Batches from one validation to the next, beside that at each epoch's end. These are recorded in "
        "validations.csv. 0 adds none.",
        low=0,
        resumed="free",
    )
    validation_batch_size: int | None = option(
        None,
        "Examples in one call of the validation. Without a number it is 1000 where the loss is a plain mean over "
        "examples, and else the batch size of the training, as in Keras.",
        low=1,
    )
    weight_norm_every: int = option(
        0,
        "Batches from one writing of the norm of the weights to TensorBoard (train/weight_norm) to the next. 0 writes "
        "none.",
        low=0,
        resumed="free",
    )
    first_step: int | None = option(
        None,
        "The step of the schedule at which the run begins. None goes on from the loop's own step, which is 0 for a "
        "loop that has not taken one; 0 begins the schedule again.",
        low=0,
        resumed="free",  # `settings.run_settings` compares the step that this comes to.
        has_flag=False,
    )
    on_change: OnChange | None = option(
        None,
        "What to do on resuming if the settings have changed. keep goes on with the saved schedule; replace takes the "
        "new schedule at the same step; rebase takes the new schedule and begins it at its step 0. Without a choice "
        "the run does not go on. More epochs are always allowed.",
        resumed="once",
    )
    resume_from: int | None = option(
        None,
        "On resuming, the step of the checkpoint to go on from; what was done after it is undone. Without one it is "
        "the newest.",
        low=0,
        resumed="once",
    )
    profile: tuple[int, int] | None = option(
        None,
        "The first batch to profile and the first not to, such as 100 and 200, for TensorBoard's profile page "
        "(package tensorboard-plugin-profile). Their epochs take longer.",
        resumed="once",
    )
    is_timed: bool = option(
        True,
        "False where other work goes on beside the run, so that its seconds do not count.",
        resumed="free",
        has_flag=False,
    )

    def __post_init__(self) -> None:
        if self.profile is not None and not 0 <= self.profile[0] < self.profile[1]:
            raise ValueError(f"profile is {self.profile}; give (first, last) with 0 <= first < last, as in (100, 200).")

    def to_compare(self) -> dict[str, Any]:
        """Return what config.json keeps of these, and what a resumed run must have alike."""
        return {**{name: getattr(self, name) for name in names_of(type(self), "same")}, **self.settings}
