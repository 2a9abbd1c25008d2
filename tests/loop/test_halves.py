"""A large batch in two halves side by side: the same result but for rounding, and only where the halves add up."""

import keras
import numpy as np
import pytest
from keras import layers

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions

X = np.random.default_rng(0).normal(size=(1300, 6)).astype(np.float32)
Y = (X.sum(axis=1) > 0).astype(np.int32)


class PullToMean(layers.Layer):
    """Moves examples toward their batch's mean, by a weight that begins at 0: at first only its gradient shows it."""

    def build(self, shape):
        self.strength = self.add_weight(shape=(), initializer="zeros")

    def call(self, x):
        return x + self.strength * (keras.ops.mean(x, axis=0) - x)


def loop_of(*hidden, batch_size=500, num_examples=1300, loss=None, **options):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="tanh"), *hidden, layers.Dense(2)])
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(momentum=0.9), loss, metrics=["accuracy"])
    return TrainLoop(model, X[:num_examples], Y[:num_examples], batch_size=batch_size, options=StepOptions(**options))


def is_halved(loop):
    return "in two halves" in loop.chosen["xla"]


def test_halves_end_with_the_weights_and_metrics_of_the_whole_batch():
    halved, whole = loop_of(), loop_of(halve_batches=False)
    assert is_halved(halved)
    assert not is_halved(whole)
    ours, theirs = (loop.run(np.full(9, 0.1)) for loop in (halved, whole))
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    for a, b in zip(halved.model.variables, whole.model.variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "hidden",
    [
        lambda: layers.BatchNormalization(),
        lambda: layers.Dense(8, activation=layers.BatchNormalization()),
        lambda: PullToMean(),
        lambda: layers.GaussianNoise(0.1),
    ],
    ids=["batch_norm", "batch_norm_as_activation", "a_weight_that_begins_at_0", "random_numbers"],
)
def test_a_model_whose_examples_depend_on_each_other_or_on_chance_is_not_halved(hidden):
    loop = loop_of(hidden(), jit_compile=True)
    assert not is_halved(loop)


def functional(make, shape=(6,)):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    model = keras.Model(inputs, layers.Dense(2)(make(inputs)))
    model.compile(keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return TrainLoop(model, X.reshape(-1, *shape), Y, batch_size=500, options=StepOptions(jit_compile=True))


class OfTheUser(keras.Model):
    def __init__(self):
        super().__init__()
        self.last = layers.Dense(2)

    def call(self, x):
        return self.last(x)


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (lambda x: layers.Flatten()(layers.MultiHeadAttention(1, 4)(x, x)), (3, 2), True),
        (lambda x: layers.Flatten()(layers.MultiHeadAttention(1, 4, dropout=0.1)(x, x)), (3, 2), False),
        (lambda x: layers.Concatenate()([x, layers.LayerNormalization()(x)]), (6,), True),
        (lambda x: keras.Sequential([layers.Dense(3, activation="relu")])(x), (6,), True),
        (lambda x: x - keras.ops.mean(x, axis=0), (6,), False),
        (lambda x: layers.Dense(3, activation=lambda x: x - keras.ops.mean(x, axis=0))(x), (6,), False),
        (lambda x: layers.Softmax(axis=0)(x), (6,), False),
        (lambda x: OfTheUser()(x), (6,), False),
        (lambda x: layers.Dense(3, activity_regularizer="l2")(x), (6,), False),
        (lambda x: layers.Dense(3, kernel_regularizer="l2")(x), (6,), True),
        (lambda x: layers.Lambda(lambda x: x - keras.ops.mean(x, axis=0))(x), (6,), False),
    ],
    ids=["attention", "with_dropout", "layer_norm", "nested", "an_operation", "an_activation", "softmax_over_examples",
         "a_users_model", "activity", "kernel", "lambda"],
)  # fmt: skip
def test_the_structure_decides_and_what_is_not_known_stays_whole(make, shape, expected):
    assert is_halved(functional(make, shape)) == expected


class PositivesOnly(keras.losses.Loss):
    """Divides by the positives of the batch, of which each half has another number."""

    def call(self, y, y_pred):
        y = keras.ops.cast(y[:, None], "float32")
        return keras.ops.sum(y * keras.ops.square(y_pred)) / (keras.ops.sum(y) + 1.0)


@pytest.mark.parametrize(
    "loss",
    [
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight"),
        PositivesOnly(),
        lambda y, y_pred: keras.ops.mean(keras.ops.square(y_pred)),
    ],
    ids=["ignore_class", "mean_with_sample_weight", "own_class", "own_function"],
)
def test_a_loss_that_is_not_known_to_be_a_mean_over_examples_stays_whole(loss):
    assert not is_halved(loop_of(loss=loss, jit_compile=True))


def test_a_layer_that_is_frozen_and_unfrozen_keeps_a_batch_whole():
    norm = layers.BatchNormalization()
    norm.trainable = False
    assert not is_halved(loop_of(norm, jit_compile=True))


def test_a_loss_that_is_a_sum_is_not_halved():
    assert not is_halved(loop_of(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"batch_size": 255}, False),
        ({"batch_size": 256}, True),
        ({"num_examples": 1001}, False),  # A last batch of one example has no halves.
        ({"num_examples": 1002}, True),
        ({"accumulate": 2}, False),
        ({"jit_compile": False}, False),
    ],
)
def test_small_batches_parts_and_the_plain_graph_are_not_halved(arguments, expected):
    assert is_halved(loop_of(**arguments)) == expected
