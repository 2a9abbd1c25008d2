import numpy as np
import pytest

from clr_loop.data import models


def weights_of(model):
    return {weight.path: weight.numpy() for weight in model.weights}


@pytest.mark.parametrize("name", ["article_mlp", "relu_mlp"])
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


def test_small_cnn_equals_its_formula_in_numpy():
    model = models.build("small_cnn", (12, 11), 3, seed=1)
    images = np.random.default_rng(0).random((2, 12, 11), np.float32)
    k1, b1, k2, b2, w3, b3, w4, b4 = (variable.numpy().astype(np.float64) for variable in model.trainable_variables)

    def halved_convolution(x, kernel, bias):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
        y = np.maximum(np.einsum("nhwcij,ijcd->nhwd", windows, kernel) + bias, 0.0)
        n, height, width, channels = y.shape
        y = y[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2, channels)
        return y.max(axis=(2, 4))

    x = halved_convolution(halved_convolution(images[..., None], k1, b1), k2, b2).reshape(2, -1)
    expected = np.maximum(x @ w3 + b3, 0.0) @ w4 + b4
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-6)


def test_small_cnn_takes_channels_and_says_which_images_are_too_small():
    model = models.build("small_cnn", (16, 16, 3), 4, seed=0)
    assert model(np.zeros((2, 16, 16, 3), np.float32)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"images of at least 10 x 10, received shape \(9, 16\)"):
        models.build("small_cnn", (9, 16), 4, seed=0)


USERS_MODELS = """
import keras
def of_all(input_shape, num_classes, seed):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)])
def of_nothing():
    return of_all((4, 5), 3, None)
def of_classes(num_classes, width=7):
    return of_all((4, 5), num_classes, None)
def no_model():
    return "a model"
"""


@pytest.fixture
def users_models(tmp_path, monkeypatch):
    (tmp_path / "users_models.py").write_text(USERS_MODELS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("function", ["of_all", "of_nothing", "of_classes"])
def test_a_users_function_builds_the_model_and_its_weights_depend_on_the_seed(users_models, function):
    first, again, other = (
        [*weights_of(models.build(f"users_models:{function}", (4, 5), 3, seed)).values()] for seed in (3, 3, 4)
    )
    assert first[0].shape == (20, 3)
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])


def test_a_function_that_returns_no_model_is_named(users_models):
    with pytest.raises(ValueError, match="model users_models:no_model must return a Keras model, received a str"):
        models.build("users_models:no_model", (4, 5), 3, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("mlp", (28, 28), 10, 0),
            "model must be one of article_mlp, relu_mlp, small_cnn or package.module:function, rec",
        ),
        (("relu_mlp", (28, 28), 1, 0), "num_classes must be at least 2, received 1"),
        (("relu_mlp", (28, 28), 10, -1), "seed must be from 0 to 2\\*\\*32 - 1, received -1"),
        (("relu_mlp", (28, 28), 10, 2**32), "received 4294967296"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(*arguments)
