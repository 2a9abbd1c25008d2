"""The learning rate range test: the loss of a sweep of rates, and the bounds that it suggests.

tests = run_seeds(loop, make_model, range(3))
print(text(tests, epochs=15))
"""

from clr_loop.studies.range_test.files import notes, text, write
from clr_loop.studies.range_test.held_out import split
from clr_loop.studies.range_test.suggestions import Bounds, NoSuggestionError, suggest
from clr_loop.studies.range_test.sweep import (
    RangeTest,
    bounds_or_reason,
    run,
    run_seeds,
    spread_seeds,
    suggested_bounds,
)

__all__ = [
    "Bounds",
    "NoSuggestionError",
    "RangeTest",
    "bounds_or_reason",
    "notes",
    "run",
    "run_seeds",
    "split",
    "spread_seeds",
    "suggest",
    "suggested_bounds",
    "text",
    "write",
]
