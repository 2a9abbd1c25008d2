"""Trains a model with one learning-rate schedule and writes what happened.

Example:

    python scripts/train.py --schedule=triangular --base_lr=0.001 --max_lr=0.1 --step_size=50% --batch_size=2000

writes into --run_dir: config.json, history.csv (every step), epochs.csv, result.json, curves.png, TensorBoard's events
and checkpoints. Stopped by Ctrl-C, SIGTERM or worse, the same command with --resume goes on, to the same last bit.
"""

import re
from pathlib import Path
from typing import Any

from absl import flags

from clr_loop import data
from clr_loop.schedules import Schedule
from clr_loop.schedules.lengths import to_steps
from shared import model_flags, scale_flags, schedule_flags
from shared import terminal as command_line

FLAGS = flags.FLAGS

flags.DEFINE_enum("schedule", "triangular", list(schedule_flags.SCHEDULES), "How the learning rate goes.")
flags.DEFINE_integer("batch_size", 100, "Examples per step.")
flags.DEFINE_integer("seed", 0, "Of the initial weights and of the order of the data.")
flags.DEFINE_string(
    "run_dir", "runs/train", "Where to write; must be empty or not exist yet, unless --resume or --overwrite."
)
flags.DEFINE_string(
    "checkpoint_every", "1ep", "2000 or 2000st (steps), 2ep (epochs) or 30% (of the run) between checkpoints; or never."
)
flags.DEFINE_integer("keep_checkpoints", 3, "How many of the newest to keep, beside the best by validation accuracy.")
flags.DEFINE_bool("resume", False, "Go on with the run in --run_dir, from its newest good checkpoint.")
flags.DEFINE_enum(
    "on_change",
    None,
    ("keep", "replace", "rebase"),
    "On --resume, if flags differ from the run's: keep (use the saved ones), replace (the new schedule, at the same "
    "step), rebase (the new schedule, its step 0 now).",
)
flags.DEFINE_enum(
    "on_non_finite",
    "stop",
    ("stop", "skip"),
    "At a loss or gradient that is NaN or infinite: stop the run, or skip the update, which then counts no step.",
)

flags.DEFINE_string("profile", None, "FROM:TO, in steps: profiles these, for TensorBoard's profile page.")

# Flags of a command, not of the run: they may differ when it is resumed.
NOT_OF_RUN = (
    "data_dir", "epochs", "run_dir", "checkpoint_every", "keep_checkpoints", "resume", "overwrite", "on_change",
    "on_non_finite", "profile", "feed", "strategy", "logical_devices",
)  # fmt: skip
flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(scale_flags)
flags.adopt_module_key_flags(schedule_flags)


def _window(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    return int(first), int(last)


@flags.validator("profile", message="must be FROM:TO in steps, FROM below TO, such as 100:200")
def _is_window(text: str | None) -> bool:
    return text is None or (re.fullmatch(r"\d+:\d+", text) is not None and _window(text)[0] < _window(text)[1])


def main() -> int | None:
    """Trains once, as the flags say."""
    if FLAGS.resume and FLAGS.on_change == "keep":
        command_line.use_saved_flags(FLAGS.run_dir, NOT_OF_RUN)
    schedule_flags.check([FLAGS.schedule])
    scale_flags.check()
    dataset = model_flags.load_dataset()
    steps_per_epoch, total_steps = command_line.run_length(dataset.num_examples, FLAGS.batch_size)
    schedule = schedule_flags.make(FLAGS.schedule, steps_per_epoch, total_steps)
    every = None
    if FLAGS.checkpoint_every != "never":
        every = to_steps(FLAGS.checkpoint_every, steps_per_epoch, total_steps, "checkpoint_every")
    with scale_flags.claim(FLAGS.run_dir, "run", FLAGS.resume, FLAGS.overwrite) as run_dir:
        return _train(dataset, schedule, total_steps, every, run_dir)


def _train(
    dataset: data.AnyDataset, schedule: Schedule, total_steps: int, checkpoint_every: int | None, run_dir: Path
) -> int | None:
    signals = command_line.SignalWatch()
    scale_flags.start()
    signals.watch()
    from clr_loop.data import models
    from clr_loop.runs.fit import TrainingInterruptedError, fit
    from clr_loop.runs.result import EpochRecord
    from clr_loop.studies import plots

    train_loop = scale_flags.make_loop(
        lambda: models.build(FLAGS.model, dataset.image_shape, dataset.num_classes, FLAGS.seed),
        dataset,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        skip_non_finite=FLAGS.on_non_finite == "skip",
    )
    progress = command_line.ProgressBar()

    def say_schedule(taken: Any) -> None:
        progress.say(str(taken.describe(total_steps, train_loop.steps_per_epoch)))

    def say_epoch(record: EpochRecord) -> None:
        progress.say(
            f"epoch {record.epoch:3d}/{FLAGS.epochs}  lr {record.learning_rate:.5f}  loss {record.loss:.4f}  "
            f"accuracy {record.accuracy:.4f}  val_loss {record.val_loss:.4f}  val_accuracy {record.val_accuracy:.4f}  "
            f"{record.epoch_seconds:.2f} s{scale_flags.waiting(record)}"
        )

    progress.start(total_steps)
    try:
        result = fit(
            train_loop,
            schedule,
            dataset.validation,
            epochs=FLAGS.epochs,
            run_dir=run_dir,
            settings={
                "dataset": dataset.name,
                "dataset_sha256": dataset.sha256(),
                "model": FLAGS.model,
                "precision": FLAGS.precision,
                "clip_norm": FLAGS.clip_norm,
                "accumulate": FLAGS.accumulate,
                "command": command_line.given_flags(NOT_OF_RUN),
            },
            checkpoint_every=checkpoint_every,
            keep_checkpoints=FLAGS.keep_checkpoints,
            resume=FLAGS.resume,
            on_change=FLAGS.on_change,
            profile=_window(FLAGS.profile) if FLAGS.profile else None,
            should_stop=lambda: signals.received is not None,
            on_start=say_schedule,
            on_block=progress.block,
            on_epoch=say_epoch,
        )
    except TrainingInterruptedError as stopped:
        progress.close()
        print(f"{stopped}\n{command_line.resume_line() if stopped.checkpoint else 'no checkpoint was asked for'}")
        return 128 + (signals.received or 0)
    finally:
        progress.close()
    figure = plots.training_curves(
        result.history,
        [record.step for record in result.epochs],
        [record.val_loss for record in result.epochs],
        [record.val_accuracy for record in result.epochs],
    )
    figure.savefig(run_dir / "curves.png")
    skipped = f"; {result.num_skipped} updates skipped" if result.num_skipped else ""
    print(
        f"validation accuracy {result.val_accuracy:.4f}; trained {result.train_seconds:.2f} s "
        f"({result.examples_per_second:,.0f} examples/s) after compiling {result.compile_seconds:.2f} s{skipped}\n"
        f"{command_line.where(run_dir)}"
    )
    return None


if __name__ == "__main__":
    command_line.run(main)
