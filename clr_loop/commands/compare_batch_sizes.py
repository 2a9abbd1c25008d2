"""Does a cyclical learning rate with a large batch beat a constant one with a small batch, and is it more than luck?

Runs every batch size with every schedule, several seeds each, and prints what each change did, with its spread. The
defaults are those of the article "Implementing Cyclic Learning Rates in Keras", all four cells of them. Those compare
settings; --tune compares schedules, each at its best.

Examples:

    python scripts/compare_batch_sizes.py
    python scripts/compare_batch_sizes.py --tune=8 --model=relu_mlp --seeds=5 --output_dir=runs/tuned
    python scripts/compare_batch_sizes.py --tune=8 --model=relu_mlp --seeds=5 --output_dir=runs/sizes \\
        --batch_sizes=32,128,512,2048,8192 --reach=0.97 --validate_every=100 --noise_scale

It writes into --output_dir: plan.json before the first run, report.md and its pictures, arms.csv, comparison.tex,
comparison.csv, comparison.json, and a folder for each run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data, schedules
from clr_loop.commands import (
    arm_flags,
    cores,
    loop_flags,
    model_flags,
    option_flags,
    output_flags,
    schedule_flags,
    terminal,
)
from clr_loop.commands.setup import Setup
from clr_loop.runs.lines import RunCount
from clr_loop.runs.options import RunOptions

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from clr_loop.studies.arms import Arm, ArmRun
    from clr_loop.studies.comparison.compare import Comparison
    from clr_loop.studies.comparison.measures import Measure
    from clr_loop.studies.comparison.noise_scale import NoiseScale
    from clr_loop.studies.comparison.plan import Plan
    from clr_loop.studies.comparison.tuning import Search

FLAGS = flags.FLAGS

_PLAN = "plan.json"
# After so many seeds the means are told, for who cannot wait.
_FIRST_MEANS = 3


def define_flags() -> None:
    """Define the command's own flags, and adopt those that it shares with others."""
    output_flags.define_seeds(8, "Runs of each arm; they differ in initial weights and order of the data")
    cores.define_parallel()
    flags.DEFINE_string("measure", "val_accuracy", "The metric that arms are compared by, after the last epoch.")
    flags.DEFINE_bool("higher_is_better", None, "Of the measure; not given: no for losses and errors, else yes.")
    flags.DEFINE_float(
        "reach",
        None,
        "Value of the measure whose steps, examples and seconds are told; not given: 0.9 of an accuracy.",
    )
    flags.DEFINE_float(
        "margin",
        None,
        "The smallest difference that matters, in points of an accuracy, else in the measure's unit. A difference that "
        "is not shown is then tested for being smaller (two one-sided tests).",
    )
    flags.DEFINE_float(
        "failure_bound",
        None,
        "Value of the measure beyond which a run has failed; not given: one far below the rest of its arm has.",
    )
    flags.DEFINE_integer(
        "looks",
        1,
        "Look at the results so often, at equal distances, and stop at the first look at which the last arm is shown "
        "to differ from the first; the level of each look is corrected for that.",
        lower_bound=1,
        upper_bound=5,
    )
    option_flags.define(RunOptions, "validate_every", "average_from")
    flags.DEFINE_bool("noise_scale", False, "Measure the gradient noise scale along one more run of the first arm.")
    flags.DEFINE_string(
        "output_dir", "runs/comparison", f"Where to write; {output_flags.EMPTY}, unless --resume or --overwrite."
    )
    flags.DEFINE_bool("resume", False, "Go on with the comparison in --output_dir; finished runs are not run again.")
    for module in (terminal, output_flags, model_flags, loop_flags, schedule_flags, arm_flags):
        flags.adopt_module_key_flags(module)


