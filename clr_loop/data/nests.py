"""Checks of nests: an array, or a tuple, list or dict of nests, as Keras takes for inputs, targets and weights.

optree walks them, as it does inside Keras, so both see the same arrays in the same order: the keys of a dict are
sorted, and None holds no array. Its accessors write paths such as `train.inputs['left'][0]`.
"""

from typing import Any, TypeAlias

import numpy as np
import optree

Nest: TypeAlias = Any


def flatten(nest: Nest, root: str = "") -> dict[str, Any]:
    """Return the leaves of a nest by their paths, which begin with the root."""
    accessors, leaves, _ = optree.tree_flatten_with_accessor(nest)
    return {accessor.codify(root).lstrip("."): leaf for accessor, leaf in zip(accessors, leaves, strict=True)}


def num_examples(nest: Nest, root: str = "") -> int:
    """Return the length of the first axis, which all arrays of a nest share.

    Raises:
        ValueError: if an array has no axis, the lengths differ, or there is no example.
    """
    lengths: dict[int, str] = {}
    for path, leaf in flatten(nest, root).items():
        if not np.shape(leaf):
            raise ValueError(f"{path} is a single value, not an array of examples. Make lists of numbers an array.")
        lengths.setdefault(len(leaf), path)
    if len(lengths) > 1:
        each = " and ".join(f"{path} has {length:,}" for length, path in lengths.items())
        raise ValueError(f"{each} examples. Give every array one entry for each example.")
    if not any(lengths):
        raise ValueError(f"There are no examples{root and f' in {root}'}. Give at least one.")
    return next(iter(lengths))


def as_arrays(nest: Nest, root: str) -> Nest:
    """Return a nest with NumPy arrays as leaves: float64 becomes float32, every other dtype stays.

    Raises:
        ValueError: if a leaf holds Python objects, dates or records, or a number that is not finite as float32.
    """
    return optree.tree_map_with_accessor(lambda accessor, leaf: _as_array(leaf, accessor.codify(root)), nest)


def _as_array(leaf: Any, path: str) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype.kind in "OMmT" or array.dtype.type is np.void:
        remedy = "Convert it to numbers, or to strings with astype(str)."
        raise ValueError(f"{path} has dtype {array.dtype}, which TensorFlow cannot take. {remedy}")
    if array.dtype in (np.float64, np.longdouble):
        with np.errstate(over="ignore"):  # The next check finds what has become infinite.
            array = array.astype(np.float32)
    if array.dtype.kind in "fcV" and not np.isfinite(array).all():  # V: bfloat16 and its like.
        bad = np.argwhere(~np.isfinite(np.atleast_1d(array)))[0][0]
        raise ValueError(f"{path} holds NaN, infinity or a number too large for float32, first in example {bad}.")
    return array
