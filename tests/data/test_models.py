import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.data import Dataset, Examples, StreamedDataset, models

SMALL = Examples(np.random.default_rng(0).random((9, 12, 11), np.float32), np.arange(9, dtype=np.int32) % 3)
DATASET = Dataset("small", SMALL, SMALL, 3)


def softmax(z):
    return np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)


def relu(z):
    return np.maximum(z, 0.0)


def same(z):
    return z


def weights_of(model):
    return {weight.path: weight.numpy() for weight in model.weights}


@pytest.mark.parametrize("name", ["article_mlp", "relu_mlp"])
def test_layers_are_100_50_and_one_output_a_class(name):
    model = models.build(name, (28, 28), 10, seed=0)
    shapes = [tuple(weight.shape) for weight in model.trainable_variables]
    assert shapes == [(784, 100), (100,), (100, 50), (50,), (50, 10), (10,)]


@pytest.mark.parametrize(
    ("name", "hidden", "output", "last"),
    [("article_mlp", softmax, softmax, "probabilities"), ("relu_mlp", relu, same, "logits")],
)
def test_model_equals_its_formula_in_numpy(name, hidden, output, last):
    model = models.build(name, (4, 5), 3, seed=1)
    images = np.random.default_rng(0).random((7, 4, 5), np.float32)
    w1, b1, w2, b2, w3, b3 = (variable.numpy().astype(np.float64) for variable in model.trainable_variables)
    expected = output(hidden(hidden(images.reshape(7, 20) @ w1 + b1) @ w2 + b2) @ w3 + b3)
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-6)
    assert (model.layers[-1].name, model.inputs[0].dtype) == (last, "float32")


@pytest.mark.parametrize("name", ["article_mlp", "relu_mlp", "small_cnn"])
def test_a_named_model_divides_pixels_of_uint8_by_255_and_takes_floats_as_they_are(name):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 11), np.uint8)
    outputs = []
    for images in (pixels, (pixels / 255).astype(np.float32)):
        dataset = Dataset("small", Examples(images, SMALL.targets), None, 3)
        outputs.append(models.build_model(name, dataset, seed=1)(images))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-6)


def test_initial_weights_are_a_function_of_the_seed_alone():
    first = weights_of(models.build("relu_mlp", (28, 28), 10, 3))
    keras.utils.set_random_seed(99)
    again, other = (weights_of(models.build("relu_mlp", (28, 28), 10, seed)) for seed in (3, 4))
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])
        if path.endswith("kernel"):
            assert not np.array_equal(value, other[path])


@pytest.mark.parametrize("name", ["article_mlp", "relu_mlp", "small_cnn"])
def test_initial_weights_are_those_of_every_version(name):
    # Each kernel is a Glorot-uniform draw with the seed that the SeedSequence has for its place.
    kernels = [w.numpy() for w in models.build(name, (12, 12), 10, 3).trainable_variables if w.path.endswith("kernel")]
    seeds = np.random.SeedSequence(3).generate_state(len(kernels))
    for kernel, seed in zip(kernels, seeds, strict=True):
        np.testing.assert_array_equal(kernel, keras.initializers.GlorotUniform(seed=int(seed))(kernel.shape))


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


def test_convolutional_models_take_channels_and_say_which_images_are_too_small():
    for name in ("small_cnn", "caffe_cifar10"):
        for shape in ((16, 16, 3), (16, 16)):
            assert models.build(name, shape, 4, seed=0)(np.zeros((2, *shape), np.float32)).shape == (2, 4)
        with pytest.raises(ValueError, match=rf"{name} takes images of at least 10 x 10, but input_shape is \(9, 16\)"):
            models.build(name, (9, 16), 4, seed=0)


def windows(x, size, pad):
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))


