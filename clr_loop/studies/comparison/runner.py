"""Runs every arm of a comparison with every seed. `effects` works out what follows."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from clr_loop.arguments import checked_types
from clr_loop.data import AnyDataset, Dataset, Examples
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.make_loop import FeedName, choose_feed, make_loop
from clr_loop.loop.options import StepOptions
from clr_loop.loop.state import Snapshot
from clr_loop.loop.threads import num_threads
from clr_loop.runs import files as run_files
from clr_loop.runs.fit import NonFiniteError, StopRun, fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import read_result
from clr_loop.runs.result import TrainingResult
from clr_loop.runs.settings import in_words, run_settings
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.plan import Plan
from clr_loop.studies.pool import has_own_cores
from clr_loop.studies.seeds import MakeModel, initial_state
from clr_loop.studies.tasks import Processes, is_wanted, spread

# A worker that was told to stop is at the end of its block by then.
_STOPPING_SECONDS = 60


@checked_types
def run_arms(
    dataset: AnyDataset | Callable[[], AnyDataset],
    make_model: MakeModel,
    plan: Plan,
    output_dir: Path,
    *,
    resume: bool = False,
    on_diverged: Callable[[Arm, int], None] | None = None,
    feed: FeedName = "auto",
    step_options: StepOptions | None = None,
    run_options: RunOptions | None = None,
    make_callbacks: Callable[[Arm, int], Sequence[keras.callbacks.Callback]] = lambda arm, seed: (),
    on_run: Callable[[ArmRun], None] = lambda run: None,
    executor: Executor | Processes | None = None,
) -> list[ArmRun]:
    """Run every arm with every seed, for `compare`, and return the runs by seed, in the order of the plan's arms.

    The program of a batch size is compiled once in a process, and each of its runs starts from the state that a fresh
    loop of its seed would have. Seeds are the outer loop, and each draws the order of its arms, so a machine that slows
    down affects all arms alike.

    Args:
        dataset: what to train and validate on, or a function that loads it, which each process calls for itself.
        make_model: seed → a fresh compiled model.
        plan: what to run.
        output_dir: an existing directory; the files of a run go to `<arm>/seed_<n>` in it.
        resume: whether to take the results of runs that are finished there instead of running them again. A run that
            was interrupted continues from its newest checkpoint, or starts again without one.
        on_diverged: called with the arm and the seed of a run that diverged, which is left out; None lets it raise.
        feed: see `choose_feed`.
        step_options, run_options: for every loop and every run; run_options without checkpoint_every saves none,
            and no models.
        make_callbacks: (arm, seed) → the Keras callbacks of that run, made where it runs.
        on_run: called with each run when it is finished.
        executor: runs the runs in its processes, as they become free; None runs them here, in turn. With as many
            threads the results are the same, to the bit. Only the runs of a `pool` are timed, if each of its processes
            has cores of its own. `Processes` says more of an executor: how many threads its processes compute with, and
            whether they see output_dir. If not, result and CSV files of a run are sent back, and what a lost process
            had begun begins again.

    Raises:
        ValueError: if the runs will not have the plan's measure; if a finished run has other settings.
        FileExistsError: if a run is there and `resume` is False.
        WorkersLostError: if the executor's processes are gone; what is finished is kept. See `tasks.spread` for more.
    """
    work = _Work(dataset, make_model, plan.seeds[0], feed, step_options, run_options or RunOptions(), make_callbacks)
    bench, processes = _Bench(work), Processes.of(executor)
    tasks = [_Task(arm, seed, plan.epochs_of(arm), output_dir) for seed in plan.seeds for arm in plan.order(seed)]
    bench.check(tasks, plan, resume, num_threads() if processes is None else processes.num_threads)
    runs = []
    with closing(_outcomes(bench, tasks, resume, processes)) as outcomes:
        for task, outcome in outcomes:
            if isinstance(outcome, TrainingResult):
                runs.append(ArmRun(task.arm, task.seed, outcome))
                on_run(runs[-1])
            elif on_diverged is None:
                raise outcome
            else:
                on_diverged(task.arm, task.seed)
    return sorted(runs, key=lambda run: (plan.seeds.index(run.seed), plan.arms.index(run.arm)))


@dataclass(frozen=True)
class _Work:
    """What all runs have in common; it travels to other processes."""

    dataset: AnyDataset | Callable[[], AnyDataset]
    make_model: MakeModel
    first_seed: int
    feed: FeedName
    step_options: StepOptions | None
    run_options: RunOptions
    make_callbacks: Callable[[Arm, int], Sequence[keras.callbacks.Callback]]

    def begin(self, dataset_sha256: str, is_in_place: bool) -> Callable[[_Task], tuple[_Outcome, dict[str, bytes]]]:
        """Return what does a task in a process of an executor: it gives the outcome, and the files to be sent back."""
        is_timed = self.run_options.is_timed and has_own_cores()
        bench = _Bench(dataclasses.replace(self, run_options=dataclasses.replace(self.run_options, is_timed=is_timed)))
        if bench.dataset_sha256 != dataset_sha256:
            raise ValueError("A worker loads other data than the process that asks it; give both the same files.")

        def in_place(task: _Task) -> tuple[_Outcome, dict[str, bytes]]:
            _wait_until_free(task.run_dir, resume=True)
            return bench.run(task, True, [_StopIfUnwanted()]), {}

        def elsewhere(task: _Task) -> tuple[_Outcome, dict[str, bytes]]:
            with tempfile.TemporaryDirectory(prefix="clr_loop_") as directory:
                here = dataclasses.replace(task, output_dir=Path(directory))
                return bench.run(here, False), run_files.small_files(here.run_dir)

        return in_place if is_in_place else elsewhere


@dataclass(frozen=True)
class _Task:
    """A run of a comparison."""

    arm: Arm
    seed: int
    epochs: int
    output_dir: Path

    @property
    def run_dir(self) -> Path:
        return self.output_dir / self.arm.directory / f"seed_{self.seed}"


_Outcome = TrainingResult | NonFiniteError


def _outcomes(
    bench: _Bench, tasks: Sequence[_Task], resume: bool, processes: Processes | None
) -> Generator[tuple[_Task, _Outcome]]:
    """Yield each task with what came of it; with an executor those that are finished come first."""
    if processes is None:
        for task in tasks:
            yield task, bench.run(task, resume)
        return
    left = []
    for task in tasks:
        _wait_until_free(task.run_dir, resume)
        result = _finished(task.run_dir)
        if result is None:
            left.append(dataclasses.replace(task, output_dir=task.output_dir.resolve()))
        else:
            yield task, result
    begin = partial(bench.work.begin, bench.dataset_sha256, processes.shared_dir)
    with closing(spread(begin, left, processes, tasks[0].output_dir)) as done:
        for task, (outcome, files) in done:
            for name, content in files.items():
                (task.run_dir / name).write_bytes(content)
            if isinstance(outcome, TrainingResult):
                bench.check_settings(task, outcome.settings, processes.num_threads)
            yield task, outcome


class _Bench:
    """The loops of a comparison, one for each batch size, on which its runs are trained in this process."""

    def __init__(self, work: _Work) -> None:
        self.work = work
        dataset = work.dataset() if callable(work.dataset) else work.dataset
        self.dataset_sha256 = dataset.sha256()
        settings = {"dataset": dataset.name, **work.run_options.settings, "dataset_sha256": self.dataset_sha256}
        self._options = dataclasses.replace(
            work.run_options,
            settings=settings,
            checkpoint_every=work.run_options.checkpoint_every or 0,
            save_models=False,
        )
        self._dataset = _on_device(dataset, work.feed)
        self._loops = dict[int, tuple[TrainLoop, Snapshot]]()
        self._initial_state = lru_cache(maxsize=1)(partial(initial_state, work.make_model))

    def loop(self, batch_size: int) -> tuple[TrainLoop, Snapshot]:
        """Return the loop of a batch size, with its state when it was new; all share one copy of the arrays."""
        if batch_size not in self._loops:
            model = self.work.make_model(self.work.first_seed)
            loop = make_loop(model, self._dataset, batch_size, feed=self.work.feed, options=self.work.step_options)
            self._loops[batch_size] = loop, loop.snapshot()
        return self._loops[batch_size]

    def check(self, tasks: Sequence[_Task], plan: Plan, resume: bool, threads: int) -> None:
        """Refuse, before any run is trained, what it cannot have, or a run that is there and differs."""
        loops = [self.loop(size)[0] for size in dict.fromkeys(arm.batch_size for arm in plan.arms)]
        names, is_validated = loops[0].metric_names, self._dataset.validation is not None
        plan.measure.check([*names, *(f"val_{name}" for name in names if is_validated)])
        for task in tasks:
            if resume and (_has_checkpoint(task.run_dir) or (task.run_dir / run_files.RESULT).is_file()):
                saved = run_files.read_json(task.run_dir / run_files.CONFIG, run_files.CONFIG_SHAPE)
                self.check_settings(task, saved, threads)

    def check_settings(self, task: _Task, saved: Mapping[str, Any], threads: int) -> None:
        """Raise ValueError if a run has other settings than it should have."""
        loop, _ = self.loop(task.arm.batch_size)
        expected = run_settings(loop, task.arm.schedule, task.epochs, self._options_of(task).to_compare())
        if expected["threads"] is not None:
            expected["threads"] = threads
        same = {"validation": None, "seed": task.seed}  # Data are known by their digest.
        words = list(in_words({**saved, **same}, {**expected, **same}).values())
        if saved["epochs"] != task.epochs:
            words.append(f"epochs {saved['epochs']}, now {task.epochs}")
        if words:
            what = f"The run in {task.run_dir} has other settings: {'; '.join(words)}"
            raise ValueError(f"{what}. Use the same settings, or another directory.")

    def run(self, task: _Task, resume: bool, callbacks: Sequence[keras.callbacks.Callback] = ()) -> _Outcome:
        """Train a run from its beginning or its newest checkpoint, and return its result, or why it diverged.

        With `resume`, a run that is finished is only read.
        """
        result = _finished(task.run_dir) if resume else None
        if result is not None:
            return result
        loop, fresh = self.loop(task.arm.batch_size)
        loop.restore(dataclasses.replace(fresh, **self._initial_state(task.seed)))
        try:
            return fit(
                loop,
                task.arm.schedule,
                self._dataset.validation,
                epochs=task.epochs,
                callbacks=[*self.work.make_callbacks(task.arm, task.seed), *callbacks],
                run_dir=task.run_dir,
                resume=resume and _has_checkpoint(task.run_dir),
                options=self._options_of(task),
                verbose=0,
            )
        except NonFiniteError as error:
            return error

    def _options_of(self, task: _Task) -> RunOptions:
        settings = {"arm": task.arm.label, **self._options.settings}
        return dataclasses.replace(self._options, settings=settings)


class _StopIfUnwanted(keras.callbacks.Callback):
    """Stops a run in a process of an executor when the process that asked for it has gone."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if not is_wanted():
            raise StopRun