def run() -> None:
    """Compare, write the report and print it."""
    RunOptions(**option_flags.values(RunOptions))  # Raises if one is out of range.
    dataset = model_flags.load_dataset()
    arm_flags.check(dataset)
    with output_flags.claim(FLAGS.output_dir, "comparison", FLAGS.resume) as output_dir, cores.Workers() as workers:
        if FLAGS.resume:
            cores.use_saved_threads(output_dir / _PLAN)
        strategy = loop_flags.start()
        from clr_loop.loop import strategies

        with strategies.scope(strategy, FLAGS.precision):
            summary = _compare(dataset, output_dir, workers)
    terminal.say(terminal.where(output_dir, summary))


def _compare(dataset: data.AnyDataset, output_dir: Path, workers: cores.Workers) -> Path:
    """Measure what the first run needs, run all, and report; return where TensorBoard's summary is."""
    with terminal.status("trying the model"):
        from clr_loop.loop.threads import num_threads
        from clr_loop.studies.comparison.plan import Plan
        from clr_loop.studies.report.files import write
        from clr_loop.studies.report.sections import Context
        from clr_loop.studies.report.tensorboard import FOLDER
        from clr_loop.studies.report.terminal import in_terminal

        measure = _measure(dataset)
    setup = Setup(__name__, dataset)
    measured = arm_flags.Measured(setup, output_dir, workers)
    epochs = measured.epochs()
    plan = Plan(arm_flags.arms(dataset.num_examples, epochs), FLAGS.seeds, epochs, measure, FLAGS.looks)
    settings: dict[str, Any] = model_flags.settings(dataset)
    if FLAGS.bounds == "range_test":
        bounds = measured.bounds(epochs)
        settings |= {f"range_test_batch_{size}": arm_flags.as_flags(pair) for size, pair in bounds.items()}
        plan = _with_schedules(plan, lambda arm: arm_flags.within(bounds[arm.batch_size], arm.schedule))
    held_out = data.hold_out(dataset) if FLAGS.tune and isinstance(dataset, data.Dataset) else None
    if held_out is not None:
        measured.centers(held_out)
    output_flags.begin(output_dir)
    measured.write()
    planned = plan.keep(output_dir / _PLAN, {**_rates(plan), "threads": num_threads()})
    searches = []
    if held_out is not None:
        searches = _tune(held_out, plan, measured, output_dir, workers)
        plan = _tuned(plan, searches)
    for arm in plan.arms:
        length = output_flags.run_length(dataset.num_examples, arm.batch_size, epochs[arm.batch_size])
        terminal.note(f"{arm.label}:\n{schedules.describe(arm.schedule, length[1], length[0])}\n")
    work = _Work(plan, setup, output_dir, settings, workers)
    comparison = _looked_at(work, searches)
    noise_scale = None
    if FLAGS.noise_scale and isinstance(dataset, data.Dataset):
        noise_scale = _noise_scale(dataset, plan, measured)
    with terminal.status("writing the report"):
        context = Context(
            dataset.name, FLAGS.model, FLAGS.budget, searches, noise_scale, measured.range_tests(), planned,
            num_beside=measured.num_beside(workers.num_processes),
        )  # fmt: skip
        write(comparison, output_dir, context, FLAGS.figure_format)
    terminal.say("")
    terminal.say_markdown(in_terminal(comparison))
    terminal.say(f"\nreport:  {output_dir / 'report.md'} has the rest and the pictures")
    return output_dir / FOLDER


def _measure(dataset: data.AnyDataset) -> Measure:
    """Return what arms are compared by, after a look at whether the model gives it."""
    from clr_loop.studies.comparison.measures import Measure

    measure = Measure(FLAGS.measure, FLAGS.higher_is_better, FLAGS.reach)
    if measure.is_share and FLAGS.reach is None:
        measure = dataclasses.replace(measure, target=0.9)
    margin = FLAGS.margin and FLAGS.margin * (0.01 if measure.is_share else 1.0)
    measure = dataclasses.replace(measure, margin=margin, failure_bound=FLAGS.failure_bound)
    names = arm_flags.make_loop(dataset, arm_flags.batch_sizes()[0]).metric_names
    measure.check([*names, *(f"val_{name}" for name in names if dataset.validation is not None)])
    return measure


