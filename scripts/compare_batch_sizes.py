"""Does a cyclical learning rate with a large batch beat a constant one with a small batch, and is it more than luck?

Runs every batch size with every schedule, several seeds each, and prints what each change did with its spread. The
defaults are those of the article "Implementing Cyclic Learning Rates in Keras", all four cells of them.

Examples:

    python scripts/compare_batch_sizes.py
    python scripts/compare_batch_sizes.py --model=relu_mlp --seeds=5 --output_dir=runs/relu
    python scripts/compare_batch_sizes.py --bounds=range_test --output_dir=runs/measured_bounds

writes into --output_dir: comparison.json, comparison.csv, report.md, comparison.png, and a folder for each run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from clr_loop import data, schedules
from clr_loop.runs import files as run_files
from clr_loop.schedules import Schedule
from shared import model_flags, schedule_flags
from shared import processes as side_by_side
from shared import terminal as command_line

if TYPE_CHECKING:
    from clr_loop.studies.comparison import Run
    from clr_loop.studies.suggestions import Bounds

FLAGS = flags.FLAGS

flags.DEFINE_list("batch_sizes", ["100", "2000"], "Examples per step, the reference first.")
flags.DEFINE_list(
    "schedules", ["constant", "triangular"], f"The reference first; of {', '.join(schedule_flags.SCHEDULES)}."
)
flags.DEFINE_integer("seeds", 3, "Runs of each arm; they differ in initial weights and order of the data.")
flags.DEFINE_integer(
    "parallel",
    1,
    "Processes in which seeds run side by side, after the first seed, which runs alone and is the only one timed; with "
    "1 they run one after another, all timed.",
    lower_bound=1,
)
flags.DEFINE_float("target_accuracy", 0.9, "Validation accuracy, 0 to 1, that arms are timed to.")
flags.DEFINE_enum(
    "bounds",
    "flags",
    ("flags", "range_test"),
    "Where base_lr and max_lr come from: the flags, or an LR range test for each batch size before any training, which "
    "sets --step_size too, to two whole cycles, unless it is given.",
)
flags.DEFINE_string(
    "output_dir", "runs/comparison", "Where to write; must be empty or not exist yet, unless --resume or --overwrite."
)
flags.DEFINE_bool("resume", False, "Go on with the comparison in --output_dir; finished runs are not run again.")
flags.adopt_module_key_flags(command_line)
flags.adopt_module_key_flags(model_flags)
flags.adopt_module_key_flags(schedule_flags)


@flags.validator("batch_sizes", message="must be whole numbers, none twice, such as 100,2000")
def _are_numbers(values: list[str]) -> bool:
    return (
        bool(values)
        and all(value.strip().isdecimal() for value in values)
        and len(set(map(int, values))) == len(values)
    )


@flags.validator("schedules", message=f"must be of {', '.join(schedule_flags.SCHEDULES)}, none twice")
def _are_schedules(names: list[str]) -> bool:
    return bool(names) and set(names) <= set(schedule_flags.SCHEDULES) and len(set(names)) == len(names)


def main() -> None:
    """Compares, prints the report and writes it."""
    schedule_flags.check(FLAGS.schedules)
    if FLAGS.bounds == "range_test" and (FLAGS["base_lr"].present or FLAGS["max_lr"].present):
        raise ValueError("--base_lr and --max_lr must be left to --bounds=range_test, received them too; leave one out")
    dataset = model_flags.load_dataset()
    planned = {size: _schedules(dataset, size) for size in map(int, FLAGS.batch_sizes)}
    with run_files.claim(FLAGS.output_dir, "comparison", resume=FLAGS.resume, overwrite=FLAGS.overwrite) as output_dir:
        settings = {"dataset": dataset.name, "dataset_sha256": dataset.sha256(), "model": FLAGS.model}
        if FLAGS.bounds == "range_test":
            command_line.start_tensorflow()
            for size in planned:
                found = dataclasses.asdict(_suggested_bounds(dataset, size))
                if FLAGS["step_size"].present:
                    del found["step_size"]
                planned[size] = {name: _within(found, schedule) for name, schedule in planned[size].items()}
                text = " ".join(f"--{name}={value}" for name, value in found.items())
                print(f"range test, batch {size}: {text}\n")
                settings[f"range_test_batch_{size}"] = text
        for size, arms in planned.items():
            steps_per_epoch, total_steps = command_line.run_length(dataset.num_examples, size)
            for name, schedule in arms.items():
                print(f"{name}, batch {size}:\n{schedule.describe(total_steps, steps_per_epoch)}\n", flush=True)
        _compare(dataset, planned, settings, output_dir)


def _schedules(dataset: data.AnyDataset, batch_size: int) -> dict[str, Schedule]:
    """The schedules at this batch size, as the flags say."""
    length = command_line.run_length(dataset.num_examples, batch_size)
    return {name: schedule_flags.make(name, *length) for name in FLAGS.schedules}


def _suggested_bounds(dataset: data.AnyDataset, batch_size: int) -> Bounds:
    """What an LR range test with each seed suggests."""
    from clr_loop.data import models
    from clr_loop.loop.feeding import make_loop
    from clr_loop.studies import range_test
    from clr_loop.studies.suggestions import NoSuggestionError

    make_model = partial(models.build, FLAGS.model, dataset.image_shape, dataset.num_classes)
    train_loop = make_loop(
        make_model(0),
        model_flags.make_optimizer(),
        dataset,
        batch_size,
        jit_compile=model_flags.jit_compile(),
    )
    try:
        return range_test.suggested_bounds(range_test.run_seeds(train_loop, make_model, FLAGS.seeds), FLAGS.epochs)
    except NoSuggestionError as error:
        raise NoSuggestionError(
            f"range test at batch {batch_size}: {error} of scripts/range_test.py, or take --bounds=flags"
        ) from error


def _within(found: dict[str, float], schedule: Schedule) -> Schedule:
    """The schedule with those of these arguments that it takes; a constant takes none."""
    config = schedule.to_config()
    return schedules.from_config({**config, **{name: value for name, value in found.items() if name in config}})


def _compare(
    dataset: data.AnyDataset,
    planned: dict[int, dict[str, Schedule]],
    settings: dict[str, str],
    output_dir: Path,
) -> None:
    command_line.start_tensorflow()
    from clr_loop.studies import report
    from clr_loop.studies.comparison import compare

    run_seeds = partial(_run_seeds, planned, settings, output_dir)
    seeds = range(FLAGS.seeds)
    if FLAGS.parallel == 1:
        runs = run_seeds(seeds, dataset=dataset, resume=FLAGS.resume)
    else:
        run_seeds(seeds[:1], dataset=dataset, resume=FLAGS.resume)
        if seeds[1:]:
            side_by_side.run(partial(_run_beside, run_seeds), seeds[1:], FLAGS.parallel)
        runs = run_seeds(seeds, dataset=dataset, resume=True, is_told=False)  # All are finished: they are read.
    comparison = compare(runs)
    report.write(comparison, output_dir, dataset.name, FLAGS.model)
    print(f"\n{report.markdown(comparison, dataset.name, FLAGS.model)}\n{command_line.where(output_dir)}")


def _run_beside(run_seeds: Callable[..., list[Run]], seeds: Sequence[int]) -> None:
    """Runs seeds in a process of its own, with as many threads as ever: with fewer, sums would be rounded otherwise."""
    command_line.start_tensorflow()
    run_seeds(seeds, dataset=model_flags.load_dataset(), resume=True, is_timed=False)


def _run_seeds(
    planned: dict[int, dict[str, Schedule]],
    settings: dict[str, str],
    output_dir: Path,
    seeds: Sequence[int],
    dataset: data.AnyDataset,
    resume: bool,
    is_timed: bool = True,
    is_told: bool = True,
) -> list[Run]:
    """Runs every arm with these seeds, and says what each run gave."""
    from clr_loop.data import models
    from clr_loop.studies.comparison import Arm, run_arms

    progress = command_line.ProgressBar()

    def start(arm: Arm, seed: int, total_steps: int) -> None:
        if is_timed:  # Several processes would draw their bars over each other.
            progress.start(total_steps, f"{arm.label}, seed {seed}")

    def say_run(run: Run) -> None:
        progress.close()
        result = run.result
        if is_told:
            seconds = f", trained {result.train_seconds:.2f} s" if result.is_timed else ""
            progress.say(f"{run.arm.label}, seed {run.seed}: validation accuracy {result.val_accuracy:.4f}{seconds}")

    try:
        return run_arms(
            dataset,
            partial(models.build, FLAGS.model, dataset.image_shape, dataset.num_classes),
            model_flags.make_optimizer,
            [Arm(size, name, schedule) for size, arms in planned.items() for name, schedule in arms.items()],
            epochs=FLAGS.epochs,
            seeds=seeds,
            target_accuracy=FLAGS.target_accuracy,
            output_dir=output_dir,
            resume=resume,
            is_timed=is_timed,
            settings=settings,
            jit_compile=model_flags.jit_compile(),
            on_start=start,
            on_block=progress.block,
            on_run=say_run,
        )
    finally:
        progress.close()


if __name__ == "__main__":
    command_line.run(main)
