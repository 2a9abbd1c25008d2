"""Says in words what follows from a comparison, and what does not."""

from __future__ import annotations

from typing import NamedTuple

from clr_loop.studies.comparison.compare import Comparison
from clr_loop.studies.comparison.effects import Effect
from clr_loop.studies.comparison.failures import Failures
from clr_loop.studies.comparison.measures import EPOCH_SECONDS, Measure
from clr_loop.studies.comparison.sample import Sample


class _Unit(NamedTuple):
    """How a difference is written: the factor, the format and the unit of the number."""

    factor: float
    form: str
    unit: str

    def size(self, difference: float) -> str:
        """Return a difference without its sign."""
        return f"{format(abs(difference) * self.factor, self.form.lstrip('+'))}{self.unit}"


def unit_of(measure: Measure) -> _Unit:
    """Return how the differences of a measure are written."""
    if measure.name == EPOCH_SECONDS:
        return _Unit(1.0, "+.3f", " s")
    return _Unit(100.0, "+.2f", " points") if measure.is_share else _Unit(1.0, "+.4g", "")


def amount(effect: Effect) -> str:
    """Return the size of an effect, with its standard deviation: `+1.25 ± 0.31 points`; a dash without any seed."""
    unit = unit_of(effect.measure)
    return f"{Sample(effect.differences).in_words(unit.form, unit.factor)}{unit.unit * bool(effect.differences)}"


def interval(effect: Effect) -> str:
    """Return the interval of an effect: `-0.31 to +0.52`; a dash where there is none or nothing is said."""
    unit, ends = unit_of(effect.measure), () if effect.silence else effect.interval or ()
    return " to ".join(format(end * unit.factor, unit.form) for end in ends) or "–"


def between(effect: Effect) -> str:
    """Say where an effect lies: `between -0.31 and +0.52 points`."""
    unit, (low, high) = unit_of(effect.measure), effect.interval or (0.0, 0.0)
    place = f"between {low * unit.factor:{unit.form}} and {high * unit.factor:{unit.form}}{unit.unit}"
    if effect.verdict == "undecided" and low * high > 0.0:
        place += " before the correction for all that is tested"
    return place


def confidence(alpha: float) -> str:
    """Return what an interval holds: `95%`."""
    return f"{100 * (1 - alpha):.3g}%"


def p_in_words(p: float | None) -> str:
    """Return a p value with three decimals, or that it is smaller than that; a dash for None."""
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def verdict(effect: Effect) -> str:
    """Return in a few words what the seeds say of an effect."""
    if effect.verdict == "none":
        return "no verdict"
    if effect.verdict == "shown":
        return _direction(effect)
    if effect.verdict == "undecided":
        return "undecided" if any(effect.differences) else "no seed differs"
    margin = unit_of(effect.measure).size(effect.measure.margin or 0.0)
    return f"less than {margin} apart" if effect.verdict == "equivalent" else f"not worse by {margin}"


def _direction(effect: Effect) -> str:
    if effect.factor == "interaction":
        return "shown"
    if effect.measure.name == EPOCH_SECONDS:
        return "faster" if effect.is_better else "slower"
    return f"{'better' if effect.is_better else 'worse'}{' where neither fails' * effect.failures_oppose}"


def answer(comparison: Comparison) -> str:
    """Return the answer to the comparison's question, the last arm against the first, in one sentence."""
    effect = comparison.question
    if effect is None:
        return "There is only one arm, and nothing to compare it with."
    (changed,), (reference,) = effect.arms
    unit, words = unit_of(effect.measure), effect.measure.words
    pair = f"{changed} and {reference}"
    if effect.verdict == "none":
        found = f"These runs cannot tell {pair} apart by {words}, because {effect.silence}"
    elif effect.verdict == "shown":
        found = (
            f"{changed} is {verdict(effect)} than {reference}, by {unit.size(effect.mean)} of {words} "
            f"({confidence(effect.alpha)} interval {interval(effect)})"
        )
    elif effect.verdict == "undecided":
        found = f"No seed tells {pair} apart by {words}"
        if effect.interval:
            seeds = f"{len(effect.differences)} seeds"
            found = f"{seeds} cannot tell {pair} apart: the difference in {words} is {between(effect)}"
    elif effect.verdict == "equivalent":
        found = f"{pair} differ by less than {unit.size(effect.measure.margin or 0.0)} of {words}"
    else:
        found = f"{changed} is not worse than {reference} by {unit.size(effect.measure.margin or 0.0)} of {words}"
    return f"{_as_beginning(found)}{_failures_clause(effect, comparison)}; {_time_clause(comparison)}."