def caffes_pooling(x, reduce):
    """Windows of 3 with stride 2; those that reach over the edge are cut off there, as Caffe does."""
    rows, columns = range(0, x.shape[1], 2), range(0, x.shape[2], 2)
    return np.stack([np.stack([reduce(x[:, i : i + 3, j : j + 3], (1, 2)) for j in columns], 1) for i in rows], 1)


def caffes_normalization(x):
    return x / (1.0 + 5e-5 / 9 * np.square(windows(x, 3, 1)).sum(axis=(-2, -1))) ** 0.75


def caffes_convolution(x, kernel, bias):
    return np.einsum("nhwcij,ijcd->nhwd", windows(x, 5, 2), kernel) + bias


@pytest.fixture(scope="module")
def caffe():
    """Caffe's network with larger weights, because with its own first ones nearly all is rounding; and images."""
    model, rng = models.build("caffe_cifar10", (16, 24, 3), 4, seed=1), np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(0, 0.1, variable.shape))
    return model, rng.normal(0, 60, (2, 16, 24, 3)).astype(np.float32)


# Of a process whose Keras has another layout and other inputs by default.
ELSEWHERE = """
import keras, numpy, sys
images = numpy.load(sys.argv[2])
print(*keras.models.load_model(sys.argv[1]).predict(images, verbose=0).ravel())
assert "clr_loop" not in sys.modules
"""
OUTPUTS = """
import numpy as np
from clr_loop.data import models
x = np.random.default_rng(0).random((2, 16, 12, 3), np.float32)
for name in models.MODELS:
    model = models.build(name, (16, 12, 3), 4, 0)
    print(name, model.inputs[0].dtype, *np.asarray(model(x)).ravel())
"""


@pytest.fixture(scope="module")
def elsewhere(caffe, tmp_path_factory):
    """What such a process says: the outputs of Caffe's saved network, and those of all models, twice."""
    place, (model, images) = tmp_path_factory.mktemp("elsewhere"), caffe
    content = {"backend": "tensorflow", "image_data_format": "channels_first", "floatx": "float32", "epsilon": 1e-7}
    (place / "keras.json").write_text(json.dumps(content))
    model.save(place / "caffe.keras")
    np.save(place / "images.npy", images)
    code = f"{ELSEWHERE}{OUTPUTS}\nkeras.config.set_floatx('float64')\n{OUTPUTS}"
    command = [sys.executable, "-c", code, place / "caffe.keras", place / "images.npy"]
    environment = {**os.environ, "KERAS_HOME": str(place)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


def test_caffes_network_equals_its_formula_in_numpy_and_opens_without_this_package(caffe, elsewhere):
    model, images = caffe
    k1, b1, k2, b2, k3, b3, w4, b4 = (variable.numpy().astype(np.float64) for variable in model.variables)
    x = caffes_normalization(relu(caffes_pooling(caffes_convolution(images.astype(np.float64), k1, b1), np.max)))
    x = caffes_normalization(caffes_pooling(relu(caffes_convolution(x, k2, b2)), np.mean))
    x = caffes_pooling(relu(caffes_convolution(x, k3, b3)), np.mean)
    expected = x.reshape(2, -1) @ w4 + b4
    atol = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=atol)
    np.testing.assert_allclose(np.float64(elsewhere[0]), expected.ravel(), rtol=1e-4, atol=atol)


