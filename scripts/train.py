"""Trains a model with one learning-rate schedule and writes what happened.

Example:

    python scripts/train.py --schedule=triangular --base_lr=0.001 --max_lr=0.1 --step_size=50% --batch_size=2000

writes into --run_dir: config.json, history.csv (every step), epochs.csv, result.json, curves.png and TensorBoard's
events.
"""

from absl import flags

import command_line
import schedule_flags
from clr_loop import data, run_files

FLAGS = flags.FLAGS

flags.DEFINE_enum("schedule", "triangular", list(schedule_flags.SCHEDULES), "How the learning rate goes.")
flags.DEFINE_integer("batch_size", 100, "Examples per step.")
flags.DEFINE_integer("seed", 0, "Of the initial weights and of the order of the data.")
flags.DEFINE_string("run_dir", "runs/train", "Where to write; must be empty or not exist yet.")
flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(schedule_flags)


def main() -> None:
    """Trains once, as the flags say."""
    schedule_flags.check([FLAGS.schedule])
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
    steps_per_epoch, total_steps = command_line.run_length(len(dataset.train.labels), FLAGS.batch_size)
    schedule = schedule_flags.make(FLAGS.schedule, steps_per_epoch, total_steps)
    run_dir = run_files.claim(FLAGS.run_dir)
    print(schedule.describe(total_steps, steps_per_epoch), flush=True)

    command_line.start_tensorflow()
    from clr_loop import models, plots
    from clr_loop.loop import TrainLoop
    from clr_loop.training import EpochRecord, fit

    train_loop = TrainLoop(
        models.build(FLAGS.model, dataset.train.images.shape[1:], dataset.num_classes, FLAGS.seed),
        command_line.make_optimizer(),
        *dataset.train,
        batch_size=FLAGS.batch_size,
        seed=FLAGS.seed,
        jit_compile=command_line.jit_compile(),
    )
    progress = command_line.ProgressBar()

    def say_epoch(record: EpochRecord) -> None:
        progress.say(
            f"epoch {record.epoch:3d}/{FLAGS.epochs}  lr {record.learning_rate:.5f}  loss {record.loss:.4f}  "
            f"accuracy {record.accuracy:.4f}  val_loss {record.val_loss:.4f}  val_accuracy {record.val_accuracy:.4f}  "
            f"{record.epoch_seconds:.2f} s"
        )

    progress.start(total_steps)
    try:
        result = fit(
            train_loop,
            schedule,
            dataset.validation,
            epochs=FLAGS.epochs,
            run_dir=run_dir,
            settings={"dataset": dataset.name, "dataset_sha256": dataset.sha256(), "model": FLAGS.model},
            on_block=progress.block,
            on_epoch=say_epoch,
        )
    finally:
        progress.close()
    figure = plots.training_curves(
        result.history,
        [record.step for record in result.epochs],
        [record.val_loss for record in result.epochs],
        [record.val_accuracy for record in result.epochs],
    )
    figure.savefig(run_dir / "curves.png")
    print(
        f"validation accuracy {result.val_accuracy:.4f}; trained {result.train_seconds:.2f} s "
        f"({result.examples_per_second:,.0f} examples/s) after compiling {result.compile_seconds:.2f} s\n"
        f"{command_line.where(run_dir)}"
    )


if __name__ == "__main__":
    command_line.run(main)
