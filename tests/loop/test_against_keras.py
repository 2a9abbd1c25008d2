"""The loop against Keras' own `fit`: the same start, batches and rates must give the same weights and metrics."""

import functools
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.loop.strategies import scope
from helpers import kinds
from helpers.keras_fit import BATCH_SIZE, EPOCHS, STEPS_PER_EPOCH, fit, fitted, make, rates_of
from helpers.kinds import CLASSES, FEATURES, KINDS, Kind
from helpers.loops import epoch_means, loop_of, train
from helpers.processes import run_code

# One kind has images of 0–255 and no layer that scales them.
pytestmark = pytest.mark.filterwarnings("ignore:The inputs are uint8 images")


def assert_same_weights(ours, theirs, rtol=1e-4, atol=1e-6):
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol, atol)


def assert_same_values(ours, theirs, rtol=1e-4):
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol, err_msg=name)


def assert_same_means(steps, sizes, expected, kind):
    """Hold the means of each epoch's steps against Keras' History."""
    for name in set(expected.epochs) - set(kind.not_means):
        means = epoch_means(steps[name], sizes)
        np.testing.assert_allclose(means, expected.epochs[name], rtol=1e-5, err_msg=name)


@functools.cache
def trained(name):
    """Train a kind from arrays, with XLA where it is chosen; return the loop, its end and the examples of each step."""
    kind = make(name)
    loop = loop_of(kind, "resident")
    return loop, *train(loop, kind, "resident", rates_of(kind))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_ends_as_with_fit(name):
    loop, end, sizes = trained(name)
    expected = fitted(name)
    assert_same_weights(end.weights, expected.weights)
    assert_same_values(end.evaluated, expected.evaluated)

    assert set(loop.metric_names) == set(expected.epochs)
    assert set(end.epochs) == {"learning_rate", *loop.metric_names}
    np.testing.assert_array_equal(sizes, EPOCHS * [*[32] * 6, 8])
    assert_same_means(end.epochs, sizes, expected, KINDS[name]())


@pytest.mark.parametrize(
    "name",
    ["dict_inputs", "list_inputs", "two_outputs_with_weights_each", "class_weights", "added_loss_without_targets",
     "segmentation"],
)  # fmt: skip
def test_a_stream_ends_as_arrays_do_to_the_bit(name):
    kind = make(name)
    loop = loop_of(kind, "streamed")
    end, sizes = train(loop, kind, "streamed", rates_of(kind))
    arrays, expected, expected_sizes = trained(name)
    assert loop.jit_compile == arrays.jit_compile == (name != "segmentation")
    assert_same_weights(end.weights, expected.weights, rtol=0, atol=0)
    assert_same_values(end.epochs, expected.epochs, rtol=0)
    assert_same_values(end.evaluated, expected.evaluated, rtol=1e-6)
    np.testing.assert_array_equal(sizes, expected_sizes)


def test_a_convolution_on_a_cpu_is_left_to_the_plain_graph_and_dense_layers_are_not():
    assert not trained("segmentation")[0].jit_compile
    assert trained("regression")[0].jit_compile


def test_each_step_has_the_loss_and_the_auc_of_its_own_batch_before_its_update():
    name = "one_logit_binary"
    kind, (_, end, _) = make(name), trained(name)
    losses, values = [], []
    for step, rate in enumerate(rates_of(kind)):  # Without a graph.
        start = step % STEPS_PER_EPOCH * BATCH_SIZE
        x, y = kind.inputs[start : start + BATCH_SIZE], kind.targets[start : start + BATCH_SIZE]
        with tf.GradientTape() as tape:
            outputs = kind.model(x, training=True)
            loss = kind.model.compute_loss(y=y, y_pred=outputs)
        gradients = tape.gradient(loss, kind.model.trainable_variables)
        kind.model.optimizer.learning_rate = rate
        kind.model.optimizer.apply(gradients, kind.model.trainable_variables)
        losses.append(float(loss))
        values.append(float(keras.metrics.AUC(from_logits=True)(y, outputs[:, 0])))
    np.testing.assert_allclose(end.epochs["loss"], losses, rtol=1e-4)
    np.testing.assert_allclose(end.epochs["auc"], values, rtol=1e-5)
    assert len(set(np.round(values, 6))) > 5


@pytest.mark.parametrize(
    ("name", "jit_compile"),
    [("regularized", True), ("two_outputs_with_weights_each", False)],
)
def test_a_batch_in_four_parts_gives_the_update_and_the_metrics_of_the_whole_batch(name, jit_compile):
    kind = make(name)
    loop = loop_of(kind, "resident", accumulate=4, jit_compile=jit_compile)
    end, sizes = train(loop, kind, "resident", rates_of(kind))
    expected = fitted(name)
    assert_same_weights(end.weights, expected.weights)
    assert_same_means(end.epochs, sizes, expected, kind)


def start(build, *arguments):
    keras.utils.set_random_seed(0)
    return build(*arguments)


def test_clip_norm_is_global_clipnorm_of_keras():
    twin = start(kinds.sparse_classifier, kinds.momentum(global_clipnorm=0.1))
    expected = fit(twin)
    kind = make("sparse_classifier")
    end, _ = train(loop_of(kind, "resident", clip_norm=0.1), kind, "resident", rates_of(kind))
    assert_same_weights(end.weights, expected.weights)
    free = fitted("sparse_classifier").weights
    assert max(np.abs(a - b).max() for a, b in zip(free, expected.weights, strict=True)) > 0.1


