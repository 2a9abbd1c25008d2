"""Says in words what follows from a comparison, and what does not."""

from __future__ import annotations

from typing import NamedTuple

from clr_loop.studies.comparison.effects import Comparison, Effect
from clr_loop.studies.comparison.measures import Measure


class _Unit(NamedTuple):
    """How a difference is written: the measure in words, and the factor, the format and the unit of the number."""

    words: str
    factor: float
    form: str
    unit: str

    def size(self, difference: float) -> str:
        """Return a difference without its sign."""
        return f"{format(abs(difference) * self.factor, self.form.lstrip('+'))}{self.unit}"


def unit_of(effect: Effect, measure: Measure) -> _Unit:
    """Return how the differences of an effect are written."""
    if effect.measure == "epoch_seconds":
        return _Unit("epoch seconds", 1.0, "+.3f", " s")
    if measure.is_share:
        return _Unit(measure.words, 100.0, "+.2f", " points")
    return _Unit(measure.words, 1.0, "+.4g", "")


def amount(effect: Effect, measure: Measure) -> str:
    """Return the size of an effect, with its standard deviation: `+1.25 ± 0.31 points`."""
    unit = unit_of(effect, measure)
    return f"{effect.sample.in_words(unit.form, unit.factor)}{unit.unit}"


def interval(effect: Effect, measure: Measure) -> str:
    """Return the 95% interval of an effect: `-0.31 to +0.52`, or a dash from one seed."""
    unit = unit_of(effect, measure)
    return " to ".join(format(end * unit.factor, unit.form) for end in effect.sample.interval_95 or ()) or "–"


def p_in_words(p: float | None) -> str:
    """Return a p value with three decimals, or that it is smaller than that; a dash for None."""
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def verdict(effect: Effect, measure: Measure) -> str:
    """Return in a few words what the seeds say of an effect."""
    if effect.sample.interval_95 is None:
        return "one seed: no spread"
    if effect.verdict == "undecided":
        return f"undecided: about {effect.seeds_to_tell} seeds would tell"
    if not any(effect.sample.values):
        return "no seed differs"
    if effect.verdict == "small":
        far_end = max(effect.sample.interval_95, key=abs)
        return f"no difference larger than {unit_of(effect, measure).size(far_end)} is likely"
    if effect.factor == "interaction":
        return "shown"
    if effect.measure == "epoch_seconds":
        return "faster" if effect.sample.mean < 0 else "slower"
    return "better" if (effect.sample.mean > 0) == measure.higher_is_better else "worse"


def conclusions(comparison: Comparison) -> list[str]:
    """Return what follows from a comparison and what does not, a sentence or two each."""
    # The question itself comes first, then which of the two changes did it.
    effects = sorted(comparison.effects, key=lambda effect: effect.factor != "both")
    said = [_sentence(effect, comparison) for effect in effects]
    said += [f"{arm.arm.label}: {warning}." for arm in comparison.arms for warning in arm.warnings]
    shown = {(effect.measure, effect.factor) for effect in effects if effect.verdict == "shown"}
    if (comparison.measure.name, "interaction") in shown:
        said.append(
            "Batch size and schedule interact, so read the cells of the table: the averages above mix unlike cases."
        )
    return said or ["There is only one arm, and nothing to compare it with."]


def _sentence(effect: Effect, comparison: Comparison) -> str:
    unit = unit_of(effect, comparison.measure)
    subject = f"{effect.change[0].upper()}{effect.change[1:]}, {unit.words}"
    said = verdict(effect, comparison.measure)
    if effect.factor == "interaction" and len(comparison.arms) == 4:
        subject = f"Whether the schedule's effect on {unit.words} depends on the batch size"
        said = "it does" if effect.verdict == "shown" else said
    subject = f"{subject}: {amount(effect, comparison.measure)}"
    if effect.p_corrected is None:
        return f"{subject}, from one seed; nothing follows, run more seeds."
    if effect.verdict == "shown":
        if effect.arms and effect.measure == "epoch_seconds":
            seconds = {arm.arm.label: arm.epoch_seconds for arm in comparison.arms}
            changed, reference = (seconds[label] for label in effect.arms)
            said += f" ({reference / changed:.2f} times the speed)"
        return f"{subject}, {said} (corrected p {p_in_words(effect.p_corrected)})."
    if not effect.detectable_difference:
        return f"{subject}; {said}."
    return (
        f"{subject}; {said}. {len(effect.sample.values)} seeds find a difference of "
        f"{unit.size(effect.detectable_difference)} with 80% power; half of it needs {effect.seeds_for_half} seeds."
    )
