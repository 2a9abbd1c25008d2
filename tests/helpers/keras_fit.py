"""Keras' own `fit`, with a rate for each step: what the loop is held against."""

import functools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from helpers.kinds import KINDS, NUM_EXAMPLES, Kind

BATCH_SIZE = 32
STEPS_PER_EPOCH = -(-NUM_EXAMPLES // BATCH_SIZE)  # Seven, the last one of 8 examples.
EPOCHS = 3


class End(NamedTuple):
    """Where a training of three epochs ends.

    epochs: the loss and the metrics of each epoch, as Keras' History has them.
    evaluated: the loss and the metrics over all examples with the final weights.
    """

    weights: list[np.ndarray]
    epochs: dict[str, list[float]]
    evaluated: dict[str, float]


class GivenRates(keras.callbacks.Callback):
    """Assigns the next of the given rates before each batch."""

    def __init__(self, rates):
        super().__init__()
        self.rates = iter(rates)

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = float(next(self.rates))


def make(name: str) -> Kind:
    """Build a kind from the same start weights each time."""
    keras.utils.set_random_seed(0)
    return KINDS[name]()


def rates_of(kind: Kind) -> np.ndarray:
    """Return the rates of three epochs: between a third of the kind's rate and the whole, up and down."""
    return kind.rate * (1 - np.abs(np.arange(EPOCHS * STEPS_PER_EPOCH) % 10 - 5) / 7.5)


def fit(kind: Kind) -> End:
    """Train a kind with Keras' `fit`."""
    history = kind.model.fit(
        kind.inputs,
        kind.targets,
        sample_weight=kind.sample_weight,
        class_weight=kind.class_weight,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[GivenRates(rates_of(kind))],
    ).history
    # In whole batches: Keras weighs a short last batch as a whole one in the loss of each of several outputs.
    kind.model.run_eagerly = True  # Four batches are sooner computed than traced.
    evaluated = kind.model.evaluate(
        kind.inputs, kind.targets, sample_weight=kind.sample_weight, batch_size=50, verbose=0, return_dict=True
    )
    return End(kind.model.get_weights(), history, evaluated)


@functools.cache
def fitted(name: str) -> End:
    """Train a kind with Keras' `fit`, once for all tests. Keras does without XLA, which would double the time."""
    kind = make(name)
    kind.model.jit_compile = False
    return fit(kind)


def stream_of(kind: Kind, batch_size=BATCH_SIZE) -> tf.data.Dataset:
    """Return a kind's examples as batches. tf.data takes a list for one tensor, so lists become tuples."""
    parts = [kind.inputs, kind.targets, kind.sample_weight]
    while parts[-1] is None:
        parts.pop()
    return tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(tuple(parts))).batch(batch_size)