def _rates(plan: Plan) -> dict[str, Any]:
    """Return what is decided of the rates before the first run."""
    if FLAGS.tune:
        return {"rates tried with each arm": FLAGS.tune, "trials of each rate": FLAGS.trials}
    return {arm.label: arm.schedule.to_config() for arm in plan.arms}


def _with_schedules(plan: Plan, schedule_of: Callable[[Arm], schedules.Schedule]) -> Plan:
    arms = [dataclasses.replace(arm, schedule=schedule_of(arm)) for arm in plan.arms]
    return dataclasses.replace(plan, arms=arms)


def _tune(
    held_out: data.Dataset, plan: Plan, measured: arm_flags.Measured, output_dir: Path, workers: cores.Workers
) -> list[Search]:
    """Find the best rate of every arm on held-out examples, with seeds that no compared run has."""
    from clr_loop.studies.comparison import tuning

    trials_dir = output_dir / "tuning"
    trials_dir.mkdir(exist_ok=True)
    epochs = {arm.batch_size: plan.epochs_of(arm) for arm in plan.arms}
    seeds = tuning.trial_seeds(FLAGS.trials, taken=plan.seeds)
    trials = dataclasses.replace(plan, arms=arm_flags.arms(held_out.num_examples, epochs), seeds=seeds)

    setup = Setup(__name__, held_out, holds_out=True)

    def run_trials(trial_plan: Plan) -> list[ArmRun]:
        settings = model_flags.settings(held_out)
        work = _Work(trial_plan, setup, trials_dir, settings, workers, are_trials=True)
        return _run_all(work, _Told(work))

    searches = tuning.tune(trials, measured.centers(held_out), FLAGS.tune, run_trials)
    for search in searches:
        at_edge = f"; the best mean is at the {search.edge} edge of what was tried" if search.edge else ""
        interval = " to ".join(f"{rate:.3g}" for rate in search.peak.interval)
        terminal.say(f"best rate of {search.arm.label}: {search.learning_rate:g} ({interval}){at_edge}")
    return searches


def _tuned(plan: Plan, searches: Sequence[Search]) -> Plan:
    from clr_loop.studies.comparison.tuning import at_rate

    rates = {search.arm.label: search.learning_rate for search in searches}
    return _with_schedules(plan, lambda arm: at_rate(arm.schedule, rates[arm.label]))


def _noise_scale(dataset: data.Dataset, plan: Plan, measured: arm_flags.Measured) -> NoiseScale:
    """Measure the gradient noise along a run of the first arm, with the seed of the trials."""
    from clr_loop.studies.comparison import noise_scale, tuning

    arm = plan.arms[0]

    def measure() -> dict[str, Any]:
        with terminal.status("measuring the gradient noise along a run"):
            loop = arm_flags.make_loop(dataset, arm.batch_size, tuning.SEED)
            return vars(noise_scale.measure(loop, arm.schedule, plan.epochs_of(arm), dataset.train))

    kept: Mapping[str, Any] = measured.keep("noise_scale", arm.batch_size, measure)
    measured.write()
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in kept.items()}
    return noise_scale.NoiseScale(**fields)


@dataclass(frozen=True)
class _Work:
    """Runs of one plan on the same data, in one directory."""

    plan: Plan
    setup: Setup
    output_dir: Path
    settings: dict[str, Any]
    workers: cores.Workers
    are_trials: bool = False
    diverged: set[tuple[Arm, int]] = dataclasses.field(default_factory=set)

    def label(self, arm: Arm, seed: int) -> str:
        if self.are_trials:
            return f"trial {self.plan.seeds.index(seed) + 1} of {arm.label}"
        return f"{arm.label}, seed {seed}"


