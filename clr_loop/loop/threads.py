"""The threads that TensorFlow computes with on a CPU.

They are a setting of a run: a sum that several threads share is rounded in another order than by one, so at large
batches the last bits of a result depend on their number. They do not depend on the cores that the threads run on.
"""

from __future__ import annotations

import os

import tensorflow as tf

from clr_loop.arguments import checked_types, checked_whole
from clr_loop.cores import cores


def num_threads() -> int:
    """Return how many threads share an operation: as asked for, else TF_NUM_INTRAOP_THREADS, else one for each core."""
    asked_for = tf.config.threading.get_intra_op_parallelism_threads()
    return asked_for or int(os.environ.get("TF_NUM_INTRAOP_THREADS") or 0) or len(cores())


@checked_types
def use_threads(number: int) -> None:
    """Let TensorFlow compute with so many threads, before it has begun to compute.

    Args:
        number: int, at least 1.

    Raises:
        ValueError: if it is below 1, or TensorFlow has begun with another number.
    """
    checked_whole("threads", number)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(number)
        tf.config.threading.set_inter_op_parallelism_threads(number)
    except RuntimeError as error:
        if num_threads() != number:
            raise ValueError(
                f"TensorFlow computes with {num_threads()} threads in this process already, and {number} were asked "
                "for; begin a new process."
            ) from error
