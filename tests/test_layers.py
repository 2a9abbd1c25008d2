import keras
import pytest

from clr_loop.data import models
from clr_loop.loop import layers


class OwnDense(keras.layers.Dense):
    pass


def minus_mean_of_batch(x):
    return x - keras.ops.mean(x, axis=0)


def functional():
    images = keras.Input((4,))
    return keras.Model(images, keras.layers.Dense(3)(images - keras.ops.mean(images, axis=0, keepdims=True)))


@pytest.mark.parametrize("name", ["article_mlp", "relu_mlp"])
def test_dense_models_work_by_example(name):
    assert layers.works_by_example(models.build(name, (28, 28), 10, seed=0))


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        OwnDense(4),
        keras.layers.Dense(4, activation=minus_mean_of_batch),
        keras.layers.Activation(minus_mean_of_batch),
        keras.layers.Dense(4, activity_regularizer="l2"),
        keras.Sequential([keras.layers.BatchNormalization()]),
    ],
    ids=["batch_norm", "dropout", "own_layer", "own_activation", "activation_layer", "activity_loss", "nested"],
)
def test_what_may_look_at_a_whole_batch_does_not(layer):
    assert not layers.works_by_example(keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)]))


def test_other_than_sequential_models_may_hold_any_operation():
    assert not layers.works_by_example(functional())
