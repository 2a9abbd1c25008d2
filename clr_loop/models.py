"""Named Keras models, seeded. Every model returns logits, so that the loss can be computed stably from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np


def article_mlp(input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
    """Dense layers 100-50-num_classes with softmax on every layer, as in "Implementing Cyclic Learning Rates in Keras".

    The softmax of the last layer is left to the loss, which is the same function computed stably.
    Arguments and result: see `build`.
    """
    return _mlp("article_mlp", input_shape, num_classes, seed, activation="softmax")


def relu_mlp(input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
    """The layers of `article_mlp` with ReLU in the hidden ones. Arguments and result: see `build`."""
    return _mlp("relu_mlp", input_shape, num_classes, seed, activation="relu")


MODELS: dict[str, Callable[[Sequence[int], int, int], keras.Model]] = {"article_mlp": article_mlp, "relu_mlp": relu_mlp}


def build(name: str, input_shape: Sequence[int], num_classes: int, seed: int) -> keras.Model:
    """Builds a model by name, its initial weights a function of the seed alone.

    Args:
        name: a key of `MODELS`.
        input_shape: shape of one image, without the batch axis.
        num_classes: int, at least 2.
        seed: int in [0, 2**32).

    Returns:
        A built Keras model: float32 [batch, *input_shape] → logits, float32 [batch, num_classes].

    Raises:
        ValueError: if the name is unknown, num_classes is below 2 or the seed is out of range.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, received {name!r}; choose one of these")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, received {num_classes}; the labels need two classes or more")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, received {seed}; choose a smaller one")
    return MODELS[name](input_shape, num_classes, seed)


def _mlp(name: str, input_shape: Sequence[int], num_classes: int, seed: int, activation: str) -> keras.Model:
    layers = [keras.Input(tuple(input_shape)), keras.layers.Flatten()]
    units = {"hidden_1": 100, "hidden_2": 50, "logits": num_classes}
    # A SeedSequence keeps the layers' seeds apart, within a model and between models of neighbouring seeds.
    seeds = np.random.SeedSequence(seed).generate_state(len(units))
    for (layer, width), layer_seed in zip(units.items(), seeds, strict=True):
        layers.append(
            keras.layers.Dense(
                width,
                activation=None if layer == "logits" else activation,
                kernel_initializer=keras.initializers.GlorotUniform(seed=int(layer_seed)),
                name=layer,
            )
        )
    # A name of its own, or Keras numbers the models of a process and with them the paths of their variables.
    return keras.Sequential(layers, name=name)
