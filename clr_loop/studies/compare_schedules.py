"""`compare_schedules`: schedules and batch sizes against each other over a few seeds, and a report, in one call."""

from __future__ import annotations

import contextlib
import html
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras

from clr_loop.arguments import checked_types
from clr_loop.data import AnyDataset, Dataset, Examples
from clr_loop.display import Drawing, Pictured
from clr_loop.loop.checks import check_batch_size
from clr_loop.loop.options import StepOptions
from clr_loop.runs import files as run_files
from clr_loop.runs.options import RunOptions
from clr_loop.runs.progress import ProgressBar
from clr_loop.schedules import Schedule, to_steps
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.compare import Comparison, compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.plan import Plan
from clr_loop.studies.comparison.runner import run_arms
from clr_loop.studies.report.files import write
from clr_loop.studies.report.sections import Context, markdown
from clr_loop.studies.report.words import answer, conclusions
from clr_loop.studies.seeds import Seeded, checked_seeds
from clr_loop.studies.tasks import Processes

ScheduleOf = Callable[[Callable[[str], int]], Schedule]
"""steps → a schedule, where steps("25%"), steps("2ep") and steps("2000") are lengths in a run of one batch size."""


@dataclass(frozen=True, repr=False)
class Report(Pictured):
    """A comparison with what follows from it. `print` shows all of it, a notebook the arms, the answers, the picture.

    Attributes:
        comparison: the runs, and what was worked out from them.
        context: what was compared.
    """

    comparison: Comparison
    context: Context

    @property
    def answer(self) -> str:
        """Whether the last arm is better and faster than the first, in one sentence."""
        return answer(self.comparison)

    @property
    def answers(self) -> list[str]:
        """What follows from the runs, and what does not, a sentence or two each."""
        return conclusions(self.comparison)

    def plot(self) -> Drawing:
        """Return the picture of the arms."""
        return self.comparison.plot()

    def __repr__(self) -> str:
        return f"Report({self.comparison!r})"

    def _repr_html_(self) -> str:
        answers = "".join(f"<li>{html.escape(each)}</li>" for each in self.answers)
        return f"{self.comparison._repr_html_()}<p>{html.escape(self.answer)}</p><ul>{answers}</ul>"

    def __str__(self) -> str:
        return markdown(self.comparison, self.context)


@checked_types
def compare_schedules(
    build_model: Callable[..., keras.Model],
    data: AnyDataset | tuple[Any, Any] | Callable[[], AnyDataset | tuple[Any, Any]],
    schedules: Mapping[str, Schedule | ScheduleOf],
    *,
    batch_sizes: Sequence[int] = (100,),
    seeds: int | Sequence[int] = 8,
    epochs: int = 15,
    measure: Measure | str = "val_accuracy",
    options: StepOptions | None = None,
    output_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    executor: Executor | Processes | None = None,
) -> Report:
    """Train every batch size with every schedule, a run for each seed, and report what each change did.

        compare_schedules(
            build_model, mnist,
            {"constant": Constant(0.003), "triangular": lambda steps: Triangular(0.001, 0.006, steps("25%"))},
            batch_sizes=(100, 2000),
        )

    Args:
        build_model: makes a fresh compiled model for each seed; see `seeds.Seeded`.
        data: a dataset with validation examples, or ((x_train, y_train), (x_validation, y_validation)), or a function
            that loads either, which each process of an executor then calls for itself.
        schedules: name → a schedule, or a function that makes it for the run of a batch size; see `ScheduleOf`. The
            first schedule and the first batch size are what the others are compared with.
        batch_sizes: ints, each at least 1.
        seeds: how many, or the ints in [0, 2**32) themselves; a verdict needs 4.
        epochs: int, at least 1, of each run.
        measure: what the arms are compared by after the last epoch.
        options: see `StepOptions`.
        output_dir: gets report.md, its pictures and a folder for each run; see `report.files.write`. None keeps
            nothing on disk.
        resume: take what is finished in output_dir, and go on with the rest.
        overwrite: move what output_dir holds aside first.
        executor: runs the runs side by side, such as that of `pool.pool`; see `run_arms`.

    Raises:
        ValueError: if an argument is out of its range; as `run_arms` and `compare`.
        TypeError: if an argument has another type.
        OSError: if output_dir holds something, and neither resume nor overwrite is True.
    """
    measure, dataset = Measure(measure) if isinstance(measure, str) else measure, _loaded(data)
    plan = Plan(_arms(schedules, batch_sizes, dataset.num_examples, epochs), checked_seeds(seeds), epochs, measure)
    name = getattr(build_model, "__name__", "model")
    context = Context(dataset.name, "model" if name == "<lambda>" else name)
    with _directory(output_dir, resume, overwrite) as directory:
        given = partial(_loaded, data) if executor is not None and callable(data) else dataset
        run = partial(run_arms, given, Seeded(build_model), plan, directory, resume=resume, step_options=options)
        comparison = _compared(run, plan, context, executor)
        if output_dir is not None:
            write(comparison, directory, context)
    return Report(comparison, context)


