"""Windows read from a `tf.data.Dataset`, for data that does not fit in memory."""

from __future__ import annotations

import hashlib
import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from clr_loop.data.functions import in_one_line
from clr_loop.data.order import epoch_order, sha256_of
from clr_loop.loop import checks, keras_private, other_data
from clr_loop.loop.batches import Batch, num_examples_of
from clr_loop.loop.feeds import MOST_BATCHES

DatasetOf = Callable[[int, int], tf.data.Dataset]
"""(seed, epoch) → the batches of that epoch."""

# Of a dataset a window takes this many bytes at most. Four are alive at once: one in use, one being made ready, and
# two that the pipeline has read or is reading.
_WINDOW_BYTES = 16 * 2**20
# An epoch has at least this many windows, so that reading and computing go on side by side.
_LEAST_WINDOWS = 8
_PREFETCHED = 1

# tf.data tunes a pipeline in a thread. At the end of an iterator that thread is waited for, and now and then it sleeps
# on, for as long again as the iterator was read.
WITHOUT_AUTOTUNE = tf.data.Options()
WITHOUT_AUTOTUNE.autotune.enabled = False

_HOW_TO_REPEAT = (
    "To have both, shuffle with a seed and reshuffle_each_iteration=False: dataset.shuffle(buffer_size, seed=0, "
    "reshuffle_each_iteration=False). For another order in each epoch, give a function of (seed, epoch) in place of "
    "the dataset: lambda seed, epoch: dataset.shuffle(buffer_size, seed=1000 * seed + epoch).batch(batch_size)."
)

# Counting the examples of a dataset is announced after so many seconds, and given up after so many.
_ANNOUNCED_SECONDS = 2.0
_MOST_SECONDS = 120.0


