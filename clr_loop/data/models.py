"""Named Keras models, seeded. Every model returns logits, so that the loss can be computed stably from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np

from clr_loop.data import named


def article_mlp(input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
    """Dense layers 100-50-num_classes with softmax on every layer, as in "Implementing Cyclic Learning Rates in Keras".

    The softmax of the last layer is left to the loss, which is the same function computed stably.
    Arguments and result: see `build`.
    """
    return _mlp("article_mlp", input_shape, num_classes, seed, activation="softmax")


def relu_mlp(input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
    """The layers of `article_mlp` with ReLU in the hidden ones. Arguments and result: see `build`."""
    return _mlp("relu_mlp", input_shape, num_classes, seed, activation="relu")


def small_cnn(input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
    """Convolutions 3 x 3 of 16 and 32 channels, each halved by max pooling, and dense layers 64-num_classes, with ReLU.

    An image without a channel axis gets one. Arguments and result: see `build`; images of at least 10 x 10.
    """
    if len(input_shape) not in (2, 3) or min(input_shape[:2]) < 10:
        raise ValueError(
            f"small_cnn needs images of at least 10 x 10, received shape {tuple(input_shape)}; choose another model"
        )
    channels = tuple(input_shape[2:]) or (1,)
    initializers = _initializers(seed, 4)
    layers = [keras.Input(tuple(input_shape)), keras.layers.Reshape((*input_shape[:2], *channels))]
    for i, width in enumerate((16, 32)):
        convolution = {"activation": "relu", "kernel_initializer": initializers[i], "name": f"convolution_{i + 1}"}
        layers += [keras.layers.Conv2D(width, 3, **convolution), keras.layers.MaxPooling2D()]
    layers += [
        keras.layers.Flatten(),
        keras.layers.Dense(64, activation="relu", kernel_initializer=initializers[2], name="hidden"),
        keras.layers.Dense(num_classes, kernel_initializer=initializers[3], name="logits"),
    ]
    return keras.Sequential(layers, name="small_cnn")


MODELS: dict[str, Callable[[Sequence[int], int, int], keras.Model]] = {
    "article_mlp": article_mlp,
    "relu_mlp": relu_mlp,
    "small_cnn": small_cnn,
}


def build(name: str, input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
    """Builds a model by name, its initial weights a function of the seed alone.

    Args:
        name: a key of `MODELS`, or `package.module:function`: a function that returns a Keras model of logits. It is
            given those of input_shape, num_classes and seed that it has parameters for, after Keras' own random seed
            has been set, so that initial weights depend on the seed also where it is not used.
        input_shape: shape of one image, without the batch axis.
        num_classes: int, at least 2.
        seed: int in [0, 2**32).

    Returns:
        A built Keras model: float32 [batch, *input_shape] → logits, float32 [batch, num_classes].

    Raises:
        ValueError: if the name is unknown, num_classes is below 2 or the seed is out of range; if a function cannot be
            called or returns something else.
    """
    if name not in MODELS and not named.is_function_name(name):
        raise ValueError(
            f"model must be one of {', '.join(MODELS)} or package.module:function, received {name!r}; choose one"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, received {num_classes}; the labels need two classes or more")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, received {seed}; choose a smaller one")
    if name in MODELS:
        return MODELS[name](input_shape, num_classes, seed)
    keras.utils.set_random_seed(seed)
    model = named.call(name, "model", input_shape=tuple(input_shape), num_classes=num_classes, seed=seed)
    if not isinstance(model, keras.Model):
        raise ValueError(f"model {name} must return a Keras model, received a {type(model).__name__}; return one")
    return model


def _mlp(name: str, input_shape: Sequence[int], num_classes: int, seed: int, activation: str) -> keras.Model:
    layers = [keras.Input(tuple(input_shape)), keras.layers.Flatten()]
    units = {"hidden_1": 100, "hidden_2": 50, "logits": num_classes}
    for (layer, width), initializer in zip(units.items(), _initializers(seed, len(units)), strict=True):
        layers.append(
            keras.layers.Dense(
                width,
                activation=None if layer == "logits" else activation,
                kernel_initializer=initializer,
                name=layer,
            )
        )
    # A name of its own, or Keras numbers the models of a process and with them the paths of their variables.
    return keras.Sequential(layers, name=name)


def _initializers(seed: int, number: int) -> list[keras.initializers.Initializer]:
    # A SeedSequence keeps the layers' seeds apart, within a model and between models of neighbouring seeds.
    seeds = np.random.SeedSequence(seed).generate_state(number)
    return [keras.initializers.GlorotUniform(seed=int(layer_seed)) for layer_seed in seeds]