def test_half_precision_with_a_loss_scale_trains_nearly_as_with_fit():
    with scope(None, "mixed_float16"):
        kind, twin = (start(kinds.sparse_classifier) for _ in range(2))
    assert isinstance(kind.model.optimizer, keras.optimizers.LossScaleOptimizer)
    end, sizes = train(loop_of(kind, "resident", jit_compile=True), kind, "resident", rates_of(kind))
    expected = fit(twin)
    # float16 has 11 bits: a relative error of 0.0005 in each product.
    assert_same_weights(end.weights, expected.weights, rtol=0.01, atol=0.003)
    assert_same_values(end.evaluated, expected.evaluated, rtol=0.01)
    np.testing.assert_allclose(epoch_means(end.epochs["loss"], sizes), expected.epochs["loss"], rtol=0.003)


@pytest.fixture(scope="module")
def on_two_replicas(tmp_path_factory):
    path = tmp_path_factory.mktemp("ends") / "ends.pickle"
    wanted = ["one_logit_binary:resident", "regularized:resident", "two_outputs_with_weights_each:uneven"]
    run_code("import sys; from helpers.two_replicas import main; main(*sys.argv[1:])", path, *wanted)
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize("name", ["one_logit_binary", "regularized"])
def test_two_replicas_end_as_fit_does_on_one(name, on_two_replicas):
    end, expected = on_two_replicas[f"{name}:resident"], fitted(name)
    assert_same_weights(end.weights, expected.weights)
    assert_same_values(end.evaluated, expected.evaluated)


def test_replicas_with_shares_of_unequal_size_end_as_one(on_two_replicas):
    kind = make("two_outputs_with_weights_each")
    loop = loop_of(kind, "resident", batch_size=25, jit_compile=False)
    expected, _ = train(loop, kind, "resident", rates_of(kind))
    end = on_two_replicas["two_outputs_with_weights_each:uneven"]
    assert_same_weights(end.weights, expected.weights)
    assert_same_values(end.epochs, expected.epochs)
    assert_same_values(end.evaluated, expected.evaluated)


def dense(loss, activation=None, width=5, optimizer="sgd"):
    model = kinds.classifier(activation, width)
    model.compile(optimizer, loss)
    return model


def with_nan(array):
    array = array.astype(np.float32)
    array[7] = np.nan
    return array


def halving(rate=0.1):
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(rate, 10, 0.5))


BAD = {
    "uncompiled": (lambda: kinds.classifier(), FEATURES, CLASSES, "is not compiled.*model.compile"),
    "one-hot with a sparse loss": (
        lambda: dense(kinds.from_logits()),
        FEATURES,
        kinds.one_hot(CLASSES),
        r"one-hot.*\(.*5\).*CategoricalCrossentropy",
    ),
    "a class too many": (lambda: dense(kinds.from_logits(), width=4), FEATURES, CLASSES, "from 0 to 4.* 0 to 3"),
    "a negative class": (lambda: dense(kinds.from_logits()), FEATURES, CLASSES - 1, "numbers from -1 to 3"),
    "another width": (lambda: dense("mse", width=3), FEATURES, kinds.normal(4), r"\(.*4\).*\(.*3\)"),
    "a vector for a matrix": (lambda: dense("mse", width=3), FEATURES, kinds.normal(), r"\(.*\).*\(.*3\)"),
    "NaN in the inputs": (lambda: dense("mse", width=1), with_nan(FEATURES), FEATURES[:, :1], "inputs.* NaN .*7"),
    "NaN in the targets": (lambda: dense("mse", width=1), FEATURES, with_nan(FEATURES[:, 0]), "targets.* NaN .*7"),
    "softmax twice": (
        lambda: dense(kinds.from_logits(), "softmax"), FEATURES, CLASSES, "ends in softmax.*from_logits=True"
    ),
    "logits for probabilities": (
        lambda: dense("sparse_categorical_crossentropy"), FEATURES, CLASSES, "takes probabilities.*from_logits=True"
    ),
    "logits for a probability": (
        lambda: dense("binary_crossentropy", width=1), FEATURES, CLASSES > 2, "takes probabilities.*from_logits=True"
    ),
    "a schedule": (lambda: dense("mse", optimizer=halving()), FEATURES, FEATURES[:, :5], "made with a schedule"),
    "no loss": (lambda: dense(None), FEATURES, CLASSES, "loss"),
    "inputs of another shape": (lambda: dense("mse", width=1), kinds.normal(4), FEATURES[:, :1], r"inputs.*4.*"),
    "text": (lambda: dense("mse", width=1), FEATURES.astype(str), FEATURES[:, :1], "inputs.*dtype"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_in_one_line_before_anything_is_compiled(what):
    build, inputs, targets, message = BAD[what]
    with pytest.raises((ValueError, TypeError), match=message) as raised:
        loop_of(Kind(build(), inputs, targets), "resident")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("nests", "message"),
    [
        (({"a": FEATURES, "b": FEATURES[:199]}, CLASSES, None), "200.*199|199.*200"),
        ((FEATURES, CLASSES[:150], None), "200.*150|150.*200"),
        ((FEATURES, CLASSES, np.ones(7)), "200.*7|7.*200"),
        ((FEATURES, (CLASSES, CLASSES[:150]), None), "200.*150|150.*200"),
    ],
    ids=["inputs", "targets", "sample_weight", "one of two targets"],
)
def test_lengths_that_differ_are_named(nests, message):
    inputs, targets, sample_weight = nests
    with pytest.raises(ValueError, match=message) as raised:
        loop_of(Kind(dense(kinds.from_logits()), inputs, targets, sample_weight), "resident")
    assert "\n" not in str(raised.value)
