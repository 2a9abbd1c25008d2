"""Batches that come from a `tf.data.Dataset`: for data that does not fit in memory, and for several replicas."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops

from clr_loop.data.functions import in_one_line
from clr_loop.data.order import epoch_order, sha256_of
from clr_loop.loop import checks
from clr_loop.loop.batches import Batch, num_examples_of
from clr_loop.loop.engine import LOST, graph_function, is_distributed, num_workers
from clr_loop.loop.feeds import BLOCK_STEPS, Columns, take_steps
from clr_loop.loop.rates import Rates
from clr_loop.loop.step import TrainStep

DatasetOf = Callable[[int, int], tf.data.Dataset]
"""(seed, epoch) → the batches of that epoch."""

# Batches that are made ready while a step is taken.
_PREFETCHED = 2

# tf.data tunes a pipeline in a thread. At the end of an iterator that thread is waited for, and now and then it sleeps
# on, for as long again as the iterator was read.
_WITHOUT_AUTOTUNE = tf.data.Options()
_WITHOUT_AUTOTUNE.autotune.enabled = False

# Batches of a dataset of unknown length that are counted before the user is asked for the number.
_MOST_BATCHES = 1_000_000


class Stream:
    """Batches of a `tf.data.Dataset`, for data that does not fit in memory and for several replicas.

    An epoch has an iterator of its own, made from (seed, epoch), so a run goes on in mid-epoch by skipping the batches
    already visited, and no buffer is ever saved. Every batch is checked in the input pipeline, beside the training.

    Args:
        dataset_of: (seed, epoch) → the epoch's batches (inputs, targets[, sample_weight]).
        num_examples: int, examples in an epoch. None reads the first epoch once to count them.
        seed: int, for the first batch.

    Raises:
        ValueError: if the dataset is empty, does not give batches, has no end, gives another first batch when it is
            read again, or has another length than num_examples says.
        TypeError: if it is no dataset.
    """

    def __init__(self, dataset_of: DatasetOf, num_examples: int | None, seed: int, strategy: tf.distribute.Strategy):
        first_epoch = dataset_of(seed, 0)
        if not isinstance(first_epoch, tf.data.Dataset):
            raise TypeError(
                f"The dataset is a {type(first_epoch).__name__}; give a tf.data.Dataset, or a function of (seed, "
                "epoch) that returns one."
            )
        self._dataset_of = lambda seed, epoch: dataset_of(seed, epoch).with_options(_WITHOUT_AUTOTUNE)
        self._strategy = strategy
        first_epoch = first_epoch.with_options(_WITHOUT_AUTOTUNE)
        self.first_batch = _first_batch(first_epoch)
        _check_repeats(self.first_batch, _first_batch(self._dataset_of(seed, 0)))
        self.batch_size = int(num_examples_of(self.first_batch))
        self.num_examples = _count(first_epoch, self.batch_size) if num_examples is None else num_examples
        _check_length(first_epoch, self.num_examples, self.batch_size)
        self._steps_per_epoch = -(-self.num_examples // self.batch_size)
        self.block_steps = min(BLOCK_STEPS, self._steps_per_epoch)
        self.num_traces, self.wait_seconds = 0, 0.0
        self._classes: list[int | None] = [None] * len(keras.tree.flatten(self.first_batch[1:2]))
        self._iterator: tuple[tuple[int, int], Iterator[Any]] | None = None

    def know_classes(self, classes: list[int | None]) -> None:
        """Check the targets of every batch against these numbers of classes; see `checks.check_targets`."""
        self._classes = classes

    def begin(self, step: TrainStep, jit_compile: bool) -> None:
        """See `Feed`."""
        compiled = graph_function(step, jit_compile=True) if jit_compile else step

        def block(batches: Iterator[Any], rates: tf.Tensor, momentums: tf.Tensor | None, n: tf.Tensor) -> Any:
            self.num_traces += 1

            def next_batch(i: tf.Tensor) -> tuple[Batch, Any, tf.Tensor]:
                with tf.control_dependencies([i]):
                    asked = tf.timestamp()
                with tf.control_dependencies([asked]):
                    batch, size = next(batches)
                with tf.control_dependencies(self._strategy.experimental_local_results(size)):
                    return batch, size, tf.timestamp() - asked

            return take_steps(compiled, step.names, next_batch, rates, momentums, n)

        self._block = graph_function(block)

    def compile(self, seed: int, with_momentums: bool) -> None:
        """See `Feed`. XLA compiles a step when it first meets a size of batch, so the first batch is visited."""
        one, waited = np.zeros(1, np.float32), self.wait_seconds
        for size in {self.batch_size, self._size_of(self._steps_per_epoch - 1)}:
            batch = keras.tree.map_structure(lambda x, size=size: tf.constant(x[:size]), self.first_batch)
            one_batch = tf.data.Dataset.from_tensors(batch).with_options(_WITHOUT_AUTOTUNE)
            batches = self._iterate(one_batch, size)
            self._call(batches, one, one if with_momentums else None)
        self.wait_seconds = waited

    def visit(self, seed: int, position: int, rates: Rates, momentums: Rates | None) -> list[Columns]:
        """See `Feed`.

        Raises:
            ValueError, TypeError: if the dataset ends before its epoch does, or a batch is not like the first. The
                steps before it in this call were taken; a snapshot or checkpoint leads back.
            tf.errors.OpError: one of `engine.LOST`, if another worker has gone.
        """
        taken, end = 0, position + len(rates)
        parts: list[Columns] = []
        while position < end:
            epoch, batch = divmod(position, self._steps_per_epoch)
            n = min(end - position, self._steps_per_epoch - batch, self.block_steps)
            began = time.perf_counter()
            batches = self._batches_from(seed, epoch, batch)
            self.wait_seconds += time.perf_counter() - began
            try:
                part = self._call(batches, rates[taken:][:n], None if momentums is None else momentums[taken:][:n])
            except tf.errors.OpError as error:
                raise self._what_is_wrong(seed, epoch, range(batch, batch + n), error) from error
            position += n
            self._iterator = ((seed, position), batches)
            parts.append(part)
            taken += len(part["loss"])
        return parts

    def sha256(self) -> str:
        """Return the hex digest of the first batch; of a stream no more is known than that it began the same."""
        return sha256_of(self.first_batch)

    def evaluate(self, step: Callable[..., Any]) -> Iterator[tuple[int, Any]]:
        """Yield each batch's number of examples and what `step` of (batch, size) returns for it."""
        batches = self._batches_from(0, 0, 0)
        for batch in range(self._steps_per_epoch):
            try:
                yield self._size_of(batch), step(*next(batches))
            except (tf.errors.OpError, StopIteration) as error:
                raise self._what_is_wrong(0, 0, range(batch, batch + 1), error) from error

    def _call(self, batches: Iterator[Any], rates: Rates, momentums: Rates | None) -> Columns:
        padding = (0, self.block_steps - len(rates))
        vectors = [None if v is None else tf.constant(np.pad(v, padding)) for v in (rates, momentums)]
        columns, num_taken, waited = self._block(batches, *vectors, tf.constant(len(rates)))
        self.wait_seconds += float(waited)
        return {name: values.numpy()[: int(num_taken)] for name, values in columns.items()}

    def _batches_from(self, seed: int, epoch: int, batch: int) -> Iterator[Any]:
        """Return the iterator of an epoch with this many batches behind it: the one in use, if it stands there."""
        kept, self._iterator = self._iterator, None  # After an error it must not be used again.
        if batch and kept is not None and kept[0] == (seed, epoch * self._steps_per_epoch + batch):
            return kept[1]
        return self._iterate(self._dataset_of(seed, epoch).skip(batch), None, batch)

    def _iterate(self, dataset: tf.data.Dataset, only_size: int | None, batch: int = 0) -> Iterator[Any]:
        """Return an iterator over (checked batch, its number of examples), dealt out to the replicas."""
        checked = self._checked(dataset, only_size, batch)
        if not is_distributed(self._strategy):
            return iter(checked.map(lambda *batch: (batch, tf.shape(_first_leaf(batch))[0])).prefetch(_PREFETCHED))
        num_replicas = self._strategy.num_replicas_in_sync

        def shares_of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            here = num_replicas // context.num_input_pipelines
            first = here * context.input_pipeline_id

            def shares(*batch: Any) -> tf.data.Dataset:
                size = tf.shape(_first_leaf(batch))[0]

                def share(replica: tf.Tensor) -> tuple[Batch, tf.Tensor]:
                    # Evenly, and so that none is empty while there is an example for each.
                    begin, end = size * replica // num_replicas, size * (replica + 1) // num_replicas
                    return keras.tree.map_structure(lambda x: x[begin:end], batch), size

                return tf.data.Dataset.range(first, first + here, output_type=tf.int32).map(share)

            # Called endless, because only as many batches are taken as there are, and tf.distribute would otherwise ask
            # all workers before each batch whether they still have one.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            return checked.flat_map(shares).apply(endless).prefetch(_PREFETCHED)

        with _devices_without_autotune():
            return iter(self._strategy.distribute_datasets_from_function(shares_of_worker))

    def _checked(self, dataset: tf.data.Dataset, only_size: int | None, batch: int) -> tf.data.Dataset:
        """Check every batch, and give all of them one specification so that one trace serves them."""
        last = self._steps_per_epoch - 1
        specs = keras.tree.flatten(dataset.element_spec)
        shapes = [[None, *(spec.shape[1:] if spec.shape.rank else first.shape[1:])] for spec, first in
                  zip(specs, keras.tree.flatten(self.first_batch), strict=True)]  # fmt: skip

        def checked(index: tf.Tensor, batch: Batch) -> Batch:
            # Only whether it is good; `_what_is_wrong` finds out what is wrong with one that is not.
            size = tf.where(index < last, self.batch_size, self._size_of(last)) if only_size is None else only_size
            leaves = keras.tree.flatten(batch)
            good = [tf.equal(tf.shape(leaf)[0], size) for leaf in leaves]
            good += [tf.reduce_all(tf.math.is_finite(leaf)) for leaf in leaves if leaf.dtype.is_floating]
            for leaf, number in zip(keras.tree.flatten(batch[1:2]), self._classes, strict=True):
                if number is not None:
                    good.append(tf.reduce_all((leaf >= 0) & (leaf < tf.cast(number, leaf.dtype))))
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(good), ["bad batch"])]):
                same = [
                    tf.raw_ops.PlaceholderWithDefault(input=x, shape=s) for x, s in zip(leaves, shapes, strict=True)
                ]
                return keras.tree.pack_sequence_as(batch, same)

        return dataset.enumerate(batch).map(lambda index, batch: checked(index, batch))

    def _size_of(self, batch: int) -> int:
        """Return the number of examples in this batch of an epoch."""
        return min(self.batch_size, self.num_examples - batch * self.batch_size)

    def _what_is_wrong(self, seed: int, epoch: int, indices: range, error: Exception) -> Exception:
        """Go through the batches of a block that failed; return an error that names the bad one, or the error."""
        if num_workers(self._strategy) > 1 and isinstance(error, LOST):
            return error
        batches = iter(self._dataset_of(seed, epoch).skip(indices.start))
        for index in indices:
            where = f"Batch {index} of epoch {epoch + 1}: "
            try:
                self._check_batch(keras.tree.map_structure(np.asarray, next(batches)), self._size_of(index), where)
            except StopIteration:
                return ValueError(
                    f"The dataset ended after {index} of {self._steps_per_epoch} batches in epoch {epoch + 1}; repair "
                    "it, or give num_examples as they are."
                )
            except tf.errors.OpError as reading:
                return ValueError(f"{where}the dataset failed ({in_one_line(reading)}); repair it.")
            except (ValueError, TypeError) as bad:
                return bad
        return error

    def _check_batch(self, batch: Batch, size: int, where: str) -> None:
        """Raise ValueError if a batch is not like the first one."""
        for (name, leaf), (_, first) in zip(
            checks.named_leaves(batch), checks.named_leaves(self.first_batch), strict=True
        ):
            if len(leaf) != size:
                raise ValueError(
                    f"{where}{name} has {len(leaf)} examples in place of {size}. Only an epoch's last batch may be "
                    "short, by what num_examples leaves."
                )
            if leaf.shape[1:] != first.shape[1:]:
                raise ValueError(f"{where}{name} has shape {leaf.shape}, and those of the first batch {first.shape}.")
        checks.check_arrays(batch, where)
        checks.check_classes(batch, self._classes, where)


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


