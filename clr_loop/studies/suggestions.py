"""From the curves of an LR range test to learning rates: each named and explained, or the reason why there is none.

Pure NumPy. A curve is read up to where it diverges, and through a smoothing that looks to both sides, so that a bend
stays at its rate. Distances are taken along the logarithm of the rate and never by index: a step of a linear sweep is
decades at its low end and next to nothing at its high end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

DIVERGENCE_FACTOR = 4.0
"""A loss above this many times its best has diverged, unless another factor is given."""

# A change counts if it is above both: a share of where it began, and what noise alone may do over a whole sweep, in
# standard deviations of the smoothed curve.
_CHANGE = 0.05
_NOISE = 8.0

# Shares of a rise or a fall: it has begun; it is nearly over. The plateau of the accuracy lies this near to its peak.
_BEGUN = 0.1
_NEARLY_OVER = 0.9
_PLATEAU = 0.05

_MIN_POINTS = 30
_SPIKE_WINDOW = 5


class NoSuggestionError(ValueError):
    """The curves do not support a suggestion. The message says why, and what to change."""


@dataclass(frozen=True)
class Curve:
    """What a sweep measured, and how it is smoothed.

    Attributes:
        learning_rate: float64 [n], at least 0, rising.
        loss, accuracy: float64 [n], of the batch of each step; a loss may be NaN or infinite.
        time_constant: float, of the smoothing, in steps.
        divergence_factor: float above 1, see `first_divergence`.
    """

    learning_rate: Values
    loss: Values
    accuracy: Values
    time_constant: float
    divergence_factor: float = DIVERGENCE_FACTOR

    @cached_property
    def num_usable(self) -> int:
        """Steps before the loss diverged or was not finite; all n if neither happened."""
        finite = np.isfinite(self.loss)
        first_bad = len(self.loss) if finite.all() else int(np.argmin(finite))
        diverged = first_divergence(self.loss[:first_bad], self.time_constant, self.divergence_factor)
        return first_bad if diverged is None else diverged

    @cached_property
    def smoothed_loss(self) -> Values:
        """float64 [n]: `smooth` of the usable steps, and of the others apart, so that these do not reach into those."""
        return self._smooth(self.loss)

    @cached_property
    def smoothed_accuracy(self) -> Values:
        """float64 [n], as `smoothed_loss`."""
        return self._smooth(self.accuracy)

    def _smooth(self, values: Values) -> Values:
        parts = values[: self.num_usable], values[self.num_usable :]
        return np.concatenate([smooth(part, self.time_constant) for part in parts if len(part)])


@dataclass(frozen=True)
class Suggestion:
    """A learning rate, read from the curve of each seed.

    Attributes:
        name: "base_lr", "max_lr", "steepest", "valley" or "minimum_over_10".
        explanation: how it was found.
        rates: for each seed its rate, or None where the curve does not support one.
        reasons: for each such None why, and what to change.
    """

    name: str
    explanation: str
    rates: tuple[float | None, ...]
    reasons: tuple[str, ...]

    @property
    def found(self) -> tuple[float, ...]:
        """The rates that there are."""
        return tuple(rate for rate in self.rates if rate is not None)

    @property
    def learning_rate(self) -> float | None:
        """Their median along the logarithm; None unless most of the seeds have one."""
        return None if len(self.reasons) >= len(self.rates) / 2 else float(np.exp(np.median(np.log(self.found))))

    def __str__(self) -> str:
        """`max_lr 0.012 (0.01–0.02 over 3 seeds): <how>`, or `max_lr: no suggestion: <why, what to change>`."""
        if self.learning_rate is None:
            return f"{self.name}: no suggestion: {self.reasons[0]}"
        among = f" of {len(self.rates)}" if self.reasons else ""
        low, high = min(self.found), max(self.found)
        band = f" ({low:.2g}–{high:.2g} over {len(self.found)}{among} seeds)" if len(self.rates) > 1 else ""
        return f"{self.name} {self.learning_rate:.2g}{band}: {self.explanation}"

    def to_json(self) -> dict[str, Any]:
        """Returns the suggestion as JSON types."""
        return {
            "name": self.name,
            "explanation": self.explanation,
            "learning_rate": self.learning_rate,
            "low": min(self.found, default=None),
            "high": max(self.found, default=None),
            "rates": list(self.rates),
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True)
class Bounds:
    """A cyclical schedule's bounds and half cycle, as a command line takes them."""

    base_lr: float
    max_lr: float
    step_size: int

    def __str__(self) -> str:
        """`--base_lr=… --max_lr=… --step_size=…`."""
        return f"--base_lr={self.base_lr:g} --max_lr={self.max_lr:g} --step_size={self.step_size}"