def _loaded(data: AnyDataset | tuple[Any, Any] | Callable[[], AnyDataset | tuple[Any, Any]]) -> AnyDataset:
    if isinstance(data, tuple):
        train, validation = data
        return Dataset("arrays", Examples(*train), Examples(*validation), None)
    return _loaded(data()) if callable(data) else data


def _arms(
    schedules: Mapping[str, Schedule | ScheduleOf], batch_sizes: Sequence[int], num_examples: int, epochs: int
) -> list[Arm]:
    return [
        Arm(batch_size, name, _made(schedule, num_examples, batch_size, epochs))
        for batch_size in batch_sizes
        for name, schedule in schedules.items()
    ]


def _compared(
    run: Callable[..., list[ArmRun]], plan: Plan, context: Context, executor: Executor | Processes | None
) -> Comparison:
    """Run every arm with every seed, with a bar for each here, and compare; a run that diverges counts as failed."""
    bars, diverged = _Bars(len(plan.arms) * len(plan.seeds)), list[tuple[Arm, int]]()
    runs = run(
        run_options=RunOptions(settings={"model": context.model}),
        executor=executor,
        **({"make_callbacks": bars.bar_of} if executor is None else {}),
        on_diverged=lambda arm, seed: diverged.append((arm, seed)),
        on_run=bars.count,
    )
    return compare(runs, plan.measure, arms=plan.arms, diverged=diverged)


def _made(schedule: Schedule | ScheduleOf, num_examples: int, batch_size: int, epochs: int) -> Schedule:
    check_batch_size(batch_size, num_examples)
    if isinstance(schedule, Schedule):
        return schedule
    steps_per_epoch = -(-num_examples // batch_size)
    return schedule(partial(to_steps, steps_per_epoch=steps_per_epoch, total_steps=epochs * steps_per_epoch))


@contextlib.contextmanager
def _directory(path: str | os.PathLike[str] | None, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Hold the directory of a comparison, or one that is removed at the end."""
    if resume and (overwrite or path is None):
        raise ValueError("resume=True goes on with what is in output_dir; give it an output_dir, and no overwrite.")
    if path is None:
        with tempfile.TemporaryDirectory(prefix="clr_loop_") as directory:
            yield Path(directory)
        return
    with run_files.claim(path, "comparison", resume=resume or overwrite) as directory:
        if overwrite:
            run_files.set_aside(directory)
        yield directory


@dataclass
class _Bars:
    """A bar for each run, which says which of all it is."""

    num_runs: int
    num_done: int = 0

    def bar_of(self, arm: Arm, seed: int) -> list[ProgressBar]:
        return [ProgressBar(f"run {self.num_done + 1} of {self.num_runs}: {arm.label}, seed {seed}")]

    def count(self, run: ArmRun) -> None:
        self.num_done += 1