def _on_device(dataset: AnyDataset, feed: FeedName) -> AnyDataset:
    """Return the dataset with training arrays as tensors, which all loops share, on the device if they fit there."""
    if not isinstance(dataset, Dataset):
        return dataset
    is_resident = choose_feed(dataset, feed, tf.distribute.get_strategy())[0] == "resident"
    with contextlib.nullcontext() if is_resident else tf.device("CPU"):
        tensors = keras.tree.map_structure(lambda x: None if x is None else tf.convert_to_tensor(x), dataset.train)
    return dataclasses.replace(dataset, train=Examples(*tensors))


def epoch_seconds(loop: TrainLoop) -> float:
    """Return the seconds of one epoch, after one that is not timed; everything is then put back."""
    before, rates = loop.snapshot(), np.zeros(loop.steps_per_epoch)
    try:
        loop.run(rates)
        started = time.perf_counter()
        loop.run(rates)
        return time.perf_counter() - started
    finally:
        loop.restore(before)


def _wait_until_free(run_dir: Path, resume: bool) -> None:
    """Wait until a process that was told to stop has left a run directory.

    Raises:
        FileExistsError: if there is a run, and it is not to be resumed.
        BlockingIOError: if another process stays in it.
    """
    ends = time.monotonic() + _STOPPING_SECONDS
    while True:
        try:
            with run_files.claim(run_dir, resume=resume):
                return
        except BlockingIOError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.2)


def _finished(run_dir: Path) -> TrainingResult | None:
    """Return the result in a run directory; None if there is none.

    It then removes what is left of a run that was interrupted before its first checkpoint.
    """
    result = read_result(run_dir)
    if result is None and not _has_checkpoint(run_dir):
        with run_files.claim(run_dir, resume=True) as directory:
            run_files.clear(directory)
    return result


def _has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / run_files.CHECKPOINTS).glob("step_*"))
