"""Models, losses and data of many kinds: trained to the weights of Keras' `fit`, or refused with the reason."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from clr_loop.loop import checks
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from helpers.processes import run_code
from helpers.small import FEATURES, LABELS, assert_same_weights, classifier

X, SUMS = FEATURES, FEATURES.sum(axis=1, keepdims=True)
ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]
IGNORED = np.where(np.arange(len(LABELS)) % 5, LABELS, -1)
PLAIN = StepOptions(jit_compile=False)


def sparse(**arguments):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def assert_trained_as_by_fit(build, x, y, epochs=2):
    """Train by both from the same seed; compare weights, the last epoch's columns, and the evaluation."""
    keras.utils.set_random_seed(0)
    loop = TrainLoop(build(), x, y, batch_size=50, shuffle=False)
    steps = loop.run(np.full(epochs * loop.steps_per_epoch, 0.05))
    keras.utils.set_random_seed(0)
    model = build()
    model.jit_compile, model.optimizer.learning_rate = False, 0.05
    history = model.fit(x, y, batch_size=50, epochs=epochs, shuffle=False, verbose=0).history
    assert_same_weights(loop.model, model, rtol=1e-4, atol=1e-6)
    for name in set(history) - set(loop.not_means):
        last = steps[name][-loop.steps_per_epoch :].mean()
        assert last == pytest.approx(float(history[name][-1]), rel=1e-4, abs=1e-6), name
    return loop, model


def assert_evaluated_as_by_keras(loop, model, x, y):
    expected = model.evaluate(x, y, batch_size=50, verbose=0, return_dict=True)
    assert loop.evaluate(x, y) == pytest.approx({name: float(np.squeeze(v)) for name, v in expected.items()}, rel=1e-4)


def dense(width=1, loss="mse", activation=None, metrics=None):
    inner = layers.Dense(4, activation="tanh"), layers.Dense(width, activation=activation)
    model = keras.Sequential([keras.Input((6,)), *inner])
    model.compile("sgd", loss, metrics=metrics)
    return model


# --- Losses ---


def three_outputs(nest, losses):
    inputs = keras.Input((6,))
    a, b, c = (layers.Dense(width, name=name)(inputs) for name, width in (("a", 1), ("b", 5), ("c", 1)))
    model = keras.Model(inputs, nest(a, b, c))
    model.compile("sgd", losses)
    return model


@pytest.mark.parametrize(
    ("nest", "losses"),
    [
        (lambda a, b, c: {"a": a, "n": {"b": b, "c": c}}, {"a": "mse", "n": {"b": sparse(), "c": "mae"}}),
        (lambda a, b, c: {"a": a, "n": [b, c]}, {"a": "mse", "n": [sparse(), "mae"]}),
        (lambda a, b, c: [a, [b, c]], ["mse", [sparse(), "mae"]]),
    ],
    ids=["dicts_in_a_dict", "a_list_in_a_dict", "a_list_in_a_list"],
)
def test_losses_nested_in_one_another_belong_to_the_outputs_that_keras_gives_them(nest, losses):
    targets = nest(SUMS, LABELS, 2 * SUMS)
    loop, model = assert_trained_as_by_fit(lambda: three_outputs(nest, losses), X, targets)
    assert_evaluated_as_by_keras(loop, model, X, targets)
    with pytest.raises(ValueError, match=r"holds numbers from 0 to 9, but the model's output has classes 0 to 4"):
        TrainLoop(three_outputs(nest, losses), X, nest(SUMS, np.where(LABELS == 4, 9, LABELS), SUMS), batch_size=50)


class OfThoseThatCount(keras.losses.SparseCategoricalCrossentropy):
    """Leaves out targets of -1, and is a mean over the others."""

    def call(self, y, logits):
        counts = ops.cast(y >= 0, "float32")
        return counts * super().call(ops.maximum(y, 0), logits) / ops.mean(counts)


class Renamed(keras.losses.SparseCategoricalCrossentropy):
    """Computes what it inherits."""


def embedding(loss):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.UnitNormalization()])
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (lambda: dense(5, OfThoseThatCount(from_logits=True)), IGNORED),
        (lambda: dense(5, keras.losses.CategoricalGeneralizedCrossEntropy(), "softmax"), LABELS),
        (lambda: embedding(keras.losses.Circle(gamma=4)), LABELS),
    ],
    ids=["a_subclass_that_ignores_-1", "generalized_cross_entropy", "circle"],
)
def test_losses_of_classes_take_the_targets_that_they_are_made_for(build, targets):
    loop, model = assert_trained_as_by_fit(build, X, targets)
    assert_evaluated_as_by_keras(loop, model, X, targets)


def test_a_subclass_of_a_loss_is_taken_for_what_it_computes():
    own, inherited = (dense(5, kind(from_logits=True)) for kind in (OfThoseThatCount, Renamed))
    x, y = np.tile(X, (3, 1)), np.tile(LABELS, 3)
    assert not TrainLoop(own, x, y, batch_size=300).halves
    assert TrainLoop(inherited, x, y, batch_size=300).halves
    assert (checks.has_plain_mean(own), checks.has_plain_mean(inherited)) == (False, True)
    with pytest.raises(ValueError, match="the model's output has classes 0 to 4"):
        TrainLoop(dense(5, Renamed(from_logits=True)), X, IGNORED, batch_size=50)