def suggest(curves: Sequence[Curve]) -> list[Suggestion]:
    """Reads five suggestions from the curves of one or more seeds.

        base_lr          where the accuracy has made 10 % of its rise
        max_lr           the middle of the plateau of the accuracy, from where it has slowed, 95 % of its rise made, to
                         where it has fallen, 5 % of its rise lost again, or the loss has diverged
        steepest         where the smoothed loss falls fastest for each decade of the rate
        valley           the middle of the fall of the smoothed loss, from 10 % to 90 % of it
        minimum_over_10  a tenth of the rate of the lowest smoothed loss

    Middles are taken in the logarithm of the rate. The first two are Smith's pair: where the accuracy begins to rise,
    and where it slows, becomes ragged or falls. Between slowing and falling often lie two decades; their middle stays
    clear of the fall, at which a cycle, unlike a sweep, would linger. The others are customs of practice.

    Args:
        curves: one for each seed, at least one.

    Returns:
        The five, in this order, each with or without a rate.

    Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3.
    """
    return [_suggestion(name, explanation, rule, curves) for name, (explanation, rule) in _RULES.items()]


def bounds(suggestions: Sequence[Suggestion], total_steps: int, num_cycles: int = 2) -> Bounds:
    """Returns base_lr and max_lr, to two digits, with the step_size of whole cycles in a run.

    Args:
        suggestions: from `suggest`.
        total_steps: int, at least 1, of the run planned.
        num_cycles: int, at least 1; one in a run too short for more.

    Raises:
        NoSuggestionError: if one of the two has no rate, or they are not in order.
    """
    named = {suggestion.name: suggestion for suggestion in suggestions}
    rates = []
    for name in ("base_lr", "max_lr"):
        if named[name].learning_rate is None:
            raise NoSuggestionError(f"no suggestion: {named[name].reasons[0]}")
        rates.append(float(f"{named[name].learning_rate:.2g}"))
    base_lr, max_lr = rates
    if not base_lr < max_lr:
        raise NoSuggestionError(
            f"no suggestion: base_lr {base_lr:g} is not below max_lr {max_lr:g}, so the seeds do not agree; "
            "raise --num_steps"
        )
    return Bounds(base_lr, max_lr, max(total_steps // (2 * num_cycles), 1))


def smooth(values: Values, time_constant: float) -> Values:
    """Returns an exponential average to both sides, single spikes left out.

        smooth[i] = Σ_j d^|i - j| v[j] / Σ_j d^|i - j|,    d = exp(-1 / time_constant)

    over the finite j, with v the running median of five values. To divide by the weights is what corrects the bias at
    the ends.

    Args:
        values: float [n], n at least 1.
        time_constant: in steps, above 0.

    Returns:
        float64 [n]; NaN where `values` is not finite.
    """
    finite = np.isfinite(values)
    decay = math.exp(-1.0 / time_constant)

    def sums(v: Values) -> Values:
        return _decayed_sums(v, decay) + _decayed_sums(v[::-1], decay)[::-1] - v

    weights = np.where(finite, sums(finite.astype(np.float64)), np.nan)
    return sums(np.where(finite, _without_spikes(values), 0.0)) / weights


def first_divergence(loss: Values, time_constant: float, factor: float) -> int | None:
    """Returns the first step at which the loss had diverged, as far as the steps until then tell, or None.

    Its exponential average over the steps so far, bias-corrected, is then above `factor` times the lowest that this
    average has been. The first `time_constant` steps do not count, because there it hangs on a few values.

    Args:
        loss: float [n], finite, at least 0.
        time_constant: in steps, above 0.
        factor: above 1.
    """
    decay = math.exp(-1.0 / time_constant)
    average = _decayed_sums(loss, decay) / _decayed_sums(np.ones(len(loss)), decay)
    warm_up = math.ceil(time_constant)
    settled = average[warm_up:]
    diverged = settled > factor * np.minimum.accumulate(settled)
    return warm_up + int(np.argmax(diverged)) if diverged.any() else None


def _decayed_sums(values: Values, decay: float) -> Values:
    total, sums = 0.0, []
    for value in values.tolist():
        total = decay * total + value
        sums.append(total)
    return np.array(sums, np.float64)


def _without_spikes(values: Values) -> Values:
    """The running median; its window is cut short at the ends and leaves out what is not finite."""
    half = _SPIKE_WINDOW // 2
    padded = np.pad(np.where(np.isfinite(values), values, np.nan), half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _SPIKE_WINDOW)
    # Non-finite values sort to the end as NaN, so the middle of the finite ones is found by their number.
    ordered = np.sort(windows, axis=1)
    num_finite = np.maximum(np.isfinite(ordered).sum(axis=1), 1)
    rows = np.arange(len(values))
    return (ordered[rows, (num_finite - 1) // 2] + ordered[rows, num_finite // 2]) / 2


class _Reading:
    """The usable part of a curve, smoothed, over log10 of its rates.

    Raises:
        NoSuggestionError: if it is too short, or its loss never falls.
    """

    def __init__(self, curve: Curve) -> None:
        rates = curve.learning_rate[: curve.num_usable]
        # A rate of 0 has no logarithm; two rates that are one in float32 have no slope between them.
        kept = np.flatnonzero((rates > 0.0) & (np.diff(rates, prepend=-1.0) > 0.0))
        self.diverged = curve.num_usable < len(curve.loss)
        if len(kept) < _MIN_POINTS:
            what = "before the loss diverged" if self.diverged else "in the sweep"
            cure = "lower --start_lr or raise --num_steps" if self.diverged else "raise --num_steps"
            raise NoSuggestionError(f"{len(kept)} steps {what} are too few to read; {cure}")
        self.rates = rates[kept]
        self.log_rates = np.log10(self.rates)
        self.loss = curve.smoothed_loss[kept]
        self.accuracy = curve.smoothed_accuracy[kept]
        self.lowest = int(np.argmin(self.loss))
        self.margin = math.ceil(3 * curve.time_constant)  # A bend nearer to an end than this may lie beyond it.
        self._time_constant = curve.time_constant

        self.highest_loss = float(self.loss[: self.lowest + 1].max())
        self.fall = self.highest_loss - float(self.loss[self.lowest])
        change = max(_CHANGE * self.highest_loss, self._noise(curve.loss[kept]))
        if self.fall <= change:
            if self.diverged or self.loss[-1] > self.highest_loss + change:
                raise NoSuggestionError(
                    f"the loss rose, up to a rate of {self.rates[-1]:.2g}, without ever having fallen; "
                    "raise --num_steps or lower --start_lr"
                )
            raise NoSuggestionError(
                f"the curve is flat: the loss stays near {self.highest_loss:.3g} up to a rate of {self.rates[-1]:.2g}; "
                "raise --end_lr or --num_steps"
            )
        self.peak = int(np.argmax(self.accuracy))
        self.lowest_accuracy = float(self.accuracy[: self.peak + 1].min())
        self.rise = float(self.accuracy[self.peak]) - self.lowest_accuracy
        self.accuracy_rises = self.rise > max(_CHANGE, self._noise(curve.accuracy[kept]))

    def slopes(self) -> Values:
        """Of the smoothed loss for each decade of the rate, smoothed once more."""
        return smooth(np.gradient(self.loss, self.log_rates), self._time_constant)

    def check_begins_inside(self, step: int, what: str) -> None:
        """Refuses a bend at the low end of the sweep."""
        if step < self.margin:
            steps = np.diff(self.log_rates)
            cure = "take --sweep=exponential" if steps[0] > 2.0 * steps.mean() else "lower --start_lr"
            raise NoSuggestionError(f"{what} from the first rates on, {self.rates[0]:.2g}; {cure}")

    def check_ends_inside(self, step: int, what: str) -> None:
        """Refuses a bend at the high end of a sweep that might have gone on."""
        if not self.diverged and step >= len(self.rates) - self.margin:
            raise NoSuggestionError(f"{what} up to the last rate, {self.rates[-1]:.2g}; raise --end_lr")

    def check_accuracy_rises(self) -> None:
        """Refuses a curve whose accuracy stays where it is."""
        if not self.accuracy_rises:
            raise NoSuggestionError(
                f"the accuracy stays near {self.lowest_accuracy:.2g} while the loss falls; raise --num_steps"
            )

    def _noise(self, raw: Values) -> float:
        # Differences of neighbours hold the noise alone, √2 times; their median is blind to spikes. The average to both
        # sides leaves 1 / (4 · time constant) of its variance.
        deviation = 1.4826 * float(np.median(np.abs(np.diff(raw)))) / math.sqrt(2.0)
        return _NOISE * deviation / math.sqrt(max(4.0 * self._time_constant, 1.0))


def _base_lr(reading: _Reading) -> float:
    reading.check_accuracy_rises()
    until_peak = reading.accuracy[: reading.peak + 1]
    begun = _last(until_peak <= reading.lowest_accuracy + _BEGUN * reading.rise)
    reading.check_begins_inside(begun, "the accuracy rises")
    return float(reading.rates[begun])


def _max_lr(reading: _Reading) -> float:
    reading.check_accuracy_rises()
    slowed = int(np.argmax(reading.accuracy >= reading.accuracy[reading.peak] - _PLATEAU * reading.rise))
    lost = np.maximum.accumulate(reading.accuracy) - reading.accuracy
    fallen = np.flatnonzero(lost[slowed:] >= _PLATEAU * reading.rise)
    if not len(fallen):
        reading.check_ends_inside(len(reading.rates) - 1, "the accuracy does not fall")
    end = slowed + int(fallen[0]) if len(fallen) else len(reading.rates) - 1
    return float(np.sqrt(reading.rates[slowed] * reading.rates[end]))


def _steepest(reading: _Reading) -> float:
    step = int(np.argmin(reading.slopes()[: reading.lowest + 1]))
    reading.check_begins_inside(step, "the loss falls fastest")
    reading.check_ends_inside(step, "the loss falls ever faster")
    return float(reading.rates[step])


def _valley(reading: _Reading) -> float:
    falling = reading.loss[: reading.lowest + 1]
    begun = _last(falling >= reading.highest_loss - _BEGUN * reading.fall)
    over = begun + int(np.argmax(falling[begun:] <= reading.highest_loss - _NEARLY_OVER * reading.fall))
    reading.check_begins_inside(begun, "the loss falls")
    reading.check_ends_inside(over, "the loss falls")
    return float(np.sqrt(reading.rates[begun] * reading.rates[over]))


def _minimum_over_10(reading: _Reading) -> float:
    reading.check_ends_inside(reading.lowest, "the loss falls")
    return float(reading.rates[reading.lowest]) / 10.0


_RULES: dict[str, tuple[str, Callable[[_Reading], float]]] = {
    "base_lr": ("Smith's lower bound, where the accuracy begins to rise (10 % of its rise made)", _base_lr),
    "max_lr": (
        "Smith's upper bound, the middle between where the accuracy slows (95 % of its rise made) and where it falls "
        "again (5 % lost) or the loss diverges",
        _max_lr,
    ),
    "steepest": ("where the smoothed loss falls fastest for each decade of the rate", _steepest),
    "valley": ("the middle of the fall of the smoothed loss (from 10 % to 90 % of it)", _valley),
    "minimum_over_10": ("a tenth of the rate of the lowest smoothed loss", _minimum_over_10),
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
    return Suggestion(name, explanation, tuple(rates), tuple(reasons))


def _last(mask: NDArray[np.bool_]) -> int:
    return int(np.flatnonzero(mask)[-1])
