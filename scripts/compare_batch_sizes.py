"""Does a cyclical learning rate with a large batch beat a constant one with a small batch, and is it more than luck?

Runs every batch size with every schedule, several seeds each, and prints what each change did, with its spread. The
defaults are those of the article "Implementing Cyclic Learning Rates in Keras", all four cells of them.

Examples:

    python scripts/compare_batch_sizes.py
    python scripts/compare_batch_sizes.py --model=relu_mlp --seeds=5 --output_dir=runs/relu
    python scripts/compare_batch_sizes.py --bounds=range_test --output_dir=runs/measured_bounds

It writes into --output_dir: comparison.json, comparison.csv, report.md, comparison.png, and a folder for each run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data, schedules
from clr_loop.runs import files as run_files
from clr_loop.schedules import Schedule
from shared import model_flags, output_flags, processes, schedule_flags, terminal

if TYPE_CHECKING:
    from clr_loop.loop.loop import TrainLoop
    from clr_loop.studies.arms import Plan
    from clr_loop.studies.effects import Run
    from clr_loop.studies.measures import Measure

FLAGS = flags.FLAGS

flags.DEFINE_list("batch_sizes", ["100", "2000"], "Examples in a step, the reference first.")
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
flags.DEFINE_string("measure", "val_accuracy", "The metric that arms are compared by, after the last epoch.")
flags.DEFINE_bool("higher_is_better", None, "Of the measure; not given: no for losses and errors, else yes.")
flags.DEFINE_float("target", None, "Value of the measure that arms are timed to; not given: 0.9 of an accuracy.")
flags.DEFINE_enum(
    "bounds",
    "flags",
    ("flags", "range_test"),
    "Where base_lr and max_lr come from: the flags, or an LR range test for each batch size before any training, which "
    "sets --step_size too, to two whole cycles, unless it is given.",
)
flags.DEFINE_string(
    "output_dir", "runs/comparison", f"Where to write; {output_flags.EMPTY}, unless --resume or --overwrite."
)
flags.DEFINE_bool("resume", False, "Go on with the comparison in --output_dir; finished runs are not run again.")
for module in (terminal, output_flags, model_flags, schedule_flags):
    flags.adopt_module_key_flags(module)

# The bounds that range tests found, so that --resume goes on with the same ones.
_BOUNDS = "comparison.bounds.json"
_MADE = ("comparison.*", "report.md", "*_batch_*/seed_*/")

Bounds = dict[str, float]


@flags.validator("batch_sizes", message="must be whole numbers, none twice, such as 100,2000")
def _are_numbers(values: list[str]) -> bool:
    return all(value.strip().isdecimal() for value in values) and 0 < len(values) == len(set(map(int, values)))


@flags.validator("schedules", message=f"must be of {', '.join(schedule_flags.SCHEDULES)}, none twice")
def _are_schedules(names: list[str]) -> bool:
    return set(names) <= set(schedule_flags.SCHEDULES) and 0 < len(names) == len(set(names))


def main() -> None:
    """Compare, write the report and print it."""
    schedule_flags.check(FLAGS.schedules)
    if FLAGS.bounds == "range_test" and (FLAGS["base_lr"].present or FLAGS["max_lr"].present):
        raise ValueError("--bounds=range_test finds base_lr and max_lr itself; leave out --base_lr and --max_lr.")
    dataset = model_flags.load_dataset()
    planned = {size: _schedules(dataset, size) for size in map(int, FLAGS.batch_sizes)}
    with output_flags.claim(FLAGS.output_dir, "comparison", FLAGS.resume) as output_dir:
        terminal.start_tensorflow()
        from clr_loop.studies import report
        from clr_loop.studies.arms import Plan
        from clr_loop.studies.effects import Arm, compare

        measure = _measure(dataset, next(iter(planned)))
        settings: dict[str, Any] = model_flags.settings(dataset)
        if FLAGS.bounds == "range_test":
            for size, found in _bounds(dataset, list(planned), output_dir).items():
                planned[size] = {name: _within(found, schedule) for name, schedule in planned[size].items()}
                settings[f"range_test_batch_{size}"] = _as_flags(found)
        else:
            output_flags.begin(output_dir, *_MADE)
        arms = [Arm(size, name, schedule) for size, named in planned.items() for name, schedule in named.items()]
        for arm in arms:
            steps_per_epoch, total_steps = output_flags.run_length(dataset.num_examples, arm.batch_size)
            terminal.say(f"{arm.label}:\n{schedules.describe(arm.schedule, total_steps, steps_per_epoch)}\n")
        runs = _run_all(dataset, Plan(arms, range(FLAGS.seeds), FLAGS.epochs, measure), settings, output_dir)
        comparison = compare(runs, measure)
        report.write(comparison, output_dir, dataset.name, FLAGS.model)
        text = report.markdown(comparison, dataset.name, FLAGS.model)
        terminal.say(f"\n{text}\n{terminal.where(output_dir)}")


def _schedules(dataset: data.AnyDataset, batch_size: int) -> dict[str, Schedule]:
    """Return the schedules at this batch size, as the flags say."""
    length = output_flags.run_length(dataset.num_examples, batch_size)
    return {name: schedule_flags.make(name, *length) for name in FLAGS.schedules}


def _measure(dataset: data.AnyDataset, batch_size: int) -> Measure:
    """Return what arms are compared by, after a look at whether the model gives it."""
    from clr_loop.studies.measures import Measure

    measure = Measure(FLAGS.measure, FLAGS.higher_is_better, FLAGS.target)
    if FLAGS.target is None and measure.is_share:
        measure = dataclasses.replace(measure, target=0.9)
    names = _make_loop(dataset, batch_size).metric_names
    measure.check([*names, *(f"val_{name}" for name in names if dataset.validation is not None)])
    return measure


def _make_loop(dataset: data.AnyDataset, batch_size: int) -> TrainLoop:
    from clr_loop.loop.make_loop import make_loop

    return make_loop(model_flags.make_model(dataset, 0), dataset, batch_size, options=model_flags.step_options())


def _bounds(dataset: data.AnyDataset, batch_sizes: Sequence[int], output_dir: Path) -> dict[int, Bounds]:
    """Return what range tests with each seed suggest for each batch size, or suggested when this comparison began."""
    path = output_dir / _BOUNDS
    saved: dict[str, Bounds] = run_files.read_json(path) if FLAGS.resume and path.exists() else {}
    found = {size: saved.get(str(size)) or _suggested_bounds(dataset, size) for size in batch_sizes}
    output_flags.begin(output_dir, *_MADE)
    run_files.write_json(path, {**saved, **{str(size): bounds for size, bounds in found.items()}})
    return found


def _suggested_bounds(dataset: data.AnyDataset, batch_size: int) -> Bounds:
    """Return what a range test with each seed suggests."""
    from clr_loop.studies import range_test
    from clr_loop.studies.suggestions import NoSuggestionError

    make_model = partial(model_flags.make_model, dataset)
    tests = range_test.run_seeds(_make_loop(dataset, batch_size), make_model, FLAGS.seeds)
    try:
        found = dataclasses.asdict(range_test.suggested_bounds(tests, FLAGS.epochs))
    except NoSuggestionError as error:
        raise NoSuggestionError(f"Range test at batch {batch_size}: {error} Or take --bounds=flags.") from error
    if FLAGS["step_size"].present:
        del found["step_size"]
    terminal.say(f"range test, batch {batch_size}: {_as_flags(found)}\n")
    return found


def _as_flags(found: Bounds) -> str:
    return " ".join(f"--{name}={value}" for name, value in found.items())


def _within(found: Bounds, schedule: Schedule) -> Schedule:
    """Return the schedule with those of these arguments that it takes; a constant takes none."""
    config = schedule.to_config()
    return schedules.from_config({**config, **{name: value for name, value in found.items() if name in config}})


def _run_all(dataset: data.AnyDataset, plan: Plan, settings: dict[str, Any], output_dir: Path) -> list[Run]:
    """Run every arm with every seed: one after another, or all seeds but the first side by side."""
    run_seeds = partial(_run_seeds, plan, settings, output_dir)
    if FLAGS.parallel == 1:
        return run_seeds(plan.seeds, dataset, FLAGS.resume)
    run_seeds(plan.seeds[:1], dataset, FLAGS.resume)
    if plan.seeds[1:]:
        processes.run(partial(_run_beside, run_seeds), plan.seeds[1:], FLAGS.parallel)
    return run_seeds(plan.seeds, dataset, resume=True, is_told=False)  # All are finished, so this reads them.


def _run_beside(run_seeds: Callable[..., list[Run]], seeds: Sequence[int]) -> None:
    """Run seeds in a process of its own, with as many threads as ever: with fewer, sums would be rounded otherwise."""
    run_seeds(seeds, model_flags.load_dataset(), resume=True, is_timed=False)


def _run_seeds(
    plan: Plan,
    settings: dict[str, Any],
    output_dir: Path,
    seeds: Sequence[int],
    dataset: data.AnyDataset,
    resume: bool,
    is_timed: bool = True,
    is_told: bool = True,
) -> list[Run]:
    """Run every arm with these seeds, and say what each run gave."""
    from clr_loop.runs.fit import RunOptions
    from clr_loop.studies.arms import run_arms
    from shared.callbacks import ProgressBar

    def say_run(run: Run) -> None:
        if is_told:
            result, name = run.result, plan.measure.name
            seconds = f", trained {result.train_seconds:.2f} s" if result.is_timed else ""
            terminal.say(f"{run.arm.label}, seed {run.seed}: {name} {result.final[name]:#.4g}{seconds}")

    return run_arms(
        dataset,
        partial(model_flags.make_model, dataset),
        dataclasses.replace(plan, seeds=seeds),
        output_dir,
        resume=resume,
        step_options=model_flags.step_options(),
        run_options=RunOptions(settings=settings, checkpoint_every=0, is_timed=is_timed),
        # Several processes would draw their bars over each other.
        make_callbacks=lambda arm, seed: [ProgressBar(f"{arm.label}, seed {seed}")] if is_timed else [],
        on_run=say_run,
    )


if __name__ == "__main__":
    terminal.run(main)