def _looked_at(work: _Work, searches: Sequence[Search]) -> Comparison:
    """Run the seeds up to the look at which the answer is known, or all of them, and compare."""
    from clr_loop.studies.comparison.compare import compare
    from clr_loop.studies.comparison.tuning import pick_variances
    from clr_loop.studies.report.words import answer

    plan, runs, told = work.plan, [], _Told(work)
    variances = pick_variances(searches, plan) if searches else {}
    for look, seeds in enumerate(plan.seeds_between_looks(), start=1):
        runs += _run_all(dataclasses.replace(work, plan=dataclasses.replace(plan, seeds=seeds, looks=1)), told)
        comparison = compare(
            runs, plan.measure, arms=plan.arms, diverged=list(work.diverged), pick_variances=variances, alpha=plan.alpha
        )
        if plan.looks > 1:
            terminal.say(f"look {look} of {plan.looks}, {len(comparison.seeds)} seeds: {answer(comparison)}")
        if comparison.question is not None and comparison.question.verdict == "shown":
            break
    return comparison


def _means(runs: Iterable[ArmRun], name: str) -> str:
    """Return the mean of each arm after its first seeds, in words."""
    values: dict[str, list[float]] = {}
    for run in runs:
        values.setdefault(run.arm.label, []).append(run.result.final[name])
    means = "; ".join(f"{label} {statistics.fmean(of_arm):.4g}" for label, of_arm in values.items())
    return f"mean {name} after {_FIRST_MEANS} seeds, too few for a verdict: {means}"


class _Told:
    """Says what each run gave, once, and the means of the arms after the first seeds."""

    def __init__(self, work: _Work) -> None:
        self._work, self._plan = work, work.plan
        finished = work.output_dir.glob("*/seed_*/result.json") if FLAGS.resume else ()
        num_read_back = len(list(finished)) if cores.is_parallel() else None
        self.count = RunCount(len(self._plan.arms) * len(self._plan.seeds), num_read_back)
        self._runs: dict[tuple[Arm, int], ArmRun] = {}
        self._first: set[tuple[Arm, int]] = set()
        if not work.are_trials and len(self._plan.seeds) > _FIRST_MEANS:
            self._first = {(arm, seed) for arm in self._plan.arms for seed in self._plan.seeds[:_FIRST_MEANS]}

    def say(self, run: ArmRun) -> None:
        """Say a run."""
        key, result, name = (run.arm, run.seed), run.result, self._plan.measure.name
        if key in self._runs:  # A pool was made anew, and it is read back.
            return
        self._runs[key] = run
        seconds = f", trained {result.train_seconds:.2f} s" if result.is_timed else ""
        terminal.note(f"{self.count.end(key)}: {self._work.label(*key)}: {name} {result.final[name]:#.4g}{seconds}")
        if key in self._first and self._first <= self._runs.keys():
            terminal.note(_means((self._runs[each] for each in self._runs if each in self._first), name))


def _run_all(work: _Work, told: _Told) -> list[ArmRun]:
    """Run every arm with every seed, and say what each run gave."""
    from clr_loop.runs.progress import ProgressBar
    from clr_loop.studies.comparison.runner import run_arms
    from clr_loop.studies.tasks import Processes

    plan = work.plan
    values = option_flags.values(RunOptions) | ({"validate_every": 0} if work.are_trials else {})
    every = values["validate_every"]
    settings = {**work.settings, "validate_every": every} if every else work.settings
    with contextlib.ExitStack() as preparing:
        preparing.enter_context(terminal.status("making the loops"))

        def show(arm: Arm, seed: int) -> list[ProgressBar]:
            preparing.close()
            return [ProgressBar(f"{told.count.start((arm, seed))}: {work.label(arm, seed)}")]

        def say(run: ArmRun) -> None:
            preparing.close()
            told.say(run)

        def study(executor: Executor | None, resume: bool) -> list[ArmRun]:
            return run_arms(
                work.setup.dataset,
                work.setup.make_model,
                plan,
                work.output_dir,
                resume=resume,
                on_diverged=lambda arm, seed: work.diverged.add((arm, seed)),
                feed=FLAGS.feed,
                step_options=model_flags.step_options(),
                run_options=RunOptions(settings=settings, checkpoint_every=0, **values),
                make_callbacks=show if executor is None else lambda arm, seed: (),  # Bars would draw over each other.
                on_run=say,
                executor=executor and Processes(executor, FLAGS.shared_dir),
            )

        return work.workers.run(study, FLAGS.resume)


main = terminal.command(run, define_flags)
