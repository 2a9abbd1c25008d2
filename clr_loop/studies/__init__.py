"""Runs, and what they show. Its packages are imported when they are first used, as in `clr_loop.studies.range_test`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, ["arms", "comparison", "pictures", "range_test", "report", "seeds", "smith"]
)
