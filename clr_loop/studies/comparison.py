"""Arms × seeds → runs → what each factor did, with its spread.

An arm is a batch size with a schedule. Every arm is run with the same seeds, and a seed means the same initial weights
and the same order of the data in every arm, so arms are compared seed by seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from clr_loop.data import AnyDataset, Dataset, Split
from clr_loop.loop.feeding import choose, make_loop
from clr_loop.loop.loop import Metrics
from clr_loop.runs import files as run_files
from clr_loop.runs.fit import fit
from clr_loop.runs.records import read_result
from clr_loop.runs.result import TrainingResult
from clr_loop.runs.settings import changes, run_settings
from clr_loop.schedules import Schedule

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A batch size with a schedule."""

    batch_size: int
    schedule_name: str
    schedule: Schedule

    @property
    def label(self) -> str:
        """For people: `triangular, batch 2000`."""
        return f"{self.schedule_name}, batch {self.batch_size}"

    @property
    def directory(self) -> str:
        """For files: `triangular_batch_2000`."""
        return f"{self.schedule_name}_batch_{self.batch_size}"


@dataclass(frozen=True)
class Run:
    """One arm with one seed, and its result."""

    arm: Arm
    seed: int
    result: TrainingResult


@dataclass(frozen=True)
class Sample:
    """Values over seeds.

    Attributes:
        values: one for each seed.
        mean: float.
        sd: sample standard deviation; None for a single value.
        half_width: half the width of the 95 % interval of the mean by Student's t; None for a single value.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Their sample standard deviation, or None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half the width of the 95 % interval of the mean (Student's t), or None for a single value."""
        if self.sd is None:
            return None
        # Above 30 degrees of freedom the value for 30 is a little too wide: the cautious side.
        t = _T_95[min(len(self.values) - 1, len(_T_95)) - 1]
        return t * self.sd / math.sqrt(len(self.values))

    def to_json(self) -> dict[str, Any]:
        """Returns values, mean, sd, n, min, max and the 95 % interval."""
        half = self.half_width
        return {
            "values": list(self.values),
            "mean": self.mean,
            "sd": self.sd,
            "n": len(self.values),
            "min": min(self.values),
            "max": max(self.values),
            "interval_95": None if half is None else [self.mean - half, self.mean + half],
        }


