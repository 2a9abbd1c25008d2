"""Equal tuning: each arm of a comparison gets the same number of trial runs on the same held-out examples.

The rate that is tuned is a schedule's highest one. The rest follows from it by a fixed rule, so each schedule has one
number to tune. A comparison of schedules, or of batch sizes, says nothing unless each arm runs at its best: C. J.
Shallue et al., Measuring the Effects of Data Parallelism on Neural Network Training, JMLR 20(112), 2019.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from clr_loop import schedules
from clr_loop.arguments import checked_types, checked_whole
from clr_loop.schedules import Schedule
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.peak import Peak, best_place, find_peak
from clr_loop.studies.comparison.plan import Plan

SEED = 2**32 - 1
"""The seed of what is measured before tuning, and of the first trials."""

# The grid reaches from 1/32 of the max_lr that a range test found to 4 times it: seven octaves, so eight rates double.
_LOWEST, _HIGHEST = 1 / 32, 4.0
# L. N. Smith, arXiv 1506.01186, section 3.3: the lower bound is a third or a fourth of the upper one.
_MAX_OVER_BASE = 4.0


def trial_seeds(num_trials: int, taken: Container[int] = ()) -> list[int]:
    """Return the seeds of trials: the highest ones, falling, without those that are taken by compared runs."""
    free = (seed for seed in itertools.count(SEED, -1) if seed not in taken)
    return list(itertools.islice(free, num_trials))


@dataclass(frozen=True)
class Trials:
    """The trial runs of an arm at one rate.

    Attributes:
        learning_rate: float, the highest rate of the schedule.
        values: the measure on the held-out examples after the last epoch, by seed; None for a run that diverged.
        seconds: float, of training, of all runs that did not diverge.
    """

    learning_rate: float
    values: tuple[float | None, ...]
    seconds: float

    @property
    def finished(self) -> tuple[float, ...] | None:
        """The values; None if a run diverged."""
        values = tuple(value for value in self.values if value is not None)
        return values if len(values) == len(self.values) else None


@dataclass(frozen=True)
class Search:
    """The trials of one arm, and the rate that follows from them.

    A rate at which a run diverged is not considered.

    Attributes:
        arm: the arm, with the schedule that its batch size and name had before it was tuned.
        trials: rising in the rate, each with as many runs.
        measure: what they are judged by.
        widened: whether the best of the first grid was at its edge, so more rates were tried beyond that edge.
    """

    arm: Arm
    trials: tuple[Trials, ...]
    measure: Measure
    widened: bool = False

    @cached_property
    def peak(self) -> Peak:
        """The rate at the top of a curve through the means, and its regret; see `peak.find_peak`.

        Raises:
            ValueError: if fewer than three rates are left, or there are fewer than two runs of each.
        """
        finished = self._finished
        if len(finished) < 3:
            tried = f"{self.trials[0].learning_rate:g} to {self.trials[-1].learning_rate:g}"
            raise ValueError(
                f"{self.arm.label} has runs that diverged at {len(self.trials) - len(finished)} of {len(self.trials)} "
                f"rates, from {tried}, and three rates without are needed; check model and data."
            )
        sign = 1.0 if self.measure.higher_is_better else -1.0
        peak = find_peak(list(finished), sign * np.array(list(finished.values())))
        return replace(peak, score=sign * peak.score)

    @property
    def learning_rate(self) -> float:
        """The rate that is picked: that of the peak, to three digits."""
        return float(f"{self.peak.learning_rate:.3g}")

    @property
    def nearest(self) -> Trials:
        """The trials at the rate nearest to the picked one, of those where no run diverged."""
        ratios = {rate: abs(math.log(rate / self.learning_rate)) for rate in self._finished}
        nearest = min(ratios, key=ratios.__getitem__)
        return next(trials for trials in self.trials if trials.learning_rate == nearest)

    @property
    def best(self) -> Trials:
        """The trials with the best mean, of those where no run diverged; of several equal ones, those in the middle."""
        finished = self._finished
        sign = 1.0 if self.measure.higher_is_better else -1.0
        rate = list(finished)[best_place([sign * sum(values) for values in finished.values()])]
        return next(trials for trials in self.trials if trials.learning_rate == rate)

    @property
    def edge(self) -> str | None:
        """Which end of the grid the best mean is at, "lower" or "upper"; None for neither.

        Where runs diverged at so many rates that fewer than three are left, it is "lower".
        """
        if len(self._finished) < 3:
            return "lower"
        ends = {self.trials[0]: "lower", self.trials[-1]: "upper"}
        return ends.get(self.best)

    @property
    def may_lie_beyond(self) -> bool:
        """Whether a better rate may lie beyond those tried: the best mean, or the interval, is at an end of them."""
        low, high = self.peak.interval
        ends = self.trials[0].learning_rate, self.trials[-1].learning_rate
        return self.edge is not None or math.isclose(low, ends[0]) or math.isclose(high, ends[1])

    @property
    def _finished(self) -> dict[float, tuple[float, ...]]:
        """The values at each rate at which no run diverged."""
        return {trials.learning_rate: trials.finished for trials in self.trials if trials.finished is not None}

    def to_json(self) -> dict[str, Any]:
        """Return the search as JSON types."""
        arm = {"batch_size": self.arm.batch_size, "schedule": self.arm.schedule_name}
        peak = {**asdict(self.peak), "learning_rate": self.learning_rate, "edge": self.edge, "widened": self.widened}
        return {**arm, **peak, "trials": [asdict(trials) for trials in self.trials]}


def pick_variances(searches: Sequence[Search], plan: Plan) -> dict[Arm, float]:
    """Return for each arm of a tuned plan the expected square of what its picked rate costs.

    With a weight w for each arm, an effect on the measure has the variance Σ w² · E[regret²] beside that of its seeds.
    A regret is never below 0, so its square is taken from 0 and not from its mean.
    """
    variances = {search.arm.label: search.peak.regret_variance for search in searches}
    return {arm: variances[arm.label] for arm in plan.arms}


def by_schedule(searches: Sequence[Search]) -> dict[str, list[Search]]:
    """Return the searches of each schedule by its name, in their order."""
    names = dict.fromkeys(search.arm.schedule_name for search in searches)
    return {name: [search for search in searches if search.arm.schedule_name == name] for name in names}


@checked_types
def tune(
    plan: Plan, centers: Mapping[int, float], num_rates: int, run_trials: Callable[[Plan], Sequence[ArmRun]]
) -> list[Search]:
    """Try the same number of rates with each arm of a plan; as long as the best is at the grid's edge, widen it there.

    All schedules of a batch size are tried at the same rates. A grid is widened by half as many rates at a time, until
    it has twice as many.

    Args:
        plan: the arms, and how long a trial takes. Its seeds should be `trial_seeds`, at least 2.
        centers: batch size → the rate to try others around: the max_lr that a range test suggests.
        num_rates: int, at least 3.
        run_trials: runs a plan on the examples that are left after `data.hold_out`, and leaves out runs that diverge;
            see `runner.run_arms`.

    Raises:
        ValueError: if num_rates is below 3, the plan has fewer than 2 seeds, a schedule has no rate to tune, or an arm
            has diverged at so many rates that no three are left.
    """
    checked_whole("tune", num_rates, low=3)
    checked_whole("trials", len(plan.seeds), low=2)
    ratio = (_HIGHEST / _LOWEST) ** (1 / (num_rates - 1))
    found: dict[Arm, Search] = {}
    for size in dict.fromkeys(arm.batch_size for arm in plan.arms):
        grid = _LOWEST * centers[size] * ratio ** np.arange(num_rates)
        rates = {arm: grid for arm in plan.arms if arm.batch_size == size}
        while rates:
            tried = _try(plan, rates, run_trials)
            found |= {arm: _joined(found.get(arm), search) for arm, search in tried.items()}
            at_edge = [found[arm] for arm in rates if found[arm].edge and len(found[arm].trials) < 2 * num_rates]
            rates = {search.arm: _beyond(search, ratio, num_rates // 2) for search in at_edge}
    return [found[arm] for arm in plan.arms]


def _joined(before: Search | None, search: Search) -> Search:
    """Return a search with the trials of an earlier one, too."""
    if before is None:
        return search
    trials = sorted((*before.trials, *search.trials), key=lambda trials: trials.learning_rate)
    return replace(search, trials=tuple(trials), widened=True)


def _beyond(search: Search, ratio: float, num_rates: int) -> Any:
    """Return so many rates beyond the edge that the best one is at."""
    factors = ratio ** np.arange(1, num_rates + 1)
    lowest, highest = search.trials[0].learning_rate, search.trials[-1].learning_rate
    return lowest / factors if search.edge == "lower" else highest * factors


def _try(plan: Plan, rates: Mapping[Arm, Any], run_trials: Callable[[Plan], Sequence[ArmRun]]) -> dict[Arm, Search]:
    """Run arms of one batch size at their rates, as arms of one plan, which compiles once."""

    def at(arm: Arm, rate: float) -> Arm:
        return Arm(arm.batch_size, f"{arm.schedule_name}_{rate:g}", at_rate(arm.schedule, rate))

    rounded = {arm: sorted(float(f"{rate:.3g}") for rate in of_arm) for arm, of_arm in rates.items()}
    trial_arms = {arm: {rate: at(arm, rate) for rate in of_arm} for arm, of_arm in rounded.items()}
    arms = [trial_arm for by_rate in trial_arms.values() for trial_arm in by_rate.values()]
    results = {(run.arm, run.seed): run.result for run in run_trials(replace(plan, arms=arms))}

    def trials(rate: float, arm: Arm) -> Trials:
        of_rate = [results.get((arm, seed)) for seed in plan.seeds]
        finals = [math.nan if result is None else result.final[plan.measure.name] for result in of_rate]
        seconds = sum(result.train_seconds for result in of_rate if result is not None)
        return Trials(rate, tuple(final if math.isfinite(final) else None for final in finals), seconds)

    return {
        arm: Search(arm, tuple(trials(rate, trial_arm) for rate, trial_arm in by_rate.items()), plan.measure)
        for arm, by_rate in trial_arms.items()
    }


def at_rate(schedule: Schedule, highest: float) -> Schedule:
    """Return the schedule with this highest rate; the base_lr of a cycle is a fourth of it, and lengths stay.

    Raises:
        ValueError: if the schedule has neither a learning_rate nor a max_lr.
    """
    config = schedule.to_config()
    name = next((name for name in ("learning_rate", "max_lr") if name in config), None)
    if name is None:
        raise ValueError(f"{type(schedule).__name__} has no highest rate to tune; leave it out, or do not tune.")
    config[name] = highest
    if "base_lr" in config:
        config["base_lr"] = highest / _MAX_OVER_BASE
    return schedules.from_config(config)
