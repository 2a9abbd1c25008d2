"""A batch in two halves side by side, where the model's structure says that they are the same as the whole.

Neither half waits for the other, so each can have a core to itself in an XLA program on a CPU.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from clr_loop.loop import keras_private
from clr_loop.loop.losses import function_of
from clr_loop.loop.result import Gradients
from clr_loop.loop.transforms.parts import in_parts

# These layers compute each example by itself, keep no state, draw no random numbers and make no mask.
_ALONE = {
    layers.InputLayer, layers.Dense, layers.EinsumDense, layers.Embedding, layers.Activation, layers.ReLU,
    layers.LeakyReLU, layers.PReLU, layers.ELU, layers.Softmax, layers.Flatten, layers.Reshape, layers.Permute,
    layers.RepeatVector, layers.Rescaling, layers.Identity, layers.LayerNormalization, layers.RMSNormalization,
    layers.UnitNormalization, layers.Concatenate, layers.Add, layers.Subtract, layers.Multiply, layers.Average,
    layers.Maximum, layers.Minimum, layers.MultiHeadAttention,
}  # fmt: skip
# The mean over a batch of these losses is the weighted mean of the means over its halves.
_MEANS = {
    keras.losses.SparseCategoricalCrossentropy, keras.losses.CategoricalCrossentropy, keras.losses.BinaryCrossentropy,
    keras.losses.CategoricalFocalCrossentropy, keras.losses.BinaryFocalCrossentropy, keras.losses.MeanSquaredError,
    keras.losses.MeanAbsoluteError, keras.losses.MeanAbsolutePercentageError,
    keras.losses.MeanSquaredLogarithmicError, keras.losses.Huber, keras.losses.LogCosh, keras.losses.Poisson,
    keras.losses.KLDivergence, keras.losses.Hinge, keras.losses.SquaredHinge, keras.losses.CategoricalHinge,
    keras.losses.CosineSimilarity,
}  # fmt: skip
KNOWN_MEANS = {loss().fn for loss in _MEANS}


def in_halves(gradients: Gradients) -> Gradients:
    """Compute a batch of at least two examples in two halves, and add up what they contribute."""
    return in_parts(gradients, 2, one_by_one=False)


def add_up(model: keras.Model) -> bool:
    """Return whether two halves of a batch contribute what the whole does, up to rounding, by the model's structure.

    Every layer must be known to treat examples alone, the losses must be Keras' own means, and neither masks, states,
    random numbers nor penalties on activations may come in. The answer does not depend on which layers are frozen.

    Args:
        model: compiled, with its losses built.
    """
    losses = keras_private.losses_called(model)
    return _is_plain(model) and bool(losses) and all(map(_is_mean, losses))


def _is_plain(operation: keras.Operation) -> bool:
    """Return whether a layer, or a model made of layers, treats each example alone."""
    if isinstance(operation, keras.Model):
        parts = keras_private.operations_of(operation)
        return parts is not None and all(map(_is_plain, parts))
    if type(operation) is layers.Dropout and operation.rate == 0.0:  # Attention has one.
        return True
    if type(operation) not in _ALONE or not _has_plain_settings(operation):
        return False
    return all(_is_plain(part) for part in keras_private.layers_of(operation) if part is not operation)


def _has_plain_settings(layer: keras.Layer) -> bool:
    activation = getattr(layer, "activation", None)
    axes = [getattr(layer, name, None) for name in ("axis", "axes")]
    return (
        layer.dtype_policy.name == "float32"
        and (activation is None or getattr(activation, "__module__", "").startswith("keras."))
        and not any(0 in np.atleast_1d(axis) for axis in axes if axis is not None)
        and layer.activity_regularizer is None
        and not getattr(layer, "mask_zero", False)
        and not getattr(layer, "lora_enabled", False)
    )


def _is_mean(loss: keras.losses.Loss) -> bool:
    is_known = function_of(loss) in KNOWN_MEANS
    return is_known and loss.reduction == "sum_over_batch_size" and loss.get_config().get("ignore_class") is None
