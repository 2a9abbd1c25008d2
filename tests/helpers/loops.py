"""Loops over the kinds of `helpers.kinds`."""

import numpy as np

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from helpers.keras_fit import BATCH_SIZE, EPOCHS, STEPS_PER_EPOCH, End, stream_of
from helpers.kinds import Kind


def loop_of(kind: Kind, feed: str, batch_size: int = BATCH_SIZE, **options) -> TrainLoop:
    """Make a loop over a kind's examples in their own order, "resident" or "streamed"; options are StepOptions."""
    if feed == "streamed":
        stream = stream_of(kind, batch_size)
        return TrainLoop.from_dataset(
            kind.model, stream, class_weight=kind.class_weight, options=StepOptions(**options)
        )
    return TrainLoop(
        kind.model,
        kind.inputs,
        kind.targets,
        sample_weight=kind.sample_weight,
        class_weight=kind.class_weight,
        batch_size=batch_size,
        shuffle=False,
        options=StepOptions(**options),
    )


def train(loop: TrainLoop, kind: Kind, feed: str, rates: np.ndarray) -> tuple[End, np.ndarray]:
    """Train to the end, in three blocks that do not end where an epoch ends.

    Returns the end, with the metrics of each step in place of each epoch's, and the examples of each step.
    """
    parts, sizes = [], []
    for part in np.split(rates, [5, 16]):
        parts.append(loop.run(part))
        sizes.append(loop.batch_sizes)
    loop.finalize()
    steps = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if feed == "streamed":
        evaluated = loop.evaluate(stream_of(kind, 64))
    else:
        evaluated = loop.evaluate(kind.inputs, kind.targets, kind.sample_weight, batch_size=64)
    return End(kind.model.get_weights(), steps, evaluated), np.concatenate(sizes)


def epoch_means(values: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the mean of each epoch's steps, each weighed by its examples."""
    values, sizes = (array.reshape(EPOCHS, STEPS_PER_EPOCH) for array in (values, sizes))
    return (values * sizes).sum(axis=1) / sizes.sum(axis=1)
