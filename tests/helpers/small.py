"""Small compiled models and data for the tests of the loop itself: quick to trace, and there is something to learn."""

import functools

import keras
import numpy as np
from keras import layers

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.loop.stream import dataset_of_arrays

NUM_EXAMPLES = 200
NUM_CLASSES = 5
FEATURES = np.random.default_rng(0).normal(size=(NUM_EXAMPLES, 6)).astype(np.float32)
LABELS = (FEATURES @ np.random.default_rng(1).normal(size=(6, NUM_CLASSES))).argmax(axis=1).astype(np.int32)
RATES = np.linspace(0.001, 0.01, 30)  # No two of them are equal.


def compiled(*hidden, optimizer=None, loss=None, seed=0):
    """Return a classifier of the examples above with these layers in front of its logits, from a fixed start."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((6,)), *(make() for make in hidden), layers.Dense(NUM_CLASSES)])
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(), loss, metrics=["accuracy"])
    return model


def classifier(optimizer=None, **arguments):
    """Return a smooth classifier: a rectifier would turn a rounding error into another path."""
    return compiled(lambda: layers.Dense(8, activation="tanh"), optimizer=optimizer, **arguments)


def with_dropout_and_batch_norm(optimizer=None, **arguments):
    """Return a classifier that holds random state and moving averages."""
    hidden = lambda: layers.Dense(8), layers.BatchNormalization, layers.ReLU, lambda: layers.Dropout(0.5, seed=3)
    return compiled(*hidden, optimizer=optimizer, **arguments)


def nan_at_two(y, logits):
    """A loss that is NaN for examples of class 2."""
    losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    return keras.ops.where(keras.ops.reshape(y, keras.ops.shape(losses)) == 2, np.nan, losses)


def of_positives(y, logits):
    """A loss that is divided by what it finds in the batch, so it is no mean over examples."""
    losses = keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)
    return losses / keras.ops.sum(keras.ops.cast(keras.ops.reshape(y, (-1,)) > 2, "float32"))


def loop_of(model=None, feed="resident", num_examples=NUM_EXAMPLES, batch_size=50, shuffle=True, seed=0, **options):
    """Return a loop over the first examples, resident or streamed: the same batches in the same order.

    By default it compiles one program, without XLA; batches of 64, of which an epoch's last is short, need another.
    """
    model = classifier() if model is None else model
    options = {"jit_compile": False, **options}
    arrays = FEATURES[:num_examples], LABELS[:num_examples]
    if feed == "resident":
        arguments = {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
        return TrainLoop(model, *arrays, **arguments, options=StepOptions(**options))
    dataset_of = dataset_of_arrays(arrays, batch_size, shuffle)
    return TrainLoop.from_dataset(model, dataset_of, num_examples, seed=seed, options=StepOptions(**options))


@functools.cache
def _made(make_model, **arguments):
    loop = loop_of(make_model(), **arguments)
    return loop, loop.snapshot()


def loop_again(make_model=classifier, **arguments):
    """Return the loop that `loop_of` makes of these arguments, compiled but once: the same one, put back to its start.

    So it is good for one training at a time, as by one process after another.
    """
    loop, start = _made(make_model, **arguments)
    loop.restore(start)
    return loop


def loop_that_shows_its_batches(num_examples, batch_size, **arguments):
    """Return a loop whose loss is the mean of the examples' own numbers: the losses tell the batches."""
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(), lambda numbers, outputs: numbers + 0.0 * outputs)
    inputs, numbers = np.zeros((num_examples, 1), np.float32), np.arange(num_examples, dtype=np.float32)
    return TrainLoop(model, inputs, numbers, batch_size=batch_size, **arguments)


def assert_same_weights(ours, theirs, rtol=1e-5, atol=1e-7):
    """Compare the weights of two models, or a model's with a list of arrays."""
    ours, theirs = (nest.get_weights() if isinstance(nest, keras.Model) else nest for nest in (ours, theirs))
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=rtol, atol=atol)


def assert_same_metrics(ours, theirs, rtol=0.0):
    """Compare what two calls of `run` returned; bit for bit unless there is an rtol."""
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=rtol, err_msg=name)
