"""The order in which an epoch visits the examples, and digests of arrays."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from clr_loop.data.nests import Nest, flatten


def epoch_order(num_examples: int, seed: int, epoch: int) -> NDArray[np.int32]:
    """Return the order in which an epoch visits the examples: a permutation that depends on (seed, epoch) alone.

    The order is the same on every platform and with every NumPy version: it sorts the raw output of the Philox
    generator, which NumPy promises not to change (NEP 19). `Generator.permutation` may change.

    Args:
        num_examples: int in [1, 2**31).
        seed, epoch: ints in [0, 2**64).

    Returns:
        int32 [num_examples] with each of 0 to num_examples - 1 once.
    """
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    # The index in the low half makes every key different and carries the answer through the sort.
    keys = (draws & np.uint64(0xFFFFFFFF00000000)) | np.arange(num_examples, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int32)


def sha256_of(nest: Nest) -> str:
    """Return the SHA-256 hex digest of a nest of arrays: the path, dtype, shape and bytes of each."""
    digest = hashlib.sha256()
    for path, leaf in flatten(nest).items():
        array = np.asarray(leaf)
        if array.dtype == object:  # TensorFlow gives strings so.
            array = array.astype(np.bytes_)
        # The name tells bfloat16 from its like, and `str` tells byte orders apart.
        digest.update(f"{path} {array.dtype.name} {array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