@dataclass(frozen=True)
class ArmSummary:
    """What the runs of one arm gave.

    Attributes:
        arm: the arm.
        steps: int, updates in a run.
        epoch_seconds: median over all epochs of all timed seeds.
        train_seconds: over timed seeds.
        compile_seconds: once for the batch size; its arms share one program.
        examples_per_second: number of examples in an epoch over `epoch_seconds`.
        val_accuracy: over seeds, after the last epoch.
        seconds_to_target: of the timed seeds that reached the target accuracy.
        warnings: what a reader should know of the schedule in a run of this length.
    """

    arm: Arm
    steps: int
    epoch_seconds: float
    train_seconds: Sample
    compile_seconds: float
    examples_per_second: float
    val_accuracy: Sample
    seconds_to_target: tuple[float, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the summary as JSON types."""
        return {
            "arm": self.arm.label,
            "batch_size": self.arm.batch_size,
            "schedule": self.arm.schedule.to_config(),
            "steps": self.steps,
            "epoch_seconds": self.epoch_seconds,
            "train_seconds": self.train_seconds.to_json(),
            "compile_seconds": self.compile_seconds,
            "examples_per_second": self.examples_per_second,
            "val_accuracy": self.val_accuracy.to_json(),
            "seconds_to_target": list(self.seconds_to_target),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Effect:
    """What a change did to a measure: the change's value minus the reference's, seed by seed.

    Attributes:
        measure: "val_accuracy" (0–1) or "epoch_seconds" (median of a run's epochs).
        factor: "batch_size", "schedule", "interaction" or "both".
        change: in words, what was changed.
        sample: the differences, one for each seed; of seconds, for each seed of which all runs were timed.
        arms: labels of the two arms compared, the reference last; () where it is not two arms that are compared.
    """

    measure: str
    factor: str
    change: str
    sample: Sample
    arms: tuple[str, ...] = ()

    @property
    def beyond_spread(self) -> bool:
        """Whether the 95 % interval leaves out 0: the change did more than the seeds alone would explain."""
        half = self.sample.half_width
        return half is not None and abs(self.sample.mean) > half

    def to_json(self) -> dict[str, Any]:
        """Returns the effect as JSON types."""
        return {
            "measure": self.measure,
            "factor": self.factor,
            "change": self.change,
            **self.sample.to_json(),
            "beyond_spread": self.beyond_spread,
        }


@dataclass(frozen=True)
class Comparison:
    """All runs, and what follows from them.

    Attributes:
        runs: every arm with every seed.
        arms: what each gave.
        effects: what each change did.
        target_accuracy: float in 0–1, that the arms are timed to.
        timed_seeds: the seeds that times are of, rising; the others count for accuracy only.
    """

    runs: list[Run]
    arms: list[ArmSummary]
    effects: list[Effect]
    target_accuracy: float
    timed_seeds: list[int]


def run_arms(
    dataset: AnyDataset,
    make_model: Callable[[int], keras.Model],
    make_optimizer: Callable[[], keras.optimizers.Optimizer],
    arms: Sequence[Arm],
    *,
    epochs: int,
    seeds: Sequence[int],
    target_accuracy: float,
    output_dir: Path,
    resume: bool = False,
    is_timed: bool = True,
    settings: Mapping[str, Any] | None = None,
    jit_compile: Any = "auto",
    on_start: Callable[[Arm, int, int], None] | None = None,
    on_block: Callable[[int, Metrics], None] | None = None,
    on_run: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Runs every arm with every seed, for `compare`.

    The block of a batch size is compiled once; its runs start from restored weights. Seeds are the outer loop, so that
    a machine that slows down meanwhile slows all arms alike.

    Args:
        dataset: to train and validate on.
        make_model: seed → a fresh model.
        make_optimizer: makes a fresh optimizer; its learning rate does not matter.
        arms: every batch size with every schedule name, each once, the reference of both first.
        epochs, target_accuracy, is_timed, settings, on_block: see `training.fit`.
        seeds: ints in [0, 2**32), none twice.
        output_dir: an existing directory; a run's files go to `<arm>/seed_<n>` in it.
        resume: whether to take the results of runs that are finished there already instead of running them again. A run
            that was broken off is run anew.
        jit_compile: see `TrainLoop`.
        on_start: called before each run with its arm, its seed and its number of steps.
        on_run: called after each run.

    Raises:
        ValueError: if arms are not a whole grid or seeds none or one twice; on resuming, if a finished run has other
            settings; else as `TrainLoop` and `training.fit`.
    """
    batch_sizes = list(dict.fromkeys(arm.batch_size for arm in arms))
    names = list(dict.fromkeys(arm.schedule_name for arm in arms))
    if not arms or sorted((arm.batch_size, arm.schedule_name) for arm in arms) != sorted(
        itertools.product(batch_sizes, names)
    ):
        raise ValueError(
            f"arms must be every batch size with every schedule, each once, received {[arm.label for arm in arms]}; "
            "name each batch size and each schedule once"
        )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be at least 1, none twice, received {list(seeds)}; 3 or more show the spread")
    if not 0.0 <= target_accuracy <= 1.0:
        raise ValueError(f"target_accuracy must be from 0 to 1, received {target_accuracy}; 0.9 means 90 %")
    models = {seed: make_model(seed) for seed in seeds}
    initial = {seed: [keras.ops.convert_to_numpy(v).copy() for v in model.variables] for seed, model in models.items()}
    feed, _ = choose(dataset)
    if isinstance(dataset, Dataset) and feed == "resident":
        # The images on the device once, for the loops of all batch sizes.
        shared = Split(tf.convert_to_tensor(dataset.train.images), dataset.train.labels)
        dataset = dataclasses.replace(dataset, train=shared)
    train_loops = {
        size: make_loop(
            models[seeds[0]] if i == 0 else make_model(seeds[0]),
            make_optimizer(),
            dataset,
            size,
            feed=feed,
            jit_compile=jit_compile,
        )
        for i, size in enumerate(batch_sizes)
    }
    fresh = {size: train_loop.snapshot() for size, train_loop in train_loops.items()}
    runs: list[Run] = []
    for seed in seeds:
        for arm in arms:
            train_loop = train_loops[arm.batch_size]
            train_loop.restore(dataclasses.replace(fresh[arm.batch_size], model=initial[seed], seed=seed))
            if on_start is not None:
                on_start(arm, seed, epochs * train_loop.steps_per_epoch)
            run_dir = output_dir / arm.directory / f"seed_{seed}"
            result = _finished(run_dir, run_settings(train_loop, arm.schedule, epochs, settings)) if resume else None
            if result is None:
                if resume:
                    with run_files.claim(run_dir, overwrite=True):
                        pass  # What a run that was broken off has left is gone.
                result = fit(
                    train_loop,
                    arm.schedule,
                    dataset.validation,
                    epochs=epochs,
                    run_dir=run_dir,
                    settings=settings,
                    target_accuracy=target_accuracy,
                    is_timed=is_timed,
                    on_block=on_block,
                )
            runs.append(Run(arm, seed, dataclasses.replace(result, target_accuracy=target_accuracy)))
            if on_run is not None:
                on_run(runs[-1])
    return runs


def _finished(run_dir: Path, settings: Mapping[str, Any]) -> TrainingResult | None:
    """Returns the result in a run directory, if there is one; raises if its settings are others."""
    result = read_result(run_dir)
    if result is None:
        return None
    found = [change for kind in changes(result.settings, settings) for change in kind]
    if result.settings["epochs"] != settings["epochs"]:
        found.append(f"epochs {result.settings['epochs']}, now {settings['epochs']}")
    if found:
        raise ValueError(
            f"finished runs must have the settings asked for, received others in {run_dir}: {'; '.join(found)}; use "
            "the same, or another directory"
        )
    return result


def compare(runs: Sequence[Run]) -> Comparison:
    """Works out what each arm gave and what each change did.

    Args:
        runs: every arm with every seed, from `run_arms`.

    Raises:
        ValueError: if there is no seed of which all runs are timed.
    """
    arms = list(dict.fromkeys(run.arm for run in runs))
    timed_seeds = sorted({run.seed for run in _timed(runs)})
    if not timed_seeds:
        raise ValueError("a seed at least must be timed in every arm, received none; run one alone")
    target_accuracy = runs[0].result.target_accuracy
    assert target_accuracy is not None  # `run_arms` gives each of them one.
    summaries = [_summarise(arm, runs) for arm in arms]
    return Comparison(list(runs), summaries, effects(runs), target_accuracy, timed_seeds)


def _timed(runs: Sequence[Run]) -> list[Run]:
    """The runs of the seeds that were timed in every arm: arms are compared seed by seed."""
    untimed = {run.seed for run in runs if not run.result.is_timed}
    return [run for run in runs if run.seed not in untimed]


def effects(runs: Sequence[Run]) -> list[Effect]:
    """Works out what each change from the first batch size and the first schedule did, seed by seed.

    With y the measure, b and s the first batch size and schedule, B and S another of each:

        batch_size   mean over schedules of y(B) - y(b)
        schedule     mean over batch sizes of y(S) - y(s)
        interaction  [y(B, S) - y(B, s)] - [y(b, S) - y(b, s)]
        both         y(B, S) - y(b, s), the article's own comparison

    Args:
        runs: every arm with every seed.

    Returns:
        An effect for each measure, factor and change; none for a factor with one level. Those on seconds are of the
        timed seeds.
    """
    sizes = list(dict.fromkeys(run.arm.batch_size for run in runs))
    names = list(dict.fromkeys(run.arm.schedule_name for run in runs))
    labels = {(run.arm.batch_size, run.arm.schedule_name): run.arm.label for run in runs}
    found: list[Effect] = []
    for measure, value in _MEASURES.items():
        measured = _timed(runs) if measure == "epoch_seconds" else runs
        seeds = sorted({run.seed for run in measured})
        y = np.empty((len(sizes), len(names), len(seeds)))
        for run in measured:
            cell = sizes.index(run.arm.batch_size), names.index(run.arm.schedule_name), seeds.index(run.seed)
            y[cell] = value(run.result)

        def add(factor: str, change: str, difference: np.ndarray, *arms: str, measure: str = measure) -> None:
            found.append(Effect(measure, factor, change, Sample(tuple(difference.tolist())), arms))

        for i, size in enumerate(sizes[1:], 1):
            add("batch_size", f"batch {size} instead of {sizes[0]}", (y[i] - y[0]).mean(axis=0))
        for j, name in enumerate(names[1:], 1):
            add("schedule", f"{name} instead of {names[0]}", (y[:, j] - y[:, 0]).mean(axis=0))
        for (i, size), (j, name) in itertools.product(enumerate(sizes[1:], 1), enumerate(names[1:], 1)):
            what = f"what {name} does at batch {size}, less what it does at {sizes[0]}"
            add("interaction", what, (y[i, j] - y[i, 0]) - (y[0, j] - y[0, 0]))
            changed, reference = labels[size, name], labels[sizes[0], names[0]]
            add("both", f"{changed}, instead of {reference}", y[i, j] - y[0, 0], changed, reference)
    return found


_MEASURES: dict[str, Callable[[TrainingResult], float]] = {
    "val_accuracy": lambda result: result.val_accuracy,
    "epoch_seconds": lambda result: result.median_epoch_seconds,
}


def _summarise(arm: Arm, runs: Sequence[Run]) -> ArmSummary:
    results = [run.result for run in runs if run.arm == arm]
    timed_runs = _timed(runs)
    timed = [run.result for run in timed_runs if run.arm == arm]
    steps = len(results[0].history["step"])
    epoch_seconds = statistics.median(seconds for result in timed for seconds in result.epoch_seconds)
    reached = [result.seconds_to_target for result in timed]
    return ArmSummary(
        arm=arm,
        steps=steps,
        epoch_seconds=epoch_seconds,
        train_seconds=Sample(tuple(result.train_seconds for result in timed)),
        # Only the first run of a batch size had anything to compile.
        compile_seconds=max(run.result.compile_seconds for run in timed_runs if run.arm.batch_size == arm.batch_size),
        examples_per_second=results[0].num_examples / epoch_seconds,
        val_accuracy=Sample(tuple(result.val_accuracy for result in results)),
        seconds_to_target=tuple(seconds for seconds in reached if seconds is not None),
        warnings=arm.schedule.describe(steps, results[0].settings["steps_per_epoch"]).warnings,
    )
