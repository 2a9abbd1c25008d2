"""How batches reach the loop: a `Feed` yields windows of stacked batches, from arrays, a dataset, or a user's class."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from clr_loop.data.order import epoch_order, sha256_of
from clr_loop.loop.batches import Batch, batch_at, num_examples_of, tensor_of
from clr_loop.loop.strategies import is_distributed, run_on_replicas, share_out

# Of arrays a window takes this many bytes, or batches, at most: a whole epoch of MNIST, which is 3% to 14% faster than
# a third of it, and no more memory than such data takes itself.
_WINDOW_BYTES = 64 * 2**20
MOST_BATCHES = 1000


@runtime_checkable
class Feed(Protocol):
    """What a `TrainLoop` needs from the data that it trains on; you can pass a class of your own.

    Attributes:
        first_batch: nests of arrays [batch, …]: (inputs,), (inputs, targets) or (inputs, targets, sample_weight). The
            loop tries out the model on it, and takes the size, the shapes and the dtypes of all batches from it.
        num_examples: int, examples in an epoch.
        steps_per_epoch: int, batches in an epoch.
        window_batches: int, at least 1: the most batches in a window.
    """

    first_batch: Batch
    num_examples: int
    steps_per_epoch: int
    window_batches: int

    def windows(self, seed: int, position: int) -> Iterator[Batch]:
        """Yield the batches from a place on, without end: nests of arrays or tensors [n, batch, …], stacked batches.

        A window lies in one epoch. A short last batch of an epoch is a window of its own.

        Args:
            seed: int, of the order.
            position: int, the first batch, counted over all epochs. The same (seed, position) must give the same
                batches, or no run can be resumed.
        """
        ...

    def sha256(self) -> str:
        """Return a hex digest that identifies the data."""
        ...


class Window(NamedTuple):
    """A window as a block takes it.

    Attributes:
        batches: nests of tensors [capacity, batch, …]; with several replicas a share for each.
        num_batches: int, how many of them are batches; the rest is padding.
        capacity, batch_size: int.
    """

    batches: Batch
    num_batches: int
    capacity: int
    batch_size: int


def made_ready(batches: Batch, capacity: int, batch_size: int, strategy: tf.distribute.Strategy) -> Window:
    """Pad a window of whole batches to the capacity, so that one program serves all, and share it among replicas."""
    n, size = (int(length) for length in np.shape(keras.tree.flatten(batches)[0])[:2])
    capacity = capacity if size == batch_size else n
    if n < capacity:
        batches = keras.tree.map_structure(
            lambda x: tf.pad(x, [(0, capacity - n)] + [(0, 0)] * (len(x.shape) - 1)), batches
        )
    if is_distributed(strategy):
        batches = share_out(batches, strategy, axis=1)
    return Window(batches, n, capacity, size)


class Place:
    """Where a loop stands in its feed: the window in use, and the place in it.

    Attributes:
        wait_seconds: float, seconds spent so far waiting for windows that are read, not gathered.
    """

    def __init__(self, feed: Feed, strategy: tf.distribute.Strategy) -> None:
        self._feed, self._strategy = feed, strategy
        self._batch_size = int(num_examples_of(feed.first_batch))
        self._windows: Iterator[Batch] | None = None
        self._window: Window | None = None
        self._next, self._first = (-1, -1), 0
        self.wait_seconds = 0.0

    def window_at(self, seed: int, position: int) -> tuple[Window, int]:
        """Return the window that holds a batch, and the place of the batch in it."""
        if (seed, position) != self._next or self._windows is None:
            self._windows, self._window, self._next = self._feed.windows(seed, position), None, (seed, position)
        if self._window is None or self._first == self._window.num_batches:
            windows, self._windows, self._window = self._windows, None, None  # The old one goes before the new comes.
            began = time.perf_counter()
            batches = next(windows)
            if not isinstance(self._feed, Resident):
                self.wait_seconds += time.perf_counter() - began
            self._window = made_ready(batches, self._feed.window_batches, self._batch_size, self._strategy)
            self._windows, self._first = windows, 0  # After an error the windows are made again.
        return self._window, self._first

    def move(self, num_batches: int) -> None:
        """Note that so many batches of the window were visited."""
        seed, position = self._next
        self._next, self._first = (seed, position + num_batches), self._first + num_batches


def first_epoch(feed: Feed, strategy: tf.distribute.Strategy, seed: int) -> Iterator[Batch]:
    """Yield the batches of the first epoch, each shared out among the replicas."""
    place = Place(feed, strategy)
    for position in range(feed.steps_per_epoch):
        window, i = place.window_at(seed, position)
        place.move(1)
        yield run_on_replicas(strategy, batch_at, window.batches, tf.constant(i))


class Resident:
    """Arrays on the device, of which a window is gathered at once; see `Feed`.

    The gather stays outside of the XLA program, which would copy uint8 one element at a time. For several replicas the
    arrays stay with the host, which deals out each window.

    Args:
        batch: nests of arrays or tensors [n, …]; see `batches.tensor_of` for what is copied.
        batch_size: int, 1 to n.
        shuffle: False visits the examples in the order given.
        on_host: whether the arrays stay in the memory of the host.
    """

    def __init__(self, batch: Batch, batch_size: int, shuffle: bool, on_host: bool = False) -> None:
        self._device = "CPU" if on_host else None
        with tf.device(self._device):
            self._data = keras.tree.map_structure(tensor_of, batch)
        self.num_examples, self.shuffle = int(num_examples_of(self._data)), shuffle
        self.first_batch = keras.tree.map_structure(lambda x: x[:batch_size], self._data)
        self.steps_per_epoch = -(-self.num_examples // batch_size)
        self._batch_size, self._num_whole = batch_size, self.num_examples // batch_size
        leaves = keras.tree.flatten(self._data)
        batch_bytes = batch_size * sum(leaf.dtype.size * int(np.prod(leaf.shape[1:])) for leaf in leaves)
        self.window_batches = max(1, min(_WINDOW_BYTES // max(batch_bytes, 1), MOST_BATCHES, self._num_whole))
        self._order: tuple[tuple[int, int], NDArray[np.int32]] | None = None

    def windows(self, seed: int, position: int) -> Iterator[Batch]:
        """See `Feed`."""
        first_epoch, start = divmod(position, self.steps_per_epoch)
        for epoch in itertools.count(first_epoch):
            order = self._epoch_order(seed, epoch)
            while start < self.steps_per_epoch:
                is_short = start >= self._num_whole
                n = 1 if is_short else min(self.window_batches, self._num_whole - start)
                rows = order[start * self._batch_size : (start + n) * self._batch_size].reshape(n, -1)
                start += n
                yield self._gathered(rows)
            start = 0

    def _gathered(self, rows: NDArray[np.int32]) -> Batch:
        with tf.device(self._device):
            return keras.tree.map_structure(lambda x: tf.gather(x, rows), self._data)

    def sha256(self) -> str:
        """Return the hex digest of all arrays."""
        return sha256_of(keras.tree.map_structure(np.asarray, self._data))

    def _epoch_order(self, seed: int, epoch: int) -> NDArray[np.int32]:
        if not self.shuffle:
            return np.arange(self.num_examples, dtype=np.int32)
        if self._order is None or self._order[0] != (seed, epoch):
            self._order = (seed, epoch), epoch_order(self.num_examples, seed, epoch)
        return self._order[1]
