"""A batch in parts, one after another, so that the memory of one part is enough."""

from __future__ import annotations

import tensorflow as tf

from clr_loop.loop.batches import Batch, num_examples_of, parts_of
from clr_loop.loop.result import Gradient, Gradients, Result, Total


def in_parts(gradients: Gradients, number: int, one_by_one: bool = True) -> Gradients:
    """Compute a batch in parts of nearly equal size, and add up what they contribute.

    Args:
        gradients: the function of a batch, or of a part of one.
        number: int, at least 2.
        one_by_one: whether a part waits for the gradients of the one before, or all would need their memory at once.
    """

    def summed(batch: Batch, total: Total = None) -> Result:
        total = num_examples_of(batch) if total is None else total
        first, *others = parts_of(batch, number)
        result = gradients(first, total)
        for part in others:
            before = [gradient for gradient in result.gradients if gradient is not None and one_by_one]
            with tf.control_dependencies(before):
                new = gradients(part, total)
            losses = {name: loss + new.losses[name] for name, loss in result.losses.items()}
            result = Result(
                [_plus(*pair) for pair in zip(result.gradients, new.gradients, strict=True)], losses, new.metrics
            )
        return result

    return summed


def _plus(a: Gradient, b: Gradient) -> Gradient:
    return None if a is None else tf.convert_to_tensor(a) + tf.convert_to_tensor(b)
