"""Edges at which Keras' `fit` computes something of its own: the loop does the same, or says why it does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.src.trainers.data_adapters.data_adapter_utils import class_weight_to_sample_weights

from clr_loop.loop.batches import with_class_weight
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.runs.fit import fit
from clr_loop.schedules import Constant
from helpers.small import FEATURES, LABELS, assert_same_weights, classifier, compiled, of_positives

RNG = np.random.default_rng(0)


def fitted(model, x, y, batch_size=50, rate=0.1, **arguments):
    """Train with Keras for an epoch, in the order given; return the model and the History."""
    model.jit_compile = False
    model.optimizer.learning_rate = rate
    return model, model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, **arguments).history


def sparse(**arguments):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


# --- Optimizers ---


def with_frozen_layer(trainable=False):
    model = compiled(lambda: layers.Dense(6, activation="tanh"))
    model.layers[0].trainable = trainable
    model.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), sparse())
    return model


def test_averages_of_use_ema_belong_to_the_layers_that_are_trained():
    expected, _ = fitted(with_frozen_layer(), FEATURES, LABELS)
    model = with_frozen_layer()
    fit(TrainLoop(model, FEATURES, LABELS, batch_size=50, shuffle=False), Constant(0.1), epochs=1)
    assert_same_weights(model, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trainable", [False, True])
def test_with_use_ema_layers_that_are_frozen_or_unfrozen_later_are_refused(trainable):
    model = with_frozen_layer(trainable)
    loop = TrainLoop(model, FEATURES, LABELS, batch_size=50)
    loop.run([0.1])
    model.layers[0].trainable = not trainable
    with pytest.raises(ValueError, match=r"the optimizer keeps averages .* compile the model again"):
        loop.run([0.1])


class OwnSGD(keras.optimizers.SGD):
    """Computes with its momentum, as an optimizer of a user's own may."""

    def update_step(self, gradient, variable, learning_rate):
        velocity = self.momentums[self._get_variable_index(variable)]
        new = self.momentum * velocity - (1 - self.momentum) * learning_rate * gradient
        self.assign(velocity, new)
        self.assign_add(variable, new / (2**self.momentum) * (self.momentum + 1.0))


@pytest.mark.parametrize("make", [lambda: keras.optimizers.Muon(0.01), lambda: OwnSGD(momentum=0.9)])
def test_an_optimizer_that_computes_with_its_momentum_takes_one_for_each_step(make):
    own, cycled = (TrainLoop(classifier(make()), FEATURES, LABELS, batch_size=50) for _ in range(2))
    momentum = 0.95 if isinstance(own.optimizer, keras.optimizers.Muon) else 0.9
    name = "beta_1" if hasattr(own.optimizer, "beta_1") else "momentum"
    momentum = getattr(own.optimizer, name)
    own.run([0.01] * 4)
    cycled.run([0.01] * 4, [momentum] * 4)
    assert_same_weights(own.model, cycled.model, rtol=1e-5, atol=1e-7)


# --- Weights of classes ---


@pytest.mark.parametrize(
    ("targets", "table"),
    [
        (np.float32([0.9, 0.1, 0.5, 1.5, 1.0]), {0: 2.0, 1: 5.0}),
        (np.array([-1, 1, -1, 1, 1]), {-1: 5.0, 1: 2.0}),
        (np.array([[3], [1], [0], [7], [2]]), {1: 4.0, 3: 0.5}),
        (np.eye(3, dtype=np.float32)[[0, 2, 1, 1, 0]], {0: 3.0, 2: 7.0}),
        (np.array([4, 5, 6, 7, 8]), {-1: 9.0, 5: 2.0}),
        (np.array([True, False, True, True, False]), {0: 3.0}),
        (np.uint8([0, 1, 255, 1, 0]), {256: 2.0, -1: 3.0, 255: 5.0}),
    ],
)
def test_weights_of_classes_are_those_of_keras(targets, table):
    *_, weights = with_class_weight((targets, targets), table)
    np.testing.assert_array_equal(weights, class_weight_to_sample_weights(targets, table))


def test_no_weights_of_classes_are_none_and_targets_of_many_classes_an_example_are_refused():
    loop = TrainLoop(classifier(), FEATURES, LABELS, batch_size=50, class_weight={})
    plain = TrainLoop(classifier(), FEATURES, LABELS, batch_size=50)
    np.testing.assert_array_equal(loop.run([0.1])["loss"], plain.run([0.1])["loss"])
    targets = np.zeros((4, 3, 2), np.float32)
    with pytest.raises(ValueError, match=r"class_weight needs a class for each example, and the targets have shape"):
        with_class_weight((targets, targets), {0: 1.0})


