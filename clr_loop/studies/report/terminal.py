"""The part of a comparison's report that fits a terminal."""

from __future__ import annotations

from clr_loop.studies.comparison.compare import ArmSummary, Comparison
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.report.tables import table_of
from clr_loop.studies.report.words import answer, conclusions


def in_terminal(comparison: Comparison) -> str:
    """Return the answer, a narrow table of the arms, and what follows of each effect; in Markdown."""
    rows = table_of([_row(arm, comparison.measure) for arm in comparison.arms])
    return "\n".join([answer(comparison), "", rows, "", *(f"- {sentence}" for sentence in conclusions(comparison))])


def _row(arm: ArmSummary, measure: Measure) -> dict[str, str]:
    form = measure.form
    return {
        "arm": arm.arm.label,
        "epoch s": f"{arm.times.epoch_seconds:.3f}" if arm.times else "–",
        measure.words: f"{arm.final.in_words(form)} {arm.final.range_in_words(form)}",
        "failed": f"{arm.failures.num_failed} of {arm.failures.num_runs}",
    }