@contextlib.contextmanager
def _devices_without_autotune() -> Iterator[None]:
    """Let tf.distribute make the iterators of its devices without autotune; it has no argument for their options."""
    own = multi_device_iterator_ops._create_device_dataset
    multi_device_iterator_ops._create_device_dataset = lambda *given: own(*given).with_options(_WITHOUT_AUTOTUNE)
    try:
        yield
    finally:
        multi_device_iterator_ops._create_device_dataset = own


def _first_leaf(batch: Batch) -> tf.Tensor:
    return keras.tree.flatten(batch)[0]


def _first_batch(dataset: tf.data.Dataset) -> Batch:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or not 1 <= len(spec) <= 3:
        raise ValueError(
            f"The dataset gives {spec}; map it to (inputs, targets) or (inputs, targets, sample_weight), each any nest."
        )
    try:
        for batch in dataset.take(1):
            if any(leaf.shape.rank == 0 for leaf in keras.tree.flatten(batch)):
                raise ValueError("The dataset gives single examples; batch it with dataset.batch(…).")
            return keras.tree.map_structure(np.asarray, batch)
    except tf.errors.OpError as error:
        raise ValueError(f"The dataset failed at its first batch ({in_one_line(error)}); repair it.") from error
    raise ValueError("The dataset gives no batch at all; look at what it reads.")


