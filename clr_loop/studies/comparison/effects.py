"""Works out from the runs of a comparison what each arm gave and what each change did, with its spread over seeds.

An arm is a batch size with a schedule. Every arm ran with the same seeds, and a seed means the same initial weights and
the same order of the data in every arm, so arms are compared seed by seed. Nothing here trains or writes.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clr_loop.arguments import checked_types
from clr_loop.display import Pictured
from clr_loop.runs.result import Reached, TrainingResult
from clr_loop.schedules import describe
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.statistics import (
    ALPHA,
    detectable_size,
    holm,
    is_small,
    p_value,
    seeds_to_show,
    seeds_to_tell,
    t_test,
)

# Differences of a few values of size 1 are exact up to this; anything smaller is rounding.
_ROUNDING = 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Sample:
    """Values over seeds, at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """The sample standard deviation, or None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval_95(self) -> tuple[float, float] | None:
        """The 95% interval of the mean (Student's t), or None for a single value."""
        if len(self.values) == 1:
            return None
        interval = t_test(self.values).confidence_interval(0.95)
        return float(interval.low), float(interval.high)

    def in_words(self, form: str, factor: float = 1.0) -> str:
        """Return the mean and, of several values, ± the standard deviation, both times a factor."""
        mean = format(self.mean * factor, form)
        return mean if self.sd is None else f"{mean} ± {format(self.sd * factor, form.lstrip('+'))}"

    def to_json(self) -> dict[str, Any]:
        """Return the values, how many they are, and what they come to, as JSON types."""
        own = {name: getattr(self, name) for name in ("values", "mean", "sd", "interval_95")}
        return {**own, "n": len(self.values), "min": min(self.values), "max": max(self.values)}


@dataclass(frozen=True)
class ArmSummary:
    """What the runs of one arm gave.

    Attributes:
        arm: the arm.
        steps: int, updates in a run.
        epoch_seconds: the median over all epochs of all timed seeds.
        train_seconds: over timed seeds.
        compile_seconds: once for the batch size, whose arms share one program.
        examples_per_second: the examples of an epoch over `epoch_seconds`.
        final: the measure after the last epoch, over seeds.
        reached: what each seed took to reach the target; None for a seed that did not reach it.
        seconds_to_target: what each timed seed took; infinite for one that did not reach the target.
        warnings: what a reader should know of the schedule in a run of this length.
    """

    arm: Arm
    steps: int
    epoch_seconds: float
    train_seconds: Sample
    compile_seconds: float
    examples_per_second: float
    final: Sample
    reached: tuple[Reached | None, ...]
    seconds_to_target: tuple[float, ...]
    warnings: tuple[str, ...]

    @property
    def num_reached(self) -> int:
        """How many seeds reached the target."""
        return len(self.reached) - self.reached.count(None)

    def median_to_target(self, what: str) -> float:
        """Return the median of the "steps", "examples" or "seconds" to the target; of seconds over timed seeds.

        A seed that did not reach the target counts as infinite, so the median is infinite where half did not.
        """
        if what == "seconds":
            return statistics.median(self.seconds_to_target)
        return statistics.median(math.inf if each is None else getattr(each, what) for each in self.reached)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON types; an infinite median is None."""
        return {
            **vars(self),
            "reached": [None if each is None else each._asdict() for each in self.reached],
            "seconds_to_target": [_or_none(seconds) for seconds in self.seconds_to_target],
            "to_target": {what: _or_none(self.median_to_target(what)) for what in Reached._fields},
            "arm": self.arm.label,
            "batch_size": self.arm.batch_size,
            "schedule": self.arm.schedule.to_config(),
            "train_seconds": self.train_seconds.to_json(),
            "final": self.final.to_json(),
        }


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Effect:
    """What a change did to a measure: the value with the change minus the value without it, seed by seed.

    Attributes:
        measure: the name of the comparison's measure, or "epoch_seconds" (the median of a run's epochs).
        factor: "batch_size", "schedule", "interaction" or "both".
        change: in words, what was changed.
        sample: the differences, one for each seed; those of seconds are of the timed seeds.
        p_corrected: the p value, corrected over the family of the effects on one measure; None from one seed.
        level: the uncorrected p value up to which this effect would be shown beside those that are: `ALPHA` over the
            number of effects of the family that are not shown.
        arms: the labels of the two arms compared, the reference last; () where it is not two arms that are compared.
    """

    measure: str
    factor: str
    change: str
    sample: Sample
    p_corrected: float | None
    level: float = ALPHA
    arms: tuple[str, ...] = ()

    @property
    def p(self) -> float | None:
        """The p value of Student's t test that the change does nothing, or None from one seed."""
        return None if self.sample.sd is None else float(p_value(self.sample.values))

    @property
    def verdict(self) -> str:
        """What the seeds say, by a fixed rule.

        - "one seed": there is no spread to judge by.
        - "shown": the corrected p value is at most `ALPHA`.
        - "small": not shown, and the whole 95% interval lies within one standard deviation over seeds of 0. The
          change does less than another seed does; a difference beyond the interval's far end is not likely.
        - "undecided": anything else. `seeds_to_tell` seeds would be enough for one of the other two.
        """
        if self.p_corrected is None:
            return "one seed"
        if self.p_corrected <= ALPHA:
            return "shown"
        if not self.sample.sd or is_small(abs(self.sample.mean) / self.sample.sd, len(self.sample.values)):
            return "small"
        return "undecided"

    @property
    def detectable_difference(self) -> float | None:
        """The smallest difference that this many seeds would have found with 80% power; None where one is shown."""
        if self.sample.sd is None or self.verdict == "shown":
            return None
        return detectable_size(len(self.sample.values), self.level) * self.sample.sd

    @property
    def seeds_for_half(self) -> int | None:
        """How many seeds would find half of `detectable_difference` with 80% power; None where there is none."""
        if self.detectable_difference is None:
            return None
        return seeds_to_show(detectable_size(len(self.sample.values), self.level) / 2, self.level)

    @property
    def seeds_to_tell(self) -> int | None:
        """How many seeds would decide, as long as no other verdict changes; None where it is not undecided."""
        return seeds_to_tell(self.level) if self.verdict == "undecided" else None

    def to_json(self) -> dict[str, Any]:
        """Return the effect as JSON types."""
        names = ("measure", "factor", "change", "p", "p_corrected", "verdict", "detectable_difference",
                 "seeds_for_half", "seeds_to_tell")  # fmt: skip
        return {**{name: getattr(self, name) for name in names}, **self.sample.to_json()}


