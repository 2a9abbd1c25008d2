"""What a model is trained on: datasets, models, and the order in which an epoch visits the examples.

Importing this package imports neither TensorFlow nor Keras. `build_model` needs Keras, so its first use loads it.
"""

import importlib
from typing import Any

from clr_loop.data.datasets import AnyDataset, Dataset, Examples, StreamedDataset, hold_out, load, one_hot
from clr_loop.data.order import epoch_order, sha256_of

__all__ = [
    "AnyDataset",
    "Dataset",
    "Examples",
    "StreamedDataset",
    "build_model",
    "epoch_order",
    "hold_out",
    "load",
    "one_hot",
    "sha256_of",
]


def __getattr__(name: str) -> Any:
    if name == "build_model":
        return importlib.import_module("clr_loop.data.models").build_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
