"""Runs of a comparison that nobody trained, with results that are put in."""

import numpy as np

from clr_loop.runs.result import EpochRecord, TrainingResult
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies.arms import Arm, ArmRun

CONSTANT, TRIANGULAR = Constant(0.1), Triangular(0.001, 0.006, 2000)
ARMS = [
    Arm(size, name, schedule)
    for size in (100, 2000)
    for name, schedule in (("constant", CONSTANT), ("triangular", TRIANGULAR))
]


def make_run(arm, seed, value, measure="val_accuracy", num_epochs=15, epoch_seconds=None, is_timed=True):
    """A run that has this value of the measure after every epoch; epochs of 0.2 s at batch 100, else 0.1.

    A run that is not timed takes a hundred times as long.
    """
    steps_per_epoch = 60000 // arm.batch_size
    steps = num_epochs * steps_per_epoch
    seconds = epoch_seconds or (0.2 if arm.batch_size == 100 else 0.1) * (1 if is_timed else 100)
    metrics = {"loss": 1.0, "accuracy": 0.5, "val_loss": 0.9, "val_accuracy": 0.5, measure: value}
    return ArmRun(
        arm,
        seed,
        TrainingResult(
            settings={
                "optimizer": "Adam",
                "batch_size": arm.batch_size,
                "seed": seed,
                "schedule": arm.schedule.to_config(),
                "steps_per_epoch": steps_per_epoch,
                "versions": {},
            },
            history={
                "step": np.arange(steps),
                "learning_rate": np.asarray(arm.schedule(np.arange(steps)), np.float32),
                "loss": np.ones(steps, np.float32),
            },
            epochs=[EpochRecord(e + 1, e, 0.1, metrics, seconds) for e in range(num_epochs)],
            compile_seconds=1.0,
            num_examples=60000,
            num_skipped=0,
            weights_sha256="ab",
            device="CPU:0",
            is_timed=is_timed,
        ),
    )


def make_runs(values, arms=ARMS, num_timed=3, **arguments):
    """Runs that end with these values, for each of the `ARMS` one a seed; seeds from num_timed on ran beside others."""
    return [
        make_run(arm, seed, value, is_timed=seed < num_timed, **arguments)
        for arm in arms
        for seed, value in enumerate(values[ARMS.index(arm)])
    ]
