"""The flags of runs that outgrow one array, shared by the scripts that train one model: how the data is fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

import command_line
from clr_loop.data import AnyDataset

if TYPE_CHECKING:
    import keras

    from clr_loop.loop import TrainLoop
    from clr_loop.results import EpochRecord

FLAGS = flags.FLAGS

flags.DEFINE_enum(
    "feed",
    "auto",
    ("auto", "resident", "stream"),
    "How batches reach the step: resident (the images lie on the device), stream (through tf.data); auto streams what "
    "would take more than a third of the device's memory.",
)


def make_loop(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    dataset: AnyDataset,
    **arguments: Any,
) -> TrainLoop:
    """Makes the loop that the flags ask for."""
    from clr_loop import feeding

    return feeding.make_loop(
        model, optimizer, dataset, feed=FLAGS.feed, jit_compile=command_line.jit_compile(), **arguments
    )


def waiting(record: EpochRecord) -> str:
    """Returns the share of the epoch spent in waiting for batches, in words; nothing where there was none."""
    return f", {record.input_wait_share:.0%} of it waiting for input" if record.input_wait_seconds else ""
