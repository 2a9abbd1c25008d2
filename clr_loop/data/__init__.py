"""What is trained on: named datasets, models, and the order in which an epoch visits the examples."""

from clr_loop.data.datasets import (
    NAMES,
    AnyDataset,
    Dataset,
    Split,
    StreamedDataset,
    epoch_order,
    load,
    sha256_of,
)

__all__ = ["NAMES", "AnyDataset", "Dataset", "Split", "StreamedDataset", "epoch_order", "load", "sha256_of"]
