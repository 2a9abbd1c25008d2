"""Which learning rates should a cycle move between? Sweeps the rate over a few seeds and suggests base_lr and max_lr.

Examples:

    python scripts/range_test.py --model=relu_mlp --batch_size=2000
    python scripts/range_test.py --batch_size=100 --early_stop=none --seeds=5 --output_dir=runs/range_test_100

prints what the curves suggest and last the flags to train with, and writes into --output_dir: range_test.json,
range_test.csv (every step), range_test.png and TensorBoard's events. --epochs is the length of the run planned.
"""

import contextlib
from functools import partial
from pathlib import Path

from absl import flags

from clr_loop import data
from clr_loop.schedules.lengths import to_steps
from shared import model_flags, scale_flags
from shared import terminal as command_line

FLAGS = flags.FLAGS

flags.DEFINE_integer("batch_size", 100, "Examples per step.")
flags.DEFINE_float("start_lr", 1e-7, "The first rate.")
flags.DEFINE_float("end_lr", 10.0, "The last rate, unless the sweep stops early.")
flags.DEFINE_string(
    "num_steps",
    "1000",
    "From the first rate to the last: 1000 or 1000st (steps), 2ep (epochs) or 30% (of --epochs). About "
    "100 steps for each decade read well.",
)
flags.DEFINE_enum(
    "sweep", "exponential", ("exponential", "linear"), "Equal ratios between rates, or equal differences."
)
flags.DEFINE_string("early_stop", "4", "Stop when the smoothed loss is this many times its best; none: never.")
flags.DEFINE_integer("seeds", 3, "Sweeps; they differ in initial weights and order of the data.")
flags.DEFINE_string(
    "output_dir", "runs/range_test", "Where to write; must be empty or not exist yet, unless --overwrite."
)
flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(scale_flags)


@flags.validator("early_stop", message="must be a number such as 4, or none")
def _is_number_or_none(value: str) -> bool:
    with contextlib.suppress(ValueError):
        return value == "none" or float(value) > 0.0
    return False


def main() -> None:
    """Sweeps, prints what follows and writes it."""
    scale_flags.check()
    dataset = model_flags.load_dataset()
    steps_per_epoch, total_steps = command_line.run_length(dataset.num_examples, FLAGS.batch_size)
    num_steps = to_steps(FLAGS.num_steps, steps_per_epoch, total_steps, "num_steps")
    with scale_flags.claim(FLAGS.output_dir, "range_test", resume=False, overwrite=FLAGS.overwrite) as output_dir:
        _sweep(dataset, num_steps, output_dir)


def _sweep(dataset: data.AnyDataset, num_steps: int, output_dir: Path) -> None:
    scale_flags.start()
    from clr_loop.data import models
    from clr_loop.studies import range_test

    make_model = partial(models.build, FLAGS.model, dataset.image_shape, dataset.num_classes)
    train_loop = scale_flags.make_loop(
        lambda: make_model(0),
        dataset,
        batch_size=FLAGS.batch_size,
    )
    progress = command_line.ProgressBar()

    def start(seed: int) -> None:
        progress.close()
        progress.start(num_steps, f"seed {seed}")

    try:
        tests = range_test.run_seeds(
            train_loop,
            make_model,
            FLAGS.seeds,
            on_start=start,
            start_lr=FLAGS.start_lr,
            end_lr=FLAGS.end_lr,
            num_steps=num_steps,
            sweep=FLAGS.sweep,
            early_stop=None if FLAGS.early_stop == "none" else float(FLAGS.early_stop),
            on_block=progress.block,
        )
    finally:
        progress.close()
    settings = {
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256(),
        "model": FLAGS.model,
        "optimizer": FLAGS.optimizer,
    }
    range_test.write(tests, FLAGS.epochs, output_dir, settings)
    print(f"{command_line.where(output_dir)}\n\n{range_test.text(tests, FLAGS.epochs)}")


if __name__ == "__main__":
    command_line.run(main)