class Stream:
    """Batches of a `tf.data.Dataset` in windows; see `Feed`.

    An epoch has an iterator of its own, made from (seed, epoch), so a run goes on in mid-epoch by skipping the batches
    already visited, and no buffer is ever saved. Every batch is checked in the input pipeline, while the model trains.

    Args:
        dataset_of: (seed, epoch) → the epoch's batches: inputs, (inputs,), (inputs, targets) or (inputs, targets,
            sample_weight).
        num_examples: int, examples in an epoch. None reads the first epoch once to count them.
        seed: int, for the first batch.

    Attributes:
        is_bare: whether the dataset's elements are inputs alone, and no tuple of them.
        not_repeated: Why reading an epoch again gives other batches, in words, or None. A warning says it, too.
        signature: where batches vary in shape, the specifications of a window, which then holds one batch; else None.

    Raises:
        ValueError: if the dataset is empty, does not give batches, has no end, or has another length than num_examples
            says.
        TypeError: if it is no dataset.
    """

    def __init__(self, dataset_of: DatasetOf, num_examples: int | None, seed: int) -> None:
        first, again = checked_dataset(dataset_of(seed, 0)), checked_dataset(dataset_of(seed, 0))
        self.is_bare = not isinstance(first.element_spec, tuple)
        self._users_dataset_of = dataset_of
        self._dataset_of = lambda *place: as_tuples(checked_dataset(dataset_of(*place)))
        self._pipeline: tuple[tf.data.Dataset, tf.data.Dataset] | None = None
        self.first_batch = _first_batch(as_tuples(first))
        self.not_repeated = None
        if not _are_same_shuffles(first, again) or not _is_same(self.first_batch, _first_batch(as_tuples(again))):
            self.not_repeated = "the dataset gives other batches each time it is read, as after a shuffle"
            warnings.warn(
                f"This run cannot be repeated or resumed exactly: {self.not_repeated}. {_HOW_TO_REPEAT}", stacklevel=4
            )
        self._batch_size = int(num_examples_of(self.first_batch))
        self._specs = keras.tree.map_structure(_ranked, self._dataset_of(seed, 0).element_spec, self.first_batch)
        varies = any(not _is_fixed(spec) for spec in keras.tree.flatten(self._specs))
        self.signature = keras.tree.map_structure(_of_window, self._specs) if varies else None
        self._limits: list[checks.Limit | None] = []
        self._count(self._dataset_of(seed, 0), num_examples)
        batch_bytes = sum(leaf.nbytes for leaf in keras.tree.flatten(self.first_batch))
        at_most = min(_WINDOW_BYTES // max(batch_bytes, 1), MOST_BATCHES, -(-self.steps_per_epoch // _LEAST_WINDOWS))
        self.window_batches = 1 if varies else max(1, at_most)

    def know_limits(self, limits: list[checks.Limit | None]) -> None:
        """Check inputs and targets of every batch against these limits; see `checks.limits_of`."""
        self._limits = limits

    def windows(self, seed: int, position: int) -> Iterator[Batch]:
        """See `Feed`.

        Raises:
            ValueError, TypeError: if the dataset ends before its epoch does, or a batch is not like the first. No step
                of its window was taken.
        """
        first_epoch, start = divmod(position, self.steps_per_epoch)
        for epoch in itertools.count(first_epoch):
            stacked = iter(self._pipeline_of(seed, epoch, start))
            while start < self.steps_per_epoch:
                try:
                    window, sizes, is_good = next(stacked)
                except (tf.errors.OpError, StopIteration) as error:
                    raise self._what_is_wrong(seed, epoch, start, error) from error
                n = int(keras.tree.flatten(window)[0].shape[0])
                expected = np.array([self._size_of(start + i) for i in range(n)])
                if not is_good or (not self._varies_in_size and (sizes.numpy() != expected[:, None]).any()):
                    raise self._what_is_wrong_in(window, sizes.numpy(), epoch, start)
                yield from self._cut(window, n, int(expected[-1]))
                start += n
            start = 0

    def sha256(self) -> str:
        """Return the hex digest of the first batch; of a stream no more is known than that it began the same.

        Where batches never come again, it is the digest of their shapes and dtypes, and of num_examples.
        """
        if self.not_repeated is not None:
            return hashlib.sha256(f"{self._specs} {self.num_examples}".encode()).hexdigest()
        return sha256_of(self.first_batch)

    def _pipeline_of(self, seed: int, epoch: int, start: int) -> tf.data.Dataset:
        """Return the windows of an epoch from a batch on; the pipeline of a dataset that comes again is kept."""
        if start:
            left = self._dataset_of(seed, epoch).skip(start)
            return self._stacked(left.take(self.steps_per_epoch - start))
        whole = self._users_dataset_of(seed, epoch)
        if self._pipeline is None or self._pipeline[0] is not whole:
            dataset = as_tuples(checked_dataset(whole)).take(self.steps_per_epoch)
            self._pipeline = whole, self._stacked(dataset)
        return self._pipeline[1]

    def _stacked(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return windows of batches, the examples of each array in each batch, and whether all values are good."""

        def with_sizes(*batch: Any) -> tuple[Batch, tf.Tensor]:
            batch = keras.tree.map_structure(lambda x, spec: tf.ensure_shape(x, spec.shape), batch, self._specs)
            return batch, tf.stack([tf.shape(leaf)[0] for leaf in keras.tree.flatten(batch)])

        def checked(batch: Batch, sizes: tf.Tensor) -> tuple[Batch, tf.Tensor, tf.Tensor]:
            good = [tf.reduce_all(tf.math.is_finite(x)) for x in keras.tree.flatten(batch) if x.dtype.is_floating]
            limited = zip(keras.tree.flatten(batch[:2]), self._limits, strict=False)
            good += [checks.is_within(leaf, limit) for leaf, limit in limited if limit is not None]
            return batch, sizes, tf.reduce_all(good)

        def checked_alike(*window: Any) -> tuple[Batch, tf.Tensor, tf.Tensor]:
            return checked(window, tf.stack([[tf.shape(leaf)[1] for leaf in keras.tree.flatten(window)]]))

        if self.signature is not None:
            windows = dataset.map(with_sizes).batch(1).map(checked)
        elif self.num_examples % self._batch_size:  # The short last batch is padded, and cut back when it has come.
            shapes = keras.tree.map_structure(lambda spec: [self._batch_size, *spec.shape[1:]], self._specs)
            windows = dataset.map(with_sizes).padded_batch(self.window_batches, (shapes, [None])).map(checked)
        else:  # Batches of several sizes do not stack.
            windows = dataset.batch(self.window_batches, num_parallel_calls=1).map(checked_alike)
        return windows.prefetch(_PREFETCHED).with_options(WITHOUT_AUTOTUNE)

    def _cut(self, window: Batch, num_batches: int, last: int) -> Iterator[Batch]:
        """Yield a window's whole batches, and its short last one by itself."""
        is_short = self.signature is None and last < self._batch_size
        whole = num_batches - is_short
        if whole:
            yield window if whole == num_batches else keras.tree.map_structure(lambda x: x[:whole], window)
        if is_short:
            yield keras.tree.map_structure(lambda x: x[whole:, :last], window)

    def _size_of(self, batch: int) -> int:
        """Return the number of examples in this batch of an epoch."""
        return min(self._batch_size, self.num_examples - batch * self._batch_size)

    def _count(self, dataset: tf.data.Dataset, num_examples: int | None) -> None:
        """Find out how long an epoch is."""
        self._varies_in_size = False
        if num_examples is None:
            num_batches, num_examples, is_even = _counted(dataset, self._batch_size)
            self._varies_in_size = self.signature is not None and not is_even
        else:
            num_batches = -(-num_examples // self._batch_size)
            _check_length(dataset, num_examples, self._batch_size)
        self.num_examples = num_examples
        self.steps_per_epoch = num_batches if self._varies_in_size else -(-num_examples // self._batch_size)

    def _what_is_wrong(self, seed: int, epoch: int, start: int, error: Exception) -> Exception:
        """Read the batches of a window again that was not read to its end; return an error that names the bad one."""
        if self.not_repeated is not None and isinstance(error, tf.errors.OpError):
            return ValueError(
                f"Batch {start} of epoch {epoch + 1}, or one of the next {2 * self.window_batches}: the dataset failed "
                f"({in_one_line(error)}); repair it."
            )
        batches = iter(self._dataset_of(seed, epoch).skip(start))
        for index in range(start, min(start + 2 * self.window_batches, self.steps_per_epoch)):
            where = f"Batch {index} of epoch {epoch + 1}: "
            try:
                batch = keras.tree.map_structure(np.asarray, next(batches))
                self._check_batch(batch, None if self._varies_in_size else self._size_of(index), where)
            except StopIteration:
                return ValueError(
                    f"The dataset ended after {index} of {self.steps_per_epoch} batches in epoch {epoch + 1}; repair "
                    "it, or correct num_examples."
                )
            except tf.errors.OpError as reading:
                return ValueError(f"{where}the dataset failed ({in_one_line(reading)}); repair it.")
            except (ValueError, TypeError) as bad:
                return bad
        return error

    def _what_is_wrong_in(self, window: Batch, sizes: np.ndarray, epoch: int, start: int) -> Exception:
        """Return an error that names the first bad batch of a window.

        Args:
            sizes: int [batches or 1, arrays], the examples of each array in each batch, or in all of them.
        """
        leaves = keras.tree.flatten(window)
        for i in range(len(leaves[0])):
            own = sizes[min(i, len(sizes) - 1)]
            batch = [leaf[i, :size].numpy() for leaf, size in zip(leaves, own, strict=True)]
            try:
                expected = None if self._varies_in_size else self._size_of(start + i)
                where = f"Batch {start + i} of epoch {epoch + 1}: "
                self._check_batch(keras.tree.pack_sequence_as(window, batch), expected, where)
            except (ValueError, TypeError) as bad:
                return bad
        return ValueError(f"A batch of epoch {epoch + 1}, from {start} on, is not like the first one.")

    def _check_batch(self, batch: Batch, size: int | None, where: str) -> None:
        """Raise ValueError if a batch is not like the first one."""
        for (name, leaf), (_, first), spec in zip(
            checks.named_leaves(batch),
            checks.named_leaves(self.first_batch),
            keras.tree.flatten(self._specs),
            strict=True,
        ):
            if size is not None and len(leaf) != size:
                raise ValueError(
                    f"{where}{name} has {len(leaf)} examples instead of {size}. Only an epoch's last batch may be "
                    "short, by what num_examples leaves; where batches vary in size, leave num_examples out to have "
                    "them counted."
                )
            if leaf.shape[1:] != first.shape[1:] and _is_fixed(spec):
                raise ValueError(f"{where}{name} has shape {leaf.shape}, and those of the first batch {first.shape}.")
        checks.check_arrays(batch, where, text=True)
        checks.check_limits(batch, self._limits, where)


def dataset_of_arrays(batch: Batch, batch_size: int, shuffle: bool) -> DatasetOf:
    """Return a function (seed, epoch) → dataset of the very batches that `Resident` visits, short last one too.

    The arrays stay in the host's memory; the input pipeline gathers each batch.
    """
    with tf.device("CPU"):
        tensors = keras.tree.map_structure(tf.convert_to_tensor, batch)
    num_examples = int(num_examples_of(tensors))

    def dataset_of(seed: int, epoch: int) -> tf.data.Dataset:
        order = epoch_order(num_examples, seed, epoch) if shuffle else np.arange(num_examples, dtype=np.int32)
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
        return batches.map(lambda chosen: keras.tree.map_structure(lambda x: tf.gather(x, chosen), tensors))

    return dataset_of


def _ranked(spec: tf.TensorSpec, first: np.ndarray) -> tf.TensorSpec:
    """Return a specification with the rank that the first batch has, where it is unknown; the lengths stay open."""
    lengths = [None] * first.ndim if spec.shape.rank is None else spec.shape
    return tf.TensorSpec(lengths, spec.dtype)


def _is_fixed(spec: tf.TensorSpec) -> bool:
    """Return whether a specification leaves nothing open but the number of examples."""
    return None not in spec.shape[1:]


def _of_window(spec: tf.TensorSpec) -> tf.TensorSpec:
    return tf.TensorSpec([1, None, *spec.shape[1:]], spec.dtype)


def checked_dataset(dataset: Any) -> tf.data.Dataset:
    """Return a dataset that is read without tf.data's autotuning; raise TypeError for anything else."""
    other_data.refuse(dataset)
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            f"The dataset is a {type(dataset).__name__}; give a tf.data.Dataset, or a function of (seed, epoch) that "
            "returns one."
        )
    return dataset.with_options(WITHOUT_AUTOTUNE)


def as_tuples(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return a dataset whose elements are (inputs,), (inputs, targets) or (inputs, targets, sample_weight)."""
    spec = dataset.element_spec
    for each in keras.tree.flatten(spec):
        if not isinstance(each, tf.TensorSpec):
            raise ValueError(
                f"The dataset gives a {each.value_type.__name__}; map it to a tensor, as with tensor.to_tensor() for a "
                "ragged one and tf.sparse.to_dense(tensor) for a sparse one."
            )
    if not isinstance(spec, tuple):  # Inputs alone.
        return dataset.map(lambda inputs: (inputs,))
    if not 1 <= len(spec) <= 3:
        raise ValueError(
            f"The dataset gives {spec}; map it to (inputs, targets) or (inputs, targets, sample_weight), each any nest."
        )
    return dataset


def _first_batch(dataset: tf.data.Dataset) -> Batch:
    try:
        for batch in dataset.take(1):
            if any(leaf.shape.rank == 0 for leaf in keras.tree.flatten(batch)):
                raise ValueError("The dataset gives single examples; batch it with dataset.batch(…).")
            return keras.tree.map_structure(np.asarray, batch)
    except tf.errors.OpError as error:
        raise ValueError(f"The dataset failed at its first batch ({in_one_line(error)}); repair it.") from error
    raise ValueError("The dataset gives no batch at all; look at what it reads.")


def _is_same(first: Batch, again: Batch) -> bool:
    pairs = zip(keras.tree.flatten(first), keras.tree.flatten(again), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def _are_same_shuffles(first: tf.data.Dataset, again: tf.data.Dataset) -> bool:
    """Return whether an epoch that is read twice is shuffled the same way; its first batch may be the same by luck."""
    pairs = zip(keras_private.shuffles_of(first), keras_private.shuffles_of(again), strict=False)
    return all(not a.reshuffles if a.dataset == b.dataset else a.seeds == b.seeds != (0, 0) for a, b in pairs)


def _counted(dataset: tf.data.Dataset, batch_size: int) -> tuple[int, int, bool]:
    """Read an epoch; return its batches, its examples, and whether all batches but the last have one size."""
    advice = "give num_examples, the number of examples in an epoch"
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"The dataset has no end; {advice}.")
    sizes: list[int] = []
    began, is_announced = time.perf_counter(), False
    for size in dataset.map(lambda *batch: tf.shape(keras.tree.flatten(batch)[0])[0]).with_options(WITHOUT_AUTOTUNE):
        sizes.append(int(size))
        seconds = time.perf_counter() - began
        if seconds > _ANNOUNCED_SECONDS and not is_announced:
            logging.warning("the dataset is read once to count its examples; %s, and that is not needed", advice)
            is_announced = True
        if seconds > _MOST_SECONDS:
            raise ValueError(f"The dataset has no end after {seconds:.0f} s and {len(sizes):,} batches; {advice}.")
    is_even = all(size == batch_size for size in sizes[:-1]) and sizes[-1] <= batch_size
    return len(sizes), sum(sizes), is_even


def _check_length(dataset: tf.data.Dataset, num_examples: int, batch_size: int) -> None:
    cardinality = int(dataset.cardinality())
    num_batches = -(-num_examples // batch_size)
    if num_examples < batch_size or 0 <= cardinality != num_batches:
        length = f"{cardinality} batches" if cardinality >= 0 else "at least one batch"
        raise ValueError(
            f"num_examples is {num_examples}, but the dataset has {length} of {batch_size}; count them again, or leave "
            "it out to have them counted."
        )
