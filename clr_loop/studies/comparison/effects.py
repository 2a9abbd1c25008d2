"""What each change did, with its spread over seeds, and what may be said of it.

A seed means the same initial weights and the same order of the data in every arm, so arms are compared seed by seed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clr_loop.studies.comparison import failures
from clr_loop.studies.comparison.failures import Failures
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.sample import Sample
from clr_loop.studies.comparison.statistics import ALPHA, critical_t, detectable_size, holm, p_value, standard_error

FEWEST_SEEDS = 4
"""From fewer seeds nothing is said."""

# Differences of a few values of size 1 are exact up to this; anything smaller is rounding.
_ROUNDING = 16 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Values:
    """A measure in every run of a comparison.

    Attributes:
        measure: the measure.
        batch_sizes, schedules: the levels of the two factors, the reference first.
        y: float [batch sizes, schedules, seeds]; NaN for a run that diverged.
        pick_variances: float [batch sizes, schedules]: what the choice of each arm's rate adds to the variance of its
            mean; 0 where no rate was tuned.
        fails: whether failures are counted; they are those of the measure that is compared, and not of its seconds.
    """

    measure: Measure
    batch_sizes: Sequence[int]
    schedules: Sequence[str]
    y: NDArray[np.float64]
    pick_variances: NDArray[np.float64] | float = 0.0
    fails: bool = True

    @property
    def failed(self) -> NDArray[np.bool_]:
        """Which runs have failed, bool as `y`."""
        if not self.fails:
            return np.isnan(self.y)
        return failures.failed(self.y, bool(self.measure.higher_is_better), self.measure.failure_bound)

    def label(self, size: int, schedule: int) -> str:
        """Return what people call an arm, given by its place in `y`."""
        return f"{self.schedules[schedule]}, batch {self.batch_sizes[size]}"

    def failures(self, size: int, schedule: int) -> Failures:
        """Return how many runs of an arm have failed, given by its place in `y`."""
        of_arm = self.failed[size, schedule]
        return Failures(int(of_arm.sum()), len(of_arm))


@dataclass(frozen=True)
class Contrast:
    """A change: what to add up of the arms.

    Attributes:
        factor: "batch_size", "schedule", "interaction" or "both".
        words: what was changed.
        weights: float [batch sizes, schedules].
    """

    factor: str
    words: str
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Effect:
    """What a change did to a measure: the value with the change minus the value without it, seed by seed.

    It speaks of the typical run: seeds with which one of the arms failed are left out, and failures are counted beside.

    Attributes:
        measure, contrast: what changed, and by which change.
        arms: the labels of the arms compared: those with the change, and those without it.
        differences: one for each seed with which none of these arms failed; those of seconds are of timed seeds.
        mean_of_all: the mean difference of all seeds, with failed runs. A run that diverged is infinitely bad; NaN if
            runs of both sides did.
        failed: of the arms with the change, and of those without it; 0 where failures are not counted.
        pick_variance: what the choice of the rates adds to the variance of the mean.
        silence: why nothing is said of the difference; "" if something is.
        alpha: the chance, in all effects of a comparison together, that something is shown where nothing is.
        p_corrected, failures_p_corrected: the p values of `p` and of Fisher's exact test, corrected over the family of
            all that is tested in the comparison; None where nothing is tested.
        level: the uncorrected p value up to which this effect would be shown beside those that are: `alpha` over the
            number of tests of the family that show nothing.
    """

    measure: Measure
    contrast: Contrast
    arms: tuple[tuple[str, ...], tuple[str, ...]]
    differences: tuple[float, ...]
    mean_of_all: float
    failed: tuple[Failures, Failures]
    pick_variance: float = 0.0
    silence: str = ""
    alpha: float = ALPHA
    p_corrected: float | None = None
    failures_p_corrected: float | None = None
    level: float = ALPHA

    @property
    def factor(self) -> str:
        """The factor that was changed."""
        return self.contrast.factor

    @property
    def change(self) -> str:
        """What was changed, in words."""
        return self.contrast.words

    @property
    def mean(self) -> float:
        """The mean difference; NaN if every seed is left out."""
        return Sample(self.differences).mean

    @property
    def p(self) -> float | None:
        """The p value that the change does nothing; None if nothing is said."""
        return None if self.silence else float(p_value(self.differences, self.pick_variance))

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval of the mean, of 95% in a comparison of one look; None if there is no spread to know it by."""
        return self._interval(self.alpha)

    def _interval(self, level: float) -> tuple[float, float] | None:
        if len(self.differences) < 2 or not (error := float(standard_error(self.differences, self.pick_variance))):
            return None
        half = critical_t(len(self.differences), level) * error
        # No mean of differences of shares lies beyond these.
        most = float(np.abs(self.contrast.weights).sum()) / 2 if self.measure.is_share else math.inf
        return max(self.mean - half, -most), min(self.mean + half, most)

    @property
    def can_fail(self) -> bool:
        """Whether there are failures to compare: some run has failed, and of an interaction nobody asks."""
        return self.factor != "interaction" and any(each.num_failed for each in self.failed)

    @property
    def is_better(self) -> bool:
        """Whether the mean difference is an improvement."""
        return (self.mean > 0.0) == self.measure.higher_is_better

    @property
    def failures_differ(self) -> bool:
        """Whether the arms with the change are shown to fail more often, or less often, than those without it."""
        return self.failures_p_corrected is not None and self.failures_p_corrected <= self.alpha

    @property
    def fails_more(self) -> bool:
        """Whether more of the runs with the change have failed, be it by chance."""
        return self.failed[0].share > self.failed[1].share

    @property
    def fails_less(self) -> bool:
        """Whether fewer of the runs with the change have failed, be it by chance."""
        return self.failed[0].share < self.failed[1].share

    @property
    def failures_oppose(self) -> bool:
        """Whether failures speak against the difference of the typical runs.

        The better side then fails more often, and this is shown, or turns the mean of all runs the other way.
        """
        better_fails_more = self.fails_more if self.is_better else self.fails_less
        return better_fails_more and (self.failures_differ or not self.mean_of_all * self.mean > 0.0)

    @property
    def verdict(self) -> str:
        """What the seeds say of the typical run, by a fixed rule.

        - "none": too few seeds, or too many failures; `silence` has the reason.
        - "shown": the corrected p value is at most `alpha`.
        - "equivalent": the interval of two one-sided tests lies between minus and plus the measure's margin (D. J.
          Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987).
        - "not worse": that interval ends above minus the margin, in the direction in which the measure gets better.
        - "undecided": anything else.
        """
        if self.p_corrected is None:
            return "none"
        if self.p_corrected <= self.alpha:
            return "shown"
        margin, interval = self.measure.margin, self._interval(2.0 * self.level)
        if margin is None or interval is None:
            return "undecided"
        low, high = interval
        if -margin < low and high < margin:
            return "equivalent"
        worst = low if self.measure.higher_is_better else -high
        return "not worse" if worst > -margin and self.factor != "interaction" else "undecided"

    @property
    def detectable_difference(self) -> float | None:
        """The smallest difference that this many seeds would have shown with 80% power.

        None where one is shown, nothing is said, or the measure cannot differ so much.
        """
        if self.verdict in ("none", "shown"):
            return None
        n = len(self.differences)
        size = detectable_size(n, self.level) * float(standard_error(self.differences, self.pick_variance)) * n**0.5
        return None if not size or (self.measure.is_share and size >= 1.0) else size

    def to_json(self) -> dict[str, Any]:
        """Return the effect as JSON types."""
        names = ("factor", "change", "silence", "p", "p_corrected", "failures_p_corrected", "failures_oppose",
                 "verdict", "interval", "pick_variance", "detectable_difference")  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        failed = [each.to_json() for each in self.failed]
        sample = Sample(self.differences).to_json()
        return {"measure": self.measure.name, **own, "arms": self.arms, "failures": failed, **sample}


