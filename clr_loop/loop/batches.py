"""A batch: nests of arrays or tensors put together, counted, weighted, and cut into parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from clr_loop.loop.keras_private import graph_function

Batch = tuple[Any, ...]
"""Inputs, or inputs and targets, or inputs, targets and sample weights: each any nest of tensors."""


def batch_of(inputs: Any, targets: Any, sample_weight: Any) -> Batch:
    """Put the nests of arrays into one, without those that are not there; floats become `floatx`, as in Keras."""
    if targets is None and sample_weight is not None:
        raise ValueError("There is a sample_weight but there are no targets; give both.")

    def array(x: Any) -> Any:
        if isinstance(x, tf.Tensor):
            return x
        x = np.asarray(x)
        if x.dtype.kind == "f" or "float" in x.dtype.name:  # NumPy knows bfloat16 by its name alone.
            return x.astype(keras.config.floatx(), copy=False)
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))

    nests = (inputs, targets, sample_weight)
    return tuple(keras.tree.map_structure(array, nest) for nest in nests if nest is not None)


def tensor_of(x: Any) -> tf.Tensor:
    """Return an array as a tensor; on a CPU it shares the memory of an array that nobody can write to.

    Others are copied, so that a caller who uses an array again does not change what is trained on.
    """
    if not _is_constant(x) or tf.config.list_logical_devices("GPU"):
        return tf.convert_to_tensor(x)

    def share() -> tf.Tensor:  # In a graph TensorFlow takes the array over; eagerly it makes two copies.
        return tf.ensure_shape(tf.numpy_function(lambda: x, [], x.dtype), x.shape)

    return graph_function(share)()


def _is_constant(x: Any) -> bool:
    """Return whether an array and all that it is a view of cannot be written to."""
    if not isinstance(x, np.ndarray):
        return isinstance(x, bytes)
    return not x.flags.writeable and (x.base is None or _is_constant(x.base))


def with_class_weight(batch: Batch, class_weight: Mapping[int, float]) -> Batch:
    """Turn weights of classes into weights of examples, as Keras does; a class without a weight has 1."""
    if len(batch) != 2 or keras.tree.is_nested(batch[1]):
        raise ValueError(
            "class_weight needs one array of targets and no sample_weight; multiply the weights yourself and give them "
            "as sample_weight."
        )
    classes = tf.convert_to_tensor(batch[1])
    if classes.shape.rank == 2:
        classes = classes[:, 0] if classes.shape[1] == 1 else tf.argmax(classes, axis=1)
    if classes.shape.rank != 1:
        raise ValueError(
            f"class_weight needs a class for each example, and the targets have shape {classes.shape}; multiply the "
            "weights yourself and give them as sample_weight."
        )
    if classes.dtype.is_floating:
        classes = tf.round(classes)
    classes = tf.cast(classes, tf.int64)
    weights = tf.ones_like(classes, tf.float32)
    for number, weight in class_weight.items():
        weights = tf.where(classes == tf.cast(number, classes.dtype), tf.cast(weight, tf.float32), weights)
    return (*batch, weights)


def num_examples_of(batch: Batch) -> tf.Tensor | int:
    """Return the number of examples in a batch: an int if it is known when the step is traced."""
    leaf = keras.tree.flatten(batch)[0]
    return tf.shape(leaf)[0] if leaf.shape[0] is None else int(leaf.shape[0])


def batch_at(window: Batch, index: tf.Tensor) -> Batch:
    """Return one batch of a window."""
    return keras.tree.map_structure(lambda x: tf.gather(x, index), window)


def parts_of(batch: Batch, number: int) -> Iterator[Batch]:
    """Cut a batch into parts of nearly equal size, at least two."""
    size = num_examples_of(batch)
    for i in range(number):
        begin, end = size * i // number, size * (i + 1) // number
        yield keras.tree.map_structure(lambda x, begin=begin, end=end: x[begin:end], batch)
