"""Works out from the runs of a comparison what each arm gave and what each change did. Nothing here trains."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clr_loop.arguments import checked_types
from clr_loop.display import Pictured
from clr_loop.runs.result import Reached, TrainingResult
from clr_loop.schedules import describe
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.effects import Effect, Values, contrasts, corrected, effect_of
from clr_loop.studies.comparison.failures import Failures
from clr_loop.studies.comparison.measures import EPOCH_SECONDS, Measure
from clr_loop.studies.comparison.plan import check_grid
from clr_loop.studies.comparison.sample import Sample
from clr_loop.studies.comparison.statistics import ALPHA, critical_t, standard_error


@dataclass(frozen=True)
class ArmTimes:
    """What the timed runs of one arm took.

    Attributes:
        epoch_seconds: the median over all epochs.
        train_seconds: of training alone, of each run.
        compile_seconds: once for the batch size, whose arms share one program.
        examples_per_second: the examples of an epoch over `epoch_seconds`.
        seconds_to_target: what each seed took; infinite for one that did not reach the target, or diverged.
    """

    epoch_seconds: float
    train_seconds: Sample
    compile_seconds: float
    examples_per_second: float
    seconds_to_target: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the times as JSON types; an infinite one is None."""
        to_target = [_or_none(seconds) for seconds in self.seconds_to_target]
        return {**vars(self), "train_seconds": self.train_seconds.to_json(), "seconds_to_target": to_target}