def contrasts(values: Values) -> list[Contrast]:
    """Return every change from the first batch size and the first schedule.

    With y a value of one seed, b and s the first batch size and schedule, B and S another of each, they are

        batch_size   mean over schedules of y(B) - y(b)
        schedule     mean over batch sizes of y(S) - y(s)
        interaction  [y(B, S) - y(B, s)] - [y(b, S) - y(b, s)]
        both         y(B, S) - y(b, s), the article's own comparison

    A factor with one level has none.
    """
    sizes, names = values.batch_sizes, values.schedules
    size_levels, name_levels = np.eye(len(sizes)), np.eye(len(names))
    everywhere = np.ones(len(sizes)) / len(sizes), np.ones(len(names)) / len(names)
    found = []
    for i, size in enumerate(sizes[1:], start=1):
        weights = np.outer(size_levels[i] - size_levels[0], everywhere[1])
        found.append(Contrast("batch_size", f"batch {size} instead of {sizes[0]}", weights))
    for j, name in enumerate(names[1:], start=1):
        weights = np.outer(everywhere[0], name_levels[j] - name_levels[0])
        found.append(Contrast("schedule", f"{name} instead of {names[0]}", weights))
    for i, j in itertools.product(range(1, len(sizes)), range(1, len(names))):
        words = f"what {names[j]} does at batch {sizes[i]}, minus what it does at {sizes[0]}"
        by_size, by_name = size_levels[i] - size_levels[0], name_levels[j] - name_levels[0]
        found.append(Contrast("interaction", words, np.outer(by_size, by_name)))
        both = np.outer(size_levels[i], name_levels[j]) - np.outer(size_levels[0], name_levels[0])
        found.append(Contrast("both", f"{values.label(i, j)}, instead of {values.label(0, 0)}", both))
    return found