def test_caffes_network_begins_and_decays_as_its_prototxt_says():
    model = models.build("caffe_cifar10", (32, 32, 3), 10, seed=0)
    assert [layer.output.shape[1:3] for layer in model.layers if "pool" in layer.name] == [(16, 16), (8, 8), (4, 4)]
    deviations = {"convolution_1": 1e-4, "convolution_2": 0.01, "convolution_3": 0.01, "logits": 0.01}
    for layer, deviation in deviations.items():
        kernel, bias = (variable.numpy() for variable in model.get_layer(layer).variables)
        assert kernel.std() == pytest.approx(deviation, rel=0.05)
        assert abs(kernel.mean()) < 4 * deviation / kernel.size**0.5
        assert not bias.any()
    for variable in model.variables:
        variable.assign(np.full(variable.shape, 0.5))
    with tf.GradientTape() as tape:
        penalty = sum(model.losses)
    slopes = tape.gradient(penalty, [variable.value for variable in model.variables])
    decays = {
        variable.path: None if slope is None else float(tf.reduce_max(slope)) / 0.5
        for variable, slope in zip(model.variables, slopes, strict=True)
    }
    convolutions = [f"caffe_cifar10/convolution_{i}/{what}" for i in (1, 2, 3) for what in ("kernel", "bias")]
    expected = dict.fromkeys(convolutions, 0.004) | {"caffe_cifar10/logits/kernel": 1.0}
    assert decays == pytest.approx(expected | {"caffe_cifar10/logits/bias": None})
    ((regex, factor),) = models.CAFFE_RATE_MULTIPLIERS.items()
    twice = [variable.path for variable in model.variables if re.search(regex, variable.path)]
    assert (factor, twice) == (2.0, [convolutions[1], convolutions[3], "caffe_cifar10/logits/bias"])


def test_keras_configuration_file_changes_neither_layout_nor_inputs(elsewhere, capsys):
    exec(OUTPUTS, {})
    usual, other = [line.split() for line in capsys.readouterr().out.splitlines()], elsewhere[1:]
    assert [line[0] for line in usual] == list(models.MODELS)
    assert {line[1] for line in usual + other} == {"float32"}
    assert len(other) == 2 * len(usual)
    for first, second in zip(usual + usual, other, strict=True):
        np.testing.assert_allclose(np.float64(first[2:]), np.float64(second[2:]), rtol=1e-5)


@pytest.mark.parametrize(("name", "from_logits"), [("article_mlp", False), ("relu_mlp", True), ("small_cnn", True)])
def test_named_models_come_compiled_with_the_loss_of_their_outputs(name, from_logits):
    optimizer = keras.optimizers.SGD(0.0)
    model = models.build_model(name, DATASET, 0, optimizer)
    assert model.optimizer is optimizer
    assert isinstance(models.build_model(name, DATASET, 0).optimizer, keras.optimizers.Adam)
    model.run_eagerly = True
    values = model.evaluate(*SMALL[:2], verbose=0, return_dict=True)
    outputs = np.asarray(model(SMALL.inputs), np.float64)
    probabilities = softmax(outputs) if from_logits else outputs
    loss = -np.log(probabilities[np.arange(9), SMALL.targets]).mean()
    accuracy = (outputs.argmax(axis=1) == SMALL.targets).mean()
    # Outside a graph, Keras does not see that outputs come from a softmax.
    assert float(model.loss(SMALL.targets, np.float32(outputs))) == pytest.approx(loss, rel=1e-5)
    assert values == {"loss": pytest.approx(loss, rel=1e-5), "accuracy": pytest.approx(accuracy)}


