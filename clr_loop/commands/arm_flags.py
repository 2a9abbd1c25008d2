"""The flags of a comparison's arms: batch sizes, schedules, how long they train, and where their rates come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data, schedules
from clr_loop.commands import cores, loop_flags, model_flags, output_flags, schedule_flags, terminal
from clr_loop.commands.setup import Setup
from clr_loop.runs import files as run_files
from clr_loop.schedules import Schedule

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from clr_loop.loop.loop import TrainLoop
    from clr_loop.studies.arms import Arm
    from clr_loop.studies.range_test import RangeTest

FLAGS = flags.FLAGS

flags.DEFINE_list("batch_sizes", ["100", "2000"], "Examples in a step, the reference first.")
flags.DEFINE_list(
    "schedules",
    ["constant", "triangular"],
    f"The reference first; of {', '.join(schedule_flags.SCHEDULES)}, or functions "
    "of your own as package.module:function; see --schedule of train.py.",
)
flags.DEFINE_enum(
    "budget",
    "epochs",
    ("epochs", "steps", "seconds"),
    "What all arms have in common: --epochs, or the steps or seconds that --epochs take with the first batch size; "
    "rounded to whole epochs.",
)
flags.DEFINE_enum(
    "bounds",
    "flags",
    ("flags", "range_test"),
    "Where base_lr and max_lr come from: the flags, or an LR range test for each batch size before any training, which "
    "sets --step_size too, to two whole cycles, unless it is given.",
)
flags.DEFINE_integer(
    "tune",
    0,
    "Tune every arm first: try so many rates (8 are usual) around an LR range test, with seeds of their own, on a "
    "held-out tenth of the training examples. 0: do not.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "trials",
    3,
    "Runs of every rate that --tune tries, each with another seed; the rate at the top of a curve through their means "
    "is taken, and its error is a part of the intervals and the p values.",
    lower_bound=2,
)

# What was found before the first run, so that --resume goes on with the same.
_FOUND = "comparison.found.json"
_CYCLES = "25%"  # The step_size of two whole cycles.
_RATES = ("learning_rate", "base_lr", "max_lr")

Bounds = dict[str, float]


@flags.validator("batch_sizes", message="must be whole numbers, none twice, such as 100,2000")
def _are_numbers(values: list[str]) -> bool:
    return all(value.strip().isdecimal() for value in values) and 0 < len(values) == len(set(map(int, values)))


@flags.validator(
    "schedules", message=f"must be of {', '.join(schedule_flags.SCHEDULES)} or package.module:function, none twice"
)
def _are_schedules(names: list[str]) -> bool:
    return all(map(schedule_flags.is_schedule, names)) and 0 < len(names) == len(set(map(_short, names)))


def _short(name: str) -> str:
    """Return what a schedule is called in an arm: of a function of the user's, the function's name alone."""
    return name.rpartition(":")[2]


def check(dataset: data.AnyDataset) -> None:
    """Raise ValueError for flags that cannot go together or with these data, before anything is started."""
    schedule_flags.check(FLAGS.schedules)
    if FLAGS.strategy == "multi_worker":
        raise ValueError("--strategy=multi_worker is for train.py; a comparison runs on one machine, also mirrored.")
    loop_flags.check()
    if FLAGS.strategy != "none" and (cores.is_parallel() or FLAGS.noise_scale):
        what = "--parallel" if cores.is_parallel() else "--noise_scale"
        raise ValueError(f"{what} takes the whole machine for one replica; leave it out, or --strategy.")
    if FLAGS.warmup and (FLAGS.tune or FLAGS.bounds == "range_test"):
        raise ValueError("--warmup climbs to a rate that --tune and --bounds=range_test would change; leave it out.")
    if FLAGS.noise_scale and not isinstance(dataset, data.Dataset):
        raise ValueError(
            "--noise_scale takes gradients of the training arrays, and these data are streamed; leave it out."
        )
    given = [name for name in _RATES if FLAGS[name].present]
    if FLAGS.bounds == "range_test" and set(given) - {"learning_rate"}:
        raise ValueError("--bounds=range_test finds base_lr and max_lr itself; leave out --base_lr and --max_lr.")
    if FLAGS.tune:
        if given or FLAGS.bounds != "flags":
            what = f"--{given[0]}" if given else "--bounds=range_test"
            raise ValueError(f"--tune finds the rate of every arm itself; leave out {what}.")
        for name, schedule in _schedules(dataset.num_examples, batch_sizes()[0], FLAGS.epochs).items():
            if not {"learning_rate", "max_lr"} & set(schedule.to_config()):
                raise ValueError(f"--tune finds a highest rate, and {name} has none; leave one of them out.")
        if FLAGS.tune < 3:
            raise ValueError(
                f"--tune={FLAGS.tune} would try too few rates to find the best between two others; give 8."
            )
        if not isinstance(dataset, data.Dataset):
            raise ValueError(
                "--tune holds out a part of the training arrays, and these data are streamed; give arrays."
            )
        if not FLAGS.measure.startswith("val_"):
            raise ValueError(f"--tune needs a measure on held-out examples, such as val_{FLAGS.measure}.")
        _check_lengths(data.hold_out(dataset).num_examples)
    _check_lengths(dataset.num_examples)


def _check_lengths(num_examples: int) -> None:
    for size in batch_sizes():
        _schedules(num_examples, size, FLAGS.epochs)
        if FLAGS.budget == "steps":
            _epochs_of_steps(num_examples, size)


def batch_sizes() -> list[int]:
    """Return the batch sizes, the reference first."""
    return list(map(int, FLAGS.batch_sizes))


def _epochs_of_steps(num_examples: int, batch_size: int) -> int:
    """Return how many whole epochs come nearest to the steps that --epochs take with the first batch size."""
    steps_per_epoch, _ = output_flags.run_length(num_examples, batch_size)
    _, steps = output_flags.run_length(num_examples, batch_sizes()[0])
    return _whole_epochs(steps / steps_per_epoch, f"{steps:,} steps", batch_size)


def _whole_epochs(epochs: float, budget: str, batch_size: int) -> int:
    if epochs < 0.5:
        raise ValueError(f"The budget of {budget} is less than half an epoch at batch {batch_size}; raise --epochs.")
    return max(1, round(epochs))


def _schedules(num_examples: int, batch_size: int, epochs: int) -> dict[str, Schedule]:
    """Return the schedules at this batch size, as the flags say."""
    length = output_flags.run_length(num_examples, batch_size, epochs)
    defaults = {"step_size": _CYCLES} if FLAGS.tune else {}
    return {_short(name): schedule_flags.make(name, *length, defaults) for name in FLAGS.schedules}


def arms(num_examples: int, epochs: Mapping[int, int]) -> list[Arm]:
    """Return every batch size with every schedule, as the flags say."""
    from clr_loop.studies.arms import Arm

    named = {size: _schedules(num_examples, size, epochs[size]) for size in batch_sizes()}
    return [Arm(size, name, schedule) for size, made in named.items() for name, schedule in made.items()]


def make_loop(dataset: data.AnyDataset, batch_size: int, seed: int = 0) -> TrainLoop:
    """Make a loop of this batch size."""
    from clr_loop.loop.make_loop import make_loop

    model = model_flags.make_model(dataset, seed)
    return make_loop(model, dataset, batch_size, seed=seed, feed=FLAGS.feed, options=model_flags.step_options())


class Measured:
    """What is measured before the first run: epochs of a budget, range tests, bounds, centers of tuning, noise.

    All of it is kept in a file, so that --resume goes on with the same.
    """

    def __init__(self, setup: Setup, output_dir: Path, workers: cores.Workers) -> None:
        self._setup, self._workers, self._path = setup, workers, output_dir / _FOUND
        self._dataset = setup.dataset()
        self._kept: dict[str, Any] = run_files.read_json(self._path) if FLAGS.resume and self._path.exists() else {}

    def keep(self, name: str, batch_size: int, measure: Any) -> Any:
        """Return what was found under this name at this batch size; if nothing was, what `measure()` returns."""
        key = f"{name}, batch {batch_size}"
        if key not in self._kept:
            self._kept[key] = measure()
        return self._kept[key]

    def write(self) -> None:
        """Write what was found."""
        run_files.write_json(self._path, self._kept)

    def num_beside(self, num_processes: int) -> int:
        """Return how many processes have run runs side by side at most, in this and in earlier calls."""
        self._kept["processes"] = max(num_processes, self._kept.get("processes", 1))
        self.write()
        return int(self._kept["processes"])

    def epochs(self) -> dict[int, int]:
        """Return the epochs that each batch size has in the budget."""
        sizes = batch_sizes()
        if FLAGS.budget == "epochs":
            return dict.fromkeys(sizes, FLAGS.epochs)
        if FLAGS.budget == "steps":
            return {size: _epochs_of_steps(self._dataset.num_examples, size) for size in sizes}
        seconds = {size: self.keep("epoch_seconds", size, partial(self._epoch_seconds, size)) for size in sizes}
        budget = FLAGS.epochs * seconds[sizes[0]]
        return {size: _whole_epochs(budget / seconds[size], f"{budget:.2f} s", size) for size in sizes}

    def _epoch_seconds(self, batch_size: int) -> float:
        from clr_loop.studies.comparison.runner import epoch_seconds

        with terminal.status(f"timing an epoch at batch {batch_size}"):
            seconds = epoch_seconds(make_loop(self._dataset, batch_size))
        terminal.say(f"an epoch at batch {batch_size} takes {seconds:.3f} s")
        return seconds

    def bounds(self, epochs: Mapping[int, int]) -> dict[int, Bounds]:
        """Return what range tests with each seed suggest for each batch size."""
        bounds = {n: self.keep("bounds", n, partial(self._suggested_bounds, n, epochs[n])) for n in batch_sizes()}
        if FLAGS["step_size"].present:
            bounds = {n: {k: v for k, v in pair.items() if k != "step_size"} for n, pair in bounds.items()}
        return bounds

    def _suggested_bounds(self, batch_size: int, epochs: int) -> Bounds:
        from clr_loop.studies import range_test
        from clr_loop.studies.tasks import Processes

        make_swept, make_model = partial(self._setup.swept, batch_size), self._setup.make_model

        def sweep(executor: Executor | None, resume: bool) -> list[RangeTest]:
            if executor is None:
                loop, held_out = make_swept()
                return range_test.run_seeds(loop, make_model, FLAGS.seeds, held_out=held_out)
            processes = Processes(executor, FLAGS.shared_dir)
            return range_test.spread_seeds(make_swept, make_model, FLAGS.seeds, processes, self._path.parent)

        with terminal.status(f"range test, batch {batch_size}"):
            tests = self._workers.run(sweep, resume=False)
        self.keep("range tests", batch_size, lambda: [test.to_json() for test in tests])
        try:
            bounds = dataclasses.asdict(range_test.suggested_bounds(tests, epochs))
        except range_test.NoSuggestionError as error:
            raise range_test.NoSuggestionError(
                f"Range test at batch {batch_size}: {error} Or take --bounds=flags."
            ) from error
        for note in range_test.notes(tests):
            terminal.say(f"note: {note}")
        terminal.say(f"range test, batch {batch_size}: {as_flags(bounds)}\n")
        return bounds

    def range_tests(self) -> dict[int, list[RangeTest]]:
        """Return the range tests that bounds or centers were read from, by batch size."""
        from clr_loop.studies.range_test import RangeTest

        kept = {size: self._kept.get(f"range tests, batch {size}", []) for size in batch_sizes()}
        return {size: [RangeTest.from_json(test) for test in tests] for size, tests in kept.items() if tests}

    def centers(self, held_out: data.Dataset) -> dict[int, float]:
        """Return the rate that a range test of the trials' own seed suggests for each batch size.

        It is max_lr or, where the loss never turned, the rate of the steepest fall.
        """
        from clr_loop.studies import range_test
        from clr_loop.studies.comparison import tuning

        def center(batch_size: int) -> float:
            with terminal.status(f"range test, batch {batch_size}"):
                swept, scored = range_test.split(held_out, batch_size)
                loop = make_loop(swept, batch_size, tuning.SEED)
                test: RangeTest = range_test.run(loop, held_out=scored)
            self.keep("range tests", batch_size, lambda: [test.to_json()])
            suggestions = {suggestion.name: suggestion for suggestion in range_test.suggest([test.curve])}
            for suggestion in (suggestions["max_lr"], suggestions["steepest"]):
                if suggestion.learning_rate is not None:
                    terminal.say(f"range test, batch {batch_size}: {suggestion}")
                    return suggestion.learning_rate
            raise range_test.NoSuggestionError(
                f"Range test at batch {batch_size}: {suggestions['max_lr']}; --tune has no rate to begin at."
            )

        return {size: self.keep("tuning center", size, partial(center, size)) for size in batch_sizes()}


def as_flags(bounds: Bounds) -> str:
    """Return bounds as they are written on a command line."""
    return " ".join(f"--{name}={value}" for name, value in bounds.items())


def within(bounds: Bounds, schedule: Schedule) -> Schedule:
    """Return the schedule with those of these arguments that it takes; a constant takes none."""
    config = schedule.to_config()
    taken = {name: value for name, value in bounds.items() if name in config}
    return schedules.from_config({**config, **taken}) if taken else schedule
