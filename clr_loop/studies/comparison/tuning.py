"""Equal tuning: each arm of a comparison gets the same number of trial runs on the same held-out examples.

The rate that is tuned is a schedule's highest one. The rest follows from it by a fixed rule, so each schedule has one
number to tune. A comparison of schedules, or of batch sizes, says nothing unless each arm runs at its best: C. J.
Shallue et al., Measuring the Effects of Data Parallelism on Neural Network Training, JMLR 20(112), 2019.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clr_loop import schedules
from clr_loop.arguments import checked_types, checked_whole
from clr_loop.schedules import Schedule
from clr_loop.studies.arms import Arm, ArmRun
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.runner import Plan

SEED = 2**32 - 1
"""The seed of all trials. Compared runs take others."""

# The grid reaches from 1/32 of the max_lr that a range test found to 4 times it: seven octaves, so eight trials double.
_LOWEST, _HIGHEST = 1 / 32, 4.0
# L. N. Smith, arXiv 1506.01186, section 3.3: the lower bound is a third or a fourth of the upper one.
_MAX_OVER_BASE = 4.0


@dataclass(frozen=True)
class Trial:
    """A trial run.

    Attributes:
        learning_rate: float, the highest rate of its schedule.
        value: the measure on the held-out examples after the last epoch; None if the run diverged.
        seconds: float, of training; 0 if the run diverged.
    """

    learning_rate: float
    value: float | None
    seconds: float


@dataclass(frozen=True)
class Search:
    """The trials of one arm.

    Attributes:
        arm: the arm, with the schedule that its batch size and name had before it was tuned.
        trials: rising in the rate.
        measure: what they are judged by.
        widened: whether the best of the first grid was at its edge, so more trials were made beyond that edge.
    """

    arm: Arm
    trials: tuple[Trial, ...]
    measure: Measure
    widened: bool = False

    @property
    def best(self) -> Trial:
        """The best trial; of equal ones the one with the lowest rate. Raises ValueError if all have diverged."""
        finished = [trial for trial in self.trials if trial.value is not None and math.isfinite(trial.value)]
        if not finished:
            rates = f"{self.trials[0].learning_rate:g} to {self.trials[-1].learning_rate:g}"
            raise ValueError(f"{self.arm.label} diverged in each trial, at rates from {rates}; check model and data.")
        sign = 1.0 if self.measure.higher_is_better else -1.0
        return max(finished, key=lambda trial: (sign * (trial.value or 0.0), -trial.learning_rate))

    @property
    def edge(self) -> str | None:
        """Which end of the grid the best trial is at, "lower" or "upper"; None for neither."""
        ends = {self.trials[0]: "lower", self.trials[-1]: "upper"}
        return ends.get(self.best)

    def to_json(self) -> dict[str, Any]:
        """Return the search as JSON types."""
        trials = [dataclasses.asdict(trial) for trial in self.trials]
        arm = {"batch_size": self.arm.batch_size, "schedule": self.arm.schedule_name}
        return {**arm, "best": self.best.learning_rate, "edge": self.edge, "widened": self.widened, "trials": trials}


def by_schedule(searches: Sequence[Search]) -> dict[str, list[Search]]:
    """Return the searches of each schedule by its name, in their order."""
    names = dict.fromkeys(search.arm.schedule_name for search in searches)
    return {name: [search for search in searches if search.arm.schedule_name == name] for name in names}


@checked_types
def tune(
    plan: Plan, centers: Mapping[int, float], num_trials: int, run_trials: Callable[[Plan], Sequence[ArmRun]]
) -> list[Search]:
    """Try the same number of rates with each arm of a plan; if the best is at the grid's edge, widen it there, once.

    All schedules of a batch size are tried at the same rates. A grid that is widened gets half as many more.

    Args:
        plan: the arms, and how long a trial takes. Its seed should be `SEED` alone.
        centers: batch size → the rate to try others around: the max_lr that a range test suggests.
        num_trials: int, at least 3.
        run_trials: runs a plan on the examples that are left after `data.hold_out`, and leaves out runs that diverge;
            see `runner.run_arms`.

    Raises:
        ValueError: if num_trials is below 3, a schedule has no rate to tune, or an arm diverged at each rate.
    """
    checked_whole("tune", num_trials, low=3)
    searches = []
    for size in dict.fromkeys(arm.batch_size for arm in plan.arms):
        arms = [arm for arm in plan.arms if arm.batch_size == size]
        rates = np.geomspace(_LOWEST * centers[size], _HIGHEST * centers[size], num_trials)
        first = _try(plan, {arm: rates for arm in arms}, run_trials)
        ratio = (rates[-1] / rates[0]) ** (1 / (num_trials - 1))
        factors = ratio ** np.arange(1, num_trials // 2 + 1)
        beyond = {"lower": rates[0] / factors, "upper": rates[-1] * factors}
        at_edge = {search.arm: beyond[search.edge] for search in first if search.edge is not None}
        more = {search.arm: search.trials for search in (_try(plan, at_edge, run_trials) if at_edge else ())}
        for search in first:
            trials = sorted([*search.trials, *more.get(search.arm, ())], key=lambda trial: trial.learning_rate)
            searches.append(dataclasses.replace(search, trials=tuple(trials), widened=search.arm in more))
    return searches


def _try(plan: Plan, rates: Mapping[Arm, Any], run_trials: Callable[[Plan], Sequence[ArmRun]]) -> list[Search]:
    """Run arms of one batch size at their rates, as arms of one plan, which compiles once."""

    def at(arm: Arm, rate: float) -> Arm:
        return Arm(arm.batch_size, f"{arm.schedule_name}_{rate:g}", at_rate(arm.schedule, rate))

    rounded = {arm: [float(f"{rate:.3g}") for rate in of_arm] for arm, of_arm in rates.items()}
    trial_arms = {arm: {rate: at(arm, rate) for rate in of_arm} for arm, of_arm in rounded.items()}
    arms = [trial_arm for by_rate in trial_arms.values() for trial_arm in by_rate.values()]
    results = {run.arm: run.result for run in run_trials(dataclasses.replace(plan, arms=arms))}

    def trial(rate: float, arm: Arm) -> Trial:
        if arm not in results:
            return Trial(rate, None, 0.0)
        return Trial(rate, results[arm].final[plan.measure.name], results[arm].train_seconds)

    return [
        Search(arm, tuple(trial(rate, trial_arm) for rate, trial_arm in by_rate.items()), plan.measure)
        for arm, by_rate in trial_arms.items()
    ]


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
