"""The learning rate range test: the loss of a sweep of rates, and the bounds that it suggests."""

from clr_loop.studies.range_test.suggestions import Bounds, NoSuggestionError
from clr_loop.studies.range_test.sweep import RangeTest, run

__all__ = ["Bounds", "NoSuggestionError", "RangeTest", "run"]
