"""How batches reach the step: `Resident` arrays that lie on the device, or a `Stream` read through `tf.data`.

Both visit the same batches in the same order and have one face: `visit` takes a step with each batch from a place in
the data on, one for each rate. A block of steps is one call into TensorFlow; its rates are an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from clr_loop.data.order import epoch_order, sha256_of
from clr_loop.loop.batches import Batch, num_examples_of, tensor_of
from clr_loop.loop.engine import graph_function
from clr_loop.loop.rates import Rates
from clr_loop.loop.step import TrainStep

Columns = dict[str, NDArray[np.float32]]
NextBatch = Callable[[tf.Tensor], tuple[Batch, Any, tf.Tensor]]
"""(index in the block) → the batch, its number of examples, the seconds that it was waited for."""

# A block's batches are gathered together before it runs. This many bytes, or steps, at most: a whole epoch of MNIST,
# which is 3 to 14 % faster than a third of it, and no more memory than such data takes itself.
_BLOCK_BYTES = 64 * 2**20
BLOCK_STEPS = 1000


class Feed(Protocol):
    """What a `TrainLoop` asks of its feed.

    Attributes:
        batch_size, num_examples: int.
        block_steps: steps that one call into TensorFlow takes at most.
        num_traces: how often a block was traced.
        wait_seconds: float, seconds spent so far in waiting for batches.
    """

    batch_size: int
    num_examples: int
    block_steps: int
    num_traces: int
    wait_seconds: float

    def begin(self, step: TrainStep, jit_compile: bool) -> None:
        """Take steps with this step from now on; nothing is traced yet."""
        ...

    def compile(self, seed: int, with_momentums: bool) -> None:
        """Trace and compile what `visit` needs. Variables may change meanwhile; the caller puts them back."""
        ...

    def visit(self, seed: int, position: int, rates: Rates, momentums: Rates | None) -> list[Columns]:
        """Visit a batch for each rate; return the columns of each block, without the steps that were skipped."""
        ...

    def evaluate(self, step: Callable[..., Any]) -> Iterator[tuple[int, Any]]:
        """Call step(batch, size) with each batch of an epoch; yield each size and what it returned."""
        ...

    def sha256(self) -> str:
        """Return the hex digest of what is known of the data."""
        ...


def in_order(step: Callable[..., Any], batch: Batch, batch_size: int) -> Iterator[tuple[int, Any]]:
    """Call step(batch, size) with arrays cut into batches; yield each size and what it returned."""
    for start in range(0, int(num_examples_of(batch)), batch_size):
        part = keras.tree.map_structure(
            lambda x, start=start: tf.convert_to_tensor(x[start : start + batch_size]), batch
        )
        size = int(num_examples_of(part))
        yield size, step(part, tf.constant(size))


def take_steps(
    step: Callable[..., Any],
    names: tuple[str, ...],
    next_batch: NextBatch,
    rates: tf.Tensor,
    momentums: tf.Tensor | None,
    n: tf.Tensor,
) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
    """Take n steps in a loop in the graph; n is a tensor, so its value does not need a new program.

    `step` is a `TrainStep`, and `names` are those of what it returns.

    Returns the columns [capacity], how many of their values, from the first on, are those of a step taken, and the
    seconds waited. Rates are taken by updates and batches by position, so a skipped batch does not move the schedule.
    """
    names = names if momentums is None else (*names, "momentum")
    columns = {name: tf.TensorArray(tf.float32, rates.shape[0]) for name in names}

    def body(i: tf.Tensor, num_taken: tf.Tensor, waited: tf.Tensor, columns: dict[str, Any]) -> tuple[Any, ...]:
        batch, size, seconds = next_batch(i)
        rate = tf.gather(rates, num_taken)
        metrics, taken = step(batch, size, rate, None if momentums is None else tf.gather(momentums, num_taken))
        columns = {name: column.write(num_taken, metrics[name]) for name, column in columns.items()}
        return i + 1, num_taken + taken, waited + seconds, columns

    # One iteration at a time, so that waiting is measured from the end of the step before.
    begin = (tf.constant(0), tf.constant(0), tf.constant(0.0, tf.float64), columns)
    _, num_taken, waited, columns = tf.while_loop(lambda i, *_: i < n, body, begin, parallel_iterations=1)
    return {name: column.stack() for name, column in columns.items()}, num_taken, waited


class Resident:
    """Arrays on the device. A window of an epoch is gathered at once, and a compiled block steps through it.

    The gather stays outside of the XLA program, which would copy uint8 one element at a time. A window is gathered once
    however many calls step through it.

    Args:
        batch: nests of arrays or tensors [n, …]; see `batches.tensor_of` for what is copied.
        batch_size: int, 1 to n.
        shuffle: False visits the examples in the order given.
    """

    def __init__(self, batch: Batch, batch_size: int, shuffle: bool) -> None:
        self._data = keras.tree.map_structure(tensor_of, batch)
        self.num_examples = int(num_examples_of(self._data))
        self.batch_size = batch_size
        leaves = keras.tree.flatten(self._data)
        batch_bytes = batch_size * sum(leaf.dtype.size * int(np.prod(leaf.shape[1:])) for leaf in leaves)
        self._whole = self.num_examples // batch_size
        self.block_steps = max(1, min(_BLOCK_BYTES // max(batch_bytes, 1), BLOCK_STEPS, self._whole))
        self.num_traces, self.wait_seconds = 0, 0.0
        self._shuffle = shuffle
        self._window: tuple[tuple[int, int, int], Batch] | None = None
        self._order: tuple[tuple[int, int], NDArray[np.int32]] | None = None

    def begin(self, step: TrainStep, jit_compile: bool) -> None:
        """See `Feed`."""

        def block(window: Batch, first: tf.Tensor, rates: tf.Tensor, momentums: tf.Tensor | None, n: tf.Tensor) -> Any:
            self.num_traces += 1
            size = int(keras.tree.flatten(window)[0].shape[1])

            def next_batch(i: tf.Tensor) -> tuple[Batch, int, tf.Tensor]:
                batch = keras.tree.map_structure(lambda x: tf.gather(x, first + i), window)
                return batch, size, tf.constant(0.0, tf.float64)

            return take_steps(step, step.names, next_batch, rates, momentums, n)

        self._block = graph_function(block, jit_compile)

    def compile(self, seed: int, with_momentums: bool) -> None:
        """See `Feed`. A block of no steps is enough, and changes nothing; memory that nobody fills takes no room."""
        none = np.zeros(0, np.float32)
        for start in {0, self._whole} if self.num_examples % self.batch_size else {0}:
            shape = self._window_shape(start)
            window = keras.tree.map_structure(
                lambda x, shape=shape: tf.raw_ops.Empty(shape=(*shape, *x.shape[1:]), dtype=x.dtype), self._data
            )
            self._call(window, 0, none, none if with_momentums else None)

    def visit(self, seed: int, position: int, rates: Rates, momentums: Rates | None) -> list[Columns]:
        """See `Feed`."""
        steps_per_epoch = -(-self.num_examples // self.batch_size)
        taken, end = 0, position + len(rates)
        parts: list[Columns] = []
        while position < end:
            epoch, batch = divmod(position, steps_per_epoch)
            n = min(end - position, self._steps_left(batch))
            start = batch if batch >= self._whole else batch // self.block_steps * self.block_steps
            window = self._gathered(seed, epoch, start)
            part = self._call(
                window, batch - start, rates[taken:][:n], None if momentums is None else momentums[taken:][:n]
            )
            parts.append(part)
            taken += len(part["loss"])
            position += n
        return parts

    def evaluate(self, step: Callable[..., Any]) -> Iterator[tuple[int, Any]]:
        """See `Feed`."""
        return in_order(step, self._data, self.batch_size)

    def sha256(self) -> str:
        """Return the hex digest of all arrays."""
        return sha256_of(keras.tree.map_structure(np.asarray, self._data))

    def _steps_left(self, batch: int) -> int:
        """Steps that can be taken from this batch on, in its window. The short last batch is a window of its own."""
        if batch >= self._whole:
            return 1
        return min((batch // self.block_steps + 1) * self.block_steps, self._whole) - batch

    def _window_shape(self, start: int) -> tuple[int, int]:
        """Return how many batches the window that begins with this batch holds, and of how many examples."""
        is_short = start >= self._whole
        return (1, self.num_examples % self.batch_size) if is_short else (self.block_steps, self.batch_size)

    def _call(self, window: Batch, first: int, rates: Rates, momentums: Rates | None) -> Columns:
        n, capacity = len(rates), int(keras.tree.flatten(window)[0].shape[0])
        vectors = [None if v is None else tf.constant(np.pad(v, (0, capacity - n))) for v in (rates, momentums)]
        columns, num_taken, _ = self._block(window, tf.constant(first), *vectors, tf.constant(n))
        return {name: values.numpy()[: int(num_taken)] for name, values in columns.items()}

    def _gathered(self, seed: int, epoch: int, start: int) -> Batch:
        """Return the window that begins with batch `start`; behind the last whole batch it is padding."""
        key = (seed, epoch, start)
        if self._window is None or self._window[0] != key:
            self._window = None  # The old one goes before the new one comes.
            capacity, size = self._window_shape(start)
            indices = np.zeros(capacity * size, np.int32)
            chosen = self._epoch_order(seed, epoch)[start * self.batch_size :][: capacity * size]
            indices[: len(chosen)] = chosen
            rows = tf.constant(indices.reshape(capacity, size))
            self._window = key, keras.tree.map_structure(lambda x: tf.gather(x, rows), self._data)
        return self._window[1]

    def _epoch_order(self, seed: int, epoch: int) -> NDArray[np.int32]:
        if not self._shuffle:
            return np.arange(self.num_examples, dtype=np.int32)
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), epoch_order(self.num_examples, seed, epoch)
        return self._order[1]
