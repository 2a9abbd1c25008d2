"""Reads learning rates off the curves of an LR range test; names and explains each, or says why there is none.

A curve is read up to where the loss diverges. Its smoothing looks to both sides, so a bend stays at its rate. Distances
are taken along the logarithm of the rate and never by index: one step of a linear sweep spans decades at the low end
and almost nothing at the high end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clr_loop.arguments import spelled
from clr_loop.studies.range_test.curves import Curve, Values, smooth

# A change counts if it exceeds both a share of the level where it began, and what noise alone may do over a whole
# sweep, in standard deviations of the smoothed curve.
_CHANGE = 0.05
_NOISE = 8.0

# Shares of a rise or a fall: it has begun; it is nearly over. The plateau of the score lies this close to its peak.
_BEGUN = 0.1
_NEARLY_OVER = 0.9
_PLATEAU = 0.05

_MIN_POINTS = 30
# Below this share of its first value a loss has nothing left to fall, and its gradient nothing to do harm with.
_FITTED = 1e-3
# Seeds whose highest max_lr is more than this many times their lowest do not agree.
_MOST_SPREAD = 3.0


class NoSuggestionError(ValueError):
    """The curves do not support a suggestion. The message says why, and what to change."""


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, read from the curve of each seed.

    Attributes:
        name: "base_lr", "max_lr", "steepest" or "valley".
        explanation: how it was found.
        rates: one for each seed, None where its curve does not support one.
        reasons: for each such None why, and what to change.
    """

    name: str
    explanation: str
    rates: tuple[float | None, ...]
    reasons: tuple[str, ...]

    @property
    def known_rates(self) -> list[float]:
        """The rates without the Nones, rising."""
        return sorted(rate for rate in self.rates if rate is not None)

    @property
    def learning_rate(self) -> float | None:
        """The median along the logarithm; None unless more than half of the seeds have a rate."""
        return None if len(self.reasons) >= len(self.rates) / 2 else float(np.exp(np.median(np.log(self.known_rates))))

    def __str__(self) -> str:
        """`max_lr 0.012 (0.01–0.02 over 3 seeds): <how>`, or `max_lr: no suggestion: <why, what to change>`."""
        if self.learning_rate is None:
            return f"{self.name}: no suggestion: {self.reasons[0]}"
        low, high = self.known_rates[0], self.known_rates[-1]
        among = f" of {len(self.rates)}" if self.reasons else ""
        band = f" ({low:.2g}–{high:.2g} over {len(self.known_rates)}{among} seeds)" if len(self.rates) > 1 else ""
        return f"{self.name} {self.learning_rate:.2g}{band}: {self.explanation}"

    def to_json(self) -> dict[str, Any]:
        """Return the suggestion as JSON types, with its rate and the lowest and highest of the seeds."""
        low, high = min(self.known_rates, default=None), max(self.known_rates, default=None)
        return {**vars(self), "learning_rate": self.learning_rate, "low": low, "high": high}


@dataclass(frozen=True)
class Bounds:
    """The bounds and the half cycle of a cyclical schedule."""

    base_lr: float
    max_lr: float
    step_size: int

    def __str__(self) -> str:
        """`base_lr=…, max_lr=…, step_size=…`; in a command its flags."""
        return spelled(**vars(self))


def suggest(curves: Sequence[Curve]) -> list[Suggestion]:
    """Read four suggestions from the curves of one or more seeds: base_lr, max_lr, steepest and valley.

    The `explanation` of each says how it is found. Middles are taken along the logarithm of the rate. The first two are
    Smith's pair: where the accuracy begins to rise, and where it slows, becomes ragged or falls. Slowing and falling
    often lie two decades apart. Their middle keeps clear of the fall, because a cycle would stay there longer than a
    sweep does. The other two are common practice. max_lr and valley need a sweep that went on until the loss turned.

    Args:
        curves: one for each seed, at least one, all of one measure.

    Returns:
        The four, in this order, each with or without a rate.

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3.
    """
    return [_suggestion(name, explanation, rule, curves) for name, (explanation, rule) in _RULES.items()]