@dataclass(frozen=True)
class ArmSummary:
    """What the runs of one arm gave.

    Attributes:
        arm: the arm.
        steps: int, updates in a run; 0 where every run diverged.
        times: over timed seeds; None if there are none.
        final: the measure after the last epoch, over all seeds that did not diverge.
        failures: how many runs failed, those that diverged among them.
        reached: what each seed took to reach the target; None for a seed that did not reach it, or diverged.
        warnings: what a reader should know of the schedule in a run of this length.
    """

    arm: Arm
    steps: int
    times: ArmTimes | None
    final: Sample
    failures: Failures
    reached: tuple[Reached | None, ...]
    warnings: tuple[str, ...]

    @property
    def num_reached(self) -> int:
        """How many seeds reached the target."""
        return len(self.reached) - self.reached.count(None)

    def median_to_target(self, what: str) -> float:
        """Return the median of the "steps", "examples" or "seconds" to the target; of seconds over timed seeds.

        A seed that did not reach the target counts as infinite, so the median is infinite where half did not. Seconds
        are NaN where no seed is timed.
        """
        if what == "seconds":
            return statistics.median(self.times.seconds_to_target) if self.times else math.nan
        return statistics.median(math.inf if each is None else getattr(each, what) for each in self.reached)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as JSON types; an infinite median is None."""
        return {
            **vars(self),
            "reached": [None if each is None else each._asdict() for each in self.reached],
            "to_target": {what: _or_none(self.median_to_target(what)) for what in Reached._fields},
            "arm": self.arm.label,
            "batch_size": self.arm.batch_size,
            "schedule": self.arm.schedule.to_config(),
            "times": self.times and self.times.to_json(),
            "final": self.final.to_json(),
            "failures": self.failures.to_json(),
        }


def _or_none(number: float) -> float | None:
    return number if math.isfinite(number) else None


@dataclass(frozen=True, repr=False)
class Comparison(Pictured):
    """All runs, and what follows from them.

    Attributes:
        runs: every arm with every seed, without those that diverged.
        measure: what arms are compared by.
        arms: what each arm gave.
        effects: what each change did, to the measure and to the seconds of an epoch.
        timed_seeds: the seeds that times are of, rising; the others count for the measure only.
        diverged: the arm and the seed of each run that is left out.
    """

    runs: list[ArmRun]
    measure: Measure
    arms: list[ArmSummary]
    effects: list[Effect]
    timed_seeds: list[int]
    diverged: Sequence[tuple[Arm, int]] = ()

    def __repr__(self) -> str:
        return f"Comparison({len(self.arms)} arms, {len(self.seeds)} seeds, by {self.measure.name})"

    def _rows(self) -> list[dict[str, object]]:
        return [
            {
                "arm": arm.arm.label,
                self.measure.words: arm.final.in_words(self.measure.form),
                "failed": str(arm.failures),
                "training seconds": arm.times.train_seconds.in_words(".2f") if arm.times else "not timed",
            }
            for arm in self.arms
        ]

    @property
    def trained(self) -> list[ArmSummary]:
        """The arms with a run that did not diverge: those that can be drawn."""
        return [arm for arm in self.arms if arm.final.values]

    @property
    def seeds(self) -> list[int]:
        """The seeds of each arm, rising."""
        return sorted({run.seed for run in self.runs} | {seed for _, seed in self.diverged})

    @property
    def question(self) -> Effect | None:
        """The effect that the comparison asks for: of the last arm over the first; None where there is one arm."""
        return self.effect(self.measure.name)

    def effect(self, measure: str) -> Effect | None:
        """Return the effect on a measure of the last arm over the first; None where there is one arm."""
        last, first = self.arms[-1].arm.label, self.arms[0].arm.label
        of_measure = [effect for effect in self.effects if effect.measure.name == measure]
        return next((effect for effect in of_measure if effect.arms == ((last,), (first,))), None)

    def time_ratio(self) -> tuple[float, tuple[float, float] | None]:
        """Return the seconds of an epoch of the last arm over those of the first, and the interval of the ratio.

        It is the geometric mean over the timed seeds. The interval is Student's on the logarithms; None from one seed.
        """
        timed = [run for run in self.runs if run.seed in self.timed_seeds]
        last, first = (
            {run.seed: run.result.median_epoch_seconds for run in timed if run.arm == self.arms[i].arm} for i in (-1, 0)
        )
        logs = np.log([last[seed] / first[seed] for seed in last if seed in first])
        ratio, alpha = float(np.exp(logs.mean())), self.effects[0].alpha
        if len(logs) < 2:
            return ratio, None
        factor = math.exp(critical_t(len(logs), alpha) * float(standard_error(logs)))
        return ratio, (ratio / factor, ratio * factor)

    def results(self, arm: Arm, only_timed: bool = False) -> list[TrainingResult]:
        """Return the results of an arm, by seed: of all seeds that did not diverge, or of those that are timed."""
        seeds = self.timed_seeds if only_timed else self.seeds
        results = {run.seed: run.result for run in self.runs if run.arm == arm}
        return [results[seed] for seed in seeds if seed in results]

    def by_schedule(self) -> dict[str, list[ArmSummary]]:
        """Return the arms of each schedule by its name, rising in the batch size."""
        by_size = sorted(self.arms, key=lambda summary: summary.arm.batch_size)
        names = dict.fromkeys(summary.arm.schedule_name for summary in self.arms)
        return {name: [summary for summary in by_size if summary.arm.schedule_name == name] for name in names}


@checked_types
def compare(
    runs: Sequence[ArmRun],
    measure: Measure | None = None,
    *,
    arms: Sequence[Arm] | None = None,
    diverged: Sequence[tuple[Arm, int]] = (),
    pick_variances: Mapping[Arm, float] | None = None,
    alpha: float = ALPHA,
) -> Comparison:
    """Work out what each arm gave, and what each change from the first batch size and the first schedule did.

    The effects are those of `effects.contrasts`, on the measure and, over the timed seeds, on the epoch seconds; the p
    values of all of them are corrected together. A difference that is no more than rounding is 0.

    Args:
        runs: every arm with every seed, once each, the reference of both factors first.
        measure: what to compare by; None takes the validation accuracy.
        arms: all of them, the reference of both factors first; None takes those of the runs, in their order.
        diverged: the arm and the seed of each run whose loss did not stay finite; they count as failed.
        pick_variances: arm → what the choice of its rate adds to the variance of its mean; see `tuning`.
        alpha: the chance that something is shown where nothing is: of one look, see `statistics.LEVELS`.

    Raises:
        ValueError: if the runs are not such a grid, those of an arm differ in length, they lack the measure or one of
            its values is not finite, or if every run diverged.
    """
    measure = measure or Measure()
    arms = list(arms or dict.fromkeys([*(run.arm for run in runs), *(arm for arm, _ in diverged)]))
    _check_runs(runs, diverged, arms, measure)
    untimed = {run.seed for run in runs if not run.result.is_timed}
    timed = [run for run in runs if run.seed not in untimed]
    values = _values(arms, runs, diverged, measure, lambda result: result.final[measure.name], pick_variances or {})
    compared = [values]
    if timed:
        seconds = Measure(EPOCH_SECONDS, higher_is_better=False)
        compared.append(_values(arms, timed, (), seconds, lambda result: result.median_epoch_seconds, {}))
    effects = [effect_of(each, contrast, alpha) for each in compared for contrast in contrasts(each)]
    summaries = [_summarize(arm, runs, timed, values) for arm in arms]
    timed_seeds = sorted({run.seed for run in timed})
    return Comparison(list(runs), measure, summaries, corrected(effects), timed_seeds, list(diverged))


def _values(
    arms: Sequence[Arm],
    runs: Sequence[ArmRun],
    diverged: Sequence[tuple[Arm, int]],
    measure: Measure,
    value: Callable[[TrainingResult], float],
    pick_variances: Mapping[Arm, float],
) -> Values:
    """Return a measure of the runs as an array; NaN where a run is not there."""
    sizes = list(dict.fromkeys(arm.batch_size for arm in arms))
    names = list(dict.fromkeys(arm.schedule_name for arm in arms))
    seeds = sorted({run.seed for run in runs} | {seed for _, seed in diverged})
    y = np.full((len(sizes), len(names), len(seeds)), np.nan)
    variances = np.zeros(y.shape[:2])
    for run in runs:
        place = sizes.index(run.arm.batch_size), names.index(run.arm.schedule_name)
        y[(*place, seeds.index(run.seed))] = value(run.result)
        variances[place] = pick_variances.get(run.arm, 0.0)
    return Values(measure, sizes, names, y, variances, fails=measure.name != EPOCH_SECONDS)


def _check_runs(
    runs: Sequence[ArmRun], diverged: Sequence[tuple[Arm, int]], arms: Sequence[Arm], measure: Measure
) -> None:
    if diverged and not runs:
        raise ValueError("Every run diverged; choose lower learning rates.")
    check_grid(arms)
    for arm in (*(run.arm for run in runs), *(arm for arm, _ in diverged)):
        if arm not in arms:
            raise ValueError(f"{arm.label} has a run, but it is not among the arms; give all of them.")
    counts = Counter((run.arm.label, run.seed) for run in runs)
    counts.update((arm.label, seed) for arm, seed in diverged)
    for label, seed in itertools.product((arm.label for arm in arms), sorted({seed for _, seed in counts})):
        if counts[label, seed] != 1:
            what = f"seed {seed} of {label} is {'there twice' if counts[label, seed] else 'missing'}"
            raise ValueError(f"The runs are not a whole grid: {what}; run every arm once with every seed.")
    for arm in arms:
        lengths = [len(run.result.epochs) for run in runs if run.arm == arm]
        if len(set(lengths)) > 1:
            length = f"from {min(lengths)} to {max(lengths)} epochs"
            raise ValueError(f"The runs of {arm.label} differ in length, {length}; train all of them equally long.")
    for run in runs:
        measure.check(run.result.final)
        value = run.result.final[measure.name]
        if not math.isfinite(value):
            raise ValueError(f"{measure.name} is {value} in {run.arm.label}, seed {run.seed}; it cannot be compared.")


def _summarize(arm: Arm, runs: Sequence[ArmRun], timed_runs: Sequence[ArmRun], values: Values) -> ArmSummary:
    measure = values.measure
    place = values.batch_sizes.index(arm.batch_size), values.schedules.index(arm.schedule_name)
    num_diverged = int(np.isnan(values.y[place]).sum())
    results = [run.result for run in runs if run.arm == arm]
    steps = len(results[0].history["step"]) if results else 0
    warnings = describe(arm.schedule, steps, results[0].settings["steps_per_epoch"]).warnings if results else ()
    return ArmSummary(
        arm=arm,
        steps=steps,
        times=_times(arm, timed_runs, measure, num_diverged),
        final=Sample(tuple(result.final[measure.name] for result in results)),
        failures=values.failures(*place),
        reached=(*(measure.reach(result) for result in results), *[None] * num_diverged),
        warnings=tuple(warnings),
    )


def _times(arm: Arm, timed_runs: Sequence[ArmRun], measure: Measure, num_diverged: int) -> ArmTimes | None:
    results = [run.result for run in timed_runs if run.arm == arm]
    if not results:
        return None
    epoch_seconds = statistics.median(seconds for result in results for seconds in result.epoch_seconds)
    reached = [*(measure.reach(result) for result in results), *[None] * num_diverged]
    return ArmTimes(
        epoch_seconds=epoch_seconds,
        train_seconds=Sample(tuple(result.train_seconds for result in results)),
        # Only the first run of a batch size in a process has anything to compile.
        compile_seconds=max(run.result.compile_seconds for run in timed_runs if run.arm.batch_size == arm.batch_size),
        examples_per_second=results[0].num_examples / epoch_seconds,
        seconds_to_target=tuple(math.inf if each is None else each.seconds for each in reached),
    )
