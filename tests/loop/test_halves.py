"""A large batch in two halves side by side: the same result but for rounding, and only where the halves add up."""

import keras
import numpy as np
import pytest
from keras import layers

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.step import StepOptions

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


def test_a_gradient_that_is_0_in_theory_does_not_keep_a_batch_whole():
    # The softmax of the attention does not change when all keys are shifted, so their bias has no gradient.
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3, 2))
    outputs = layers.Dense(2)(layers.Flatten()(layers.MultiHeadAttention(1, 4)(inputs, inputs)))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert is_halved(TrainLoop(model, X.reshape(-1, 3, 2), Y, batch_size=500))


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


def test_trying_the_halves_out_changes_nothing():
    weights = [loop_of(layers.BatchNormalization(), halve_batches=wish).weights_sha256() for wish in (True, False)]
    assert weights[0] == weights[1]
