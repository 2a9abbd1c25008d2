"""What the loop must know of a model's layers before it compiles them."""

from __future__ import annotations

from collections.abc import Iterator

import keras

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)

# Layers whose output for an example depends on that example alone. Exactly these: a subclass may do otherwise.
_BY_EXAMPLE = (
    keras.layers.InputLayer,
    keras.layers.Flatten,
    keras.layers.Rescaling,
    keras.layers.Dense,
    keras.layers.Activation,
    keras.layers.ReLU,
)


def has_convolutions(layer: keras.Layer) -> bool:
    """Returns whether a layer or model is, or holds, a convolution."""
    return any(isinstance(part, _CONVOLUTIONS) for part in _parts(layer))


def has_dropout(layer: keras.Layer) -> bool:
    """Returns whether a layer or model is, or holds, one that draws random numbers at every step."""
    return any(hasattr(part, "seed_generator") for part in _parts(layer))


def works_by_example(model: keras.Model) -> bool:
    """Returns whether it is known that no example of a batch has an influence on what the model does with another.

    Known of a `keras.Sequential` of dense layers and activations of Keras' own, without a loss on what they put out;
    of all else it is not, batch-norm and a user's own layers among it.
    """
    return type(model) is keras.Sequential and all(
        type(layer) in _BY_EXAMPLE
        and layer.activity_regularizer is None
        and getattr(getattr(layer, "activation", None), "__module__", "keras").partition(".")[0] == "keras"
        for layer in model.layers
    )


def _parts(layer: keras.Layer) -> Iterator[keras.Layer]:
    """The layer, and all layers inside of it."""
    yield layer
    for part in [*getattr(layer, "layers", []), *filter(None, [getattr(layer, "layer", None)])]:
        yield from _parts(part)