@dataclass(frozen=True, repr=False)
class Comparison(Pictured):
    """All runs, and what follows from them.

    Attributes:
        runs: every arm with every seed.
        measure: what arms are compared by.
        arms: what each arm gave.
        effects: what each change did.
        timed_seeds: the seeds that times are of, rising; the others count for the measure only.
    """

    runs: list[ArmRun]
    measure: Measure
    arms: list[ArmSummary]
    effects: list[Effect]
    timed_seeds: list[int]

    def __repr__(self) -> str:
        return f"Comparison({len(self.arms)} arms, {len(self.seeds)} seeds, by {self.measure.name})"

    def _rows(self) -> list[dict[str, object]]:
        return [
            {
                "arm": arm.arm.label,
                self.measure.words: arm.final.in_words(self.measure.form),
                "training seconds": arm.train_seconds.in_words(".2f"),
            }
            for arm in self.arms
        ]

    @property
    def seeds(self) -> list[int]:
        """The seeds of each arm, rising."""
        return sorted({run.seed for run in self.runs})

    def results(self, arm: Arm, only_timed: bool = False) -> list[TrainingResult]:
        """Return the results of an arm, by seed: of all seeds, or of those that are timed."""
        seeds = self.timed_seeds if only_timed else self.seeds
        results = {run.seed: run.result for run in self.runs if run.arm == arm}
        return [results[seed] for seed in seeds]

    def by_schedule(self) -> dict[str, list[ArmSummary]]:
        """Return the arms of each schedule by its name, rising in the batch size."""
        by_size = sorted(self.arms, key=lambda summary: summary.arm.batch_size)
        names = dict.fromkeys(summary.arm.schedule_name for summary in self.arms)
        return {name: [summary for summary in by_size if summary.arm.schedule_name == name] for name in names}