def _check_repeats(first: Batch, again: Batch) -> None:
    pairs = zip(keras.tree.flatten(first), keras.tree.flatten(again), strict=True)
    if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs):
        raise ValueError(
            "The dataset gave another first batch when it was read a second time, so no run of it can be repeated or "
            "resumed. Shuffle with reshuffle_each_iteration=False and a seed; or, for another order in each epoch, "
            "give a function of (seed, epoch) that returns the dataset of that epoch."
        )


def _count(dataset: tf.data.Dataset, batch_size: int) -> int:
    cardinality = int(dataset.cardinality())
    if cardinality != tf.data.INFINITE_CARDINALITY:
        counted = dataset.take(_MOST_BATCHES).reduce(
            np.zeros(2, np.int64), lambda n, *batch: n + tf.stack([1, tf.shape(_first_leaf(batch), tf.int64)[0]])
        )
        num_batches, num_examples = map(int, counted)
        if num_batches < _MOST_BATCHES:
            return num_examples
    raise ValueError(
        f"The dataset has no end, or more than {_MOST_BATCHES:,} batches of {batch_size}; give num_examples, the "
        "number of examples in an epoch."
    )


def _check_length(dataset: tf.data.Dataset, num_examples: int, batch_size: int) -> None:
    cardinality = int(dataset.cardinality())
    num_batches = -(-num_examples // batch_size)
    if num_examples < batch_size or 0 <= cardinality != num_batches:
        length = f"{cardinality} batches" if cardinality >= 0 else "at least one batch"
        raise ValueError(
            f"num_examples is {num_examples}, but the dataset has {length} of {batch_size}; count them again, or leave "
            "it out to have them counted."
        )
