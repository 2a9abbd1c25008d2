import numpy as np
import pytest

from clr_loop import models


def weights_of(model):
    return {weight.path: weight.numpy() for weight in model.weights}


@pytest.mark.parametrize("name", models.MODELS)
def test_layers_are_100_50_and_one_logit_a_class(name):
    model = models.build(name, (28, 28), 10, seed=0)
    shapes = [tuple(weight.shape) for weight in model.trainable_variables]
    assert shapes == [(784, 100), (100,), (100, 50), (50,), (50, 10), (10,)]


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("article_mlp", lambda z: np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)),
        ("relu_mlp", lambda z: np.maximum(z, 0.0)),
    ],
)
def test_model_equals_its_formula_in_numpy_and_returns_logits(name, hidden):
    model = models.build(name, (4, 5), 3, seed=1)
    images = np.random.default_rng(0).random((7, 4, 5), np.float32)
    w1, b1, w2, b2, w3, b3 = (variable.numpy().astype(np.float64) for variable in model.trainable_variables)
    expected = hidden(hidden(images.reshape(7, 20) @ w1 + b1) @ w2 + b2) @ w3 + b3
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-6)


def test_initial_weights_are_a_function_of_the_seed_alone():
    first, again, other = (weights_of(models.build("relu_mlp", (28, 28), 10, seed)) for seed in (3, 3, 4))
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])
        if path.endswith("kernel"):
            assert not np.array_equal(value, other[path])


def test_layers_of_one_model_do_not_share_a_seed():
    model = models.build("relu_mlp", (50, 2), 50, seed=0)
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    # 100 → 100 → 50 → 50: scaled to one limit, equal seeds would make the second begin like the first.
    first, second = (kernel / np.abs(kernel).max() for kernel in kernels[:2])
    assert abs(np.corrcoef(first.ravel()[:5000], second.ravel()[:5000])[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mlp", (28, 28), 10, 0), "model must be one of article_mlp, relu_mlp, received 'mlp'"),
        (("relu_mlp", (28, 28), 1, 0), "num_classes must be at least 2, received 1"),
        (("relu_mlp", (28, 28), 10, -1), "seed must be from 0 to 2\\*\\*32 - 1, received -1"),
        (("relu_mlp", (28, 28), 10, 2**32), "received 4294967296"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(*arguments)
