"""Does a cyclical learning rate with a large batch beat a constant one with a small batch, and is it more than luck?

Runs every batch size with every schedule, several seeds each, and prints what each change did with its spread. The
defaults are those of the article "Implementing Cyclic Learning Rates in Keras", all four cells of them.

Examples:

    python scripts/compare_batch_sizes.py
    python scripts/compare_batch_sizes.py --model=relu_mlp --seeds=5 --output_dir=runs/relu
    python scripts/compare_batch_sizes.py --bounds=range_test

writes into --output_dir: comparison.json, comparison.csv, report.md, comparison.png, and a folder for each run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from absl import flags

import command_line
from clr_loop import run_files

if TYPE_CHECKING:
    import keras

    from clr_loop.data import Dataset
    from clr_loop.suggestions import Bounds

FLAGS = flags.FLAGS

flags.DEFINE_list("batch_sizes", ["100", "2000"], "Examples per step, the reference first.")
flags.DEFINE_list(
    "schedules", ["constant", "triangular"], f"The reference first; of {', '.join(command_line.SCHEDULES)}."
)
flags.DEFINE_integer("seeds", 3, "Runs of each arm; they differ in initial weights and order of the data.")
flags.DEFINE_float("target_accuracy", 0.9, "Validation accuracy, 0 to 1, that arms are timed to.")
flags.DEFINE_enum(
    "bounds",
    "flags",
    ("flags", "range_test"),
    "Where base_lr and max_lr come from: the flags, or an LR range test for each batch size before any training, which "
    "sets --step_size too, to two whole cycles, unless it is given.",
)
flags.DEFINE_string("output_dir", "runs/comparison", "Where to write; must be empty or not exist yet.")
flags.adopt_module_key_flags(command_line)


@flags.validator("batch_sizes", message="must be whole numbers, such as 100,2000")
def _are_numbers(values: list[str]) -> bool:
    return all(value.strip().isdecimal() for value in values)


@flags.validator("schedules", message=f"must be of {', '.join(command_line.SCHEDULES)}, none twice")
def _are_schedules(names: list[str]) -> bool:
    return set(names) <= set(command_line.SCHEDULES) and len(set(names)) == len(names)


def suggested_bounds(dataset: Dataset, make_model: Callable[[int], keras.Model], batch_size: int) -> Bounds:
    """Runs an LR range test for each seed and returns what they suggest."""
    from clr_loop import range_test
    from clr_loop.loop import TrainLoop
    from clr_loop.suggestions import NoSuggestionError

    train_loop = TrainLoop(
        make_model(0),
        command_line.make_optimizer(),
        *dataset.train,
        batch_size=batch_size,
        jit_compile=command_line.jit_compile(),
    )
    try:
        return range_test.suggested_bounds(range_test.run_seeds(train_loop, make_model, FLAGS.seeds), FLAGS.epochs)
    except NoSuggestionError as error:
        raise NoSuggestionError(
            f"range test at batch {batch_size}: {error} of scripts/range_test.py, or take --bounds=flags"
        ) from error


def set_flags(bounds: Bounds, names: Sequence[str]) -> str:
    """Sets the flags of a cycle as if they had been given so, and returns them as text."""
    for name in names:
        FLAGS[name].parse(str(getattr(bounds, name)))
    return f"--base_lr={FLAGS.base_lr:g} --max_lr={FLAGS.max_lr:g} --step_size={FLAGS.step_size}"


def main() -> None:
    """Compares, prints the report and writes it."""
    for name in FLAGS.schedules:
        command_line.SCHEDULES[name]()  # A wrong flag is told before anything is made.
    batch_sizes = [int(size) for size in FLAGS.batch_sizes]
    from_range_test = [name for name in ("base_lr", "max_lr", "step_size") if FLAGS[name].using_default_value]
    if FLAGS.bounds == "range_test" and not {"base_lr", "max_lr"} <= set(from_range_test):
        raise ValueError("--base_lr and --max_lr must be left to --bounds=range_test, received them too; leave one out")
    output_dir = run_files.claim(FLAGS.output_dir)

    command_line.start_tensorflow()
    from clr_loop import data, models, report
    from clr_loop.comparison import Arm, Run, compare

    dataset = data.load(FLAGS.dataset, FLAGS.data_dir)
    make_model = partial(models.build, FLAGS.model, dataset.train.images.shape[1:], dataset.num_classes)
    settings = {"dataset": dataset.name, "dataset_sha256": dataset.sha256(), "model": FLAGS.model}
    arms = []
    for size in batch_sizes:
        if FLAGS.bounds == "range_test":
            flags_set = set_flags(suggested_bounds(dataset, make_model, size), from_range_test)
            print(f"range test, batch {size}: {flags_set}")
            settings[f"range_test_batch_{size}"] = flags_set
        arms += [Arm(size, name, command_line.SCHEDULES[name]()) for name in FLAGS.schedules]
    progress = command_line.ProgressBar()

    def start(arm: Arm, seed: int, total_steps: int) -> None:
        progress.start(total_steps, f"{arm.label}, seed {seed}")

    def say_run(run: Run) -> None:
        progress.close()
        result = run.result
        progress.say(
            f"{run.arm.label}, seed {run.seed}: validation accuracy {result.val_accuracy:.4f}, "
            f"trained {result.train_seconds:.2f} s"
        )

    try:
        comparison = compare(
            dataset,
            make_model,
            command_line.make_optimizer,
            arms,
            epochs=FLAGS.epochs,
            num_seeds=FLAGS.seeds,
            target_accuracy=FLAGS.target_accuracy,
            output_dir=output_dir,
            settings=settings,
            jit_compile=command_line.jit_compile(),
            on_start=start,
            on_block=progress.block,
            on_run=say_run,
        )
    finally:
        progress.close()
    report.write(comparison, output_dir, dataset.name, FLAGS.model)
    print(f"\n{report.markdown(comparison, dataset.name, FLAGS.model)}\n{command_line.where(output_dir)}")


if __name__ == "__main__":
    command_line.run(main)
