"""Layers that are frozen and unfrozen between runs, and the flags that making a loop must leave alone."""

import keras
import numpy as np
from keras import layers

from helpers.small import FEATURES, LABELS, NUM_CLASSES, RATES, assert_same_weights, compiled, loop_of


def two_layers(optimizer=None):
    return compiled(lambda: layers.Dense(8, activation="tanh", name="first"), optimizer=optimizer)


def first(model):
    return model.get_layer("first").get_weights()


def fit_as_keras(model, batches):
    """Train with Keras' own step on the batches of 50, from one batch to another, at a rate of 0.01."""
    model.optimizer.learning_rate = 0.01
    for i in batches:
        batch = slice(50 * (i % 4), 50 * (i % 4) + 50)
        model.train_on_batch(FEATURES[batch], LABELS[batch])


def test_frozen_and_unfrozen_between_runs_it_trains_as_keras_does_and_each_change_retraces_once():
    model, expected = two_layers(), two_layers()
    expected.optimizer.build(expected.trainable_variables)
    loop = loop_of(model, batch_size=50, shuffle=False, jit_compile=False)
    traces = []
    for trainable, batches in ((False, range(0, 5)), (True, range(5, 10)), (False, range(10, 15))):
        for each in (model, expected):
            each.get_layer("first").trainable = trainable
        expected.compile(expected.optimizer, expected.loss)  # As Keras asks for.
        before = first(model)
        loop.run([0.01] * 3)
        loop.run([0.01] * 2)
        fit_as_keras(expected, batches)
        assert_same_weights(model, expected, rtol=1e-4, atol=1e-6)
        assert np.array_equal(before[0], first(model)[0]) is not trainable
        traces.append(loop.num_traces)
    assert traces == [1, 2, 3]


def test_a_layer_that_is_frozen_from_the_start_has_its_slots_from_the_start():
    model = two_layers()
    model.get_layer("first").trainable = False
    loop = loop_of(model)
    num_variables = len(loop.optimizer.variables)
    loop.run(RATES)
    model.get_layer("first").trainable = True
    before, slots = first(model), [variable.numpy() for variable in loop.optimizer.variables]
    loop.compile()
    assert_same_weights([variable.numpy() for variable in loop.optimizer.variables], slots, rtol=0, atol=0)
    loop.run(RATES)
    assert len(loop.optimizer.variables) == num_variables
    assert not np.array_equal(before[0], first(model)[0])


def test_the_optimizer_keeps_its_state_while_a_layer_is_frozen():
    loop = loop_of(two_layers())
    loop.run(RATES)

    def state():
        return {v.path: v.numpy() for v in loop.optimizer.variables if "first" in v.path}

    kept = state()
    assert len(kept) == 4
    assert all(np.abs(value).max() > 0 for value in kept.values())
    loop.model.get_layer("first").trainable = False
    loop.run(RATES)
    for path, value in state().items():
        np.testing.assert_array_equal(value, kept[path])


def test_a_frozen_batch_norm_keeps_its_averages_and_uses_them():
    model = compiled(lambda: layers.BatchNormalization(name="first"))
    loop = loop_of(model)
    loop.run(RATES)
    model.get_layer("first").trainable = False
    before = first(model)
    loop.run(RATES)
    assert_same_weights(first(model), before, rtol=0, atol=0)
    model.get_layer("first").trainable = True
    loop.run(RATES)
    assert all((now != then).any() for now, then in zip(first(model), before, strict=True))


def test_making_a_loop_leaves_every_flag_as_it_was():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.Dense(3)])
    model = keras.Sequential([keras.Input((6,)), inner, layers.BatchNormalization(), layers.Dense(NUM_CLASSES)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    inner.layers[0].trainable = False
    model.layers[2].kernel.trainable = False  # One variable of a layer that is trained.

    def flags():
        return [part.trainable for part in [model, *model.layers, *inner.layers, *model.variables]]

    before, trained = flags(), [variable.path for variable in model.trainable_variables]
    kernels = inner.layers[0].kernel.numpy(), model.layers[2].kernel.numpy()
    loop = loop_of(model)
    assert flags() == before
    loop.run(RATES)
    assert flags() == before
    assert [variable.path for variable in model.trainable_variables] == trained
    for kernel, value in zip((inner.layers[0].kernel, model.layers[2].kernel), kernels, strict=True):
        np.testing.assert_array_equal(kernel.numpy(), value)


def test_a_variable_that_is_frozen_by_itself_between_runs_is_not_trained_any_more():
    loop = loop_of(two_layers())
    loop.run(RATES)
    kernel = loop.model.get_layer("first").kernel
    kernel.trainable = False
    before = kernel.numpy()
    loop.run(RATES)
    np.testing.assert_array_equal(kernel.numpy(), before)
    kernel.trainable = True
    loop.run(RATES)
    assert not np.array_equal(kernel.numpy(), before)