# --- What XLA does not check ---


def embedding():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Reshape((2, 2)),
            layers.Embedding(20, 3),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("number", [27, 20, -1])
def test_an_id_that_an_embedding_has_no_row_for_is_named_wherever_it_is(number):
    ids, targets = RNG.integers(0, 20, (128, 4)), RNG.normal(size=(128, 1)).astype("float32")
    loop = TrainLoop(embedding(), ids, targets, batch_size=32)
    ids[100, 2] = number
    with pytest.raises(ValueError, match=r"inputs holds numbers from .* but the model's Embedding has rows 0 to 19"):
        TrainLoop(embedding(), ids, targets, batch_size=32)
    with pytest.raises(ValueError, match="Embedding has rows 0 to 19"):
        loop.evaluate(ids, targets)
    stream = TrainLoop.from_dataset(embedding(), tf.data.Dataset.from_tensor_slices((ids, targets)).batch(32), 128)
    with pytest.raises(ValueError, match=r"Batch 3 of epoch 1: inputs holds numbers from"):
        stream.run([0.1] * 4)


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_limits_of_ids_belong_to_their_inputs_whatever_their_order(as_dict):
    z, a = keras.Input((2,), dtype="int32", name="z"), keras.Input((2,), dtype="int32", name="a")
    parts = [layers.Flatten()(layers.Embedding(rows, 3)(x)) for rows, x in ((20, z), (5, a))]
    outputs = layers.Dense(1)(layers.Concatenate()(parts))
    model = keras.Model({"z": z, "a": a} if as_dict else [z, a], outputs)
    model.compile("sgd", "mse")
    data = {"z": RNG.integers(0, 20, (64, 2)), "a": RNG.integers(0, 5, (64, 2))}
    data["z"][3] = 19
    targets = RNG.normal(size=(64, 1)).astype("float32")
    TrainLoop(model, data, targets, batch_size=32).run([0.1])
    data["a"][50] = 17
    with pytest.raises(ValueError, match=r"inputs\['a'\] holds numbers from 0 to 17, .* rows 0 to 4"):
        TrainLoop(model, data, targets, batch_size=32)


def test_ids_that_the_model_computes_are_said_not_to_be_checked():
    inputs = keras.Input((4,), dtype="int32")
    computed = layers.Dense(1)(layers.Flatten()(layers.Embedding(20, 3)(inputs + 1)))
    model = keras.Model(inputs, computed)
    model.compile("sgd", "mse")
    ids, targets = RNG.integers(0, 19, (64, 4)), RNG.normal(size=(64, 1)).astype("float32")
    chosen = TrainLoop(model, ids, targets, batch_size=32).chosen
    assert chosen["ids"] == "not checked, as the model computes those of its Embedding, and XLA takes any"
    assert "ids" not in TrainLoop(embedding(), ids, targets, batch_size=32).chosen


@pytest.mark.parametrize("loss", [sparse(), sparse(ignore_class=-1)])
def test_a_class_that_the_output_does_not_have_is_named_and_one_that_is_ignored_is_not(loss):
    labels = LABELS.copy()
    if loss.ignore_class is not None:
        labels[::7] = -1
    loop = TrainLoop(classifier(loss=loss), FEATURES, labels, batch_size=50)
    labels[150] = 5
    with pytest.raises(
        ValueError, match=r"targets holds numbers from 0 to 5, but the model's output has classes 0 to 4"
    ):
        TrainLoop(classifier(loss=loss), FEATURES, labels, batch_size=50)
    with pytest.raises(ValueError, match="the model's output has classes 0 to 4"):
        loop.evaluate(FEATURES, labels)
    stream = TrainLoop.from_dataset(
        classifier(loss=loss), tf.data.Dataset.from_tensor_slices((FEATURES, labels)).batch(50), 200
    )
    with pytest.raises(ValueError, match="Batch 3 of epoch 1: targets holds numbers"):
        stream.run([0.1] * 4)


# --- Arrays ---


