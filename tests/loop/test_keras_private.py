"""Each private name of Keras and TensorFlow that the package reaches into, and what breaks when a version moves it."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from clr_loop.loop import keras_private
from helpers.small import FEATURES, classifier, compiled


def test_tensorflow_tells_whether_it_computes_with_onednn():
    """`_pywrap_util_port.IsMklEnabled`: without it a resumed run cannot notice that its kernels are others."""
    assert keras_private.has_onednn() in (True, False)


def test_a_graph_function_can_be_told_not_to_warn_of_frequent_traces():
    """`_omit_frequent_tracing_warning`: without it a process that makes many loops warns of retracing."""
    assert keras_private.graph_function(lambda: 0)._omit_frequent_tracing_warning is True
    assert "_omit_frequent_tracing_warning" in vars(tf.function(lambda: 0))


class WithoutTraining(keras.Model):
    def call(self, x):
        return x


class WithTraining(keras.Model):
    def call(self, x, training=False):
        return x


@pytest.mark.parametrize(("kind", "expected"), [(WithoutTraining, {}), (WithTraining, {"training": True})])
def test_a_model_says_whether_its_call_has_an_argument_training(kind, expected):
    """`Model._call_has_training_arg`: without it layers inside would work in another mode than in Keras' `fit`."""
    assert keras_private.training_argument(kind(), True) == expected


class LossWithoutTraining(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.ops.sum(y_pred)


def test_a_loss_of_ones_own_is_called_with_training_only_if_it_takes_it():
    """`Model._compute_loss`: what Keras' own `train_step` calls in the place of `compute_loss`."""
    assert "training" in inspect.signature(keras.Model._compute_loss).parameters
    inputs = keras.Input((2,))
    model = LossWithoutTraining(inputs, inputs)
    model.compile("sgd")
    loss = keras_private.compute_loss(model, (np.ones((3, 2)), None), tf.ones((3, 2)), training=True)
    assert float(loss) == 6.0


def test_a_model_keeps_the_loss_of_each_output_in_a_mean_and_the_losses_as_objects():
    """`Model._compile_loss` with `metrics` and `_flat_losses`: the columns of several outputs, and halves."""
    inputs = keras.Input((6,))
    model = keras.Model(inputs, [layers.Dense(1, name="a")(inputs), layers.Dense(1, name="b")(inputs)])
    model.compile("sgd", ["mse", "mae"])
    targets = [FEATURES[:, :1], FEATURES[:, :1]]
    keras_private.compute_loss(model, (FEATURES, targets), model(FEATURES), training=True)
    assert [metric.name for metric in keras_private.output_losses(model)] == ["a_loss", "b_loss"]
    named = [loss.fn for loss in keras_private.losses_called(model)]
    assert named == [keras.losses.mean_squared_error, keras.losses.mean_absolute_error]
    without = keras.Model(inputs, inputs)
    without.compile("sgd")
    assert keras_private.losses_called(without) == keras_private.output_losses(without) == []


def test_a_dataset_tells_how_it_is_shuffled():
    """`_inputs`, `_seed`, `_reshuffle_each_iteration`, `CacheDataset`: orders that never come again are noticed."""
    numbers = tf.data.Dataset.range(9)
    twice = numbers.shuffle(9, seed=1).batch(3).shuffle(3, seed=2, reshuffle_each_iteration=False).prefetch(1)
    (one, two), again = keras_private.shuffles_of(twice), keras_private.shuffles_of(numbers.shuffle(9, seed=1))
    assert (one.reshuffles, two.reshuffles) == (True, False)
    assert one.seeds == again[0].seeds != two.seeds
    assert one.dataset not in (two.dataset, again[0].dataset)
    first, second = (keras_private.shuffles_of(numbers.shuffle(9))[0].seeds for _ in range(2))
    assert first == second == (0, 0) or first != second  # Without and with a global seed.
    assert keras_private.shuffles_of(numbers.shuffle(9).cache().map(lambda x: x)) == []


def test_targets_outputs_and_losses_are_paired_without_computing_a_loss():
    """`_flat_losses` with `loss`, and `built`: the targets of each loss are checked before it is computed."""

    def fails(y, y_pred):
        raise RuntimeError("computed")

    inputs = keras.Input((6,))
    model = keras.Model(inputs, {"a": layers.Dense(1, name="a")(inputs), "b": layers.Dense(2, name="b")(inputs)})
    model.compile("sgd", {"b": fails, "a": "mae"})
    targets, outputs = {"a": FEATURES[:, :1], "b": FEATURES[:, :2]}, model(FEATURES)
    pairs = keras_private.pairs_of_losses(model, (FEATURES, targets), outputs)
    assert {
        loss.fn: (y is targets[name], p is outputs[name]) for name, (y, p, loss) in zip("ba", pairs, strict=True)
    } == {
        fails: (True, True),
        keras.losses.mean_absolute_error: (True, True),
    }
    assert keras_private.losses_called(model) == [loss for _, _, loss in pairs]


def test_a_model_that_is_compiled_again_has_other_objects():
    """`Model._compile_loss` and `_compile_metrics`: by them a loop notices that its trace is an old one."""
    model = classifier()
    before = keras_private.compiled_with(model)
    assert keras_private.compiled_with(model) == before
    model.compile(model.optimizer, model.loss, metrics=["accuracy"])
    assert keras_private.compiled_with(model) != before


def test_an_output_says_whether_it_carries_a_mask():
    """`_keras_mask`: without it a masked batch would be split into parts of which each has another number of tokens."""
    tokens = np.array([[1, 2, 0], [3, 0, 0]])
    assert keras_private.carries_mask(layers.Embedding(5, 2, mask_zero=True)(tokens))
    assert not keras_private.carries_mask(layers.Embedding(5, 2)(tokens))


def test_layers_are_found_inside_of_each_other_and_their_trainable_variables_even_if_frozen():
    """`_flatten_layers` and `_trainable_variables`: what the optimizer is built for, and what a trace depends on."""
    model = keras.Sequential([keras.Input((6,)), keras.Sequential([layers.Dense(3, name="inner")]), layers.Dense(1)])
    assert "inner" in [layer.name for layer in keras_private.layers_of(model)]
    model.layers[0].trainable = False
    assert len(model.trainable_variables) == 2
    assert len(keras_private.all_trainable(model)) == 4


def test_a_models_operations_are_known_for_keras_own_classes_alone():
    """`keras.src.models.functional.Functional`: without it no functional model would be computed in halves."""
    inputs = keras.Input((6,))
    functional = keras.Model(inputs, keras.ops.mean(layers.Dense(2)(inputs), axis=0))
    names = [type(operation).__name__ for operation in keras_private.operations_of(functional)]
    assert names == ["InputLayer", "Dense", "Mean"]
    assert len(keras_private.operations_of(classifier())) == 2
    assert keras_private.operations_of(WithTraining()) is None


def test_the_sum_over_replicas_can_be_left_out_of_an_update():
    """`Optimizer._all_reduce_sum_gradients`: without it gradients would be clipped before they are summed."""
    optimizer = keras.optimizers.SGD()
    with keras_private.summed_already(optimizer):
        assert optimizer._all_reduce_sum_gradients is list
    assert optimizer._all_reduce_sum_gradients([(1, 2)]) == [(1, 2)]
    assert "_all_reduce_sum_gradients" in inspect.getsource(type(optimizer).__mro__[1]._backend_update_step)


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.9)], ids=["adam", "sgd"]
)
def test_a_momentum_can_be_given_in_the_graph(optimizer):
    """`beta_1` and `momentum` are Python floats that an update reads: a tensor in their place must reach it."""
    name = "beta_1" if isinstance(optimizer, keras.optimizers.Adam) else "momentum"
    variable = keras.Variable([1.0])
    optimizer.build([variable])

    @tf.function(autograph=False)
    def update(momentum):
        with keras_private.at_momentum(optimizer, momentum):
            optimizer.apply([tf.constant([1.0])], [variable])

    update(tf.constant(0.9))
    update(tf.constant(0.25))
    (velocity,) = [v for v in optimizer.variables if "momentum" in v.path]
    expected = 0.25 * 0.1 + 0.75 if name == "beta_1" else -0.25 * optimizer.learning_rate - optimizer.learning_rate
    np.testing.assert_allclose(velocity, [expected], rtol=1e-6)
    assert isinstance(getattr(optimizer, name), float)


