"""Inputs reach the model as they are, as with Keras' `fit`; where they look unscaled, a warning says so."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from clr_loop.loop import keras_private

_SCALING = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.BatchNormalization)
_ONLY_RESHAPING = (keras.layers.Flatten, keras.layers.Reshape, keras.layers.Permute, keras.layers.RepeatVector)
# Floats beyond this are not scaled to 0–1 nor standardized, as is usual.
_USUAL = 10.0
_REMEDY = "Let the model begin with a Rescaling or Normalization layer, or scale the inputs yourself."


def warn_if_unusual(model: keras.Model, inputs: Any, stacklevel: int) -> None:
    """Warn once of uint8 images, or floats far from the usual range, that enter a model which does not scale them.

    Args:
        model: built.
        inputs: any nest of arrays [n, …].
        stacklevel: see `warnings.warn`.
    """
    leaves = [np.asarray(leaf) for leaf in keras.tree.flatten(inputs)]
    for leaf, layers in zip(leaves, _entrances(model, inputs), strict=True):
        if any(isinstance(layer, (*_SCALING, keras.layers.Embedding)) for layer in layers):
            continue
        unusual = _what_is_unusual(leaf)
        if unusual is not None:
            warnings.warn(f"{unusual} {_REMEDY}", stacklevel=stacklevel)
            return


def _what_is_unusual(leaf: np.ndarray) -> str | None:
    if leaf.dtype == np.uint8 and leaf.ndim > 2:
        return "The inputs are uint8 images, and the model has no layer that scales them: it is fed numbers up to 255."
    if not np.issubdtype(leaf.dtype, np.floating) or not leaf.size:
        return None
    low, high = float(leaf.min()), float(leaf.max())
    if max(-low, high) <= _USUAL:
        return None
    return f"The float inputs lie between {low:g} and {high:g}; 0 to 1, or a mean of 0 and a variance of 1, is usual."


def _entrances(model: keras.Model, inputs: Any) -> list[list[keras.Layer]]:
    """Return, for each input, the layers that its values reach first; all layers where the graph is not known."""
    tensors = _tensors_of(model, inputs)
    if not tensors:
        every = [part for part in keras_private.layers_of(model) if part is not model]
        return [every] * len(keras.tree.flatten(inputs))
    return [list(_reached(model, tensor)) for tensor in tensors]


def _tensors_of(model: keras.Model, inputs: Any) -> list[Any]:
    """Return the model's own input for each leaf of such inputs; [] where that is not known."""
    try:
        tensors = keras.tree.flatten(model.inputs)
    except (AttributeError, ValueError):
        return []
    if isinstance(inputs, dict) and not keras_private.takes_dict(model):  # Keras finds them by their names.
        by_name = {tensor.name: tensor for tensor in tensors}
        return [by_name[name] for name in sorted(inputs)] if by_name.keys() == inputs.keys() else []
    return tensors if len(tensors) == len(keras.tree.flatten(inputs)) else []


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
            yield from itertools.chain(*_entrances(layer, layer.input))
        elif layer.weights or isinstance(layer, _SCALING):
            yield layer
        else:  # It only hands its values on, as Flatten, Resizing or RandomFlip do.
            yield from _reached(model, layer.output)


def rows_of_embeddings(model: keras.Model, inputs: Any) -> list[int | None]:
    """Return, for each input that an Embedding takes as it is, the least number of rows; None for other inputs."""
    tensors = _tensors_of(model, inputs)
    if not tensors:
        return [None] * len(keras.tree.flatten(inputs))
    rows = [[layer.input_dim for layer in _takers(model, tensor)] for tensor in tensors]
    return [min(numbers, default=None) for numbers in rows]


def _takers(model: keras.Model, tensor: Any) -> Iterator[keras.layers.Embedding]:
    """Yield the Embeddings that take a tensor as it is, or in another shape."""
    for layer in model.layers:
        try:
            is_reached = any(t is tensor for t in keras.tree.flatten(layer.input))
        except (AttributeError, ValueError):
            continue
        if is_reached and isinstance(layer, keras.layers.Embedding):
            yield layer
        elif is_reached and isinstance(layer, _ONLY_RESHAPING) and layer.output is not tensor:
            yield from _takers(model, layer.output)
