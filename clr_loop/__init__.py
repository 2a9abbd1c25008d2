"""A compiled `tf.GradientTape` training loop with a cyclical learning rate, and a fair comparison around it.

    from clr_loop import TrainLoop, Triangular, compare_schedules, find_rate, fit, load

Its packages, from the ground up; each imports only those above it in this list:

    schedules   step → learning rate, in NumPy alone
    data        what is trained on: datasets, models, the order of an epoch
    loop        one update, many times, compiled
    runs        a run on disk, from its first to its last byte
    studies     runs, and what they show
    commands    what the command-line scripts share

The names in `dir(clr_loop)` and these packages are imported when they are first used, so `clr_loop` and its schedules
need no TensorFlow. Call `clr_loop.quiet()` before the first of the others, and TensorFlow starts without a word.
"""

from importlib import import_module
from typing import Any

import lazy_loader
import wrapt

__version__ = "0.2.0"
__getattr__, _, _names = lazy_loader.attach_stub(__name__, __file__)
# The packages are reached as `clr_loop.studies`, but `from clr_loop import *` shall not overwrite a user's `loop`.
__all__ = [name for name in _names if name not in ("data", "loop", "runs", "schedules", "studies")]


def __dir__() -> list[str]:
    return list(__all__)


@wrapt.when_imported("keras")
def _register_schedules(keras: Any) -> None:
    """Let Keras load models saved with `as_keras(…)`, in whichever order the two packages are imported."""
    if keras.backend.backend() == "tensorflow":
        import_module("clr_loop.schedules.for_keras")
