"""The section of a report on tuning: what was tried, which rates were picked, and what the picks may cost."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.sample import Sample
from clr_loop.studies.comparison.tuning import Search
from clr_loop.studies.report.tables import table_of


def tuning_section(searches: Sequence[Search]) -> str:
    """Return the section on tuning; "" if nothing was tuned."""
    if not searches:
        return ""
    notes = [textwrap.fill(note, 120) for note in (_what_was_tried(searches), _what_picks_cost(searches))]
    return "\n\n".join(["## Tuning", table_of([_row(search) for search in searches]), *notes])


def _row(search: Search) -> dict[str, str]:
    first, last, nearest = search.trials[0], search.trials[-1], search.nearest
    score = Sample(nearest.finished or ()).in_words(search.measure.form)
    return {
        "arm": search.arm.label,
        "picked rate": f"{search.learning_rate:g}",
        "95% interval of the best": " to ".join(f"{rate:.3g}" for rate in search.peak.interval),
        f"{search.measure.words}, held out, at the rate nearest": f"{score} at {nearest.learning_rate:g}",
        "expected regret": _amount(search.peak.regret, search.measure),
        "trials": f"{len(search.trials)} rates × {len(first.values)} seeds",
        "rates tried": f"{first.learning_rate:g} to {last.learning_rate:g}{' (widened)' if search.widened else ''}",
        "best mean": f"at the {search.edge} edge" if search.edge else "inside",
    }


def _what_was_tried(searches: Sequence[Search]) -> str:
    """Say how many runs tuning took, and what of a schedule it tuned."""
    trials = [trials for search in searches for trials in search.trials]
    values = [value for of_rate in trials for value in of_rate.values]
    diverged = values.count(None)
    return (
        f"Tuning took {len(values)} trial runs, with {sum(of_rate.seconds for of_rate in trials):.0f} seconds of "
        f"training{f'; {diverged} of them diverged' if diverged else ''}. The highest rate of each schedule was tuned; "
        "the base_lr of a cycle is a fourth of it, and its step_size makes two whole cycles unless it was given."
    )


def _what_picks_cost(searches: Sequence[Search]) -> str:
    """Say where the picked rates come from, what they cost, and where a better rate may lie beyond those tried."""
    measure, regrets = searches[0].measure, [search.peak.regret for search in searches]
    note = (
        "The picked rate is the top of a curve through the mean scores near the best: two half parabolas over the "
        "logarithm of the rate. Its regret is what it falls short of the best rate: with these picks, an arm is "
        f"expected to lose at most {_amount(max(regrets), measure)} of {measure.words}. The expected square of the "
        "regret is a part of the intervals and p values below."
    )
    open_ended = [search.arm.label for search in searches if search.may_lie_beyond]
    if open_ended:
        note += f" A better rate may lie beyond those tried for {'; '.join(open_ended)}."
    return note


def _amount(regret: float, measure: Measure) -> str:
    """Return a regret in the measure's unit: `0.02 points`."""
    return f"{100 * regret:.2f} points" if measure.is_share else f"{regret:.2g}"
