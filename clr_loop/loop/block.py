"""Many steps in one compiled program, over a window of stacked batches.

The rates of the steps, where in the window they begin and how many there are come in as tensors, so one program serves
any of them, and windows from any feed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf

from clr_loop.loop.batches import Batch, batch_at
from clr_loop.loop.feeds import Window
from clr_loop.loop.keras_private import graph_function
from clr_loop.loop.rates import Vector
from clr_loop.loop.result import Take, flat
from clr_loop.loop.strategies import run_on_replicas

Metrics = dict[str, Vector]
"""What steps have recorded, by name: float32 [n] each."""


class Block:
    """Takes the steps of a window in one call into TensorFlow.

    Args:
        take: a step; see `result.Take`.
        begin: the context of a step's learning rate and momentum; see `step.batch_begin`.
        names: what each step records.
        strategy: of the model; with several replicas a window holds a share for each.
        jit_compile: whether the program is compiled with XLA.
        counts: int64 [2], a variable to which the program adds the steps taken and the batches visited. So they agree
            with the weights whenever the process is interrupted.
        signature: specifications of a window whose shapes vary, so that one program serves all; None for windows that
            are all alike but for a short last batch.

    Attributes:
        num_traces: how often the program was traced.
    """

    def __init__(
        self,
        take: Take,
        begin: Callable[..., AbstractContextManager[None]],
        names: tuple[str, ...],
        strategy: tf.distribute.Strategy,
        jit_compile: bool,
        counts: tf.Variable,
        signature: Batch | None = None,
    ) -> None:
        self._take, self._begin, self._names = take, begin, names
        self._strategy, self._counts = strategy, counts
        self._signature, self._of_signature = signature, dict[bool, Any]()
        self._function = graph_function(self._take_steps, jit_compile=jit_compile)
        self.num_traces = 0

    def __call__(self, window: Window, first: int, rates: Vector, momentums: Vector | None) -> Metrics:
        """Take a step with each batch of a window from `first` on, one for each rate.

        Args:
            rates, momentums: float32 [n]; n is 0 for tracing and compiling alone.

        Returns:
            `learning_rate`, what the steps have recorded and, with momentums, `momentum`: float32 [taken]. A skipped
            batch has no row and uses up no rate, so it does not move the schedule.
        """
        n = len(rates)
        vectors = [None if v is None else tf.constant(np.pad(v, (0, window.capacity - n))) for v in (rates, momentums)]
        numbers = [tf.constant(number) for number in (window.batch_size, first, n)]
        columns, taken = self._program(momentums is not None)(window.batches, *numbers, *vectors)
        taken = int(taken)
        recorded = {name: values.numpy()[:taken] for name, values in columns.items()}
        momentum = {} if momentums is None else {"momentum": momentums[:taken]}
        return {"learning_rate": rates[:taken], **recorded, **momentum}

    def _program(self, with_momentums: bool) -> Any:
        """Return the program, for windows of varying shapes the one that was traced for all of them."""
        if self._signature is None:
            return self._function
        if with_momentums not in self._of_signature:
            number, vector = tf.TensorSpec([], tf.int32), tf.TensorSpec([1], tf.float32)
            arguments = self._signature, number, number, number, vector, vector if with_momentums else None
            self._of_signature[with_momentums] = self._function.get_concrete_function(*arguments)
        return self._of_signature[with_momentums]

    def _take_steps(
        self,
        window: Batch,
        size: tf.Tensor,
        first: tf.Tensor,
        n: tf.Tensor,
        rates: tf.Tensor,
        momentums: tf.Tensor | None,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Take n steps in a loop in the graph; n is a tensor, so its value does not need a new program."""
        self.num_traces += 1
        total = size if self._strategy.num_replicas_in_sync > 1 else None

        def body(i: tf.Tensor, taken: tf.Tensor, columns: dict[str, Any]) -> tuple[Any, ...]:
            batch = run_on_replicas(self._strategy, batch_at, window, first + i)
            momentum = None if momentums is None else tf.gather(momentums, taken)
            with self._begin(tf.gather(rates, taken), momentum):
                result, new = self._take(batch, total)
            values = {**flat(result.metrics), **result.losses}
            columns = {name: column.write(taken, _number(values[name])) for name, column in columns.items()}
            return i + 1, taken + new, columns

        empty = {name: tf.TensorArray(tf.float32, rates.shape[0]) for name in self._names}
        begin = (tf.constant(0), tf.constant(0), empty)
        _, taken, columns = tf.while_loop(lambda i, *_: i < n, body, begin, parallel_iterations=1)
        self._counts.assign_add(tf.cast(tf.stack([taken, n]), tf.int64))
        return {name: column.stack() for name, column in columns.items()}, taken


def _number(value: Any) -> tf.Tensor:
    return tf.reshape(tf.cast(value, tf.float32), [])
