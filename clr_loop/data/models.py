"""Keras models: the named ones and those of the user, seeded and compiled."""

import reprlib
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from keras import layers

from clr_loop.arguments import checked_types
from clr_loop.data.datasets import AnyDataset, Dataset
from clr_loop.data.functions import call

# Stated in every layer, so that Keras' configuration file has no say in it.
_LAST = {"data_format": "channels_last"}


def _mlp(hidden: str, output: str | None, shape: tuple[int, ...], num_classes: int, seed: int) -> list[layers.Layer]:
    """Return dense layers 100-50-num_classes with these activations."""
    first, second, third = map(_glorot, _seeds(seed, 3))
    return [
        layers.Flatten(**_LAST),
        layers.Dense(100, activation=hidden, kernel_initializer=first, name="hidden_1"),
        layers.Dense(50, activation=hidden, kernel_initializer=second, name="hidden_2"),
        layers.Dense(num_classes, output, kernel_initializer=third, name="probabilities" if output else "logits"),
    ]


def _small_cnn(shape: tuple[int, ...], num_classes: int, seed: int) -> list[layers.Layer]:
    """Return 3 x 3 convolutions of 16 and 32 channels, each with max pooling, and dense layers 64-num_classes."""
    first, second, third, fourth = map(_glorot, _seeds(seed, 4))
    return [
        layers.Reshape(_image_shape("small_cnn", shape)),
        layers.Conv2D(16, 3, activation="relu", kernel_initializer=first, name="convolution_1", **_LAST),
        layers.MaxPooling2D(**_LAST),
        layers.Conv2D(32, 3, activation="relu", kernel_initializer=second, name="convolution_2", **_LAST),
        layers.MaxPooling2D(**_LAST),
        layers.Flatten(**_LAST),
        layers.Dense(64, activation="relu", kernel_initializer=third, name="hidden"),
        layers.Dense(num_classes, kernel_initializer=fourth, name="logits"),
    ]


# Of `caffe_cifar10`, for `StepOptions.rate_multipliers`.
CAFFE_RATE_MULTIPLIERS = {r"(convolution_[12]|logits)/bias": 2.0}
_CAFFE_DECAY = 0.004