# --- What happens in training only ---


class LayerInTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.extra, self.last = layers.Dense(4), layers.Dense(4, activation="tanh"), layers.Dense(1)

    def call(self, x, training=False):
        x = self.first(x)
        return self.last(self.extra(x) if training else x)


class LossInTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(4, activation="tanh"), layers.Dense(1)

    def call(self, x, training=False):
        hidden = self.first(x)
        if training:
            self.add_loss(0.1 * ops.mean(hidden**2))
        return self.last(hidden)


def made(kind, loss="mse", call=False):
    model = kind()
    if call:
        model(X[:2])  # Builds what works in inference, too.
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("kind", [LayerInTraining, LossInTraining])
def test_layers_and_losses_of_training_alone_count_in_training_alone(kind):
    loop, model = assert_trained_as_by_fit(lambda: made(kind), X, SUMS)
    assert_evaluated_as_by_keras(loop, model, X, SUMS)


def test_a_layer_that_was_not_built_yet_when_the_model_was_called_is_trained():
    loop = TrainLoop(made(LayerInTraining, call=True), X, SUMS, batch_size=50)
    before = loop.snapshot().model
    loop.run([0.1])
    assert len(before) == 6
    assert all((old != new).any() for old, new in zip(before, loop.snapshot().model, strict=True))


def test_a_loss_of_training_alone_needs_no_targets_and_cannot_be_evaluated():
    loop, _ = assert_trained_as_by_fit(lambda: made(LossInTraining, loss=None), X, None)
    with pytest.raises(ValueError, match=r"fails without targets \(ValueError: No loss to compute"):
        loop.evaluate(X)


# --- Nothing to train, metrics, evaluation ---


def nothing_to_train():
    model = dense()
    model.trainable = False
    model.compile("sgd", "mse")
    return model


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_model_with_nothing_to_train_is_measured():
    loop, model = assert_trained_as_by_fit(nothing_to_train, X, SUMS)
    assert loop.step == 8
    assert_evaluated_as_by_keras(loop, model, X, SUMS)


def test_a_metric_of_one_value_in_an_array_is_a_number():
    def build():
        return dense(1, "binary_crossentropy", "sigmoid", [keras.metrics.F1Score(threshold=0.5)])

    y = (SUMS > 0).astype("float32")
    loop, model = assert_trained_as_by_fit(build, X, y)
    assert_evaluated_as_by_keras(loop, model, X, y)
    assert loop.score(loop.predict(X), y) == pytest.approx(loop.evaluate(X, y), rel=1e-5)
    several = dense(5, "categorical_crossentropy", "softmax", [keras.metrics.F1Score()])
    with pytest.raises(ValueError, match=r"The metric f1_score has 5 values.*average=\"macro\""):
        TrainLoop(several, X, ONE_HOT, batch_size=50)


def test_an_evaluation_without_targets_says_what_to_give():
    loop = TrainLoop(classifier(), X, LABELS, batch_size=50, options=PLAIN)
    for data, advice in (
        (X, r"; give evaluate\(inputs, targets\)\.$"),
        ((X, LABELS), r"; a tuple is several inputs, so for inputs and targets give evaluate\(\*data\)\.$"),
        (tf.data.Dataset.from_tensor_slices(X).batch(50), r"; give a dataset of \(inputs, targets\)\.$"),
    ):
        with pytest.raises(ValueError, match="The data are inputs alone.*" + advice) as caught:
            loop.evaluate(data)
        assert "\n" not in str(caught.value)


# --- What a step is compiled with ---


class NotInAGraph(keras.metrics.Metric):
    def update_state(self, y, p, sample_weight=None):
        if not tf.executing_eagerly():
            raise ValueError("this metric cannot be traced")

    def result(self):
        return 0.0


def test_what_fails_without_xla_too_is_not_blamed_on_xla():
    loop = TrainLoop(dense(metrics=[NotInAGraph(name="own")]), X, SUMS, batch_size=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            with pytest.raises(ValueError, match="this metric cannot be traced"):
                loop.run([0.1])
    assert (loop.jit_compile, loop.chosen["xla"]) == (True, "with XLA")


DETERMINISTIC = """
import numpy as np, tensorflow as tf
from clr_loop.loop.loop import TrainLoop
from helpers.small import FEATURES, LABELS, classifier
tf.config.experimental.enable_op_determinism()
stream = TrainLoop.from_dataset(classifier(), tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).batch(64))
resident = TrainLoop(classifier(), FEATURES, LABELS, batch_size=64, shuffle=False)
assert (stream.run([0.01] * 8)["loss"] == resident.run([0.01] * 8)["loss"]).all()
print("equal", stream.evaluate(FEATURES, LABELS) == resident.evaluate(FEATURES, LABELS))
"""


def test_a_stream_trains_where_operations_are_asked_to_be_deterministic():
    assert run_code(DETERMINISTIC) == "equal True\n"