def test_bfloat16_targets_are_numbers():
    targets = tf.cast(FEATURES[:, :1], tf.bfloat16).numpy()
    loops = [TrainLoop(binary([]), FEATURES, t, batch_size=50, shuffle=False) for t in (targets, targets.astype("f4"))]
    np.testing.assert_array_equal(*(loop.run([0.1] * 3)["loss"] for loop in loops))


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f2"])
def test_arrays_in_any_byte_order_and_precision_are_the_numbers_that_they_are(dtype):
    x = np.frombuffer(FEATURES.astype("<f2").astype(dtype).tobytes(), dtype).reshape(FEATURES.shape)
    y = np.frombuffer(LABELS.astype(">i4").tobytes(), ">i4")
    ours = TrainLoop(classifier(), x, y, batch_size=50, shuffle=False).run([0.1] * 3)["loss"]
    plain = FEATURES.astype("<f2").astype("float32")
    expected = TrainLoop(classifier(), plain, LABELS, batch_size=50, shuffle=False).run([0.1] * 3)["loss"]
    np.testing.assert_array_equal(ours, expected)


def test_floats_are_those_of_floatx():
    keras.config.set_floatx("float64")
    try:
        x, y = 1.7e9 + np.arange(128.0)[:, None], np.sin(np.arange(128) / 20.0)[:, None]

        def build():
            keras.utils.set_random_seed(0)
            norm = layers.Normalization(mean=1.7e9 + 63.5, variance=37.0**2)
            model = keras.Sequential([keras.Input((1,)), norm, layers.Dense(1)])
            model.compile("sgd", "mse")
            return model

        loop = TrainLoop(build(), x, y, batch_size=32, shuffle=False)
        expected, history = fitted(build(), x, y, 32)
        assert loop.run([0.1] * 4)["loss"].mean() == pytest.approx(history["loss"][0], rel=1e-6)
        assert_same_weights(loop.model, expected, rtol=1e-6, atol=1e-9)
    finally:
        keras.config.set_floatx("float32")


# --- Metrics ---


class OnceAndTwice(keras.metrics.Metric):
    def __init__(self):
        super().__init__(name="two")
        self.total = self.add_variable((), initializer="zeros", name="total")

    def update_state(self, y, p, sample_weight=None):
        self.total.assign_add(keras.ops.sum(p))

    def result(self):
        return {"once": self.total + 0.0, "twice": 2 * self.total}


def binary(metrics):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1, activation="sigmoid")])
    model.compile("sgd", "binary_crossentropy", metrics=metrics)
    return model


def test_a_metric_with_several_values_has_a_column_for_each():
    y = (LABELS > 2).astype("float32")[:, None]
    loop = TrainLoop(binary([OnceAndTwice()]), FEATURES, y, batch_size=200, shuffle=False)
    _, history = fitted(binary([OnceAndTwice()]), FEATURES, y, 200)
    steps = loop.run([0.1])
    assert loop.metric_names == ("loss", "once", "twice")
    for name in ("once", "twice"):
        assert steps[name][0] == pytest.approx(history[name][0], rel=1e-5)
    assert loop.evaluate(FEATURES, y).keys() == {"loss", "once", "twice"}


def test_an_epoch_has_no_training_value_of_metrics_that_are_no_means_and_validation_has_keras():
    y = (LABELS > 2).astype("float32")[:, None]
    metrics = ["AUC", "FalseNegatives", "RootMeanSquaredError", "accuracy"]
    loop = TrainLoop(binary(list(metrics)), FEATURES, y, batch_size=50, shuffle=False)
    result = fit(loop, Constant(0.1), (FEATURES, y), epochs=1)
    _, history = fitted(binary(list(metrics)), FEATURES, y, validation_data=(FEATURES, y))
    assert result.final.keys() == history.keys() - {
        "AUC",
        "FalseNegatives",
        "RootMeanSquaredError",
        "root_mean_squared_error",
        "auc",
        "false_negatives",
    }
    assert loop.not_means == tuple(name for name in loop.metric_names if name not in ("loss", "accuracy"))
    assert result.history.keys() >= set(loop.metric_names)
    for name, value in result.final.items():
        assert value == pytest.approx(history[name][0], rel=1e-4)


# --- Losses that are no plain means ---


@pytest.mark.parametrize("loss", [sparse(reduction="sum"), sparse(ignore_class=1)])
def test_evaluation_takes_batches_as_keras_does_where_the_loss_depends_on_them(loss):
    loop = TrainLoop(classifier(loss=loss), FEATURES, LABELS, batch_size=50)
    expected = classifier(loss=loss).evaluate(FEATURES, LABELS, batch_size=50, verbose=0, return_dict=True)
    assert loop.evaluate(FEATURES, LABELS)["loss"] == pytest.approx(expected["loss"], rel=1e-5)