@pytest.mark.parametrize("name", ["article_mlp", "relu_mlp"])
def test_one_hot_targets_have_the_same_loss_and_accuracy_as_labels(name):
    values = []
    for targets in (SMALL.targets, np.eye(3, dtype=np.float32)[SMALL.targets]):
        model = models.build_model(name, Dataset("small", SMALL._replace(targets=targets), None, 3), 0)
        model.run_eagerly = True
        values.append(model.evaluate(SMALL.inputs, targets, verbose=0, return_dict=True))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_stream_without_validation_has_models_too():
    stream = StreamedDataset("stream", lambda *_: None, 100, None, 3, (12, 11))
    assert models.build_model("relu_mlp", stream, 0).compiled


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            Dataset("two", Examples({"a": SMALL.inputs, "b": SMALL.inputs}, SMALL.targets), None, 3),
            r"relu_mlp takes one array as input, but the inputs have the shapes \{'a': \(12, 11\), 'b': .*\}\. Name",
        ),
        (
            Dataset("two", Examples([SMALL.inputs] * 2, SMALL.targets), None, 3),
            r"the inputs have the shapes \[\(12, 11\), \(12, 11\)\]",
        ),
        (
            Dataset("none", SMALL, None, None),
            "relu_mlp needs labels of two or more classes, but none has no classes. Compile a model",
        ),
        (Dataset("one", SMALL, None, 1), "needs labels of two or more classes, but num_classes is 1"),
    ],
)
def test_a_dataset_that_a_named_model_does_not_take_is_named(dataset, message):
    with pytest.raises(ValueError, match=message):
        models.build_model("relu_mlp", dataset, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("mlp", (28, 28), 10, 0),
            "no model 'mlp'. Choose article_mlp, relu_mlp, small_cnn, caffe_cifar10, a path .* .keras, or a function",
        ),
        (("relu_mlp", (28, 28), 10, -1), r"seed is -1; it must be from 0 to 2\*\*32 - 1"),
        (("relu_mlp", (28, 28), 10, 2**32), "seed is 4294967296"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(*arguments)


USERS_MODELS = """
import keras
def of_all(input_shape, num_classes, seed):
    return keras.Sequential([keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(num_classes)])
def of_nothing():
    return of_all((12, 11), 3, None)
def of_classes(num_classes, width=7):
    return of_all((12, 11), num_classes, None)
def of_dataset(dataset):
    return of_all(dataset.train.inputs.shape[1:], dataset.num_classes, None)
def compiled():
    model = of_nothing()
    model.compile(keras.optimizers.SGD(0.25), "mse", metrics=["mae"])
    return model
def no_model():
    return "a model"
def failing(input_shape):
    return keras.layers.Dense(3)(keras.Input((None,)))
def leaving():
    raise SystemExit
model = keras.Sequential([keras.Input((12, 11)), keras.layers.Flatten(), keras.layers.Dense(3)])
"""


@pytest.fixture
def users_models(tmp_path, monkeypatch):
    (tmp_path / "users_models.py").write_text(USERS_MODELS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("users_models", None)


@pytest.mark.parametrize("function", ["of_all", "of_nothing", "of_classes", "of_dataset"])
def test_a_users_function_builds_the_model_and_its_weights_depend_on_the_seed(users_models, function):
    optimizer = keras.optimizers.SGD(0.1)
    first = models.build_model(f"users_models:{function}", DATASET, 3, optimizer)
    again, other = (models.build_model(f"users_models:{function}", DATASET, seed) for seed in (3, 4))
    kernels = [next(iter(weights_of(model).values())) for model in (first, again, other)]
    assert kernels[0].shape == (132, 3)
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert first.optimizer is optimizer
    logits = np.asarray(first(SMALL.inputs), np.float64)
    assert float(first.loss(SMALL.targets, logits)) == pytest.approx(
        -np.log(softmax(logits)[np.arange(9), SMALL.targets]).mean(), rel=1e-5
    )


def test_a_compiled_model_keeps_its_loss_metrics_and_optimizer(users_models):
    model = models.build_model("users_models:compiled", Dataset("any", SMALL, None, None), 0)
    assert model.optimizer.get_config()["learning_rate"] == pytest.approx(0.25)
    targets = np.ones((9, 3), np.float32)
    errors = np.asarray(model(SMALL.inputs), np.float64) - 1
    model.run_eagerly = True
    assert model.evaluate(SMALL.inputs, targets, verbose=0, return_dict=True) == {
        "loss": pytest.approx((errors**2).mean(), rel=1e-5),
        "mae": pytest.approx(np.abs(errors).mean(), rel=1e-5),
    }


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        ("no_model", {}, "model users_models:no_model must return a Keras model, but it returned 'a model'"),
        ("leaving", {}, r"it called sys\.exit\(None\) \(\S*users_models\.py, line 20\)"),
        (
            "failing",
            {},
            r"model users_models:failing failed: ValueError: Shapes used to .*\(\S*users_models\.py, line 18\)",
        ),
        (
            "compiled",
            {"optimizer": keras.optimizers.Adam()},
            "comes compiled with SGD, so Adam cannot .* Leave Adam out",
        ),
        (
            "of_nothing",
            {"dataset": Dataset("any", SMALL, None, None)},
            "comes uncompiled, .*, and any has no classes. Compile",
        ),
        ("of_nothing", {"seed": -1}, "Seed must be between 0 and"),
    ],
)
def test_what_a_users_function_does_wrong_is_named(users_models, function, changes, message):
    arguments = {"dataset": DATASET, "seed": 0, **changes}
    with pytest.raises(ValueError, match=message) as caught:
        models.build_model(f"users_models:{function}", **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("last", ['Dense(3, "softmax")', 'Activation("softmax")', "Softmax()", "Dense(3)"])
def test_a_classifier_that_comes_uncompiled_is_compiled_for_what_it_ends_in(tmp_path, monkeypatch, last):
    layers = f"keras.layers.Flatten(), keras.layers.Dense(3), keras.layers.{last}"
    (tmp_path / "ending.py").write_text(f"import keras\nmodel = keras.Sequential([keras.Input((12, 11)), {layers}])\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ending", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    model = models.build_model("ending:model", DATASET, 0)
    outputs = np.asarray(model(SMALL.inputs), np.float64)
    probabilities = softmax(outputs) if last == "Dense(3)" else outputs
    expected = -np.log(probabilities[np.arange(9), SMALL.targets]).mean()
    assert float(model.loss(SMALL.targets, model(SMALL.inputs))) == pytest.approx(expected, rel=1e-5)
    sys.modules.pop("ending")


@pytest.mark.parametrize("name", ["users_models:model", "users_models.py:model"])
def test_a_model_of_a_module_is_made_anew_for_each_seed(users_models, name):
    made = [models.build_model(name, DATASET, seed) for seed in (3, 3, 4)]
    first, again, other = (next(iter(weights_of(model).values())) for model in made)
    assert len(set(map(id, made))) == 3
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert made[0].loss.get_config()["from_logits"]


def test_a_module_is_found_by_the_path_of_its_file_in_another_folder(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    text = "import keras\ndef build():\n    return keras.Sequential([keras.Input((12, 11)), keras.layers.Flatten()])\n"
    (tmp_path / "elsewhere" / "far_models.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert models.build_model("elsewhere/far_models.py:build", DATASET, 0).output_shape == (None, 132)
    sys.modules.pop("far_models")


def test_a_saved_model_keeps_its_weights_its_compilation_and_its_optimizers_state_with_any_seed(tmp_path):
    model = keras.Sequential([keras.Input((12, 11)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(beta_1=0.8), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(SMALL.inputs, SMALL.targets, epochs=2, verbose=0)
    path = tmp_path / "model.keras"
    model.save(path)
    for seed in (0, 1):
        loaded = models.build_model(str(path), DATASET, seed)
        for ours, theirs in ((loaded.weights, model.weights), (loaded.optimizer.variables, model.optimizer.variables)):
            for mine, other in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(mine, other)
        assert loaded.optimizer.get_config()["beta_1"] == 0.8
        assert int(loaded.optimizer.iterations) == 2
    with pytest.raises(ValueError, match=r"comes compiled with Adam, so SGD cannot be used too. Leave SGD out"):
        models.build_model(str(path), DATASET, 0, keras.optimizers.SGD())
    (tmp_path / "torn.keras").write_bytes(path.read_bytes()[:100])
    for name, message in (("torn", "torn.keras cannot be read: "), ("none", "There is no file .*none.keras")):
        with pytest.raises(ValueError, match=message):
            models.build_model(str(tmp_path / f"{name}.keras"), DATASET, 0)