@checked_types
def compare(runs: Sequence[ArmRun], measure: Measure | None = None) -> Comparison:
    """Work out what each arm gave, and what each change from the first batch size and the first schedule did.

    With y a value of one seed, b and s the first batch size and schedule, B and S another of each, the effects are

        batch_size   mean over schedules of y(B) - y(b)
        schedule     mean over batch sizes of y(S) - y(s)
        interaction  [y(B, S) - y(B, s)] - [y(b, S) - y(b, s)]
        both         y(B, S) - y(b, s), the article's own comparison

    of the measure and, over the timed seeds, of the epoch seconds; each of the two is a family, over which p values are
    corrected. A factor with one level has no effect. A difference that is no more than rounding is 0.

    Args:
        runs: every arm with every seed, once each, the reference of both factors first.
        measure: what to compare by; None takes the validation accuracy.

    Raises:
        ValueError: if the runs are not such a grid, those of an arm differ in length, they lack the measure or one of
            its values is not finite, or if there is no seed whose runs are all timed.
    """
    measure = measure or Measure()
    arms = list(dict.fromkeys(run.arm for run in runs))
    _check_runs(runs, arms, measure)
    timed = _timed(runs)
    effects = _effects(measure.name, runs, lambda result: result.final[measure.name])
    effects += _effects("epoch_seconds", timed, lambda result: result.median_epoch_seconds)
    summaries = [_summarize(arm, runs, timed, measure) for arm in arms]
    return Comparison(list(runs), measure, summaries, effects, sorted({run.seed for run in timed}))


def check_grid(arms: Sequence[Arm]) -> None:
    """Raise ValueError unless the arms are every batch size with every schedule name, each once."""
    cells = sorted((arm.batch_size, arm.schedule_name) for arm in arms)
    if not arms or cells != sorted(itertools.product(*map(set, zip(*cells, strict=True)))):
        raise ValueError(
            f"The arms {[arm.label for arm in arms]} are not a whole grid; give every batch size with every schedule, "
            "each once."
        )


def _effects(measure: str, runs: Sequence[ArmRun], value: Callable[[TrainingResult], float]) -> list[Effect]:
    """Return the effects on one measure, a family whose p values are corrected together."""
    changes = _changes(runs, value)
    family = np.array([difference for *_, difference in changes])
    corrected: list[float | None] = [None] * len(changes)
    if family.size and family.shape[-1] > 1:
        corrected = list(map(float, holm(p_value(family))))
    level = ALPHA / max(1, sum(p is None or p > ALPHA for p in corrected))
    return [
        Effect(measure, factor, change, Sample(tuple(difference.tolist())), p, level, arms)
        for (factor, change, arms, difference), p in zip(changes, corrected, strict=True)
    ]