def _as_beginning(text: str) -> str:
    """Return a text with a capital, unless it begins with a name such as one_triangle."""
    return text if "_" in text.split()[0] else text[0].upper() + text[1:]


def _failures_clause(effect: Effect, comparison: Comparison) -> str:
    """Say which arm fails more often, or how many seeds are left out because of runs that failed."""
    if effect.failures_differ:
        return f", and it fails {'more' if effect.fails_more else 'less'} often ({_counts(effect)})"
    num_seeds = len(comparison.seeds)
    num_left_out = num_seeds - len(effect.differences)
    if effect.verdict == "none" or not num_left_out:
        return ""
    return f", without {num_left_out} of {num_seeds} seeds, with which a run failed"


def _time_clause(comparison: Comparison) -> str:
    """Say how long an epoch of the last arm takes beside one of the first."""
    time = comparison.effect(EPOCH_SECONDS)
    if time is None:
        return "no run is timed"
    if not time.differences:
        return "no run of both is timed"
    ratio, ends = comparison.time_ratio()
    takes = f"an epoch of {comparison.arms[-1].arm.label} takes {ratio:.2f} of the time"
    if time.silence or ends is None:
        return f"{takes} in these runs, which allow no verdict"
    spread = f"{takes}, {confidence(time.alpha)} interval {ends[0]:.2f} to {ends[1]:.2f}"
    return spread if time.verdict == "shown" else f"{spread}, a difference that is not shown"


def conclusions(comparison: Comparison) -> list[str]:
    """Return what follows from a comparison and what does not, a sentence or two each."""
    # The question itself comes first, then which of the two changes did it.
    effects = sorted(comparison.effects, key=lambda effect: effect.factor != "both")
    said = [_sentence(effect, comparison) for effect in effects]
    said += [f"{arm.arm.label}: {warning}." for arm in comparison.arms for warning in arm.warnings]
    shown = {(effect.measure.name, effect.factor) for effect in effects if effect.verdict == "shown"}
    if (comparison.measure.name, "interaction") in shown:
        said.append(
            "Batch size and schedule interact, so read the cells of the table: the averages above mix unlike cases."
        )
    return said or ["There is only one arm, and nothing to compare it with."]


def _sentence(effect: Effect, comparison: Comparison) -> str:
    unit, said = unit_of(effect.measure), verdict(effect)
    subject = f"{_as_beginning(effect.change)}, {effect.measure.words}"
    if effect.factor == "interaction" and len(comparison.arms) == 4:
        subject = f"Whether the schedule's effect on {effect.measure.words} depends on the batch size"
        said = "it does" if effect.verdict == "shown" else said
    subject = f"{subject}: {amount(effect)}"
    failures = _failures_sentence(effect)
    if effect.verdict == "none":
        return f"{subject}; no verdict, because {effect.silence}.{failures}"
    if effect.verdict == "shown":
        return f"{subject}, {said} (corrected p {p_in_words(effect.p_corrected)}).{failures}"
    place = f", {between(effect)}" if effect.interval else ""
    power = ""
    if effect.verdict == "undecided" and effect.detectable_difference:
        size = unit.size(effect.detectable_difference)
        power = f" {len(effect.differences)} seeds would show a difference of {size} with 80% power."
    return f"{subject}; {said}{place}.{power}{failures}"


def _failures_sentence(effect: Effect) -> str:
    if effect.failures_p_corrected is None:
        return ""
    often = "may be chance"
    if effect.failures_differ:
        often = f"is {'more' if effect.fails_more else 'less'} often"
    return f" {_counts(effect)} runs failed, which {often} (corrected p {p_in_words(effect.failures_p_corrected)})."


def _counts(effect: Effect) -> str:
    changed, reference = effect.failed
    return f"{_of(changed)} against {_of(reference)}"


def _of(failures: Failures) -> str:
    return f"{failures.num_failed} of {failures.num_runs}"