def effect_of(values: Values, contrast: Contrast, alpha: float = ALPHA) -> Effect:
    """Return what a change did to a measure; its p values are not corrected yet, see `corrected`."""
    weights, failed = contrast.weights, values.failed
    seeds = ~failed[weights != 0.0].any(axis=0)
    worst = -np.inf if values.measure.higher_is_better else np.inf
    of_all = np.where(weights[..., np.newaxis] != 0.0, np.where(np.isnan(values.y), worst, values.y), 0.0)
    with np.errstate(invalid="ignore"):  # Both sides diverged.
        mean_of_all = float(np.einsum("ij,ijk->k", weights, of_all).mean())
    y = np.where(seeds, np.nan_to_num(values.y), 0.0)
    differences = np.einsum("ij,ijk->k", weights, y)[seeds]
    rounding = _ROUNDING * float(np.abs(y).max(initial=0.0))
    if differences.size and np.ptp(differences) <= rounding:
        differences[:] = differences[0]
    differences[np.abs(differences) <= rounding] = 0.0
    cells = [np.argwhere(side) for side in (weights > 0.0, weights < 0.0)]
    counted = failed & values.fails
    counts = [Failures(int(counted[tuple(side.T)].sum()), len(side) * failed.shape[-1]) for side in cells]
    return Effect(
        measure=values.measure,
        contrast=contrast,
        arms=(tuple(values.label(i, j) for i, j in cells[0]), tuple(values.label(i, j) for i, j in cells[1])),
        differences=tuple(differences.tolist()),
        mean_of_all=mean_of_all,
        failed=(counts[0], counts[1]),
        pick_variance=float(np.sum(weights**2 * values.pick_variances)),
        silence=_silence(values, contrast, int(seeds.sum())),
        alpha=alpha,
    )


def _silence(values: Values, contrast: Contrast, num_seeds: int) -> str:
    """Return why nothing is said of a change, or ""."""
    num_runs = values.y.shape[-1]
    if num_runs < FEWEST_SEEDS:
        return f"a verdict needs at least {FEWEST_SEEDS} seeds"
    for i, j in np.argwhere(contrast.weights):
        of_arm = values.failures(i, j)
        if of_arm.share > failures.LARGEST_SHARE:
            return f"{values.label(i, j)} failed in {of_arm.num_failed} of {num_runs} runs, so it has no typical run"
    if num_seeds < FEWEST_SEEDS:
        return f"only {num_seeds} seeds are left with which no arm failed, and a verdict needs {FEWEST_SEEDS}"
    return ""


def corrected(effects: Sequence[Effect]) -> list[Effect]:
    """Return the effects with their p values corrected over all of them (Holm).

    The family holds a t test for each effect of which something is said, and Fisher's exact test for each, but for
    interactions, of whose arms some run has failed.
    """
    means = [i for i, effect in enumerate(effects) if effect.p is not None]
    counts = [i for i, effect in enumerate(effects) if effect.can_fail]
    p = [effects[i].p or 0.0 for i in means] + [failures.p_value(*effects[i].failed) for i in counts]
    family = holm(p).tolist() if p else []
    num_open = sum(value > effects[0].alpha for value in family)
    of_mean = dict(zip(means, family[: len(means)], strict=True))
    of_count = dict(zip(counts, family[len(means) :], strict=True))
    return [
        dataclasses.replace(
            effect,
            p_corrected=of_mean.get(i),
            failures_p_corrected=of_count.get(i),
            level=effect.alpha / max(1, num_open),
        )
        for i, effect in enumerate(effects)
    ]
