"""What happens to inputs before the model sees them: which of them are scaled, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from clr_loop.loop.step import Scale

_SCALING = (keras.layers.Rescaling, keras.layers.Normalization)
# Floats beyond this are not scaled to 0–1 nor standardized, as is usual.
_USUAL = 10.0


def decide(model: keras.Model, inputs: Any, scale_inputs: bool | Literal["auto"]) -> tuple[Scale, str]:
    """Decide which inputs are divided by 255 inside the step.

    Args:
        model: a built model.
        inputs: any nest of arrays [n, …], of which only shapes and dtypes are used.
        scale_inputs: True scales every uint8 array. "auto" leaves out arrays below rank 3, and arrays that go to a
            `Rescaling`, `Normalization` or `Embedding` layer. False scales nothing.

    Returns:
        The function from stored inputs to the model's, and the decision in words.
    """
    leaves = keras.tree.flatten(inputs)
    entrances = _entrances(model, len(leaves))
    chosen, words = [], []
    for leaf, layers in zip(leaves, entrances, strict=True):
        is_chosen, why = _decide_one(leaf, layers, scale_inputs)
        chosen.append(is_chosen)
        words.append(why)
    flags = keras.tree.pack_sequence_as(inputs, chosen)

    def scale(x: Any) -> Any:
        return keras.tree.map_structure(
            lambda leaf, is_on: tf.cast(leaf, tf.float32) / 255.0 if is_on else leaf, x, flags
        )

    return scale, ", ".join(dict.fromkeys(words))


def unusual_range(model: keras.Model, inputs: Any) -> str | None:
    """Return a sentence on the first float input whose values are far from what is usual, or None."""
    leaves = keras.tree.flatten(inputs)
    for leaf, layers in zip(leaves, _entrances(model, len(leaves)), strict=True):
        if not np.issubdtype(leaf.dtype, np.floating) or not leaf.size:
            continue
        if any(isinstance(layer, (*_SCALING, keras.layers.BatchNormalization)) for layer in layers):
            continue
        low, high = float(leaf.min()), float(leaf.max())
        if max(-low, high) > _USUAL:
            return (
                f"The float inputs lie between {low:g} and {high:g} and are used as they are. Inputs from 0 to 1, or "
                "of mean 0 and variance 1, are usual: scale them, or let the model begin with a Rescaling or "
                "Normalization layer."
            )
    return None


def _decide_one(leaf: Any, layers: list[keras.Layer], scale_inputs: bool | Literal["auto"]) -> tuple[bool, str]:
    dtype = tf.as_dtype(leaf.dtype)
    if dtype != tf.uint8:
        return False, f"{dtype.name} as they are"
    if scale_inputs != "auto":
        return (True, "uint8 scaled to 0–1 (as asked)") if scale_inputs else (False, "uint8 as they are (as asked)")
    if len(leaf.shape) < 3:
        return False, "uint8 as they are (no image: rank below 3)"
    for layer in layers:
        if isinstance(layer, (*_SCALING, keras.layers.Embedding)):
            return False, f"uint8 as they are (the model has its own {type(layer).__name__})"
    return True, "uint8 scaled to 0–1"


def _entrances(model: keras.Model, num_inputs: int) -> list[list[keras.Layer]]:
    """Return, for each input, the layers that its values reach first; all layers where the graph is not known."""
    try:
        tensors = keras.tree.flatten(model.inputs)
    except (AttributeError, ValueError):
        tensors = []
    if len(tensors) != num_inputs:
        return [list(_all_layers(model))] * num_inputs
    return [list(_reached(model, tensor)) for tensor in tensors]


def _reached(model: keras.Model, tensor: Any) -> Iterator[keras.Layer]:
    for layer in model.layers:
        try:
            is_reached = any(t is tensor for t in keras.tree.flatten(layer.input))
        except (AttributeError, ValueError):  # It is used several times, or outside of the graph.
            is_reached = False
        if not is_reached:
            continue
        if isinstance(layer, keras.layers.InputLayer) and layer.output is tensor:
            continue
        if isinstance(layer, keras.Model):
            yield from (inner for found in _entrances(layer, len(keras.tree.flatten(layer.input))) for inner in found)
        elif layer.weights or isinstance(layer, _SCALING):
            yield layer
        else:  # It only hands its values on, as Flatten, Resizing or RandomFlip do.
            yield from _reached(model, layer.output)


def _all_layers(layer: keras.Layer) -> Iterator[keras.Layer]:
    for part in layer._flatten_layers():
        if part is not layer:
            yield part