def _changes(
    runs: Sequence[ArmRun], value: Callable[[TrainingResult], float]
) -> list[tuple[str, str, tuple[str, ...], NDArray[np.float64]]]:
    """Return the factor of each change, its words, the labels of the arms compared, and its differences [seeds]."""
    cells = {(run.arm.batch_size, run.arm.schedule_name): run.arm for run in runs}
    sizes, names = (list(dict.fromkeys(levels)) for levels in zip(*cells, strict=True))
    values = {(run.arm, run.seed): value(run.result) for run in runs}
    seeds = sorted({run.seed for run in runs})
    y = np.array([[[values[cells[size, name], seed] for seed in seeds] for name in names] for size in sizes])
    changes: list[tuple[str, str, tuple[str, ...], NDArray[np.float64]]] = []
    for i, size in enumerate(sizes[1:], start=1):
        changes.append(("batch_size", f"batch {size} instead of {sizes[0]}", (), np.mean(y[i] - y[0], axis=0)))
    for j, name in enumerate(names[1:], start=1):
        changes.append(("schedule", f"{name} instead of {names[0]}", (), np.mean(y[:, j] - y[:, 0], axis=0)))
    for (i, size), (j, name) in itertools.product(enumerate(sizes[1:], start=1), enumerate(names[1:], start=1)):
        what = f"what {name} does at batch {size}, minus what it does at {sizes[0]}"
        changes.append(("interaction", what, (), y[i, j] - y[i, 0] - (y[0, j] - y[0, 0])))
        labels = cells[size, name].label, cells[sizes[0], names[0]].label
        changes.append(("both", f"{labels[0]}, instead of {labels[1]}", labels, y[i, j] - y[0, 0]))
    rounding = _ROUNDING * np.abs(y).max()
    return [(factor, words, arms, np.where(np.abs(d) > rounding, d, 0.0)) for factor, words, arms, d in changes]


def _timed(runs: Sequence[ArmRun]) -> list[ArmRun]:
    """Return the runs of the seeds that were timed in every arm, because arms are compared seed by seed."""
    untimed = {run.seed for run in runs if not run.result.is_timed}
    timed = [run for run in runs if run.seed not in untimed]
    if not timed:
        raise ValueError("No seed was timed in every arm; run at least one seed alone on the machine.")
    return timed


def _check_runs(runs: Sequence[ArmRun], arms: Sequence[Arm], measure: Measure) -> None:
    check_grid(arms)
    counts = Counter((run.arm.label, run.seed) for run in runs)
    for label, seed in itertools.product((arm.label for arm in arms), sorted({run.seed for run in runs})):
        if counts[label, seed] != 1:
            what = f"seed {seed} of {label} is {'there twice' if counts[label, seed] else 'missing'}"
            raise ValueError(f"The runs are not a whole grid: {what}; run every arm once with every seed.")
    for arm in arms:
        lengths = [len(run.result.epochs) for run in runs if run.arm == arm]
        if min(lengths) < max(lengths):
            length = f"from {min(lengths)} to {max(lengths)} epochs"
            raise ValueError(f"The runs of {arm.label} differ in length, {length}; train all of them equally long.")
    for run in runs:
        measure.check(run.result.final)
        value = run.result.final[measure.name]
        if not math.isfinite(value):
            raise ValueError(f"{measure.name} is {value} in {run.arm.label}, seed {run.seed}; it cannot be compared.")


def _summarize(arm: Arm, runs: Sequence[ArmRun], timed_runs: Sequence[ArmRun], measure: Measure) -> ArmSummary:
    results = [run.result for run in runs if run.arm == arm]
    timed = [run.result for run in timed_runs if run.arm == arm]
    steps = len(results[0].history["step"])
    epoch_seconds = statistics.median(seconds for result in timed for seconds in result.epoch_seconds)
    timed_reached = [measure.reach(result) for result in timed]
    return ArmSummary(
        arm=arm,
        steps=steps,
        epoch_seconds=epoch_seconds,
        train_seconds=Sample(tuple(result.train_seconds for result in timed)),
        # Only the first run of a batch size has anything to compile.
        compile_seconds=max(run.result.compile_seconds for run in timed_runs if run.arm.batch_size == arm.batch_size),
        examples_per_second=results[0].num_examples / epoch_seconds,
        final=Sample(tuple(result.final[measure.name] for result in results)),
        reached=tuple(measure.reach(result) for result in results),
        seconds_to_target=tuple(math.inf if each is None else each.seconds for each in timed_reached),
        warnings=tuple(describe(arm.schedule, steps, results[0].settings["steps_per_epoch"]).warnings),
    )