def _caffe_cifar10(shape: tuple[int, ...], num_classes: int, seed: int) -> list[layers.Layer]:
    """Return the network of Caffe's examples/cifar10/cifar10_full_train_test.prototxt, with its weight decay.

    Caffe adds decay · w to the gradient before the momentum. So does a penalty of decay / 2 · w², which is then part of
    the loss. Windows of 3 with stride 2 begin at the first pixel and are cut off at the last, and an average counts
    what is left; that is Keras' "same" for even lengths. The rates of `CAFFE_RATE_MULTIPLIERS` are the optimizer's,
    so they are not here.
    """
    height, width, channels = _image_shape("caffe_cifar10", shape)
    seeds = _seeds(seed, 4)
    same, halved = {"padding": "same", **_LAST}, {"strides": 2, "padding": "same", **_LAST}
    decay = {f"{what}_regularizer": keras.regularizers.L2(_CAFFE_DECAY / 2) for what in ("kernel", "bias")}

    def convolution(number: int, filters: int, deviation: float, activation: str | None) -> layers.Layer:
        normal, name = _normal(deviation, seeds[number - 1]), f"convolution_{number}"
        return layers.Conv2D(filters, 5, activation=activation, kernel_initializer=normal, name=name, **decay, **same)

    half, quarter = ((-(-height // n), -(-width // n), 32) for n in (2, 4))
    return [
        layers.Reshape((height, width, channels)),
        convolution(1, 32, 0.0001, None),
        layers.MaxPooling2D(3, **halved),
        layers.ReLU(),
        _local_response_normalization(half, "normalization_1"),
        convolution(2, 32, 0.01, "relu"),
        layers.AveragePooling2D(3, **halved),
        _local_response_normalization(quarter, "normalization_2"),
        convolution(3, 64, 0.01, "relu"),
        layers.AveragePooling2D(3, **halved),
        layers.Flatten(**_LAST),
        layers.Dense(
            num_classes,
            kernel_initializer=_normal(0.01, seeds[3]),
            kernel_regularizer=keras.regularizers.L2(250 * _CAFFE_DECAY / 2),
            name="logits",
        ),
    ]


def _local_response_normalization(shape: tuple[int, ...], name: str) -> keras.Model:
    """Return x → x / (1 + 5e-5 · mean)^0.75, the mean being that of x² over 3 × 3 pixels of a channel.

    As in Caffe's WITHIN_CHANNEL, pixels beyond the edge count as zeros, where Keras' average would leave them out.
    """
    x = keras.Input(shape)
    mean = layers.AveragePooling2D(3, strides=1, **_LAST)(layers.ZeroPadding2D(**_LAST)(keras.ops.square(x)))
    root = keras.ops.rsqrt(1.0 + 5e-5 * mean)
    return keras.Model(x, x * root * keras.ops.sqrt(root), name=name)


def _image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) not in (2, 3) or min(shape[:2]) < 10:
        raise ValueError(f"{name} takes images of at least 10 x 10, but input_shape is {shape}.")
    return (*shape[:2], *(shape[2:] or (1,)))


def _seeds(seed: int, number: int) -> list[int]:
    # A SeedSequence keeps the layers' seeds apart, within a model and between models of neighboring seeds.
    return [int(layer_seed) for layer_seed in np.random.SeedSequence(seed).generate_state(number)]


def _glorot(seed: int) -> keras.initializers.Initializer:
    return keras.initializers.GlorotUniform(seed=seed)


def _normal(deviation: float, seed: int) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=deviation, seed=seed)


MODELS: dict[str, Callable[[tuple[int, ...], int, int], list[layers.Layer]]] = {
    # "Implementing Cyclic Learning Rates in Keras" puts softmax on every layer.
    "article_mlp": partial(_mlp, "softmax", "softmax"),
    "relu_mlp": partial(_mlp, "relu", None),
    "small_cnn": _small_cnn,
    "caffe_cifar10": _caffe_cifar10,
}


def build(
    name: str, input_shape: tuple[int, ...], num_classes: int | None, seed: int, rescale: bool = False
) -> keras.Model:
    """Return a named model that is not compiled: float32 [batch, *input_shape] → float32 [batch, num_classes].

    Args:
        name: `article_mlp`, which returns probabilities, or `relu_mlp`, `small_cnn` or `caffe_cifar10`, which return
            logits. The last takes inputs of 0–255 with the mean image subtracted: with the tiny weights that it begins
            with, inputs of 0–1 would leave it at chance for long.
        input_shape: the shape of one example; for the last two [height, width] or [height, width, channels].
        num_classes: int, at least 2.
        seed: int in [0, 2**32); the initial weights depend on it alone.
        rescale: whether the model begins with `Rescaling(1 / 255)`, for pixels of 0–255.

    Raises:
        ValueError: if the name is unknown, the model does not take the shape, or a number is out of range.
    """
    own = "a function of your own as package.module:function"
    if name not in MODELS:
        raise ValueError(f"There is no model {name!r}. Choose {', '.join(MODELS)}, or {own}.")
    if isinstance(input_shape, dict) or not all(isinstance(length, int) for length in input_shape):
        raise ValueError(f"{name} takes one array as input, but the inputs have the shapes {input_shape}. Name {own}.")
    if num_classes is None or num_classes < 2:
        raise ValueError(f"{name} needs labels of two or more classes, but num_classes is {num_classes}. Name {own}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be from 0 to 2**32 - 1.")
    stack = MODELS[name](tuple(input_shape), num_classes, seed)
    # With a name of its own, the paths of the variables do not depend on how many models this process has made.
    first = [layers.Rescaling(1 / 255, name="pixels")] if rescale else []
    return keras.Sequential([keras.Input(tuple(input_shape), dtype="float32"), *first, *stack], name=name)


@checked_types
def build_model(
    name: str,
    dataset: AnyDataset,
    seed: int,
    optimizer: keras.optimizers.Optimizer | None = None,
    label_smoothing: float = 0.0,
) -> keras.Model:
    """Return a compiled model for a dataset; a named one begins with `Rescaling(1 / 255)` if its inputs are uint8.

    Args:
        name: as in `build`, or `package.module:function`: a function that returns a Keras model. The function gets
            those of input_shape, num_classes, seed and dataset that it has parameters for, after
            `keras.utils.set_random_seed(seed)`. If its model comes compiled, that loss, those metrics and that
            optimizer hold. Otherwise it is compiled as a classifier, with its accuracy: from
            probabilities if its last layer is a softmax, and else from logits.
        seed: int in [0, 2**32); the initial weights depend on it alone.
        optimizer: a new Keras optimizer; None means Adam().
        label_smoothing: from 0 to 1, see Keras' CategoricalCrossentropy; above 0 it needs a dataset from
            `data.one_hot`.

    Raises:
        ValueError: as `build`; if the function fails or returns something else; if its model comes uncompiled for a
            dataset without classes, or compiled although an optimizer or label_smoothing is given.
    """
    examples = dataset.train if isinstance(dataset, Dataset) else dataset.validation
    if ":" not in name:
        is_uint8 = examples is not None and getattr(examples.inputs, "dtype", None) == np.uint8
        model = build(name, dataset.input_shape, dataset.num_classes, seed, rescale=is_uint8)
    else:
        keras.utils.set_random_seed(seed)
        shape, num_classes = dataset.input_shape, dataset.num_classes
        model = call(name, "model", input_shape=shape, num_classes=num_classes, seed=seed, dataset=dataset)
        if not isinstance(model, keras.Model):
            raise ValueError(f"model {name} must return a Keras model, but it returned {reprlib.repr(model)}.")
    if model.compiled and optimizer is not None:
        theirs, ours = (type(each).__name__ for each in (model.optimizer, optimizer))
        remedy = f"Leave {ours} out, or return the model uncompiled."
        raise ValueError(f"model {name} comes compiled with {theirs}, so {ours} cannot be used too. {remedy}")
    if model.compiled and label_smoothing:
        raise ValueError(f"model {name} comes compiled, with a loss of its own; leave label_smoothing to that loss.")
    if model.compiled:
        return model
    if dataset.num_classes is None:
        remedy = "Compile it in the function, with its loss and metrics."
        raise ValueError(f"model {name} comes uncompiled, and {dataset.name} has no classes to train it on. {remedy}")
    is_one_hot = examples is not None and np.ndim(examples.targets) == 2
    # Of a model that is not one of Keras' graphs it is not known; the loop looks at what it returns.
    has_last = isinstance(model, keras.Sequential) or getattr(model, "outputs", None) is not None
    last = model.layers[-1] if has_last else None
    is_softmax = isinstance(last, layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax
    from_logits = not is_softmax
    loss: keras.losses.Loss
    if is_one_hot:
        loss = keras.losses.CategoricalCrossentropy(from_logits, label_smoothing)
    elif label_smoothing:
        raise ValueError("label_smoothing needs one-hot targets; take those of data.one_hot(dataset).")
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits)
    model.compile(optimizer or keras.optimizers.Adam(), loss, metrics=["accuracy"])
    return model