def bounds(suggestions: Sequence[Suggestion], total_steps: int) -> Bounds:
    """Return base_lr and max_lr, to two digits, with the step_size of two whole cycles in a run.

    Args:
        suggestions: from `suggest`.
        total_steps: int, at least 1, of the planned run. In fewer than 4 steps a step_size of 1 is the shortest.

    Raises:
        NoSuggestionError: if base_lr or max_lr has no rate, or base_lr is not below max_lr.
    """
    pair = {suggestion.name: suggestion for suggestion in suggestions if suggestion.name in ("base_lr", "max_lr")}
    for suggestion in pair.values():
        if suggestion.learning_rate is None:
            raise NoSuggestionError(f"no suggestion: {suggestion.reasons[0]}.")
    base_lr, max_lr = (float(f"{pair[name].learning_rate:.2g}") for name in ("base_lr", "max_lr"))
    if not base_lr < max_lr:
        what = f"base_lr {base_lr:g} is not below max_lr {max_lr:g}, so the seeds do not agree"
        raise NoSuggestionError(f"no suggestion: {what}; raise {spelled('num_steps')}.")
    return Bounds(base_lr, max_lr, max(total_steps // 4, 1))


def disagreement(suggestions: Sequence[Suggestion]) -> str | None:
    """Return a sentence on the seeds' max_lr where they differ more than threefold, else None."""
    rates = next(suggestion for suggestion in suggestions if suggestion.name == "max_lr").known_rates
    if not rates or rates[-1] <= _MOST_SPREAD * rates[0]:
        return None
    return (
        f"the seeds do not agree on max_lr: the highest, {rates[-1]:.2g}, is {rates[-1] / rates[0]:.2g} times the "
        f"lowest, {rates[0]:.2g}; raise {spelled('seeds')}, or tune the rate"
    )


class _Rise:
    """How far a smoothed curve rises: to its peak, from its lowest value before it.

    Args:
        raw, smoothed: float [n] each.
        time_constant: of the smoothing.
        is_share: a share, such as an accuracy, is measured against the whole, all else against its own size.
    """

    def __init__(self, raw: Values, smoothed: Values, time_constant: float, is_share: bool = False) -> None:
        self.values = smoothed
        self.peak = int(np.argmax(smoothed))
        until_peak = smoothed[: self.peak + 1]
        self.lowest = float(until_peak.min())
        self.height = float(smoothed[self.peak]) - self.lowest
        self.begun = int(np.flatnonzero(until_peak <= self.lowest + _BEGUN * self.height)[-1])
        # Differences of neighbors hold the noise alone, √2 times; their median ignores spikes. The average to both
        # sides leaves 1 / (4 · time constant) of its variance.
        deviation = 1.4826 * float(np.median(np.abs(np.diff(raw)))) / math.sqrt(2.0)
        noise = _NOISE * deviation / math.sqrt(max(4.0 * time_constant, 1.0))
        self.threshold = max(_CHANGE * (1.0 if is_share else float(np.abs(until_peak).max())), noise)

    @property
    def is_clear(self) -> bool:
        """Whether it is more than noise, and enough to be read."""
        return self.height > self.threshold

    def made(self, share: float) -> int:
        """Return the first step, after the rise has begun, at which this share of it is made."""
        return self.begun + int(np.argmax(self.values[self.begun :] >= self.lowest + share * self.height))


class _Reading:
    """The usable part of a curve, smoothed: the fall of its loss, as a rise of -loss, and the rise of its score.

    Raises:
        NoSuggestionError: if it is too short, or its loss never falls.
    """

    def __init__(self, curve: Curve) -> None:
        rates = curve.learning_rate[: curve.num_usable]
        # A rate of 0 has no logarithm; two rates that are equal in float32 have no slope between them.
        kept = np.flatnonzero((rates > 0.0) & (np.diff(rates, prepend=-1.0) > 0.0))
        self.diverged = curve.num_usable < len(curve.loss)
        if len(kept) < _MIN_POINTS:
            what = "before the loss diverged" if self.diverged else "in the sweep"
            cure = f"raise {spelled('num_steps')}"
            cure = f"lower {spelled('start_lr')} or {cure}" if self.diverged else cure
            raise NoSuggestionError(f"{len(kept)} steps {what} are too few to read; {cure}")
        self.curve = curve
        self.rates = rates[kept]
        self.log_rates = np.log10(self.rates)
        self.margin = math.ceil(3 * curve.time_constant)  # A bend closer to an end than this may lie beyond it.
        loss, score = curve.loss[kept], curve.score[kept]
        self.fall = _Rise(-loss, -curve.smoothed_loss[kept], curve.time_constant)
        self._check_falls()
        is_share = not curve.is_loss and score.min() >= 0.0 and score.max() <= 1.0
        self.rise = _Rise(score, curve.smoothed_score[kept], curve.time_constant, is_share)

    def middle(self, first: int, last: int) -> float:
        """Return the rate in the middle between two steps, along the logarithm."""
        return float(np.sqrt(self.rates[first] * self.rates[last]))

    def check_begins_inside(self, step: int, what: str) -> None:
        """Refuse a bend at the low end of the sweep."""
        if step < self.margin:
            steps = np.diff(self.log_rates)
            is_linear = steps[0] > 2.0 * steps.mean()
            cure = f"take {spelled(sweep='exponential')}" if is_linear else f"lower {spelled('start_lr')}"
            raise NoSuggestionError(f"{what} from the first rates on, {self.rates[0]:.2g}; {cure}")

    def check_ends_inside(self, step: int, what: str) -> None:
        """Refuse a bend at the high end of a sweep that might have gone on."""
        if not self.diverged and step >= len(self.rates) - self.margin:
            raise NoSuggestionError(f"{what} up to the last rate, {self.rates[-1]:.2g}; raise {spelled('end_lr')}")

    def check_turned(self) -> None:
        """Refuse a sweep that ended before the loss turned: nobody knows what higher rates would have done."""
        fall = self.fall
        if fall.values[fall.peak] - fall.values[fall.peak :].min() <= fall.threshold:
            if not self.diverged and 0.0 <= -fall.values[-1] < _FITTED * -fall.values[0]:
                raise NoSuggestionError(
                    f"the loss falls to {-fall.values[-1]:.1g} and does not rise again, because the model fits its "
                    f"examples before the rate is too high for it; lower {spelled('num_steps')}, or give more examples"
                )
            self.check_ends_inside(len(self.rates), "the loss does not rise again")

    def check_score_rises(self) -> None:
        """Refuse a curve whose score stays where it is."""
        if not self.rise.is_clear:
            where = f"stays near {self.rise.lowest:.2g} while the loss falls"
            raise NoSuggestionError(f"the {self.curve.measure} {where}; raise {spelled('num_steps')}")

    def _check_falls(self) -> None:
        if self.fall.is_clear:
            return
        end = f"up to a rate of {self.rates[-1]:.2g}"
        if self.diverged or self.fall.values[-1] < self.fall.lowest - self.fall.threshold:
            raise NoSuggestionError(
                f"the loss rose, {end}, without ever having fallen; raise {spelled('num_steps')} or lower "
                f"{spelled('start_lr')}"
            )
        raise NoSuggestionError(
            f"the curve is flat: the loss stays near {-self.fall.lowest:.3g} {end}; raise {spelled('end_lr')} or "
            f"{spelled('num_steps')}"
        )


def _base_lr(reading: _Reading) -> float:
    reading.check_score_rises()
    rise, _ = _verbs(reading.curve)
    reading.check_begins_inside(reading.rise.begun, f"the {reading.curve.measure} {rise}s")
    return float(reading.rates[reading.rise.begun])


def _max_lr(reading: _Reading) -> float:
    reading.check_score_rises()
    reading.check_turned()
    slowed, score = reading.rise.made(1.0 - _PLATEAU), reading.rise.values
    lost = np.maximum.accumulate(score) - score
    fallen = np.flatnonzero(lost[slowed:] >= _PLATEAU * reading.rise.height)
    if len(fallen):
        return reading.middle(slowed, slowed + int(fallen[0]))
    _, fall = _verbs(reading.curve)
    reading.check_ends_inside(len(score), f"the {reading.curve.measure} does not {fall} again")
    return reading.middle(slowed, -1)


def _steepest(reading: _Reading) -> float:
    slopes = smooth(np.gradient(reading.fall.values, reading.log_rates), reading.curve.time_constant)
    step = int(np.argmax(slopes[: reading.fall.peak + 1]))
    reading.check_begins_inside(step, "the loss falls fastest")
    reading.check_ends_inside(step, "the loss falls ever faster")
    return float(reading.rates[step])


def _valley(reading: _Reading) -> float:
    reading.check_begins_inside(reading.fall.begun, "the loss falls")
    reading.check_turned()
    return reading.middle(reading.fall.begun, reading.fall.made(_NEARLY_OVER))


_RULES: dict[str, tuple[str, Callable[[_Reading], float]]] = {
    "base_lr": ("Smith's lower bound, where the {measure} begins to {rise} (after 10% of its {rise})", _base_lr),
    "max_lr": (
        "Smith's upper bound, the middle between where the {measure} slows (after 95% of its {rise}) and where it "
        "{fall}s again (5% lost) or the loss diverges",
        _max_lr,
    ),
    "steepest": ("where the smoothed loss falls fastest for each decade of the rate", _steepest),
    "valley": ("the middle of the fall of the smoothed loss (from 10% to 90% of it)", _valley),
}


def _suggestion(name: str, explanation: str, rule: Callable[[_Reading], float], curves: Sequence[Curve]) -> Suggestion:
    rates: list[float | None] = []
    reasons = []
    for curve in curves:
        try:
            rates.append(rule(_Reading(curve)))
        except NoSuggestionError as error:
            rates.append(None)
            reasons.append(str(error))
    rise, fall = _verbs(curves[0])
    words = explanation.format(measure=curves[0].measure, rise=rise, fall=fall)
    return Suggestion(name, words, tuple(rates), tuple(reasons))


def _verbs(curve: Curve) -> tuple[str, str]:
    """Return in a word what the measure does as it gets better, and as it gets worse."""
    return ("fall", "rise") if curve.is_loss else ("rise", "fall")