def test_the_rate_of_each_variable_and_its_decay_can_be_scaled():
    """`_var_key`, `update_step` and `_apply_weight_decay`: what multipliers take hold of."""
    optimizer = keras.optimizers.SGD(1.0, weight_decay=0.5)
    fast, slow, still = variables = [keras.Variable([2.0]) for _ in range(3)]
    optimizer.build(variables)
    with keras_private.rates_scaled(optimizer, [(fast, 1.0), (slow, 0.1), (still, 0.0)]):
        optimizer.apply([tf.constant([1.0])] * 3, variables)
    np.testing.assert_allclose([v.numpy()[0] for v in variables], [2 * 0.5 - 1, 2 * 0.95 - 0.1, 2.0], rtol=1e-6)
    assert "update_step" not in vars(optimizer)


def test_the_optimizer_inside_a_loss_scale_is_found():
    """`LossScaleOptimizer.inner_optimizer`."""
    inner = keras.optimizers.Adam()
    assert keras_private.inner(keras.optimizers.LossScaleOptimizer(inner)) is inner
    assert keras_private.inner(inner) is inner


def test_a_moving_average_of_batch_norm_takes_a_variable_for_its_momentum():
    """`BatchNormalization.momentum` is read when the layer is called: what `averaged` measures anew relies on it."""
    model = compiled(lambda: layers.Dense(4), layers.BatchNormalization)
    norm = model.layers[1]
    norm.momentum = tf.Variable(0.0)
    model(FEATURES, training=True)
    np.testing.assert_allclose(norm.moving_mean, model.layers[0](FEATURES).numpy().mean(axis=0), rtol=1e-4, atol=1e-6)