class Adds(layers.Layer):
    def call(self, x):
        self.add_loss(keras.ops.sum(keras.ops.square(x)))
        return x


def with_mask():
    keras.utils.set_random_seed(0)
    hidden = [keras.Input((7,), dtype="int32"), layers.Embedding(20, 4, mask_zero=True), layers.Dense(3)]
    model = keras.Sequential(hidden)
    model.compile("sgd", sparse(), metrics=["accuracy"])
    ids = np.random.default_rng(1).integers(0, 20, (200, 7))
    ids[:150, 2:] = 0
    return model, ids, ids % 3


def with_added_loss():
    return compiled(Adds), FEATURES, LABELS


@pytest.mark.parametrize("build", [with_mask, with_added_loss])
def test_masks_and_added_losses_are_evaluated_in_batches_as_keras_does(build):
    model, x, y = build()
    loop = TrainLoop(model, x, y, batch_size=16)
    expected = build()[0].evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
    assert loop.evaluate(x, y) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="batch_size is -5; it must be at least 1"):
        loop.evaluate(x, y, batch_size=-5)


def test_means_in_which_examples_do_not_count_alike_have_no_value_for_an_epoch():
    model, x, y = with_mask()
    assert TrainLoop(model, x, y, batch_size=16).not_means == ("accuracy",)
    for weighted, not_means in (([], ()), (["accuracy"], ("accuracy",))):
        model = classifier()
        model.compile("sgd", sparse(), metrics=[] if weighted else ["accuracy"], weighted_metrics=weighted)
        weights = RNG.uniform(size=200).astype("float32")
        loop = TrainLoop(model, FEATURES, LABELS, batch_size=50, sample_weight=weights)
        assert loop.not_means == not_means


def test_a_metric_named_loss_is_refused():
    model = classifier()
    model.compile("sgd", sparse(), metrics=[keras.metrics.SparseCategoricalAccuracy(name="loss")])
    with pytest.raises(ValueError, match="A metric has the name loss, which is that of the compiled loss; rename it"):
        TrainLoop(model, FEATURES, LABELS)


def of_each(y, logits):
    return 2.0 * keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True)


def test_a_batch_whose_loss_is_no_mean_of_its_examples_is_not_split():
    options = StepOptions(accumulate=2)
    for loss, reason in (
        (sparse(ignore_class=1), "has ignore_class"),
        (of_positives, "is not the mean of its examples'"),
    ):
        with pytest.raises(ValueError, match=reason):
            TrainLoop(classifier(loss=loss), FEATURES, LABELS, batch_size=50, options=options)
    whole, parts = (
        TrainLoop(classifier(loss=of_each), FEATURES, LABELS, batch_size=50, options=o) for o in (None, options)
    )
    np.testing.assert_allclose(whole.run([0.01] * 4)["loss"], parts.run([0.01] * 4)["loss"], rtol=1e-5)


def test_a_model_that_draws_in_inference_too_may_be_split():
    model = compiled(lambda: layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x))))
    loop = TrainLoop(model, FEATURES, LABELS, batch_size=50, options=StepOptions(accumulate=2))
    assert np.isfinite(loop.run([0.01] * 4)["loss"]).all()
    model = compiled(layers.BatchNormalization, lambda: layers.Dropout(0.5), loss=of_positives)
    with pytest.raises(ValueError, match="is not the mean of its examples'"):
        TrainLoop(model, FEATURES, LABELS, batch_size=50, options=StepOptions(accumulate=2))


@pytest.mark.parametrize("reduction", [None, "none"])
def test_a_loss_without_a_reduction_is_refused_with_the_reason(reduction):
    with pytest.raises(ValueError, match="gives a value for each example, and a step needs one number"):
        TrainLoop(classifier(loss=sparse(reduction=reduction)), FEATURES, LABELS, batch_size=50)


def test_eager_execution_is_refused_with_the_reason():
    model = classifier()
    model.compile("sgd", model.loss, run_eagerly=True)
    with pytest.raises(ValueError, match="run_eagerly=True is set, for debugging, and this loop is a compiled program"):
        TrainLoop(model, FEATURES, LABELS)
    tf.config.run_functions_eagerly(True)
    try:
        with pytest.raises(ValueError, match=r"run_functions_eagerly\(True\) is set"):
            TrainLoop(classifier(), FEATURES, LABELS)
    finally:
        tf.config.run_functions_eagerly(False)
