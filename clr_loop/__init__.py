"""A compiled `tf.GradientTape` training loop with a cyclical learning rate, and a fair comparison around it.

    from clr_loop import TrainLoop, Triangular, fit, load

The rooms, from the ground up; each imports only those below it:

    schedules   step → learning rate, in NumPy alone
    data        what is trained on: datasets, models, the order of an epoch
    loop        one update, many times, compiled
    runs        a run on disk, from its first to its last byte
    studies     runs, and what they show

The names below are imported when they are first used, so `clr_loop` and its schedules need no TensorFlow. Call
`clr_loop.quiet()` before the first of them, and TensorFlow starts without a word.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

__version__ = "0.2.0"

if TYPE_CHECKING:
    from clr_loop.data import Dataset, Examples, StreamedDataset, load
    from clr_loop.data.models import build_model
    from clr_loop.loop.feeds import Feed
    from clr_loop.loop.loop import TrainLoop
    from clr_loop.loop.options import StepOptions
    from clr_loop.runs.fit import fit
    from clr_loop.runs.models import load_run
    from clr_loop.runs.options import RunOptions
    from clr_loop.runs.snapshots import ensemble
    from clr_loop.schedules import (
        Constant,
        CosineRestarts,
        Cyclic,
        ExponentialDecay,
        ExponentialRamp,
        ExpRange,
        LinearRamp,
        OneCycle,
        Triangular,
        Triangular2,
        describe,
        join,
    )
    from clr_loop.schedules.for_keras import CyclicLR, as_keras

_PLACES = {
    "clr_loop.data": ("Dataset", "Examples", "StreamedDataset", "load"),
    "clr_loop.data.models": ("build_model",),
    "clr_loop.loop.feeds": ("Feed",),
    "clr_loop.loop.loop": ("TrainLoop",),
    "clr_loop.loop.options": ("StepOptions",),
    "clr_loop.runs.fit": ("fit",),
    "clr_loop.runs.models": ("load_run",),
    "clr_loop.runs.options": ("RunOptions",),
    "clr_loop.runs.snapshots": ("ensemble",),
    "clr_loop.schedules": (
        "Constant", "CosineRestarts", "Cyclic", "ExpRange", "ExponentialDecay", "ExponentialRamp", "LinearRamp",
        "OneCycle", "Triangular", "Triangular2", "describe", "join",
    ),
    "clr_loop.schedules.for_keras": ("CyclicLR", "as_keras"),
}  # fmt: skip

_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "Constant",
    "CosineRestarts",
    "Cyclic",
    "CyclicLR",
    "Dataset",
    "Examples",
    "ExpRange",
    "ExponentialDecay",
    "ExponentialRamp",
    "Feed",
    "LinearRamp",
    "OneCycle",
    "RunOptions",
    "StepOptions",
    "StreamedDataset",
    "TrainLoop",
    "Triangular",
    "Triangular2",
    "as_keras",
    "build_model",
    "describe",
    "ensemble",
    "fit",
    "join",
    "load",
    "load_run",
    "quiet",
]  # fmt: skip


@wrapt.when_imported("keras")
def _register_schedules(keras: Any) -> None:
    """Let Keras load models saved with `as_keras(…)`, in whichever order the two packages are imported."""
    if keras.backend.backend() == "tensorflow":
        import_module("clr_loop.schedules.for_keras")


def quiet() -> None:
    """Import TensorFlow and Keras without what they write to stderr, and keep them to errors from then on.

    It must come before anything else imports TensorFlow. TF_CPP_MIN_LOG_LEVEL in the environment stays if it is set.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_stderr():
        import_module("keras")
        import_module("tensorflow")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discard stderr, also that of C++, which logs before it can be asked not to."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"clr_loop has no name {name!r}; it has {', '.join(sorted(_PLACE_OF))}.")
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACE_OF])
