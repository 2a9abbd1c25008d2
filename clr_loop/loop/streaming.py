"""A `TrainLoop` whose batches come from a `tf.data.Dataset`: for data that does not fit in memory.

The step is that of the resident loop; what differs is the feeding. One `tf.function` holds a plain graph loop that
pulls n batches from an iterator and takes a step with each. An epoch has an iterator of its own, made from (seed,
epoch), so that a run goes on in mid-epoch by skipping the batches already visited; no buffer is ever saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from clr_loop import data
from clr_loop.loop.loop import Metrics, TrainLoop, check_examples, num_classes_of
from clr_loop.loop.step import Loss, cross_entropy, metric_names

DatasetOf = Callable[[int, int], tf.data.Dataset]
Batch = tuple[tf.Tensor, ...]

# What an exchange between workers ends with when one of them is gone.
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.CancelledError)

# Steps of one call at most: enough for the cost of a call to vanish.
_BLOCK_STEPS = 1000


class StreamingLoop(TrainLoop):
    """Trains a Keras model on the batches of a `tf.data.Dataset`, with a learning rate given for every step.

    Everything but the feeding is as `TrainLoop` says. Every batch is checked in the input pipeline, beside the
    training. After an error that names a batch, the steps before it in the same call to `run` have been taken; their
    metrics are lost, and a snapshot or checkpoint leads back.

    Attributes: those of `TrainLoop`; `shuffle` is False, because the order is the dataset's own.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        dataset: tf.data.Dataset | DatasetOf,
        num_examples: int | None = None,
        seed: int = 0,
        jit_compile: bool | Literal["auto"] = "auto",
        loss: Loss = cross_entropy,
        skip_non_finite: bool = False,
        clip_norm: float | None = None,
        accumulate: int = 1,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        """Reads the first batch, to know its shapes, and compiles nothing yet.

        Args:
            model, optimizer, loss, skip_non_finite, clip_norm, accumulate: see `TrainLoop`; model and optimizer made in
                the scope of the strategy.
            jit_compile: whether to compile a step with XLA; "auto" does, except with several replicas, and where
                `TrainLoop` does not.
            dataset: an epoch, as batches (images, labels) or (images, labels, sample_weight): uint8 or float32
                [batch, …]; integers [batch]; floats [batch], that each example's loss is multiplied by. Every batch
                has the size of the first, but the epoch's last one, which may be short. Iterated again, it must give
                the same batches, or no run can be repeated or resumed. To reshuffle, give a function of (seed, epoch),
                ints, that returns the dataset of that epoch.
            num_examples: int, at least 1: examples in an epoch. None reads the first epoch once to count them.
            seed: int in [0, 2**32), for the function.
            strategy: `MirroredStrategy`, `MultiWorkerMirroredStrategy`, or None for one replica. The dataset's batches
                are global: each replica takes its share of every batch, each worker reads all of them. All workers must
                call `run` with equally many rates, because they meet in every step of it.

        Raises:
            ValueError: if the dataset is empty or not as described, a label is outside the model's classes,
                num_examples disagrees with the dataset's own length, the strategy is of another kind, or XLA is asked
                for with several replicas; else as `TrainLoop`. Raised by `run`: if the dataset ends before its epoch
                does, or a batch is not like the first.
            ConnectionError: raised by `run` if another worker has gone.
            TypeError: if it is no dataset, or images or labels are of another dtype.
        """
        strategy = tf.distribute.get_strategy() if strategy is None else strategy
        jit_compile = _checked_jit_compile(jit_compile, strategy)
        self._strategy = strategy
        self._dataset_of: DatasetOf = dataset if callable(dataset) else lambda seed, epoch: dataset
        first_epoch = self._dataset_of(seed, 0)
        if not isinstance(first_epoch, tf.data.Dataset):
            raise TypeError(
                f"dataset must be a tf.data.Dataset or a function of (seed, epoch) that returns one, received "
                f"{type(first_epoch).__name__}; make one with tf.data.Dataset.from_generator or another of its makers"
            )
        self._first_batch = _first_batch(first_epoch)
        images, labels = self._first_batch[:2]
        self._num_classes = num_classes_of(model, images)
        check_examples(images, labels, self._num_classes)
        batch_size = len(images)
        if num_examples is None:
            num_examples = int(
                first_epoch.reduce(np.int64(0), lambda count, batch: count + tf.shape(batch[1], tf.int64)[0])
            )
        _check_length(first_epoch, num_examples, batch_size)
        self._set_up(
            model, optimizer, batch_size, num_examples, seed, jit_compile, loss, skip_non_finite, clip_norm, accumulate,
            strategy,
        )  # fmt: skip
        self.num_workers = _num_workers(strategy)
        self.shuffle = False
        self.block_steps = min(_BLOCK_STEPS, self.steps_per_epoch)
        self._iterator: tuple[tuple[int, int], Iterator[Batch]] | None = None
        self._compiled_step = tf.function(self._take_step, jit_compile=True) if self.jit_compile else self._take_step
        self._block = tf.function(self._train_block_from_iterator)

    def compile(self, with_momentums: bool = False) -> None:
        """Traces and compiles all that `run` will need, and changes nothing; so that it can be timed by itself.

        XLA compiles a step for each size of batch when it first meets one; so the first batch is visited, and as much
        of it as a short last batch has, and all is put back.
        """
        self._check_together()
        before, waited = self.snapshot(), self.input_wait_seconds
        one = np.zeros(1, np.float32)
        for size in {self.batch_size, self._size_of(self.steps_per_epoch - 1)}:
            batch = tuple(tf.constant(array[:size]) for array in self._first_batch)
            batches = self._iterator_over(tf.data.Dataset.from_tensors(batch), size)
            self._call_block_from(batches, one, one if with_momentums else None)
        self.restore(before)
        self.input_wait_seconds = waited

    def data_sha256(self) -> str:
        """Returns the hex digest of the first batch: of a stream no more is known than that it began the same."""
        return data.sha256_of(self._first_batch)

    # The compiled part: a block of steps.

    def _train_block_from_iterator(
        self, batches: Iterator[Batch], learning_rates: tf.Tensor, momentums: tf.Tensor | None, n: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Visits the next n batches, with rates [capacity].

        Returns the metrics [capacity], how many of their values are those of a step taken, and the seconds waited.
        """
        self.num_traces += 1
        columns = {
            name: tf.TensorArray(tf.float32, learning_rates.shape[0]) for name in metric_names(momentums is not None)
        }
        i, num_taken, waited = tf.constant(0), tf.constant(0), tf.constant(0.0, tf.float64)
        while i < n:
            # One iteration at a time, so that the clock starts when the step before has ended: what is measured is the
            # time in which nothing was computed for want of data.
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            asked = tf.timestamp()
            with tf.control_dependencies([asked]):
                images, labels, *rest = next(batches)
            with tf.control_dependencies(self._strategy.experimental_local_results(images)):
                waited += tf.timestamp() - asked
            metrics, taken = self._compiled_step(
                images,
                labels,
                tf.gather(learning_rates, num_taken),
                None if momentums is None else tf.gather(momentums, num_taken),
                *rest,
            )
            columns = {name: column.write(num_taken, metrics[name]) for name, column in columns.items()}
            num_taken += taken
            i += 1
        return {name: column.stack() for name, column in columns.items()}, num_taken, waited

    # What is fed to it.

    def _visit(self, position: int, rates: NDArray[np.float32], momentums: NDArray[np.float32] | None) -> list[Metrics]:
        taken, end = 0, position + len(rates)
        parts: list[Metrics] = []
        while position < end:
            epoch, batch = divmod(position, self.steps_per_epoch)
            n = min(end - position, self.steps_per_epoch - batch, self.block_steps)
            began = time.perf_counter()
            batches = self._batches_from(epoch, batch)
            self.input_wait_seconds += time.perf_counter() - began
            try:
                part = self._call_block_from(
                    batches, rates[taken:][:n], None if momentums is None else momentums[taken:][:n]
                )
            except tf.errors.OpError as error:
                raise self._what_is_wrong(epoch, batch, n, error) from error
            position += n
            self._iterator = ((self.seed, position), batches)
            parts.append(part)
            taken += len(part["loss"])
        return parts

    def _batches_from(self, epoch: int, batch: int) -> Iterator[Batch]:
        """The iterator of an epoch, with this many batches behind it: the one in use, if it stands there."""
        kept, self._iterator = self._iterator, None  # After an error it must not be used again.
        if batch and kept is not None and kept[0] == (self.seed, epoch * self.steps_per_epoch + batch):
            return kept[1]
        return self._iterator_over(self._dataset_of(self.seed, epoch).skip(batch), None, batch)

    def _iterator_over(self, dataset: tf.data.Dataset, only_size: int | None, batch: int = 0) -> Iterator[Batch]:
        """An iterator over checked batches: images, labels, sample_weight or None; for replicas also the whole size."""
        checked = self._pipeline(dataset, only_size, batch)
        if self._strategy.num_replicas_in_sync == 1:
            return iter(checked.prefetch(tf.data.AUTOTUNE))
        num_replicas = self._strategy.num_replicas_in_sync

        def shares_of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            here = num_replicas // context.num_input_pipelines
            first = here * context.input_pipeline_id

            def shares(*batch: tf.Tensor) -> tf.data.Dataset:
                size = tf.shape(batch[1])[0]

                def share(replica: tf.Tensor) -> Batch:
                    # Evenly, and so that none is empty while there is an example for each.
                    begin, end = size * replica // num_replicas, size * (replica + 1) // num_replicas
                    return (*(x if x is None else x[begin:end] for x in batch), size)

                return tf.data.Dataset.range(first, first + here, output_type=tf.int32).map(share)

            # Said to be endless, because only as many batches are taken as there are, and tf.distribute would otherwise
            # ask all workers before each batch whether they still have one.
            endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
            return checked.flat_map(shares).apply(endless).prefetch(tf.data.AUTOTUNE)

        return iter(self._strategy.distribute_datasets_from_function(shares_of_worker))

    def _pipeline(self, dataset: tf.data.Dataset, only_size: int | None, batch: int) -> tf.data.Dataset:
        """Checks every batch and gives all of them one specification, so that one trace serves them."""
        shape, last = self._first_batch[0].shape[1:], self.steps_per_epoch - 1
        short = self._size_of(last)

        def checked(index: tf.Tensor, batch: Batch) -> Batch:
            images, labels, *sample_weight = batch
            # Only whether it is good; what is wrong with one that is not, `_what_is_wrong` finds out.
            size = tf.where(index < last, self.batch_size, short) if only_size is None else only_size
            good = [
                tf.reduce_all(tf.equal(tf.shape(images), [size, *shape])),
                tf.reduce_all(tf.equal(tf.shape(labels), [size])),
                tf.reduce_all((labels >= 0) & (labels < self._num_classes)),
                *(tf.reduce_all(tf.equal(tf.shape(weights), [size])) for weights in sample_weight),
                *(tf.reduce_all(tf.math.is_finite(x)) for x in batch if x.dtype.is_floating),
            ]
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(good), ["bad batch"])]):
                relaxed = [(images, [None, *shape]), (tf.cast(labels, tf.int32), [None])]
                relaxed += [(tf.cast(weights, tf.float32), [None]) for weights in sample_weight]
                same = (tf.raw_ops.PlaceholderWithDefault(input=x, shape=s) for x, s in relaxed)
                return (*same, *[None] * (1 - len(sample_weight)))

        return dataset.enumerate(batch).map(checked)

    def _check_together(self) -> None:
        """Raises if the workers do not all stand at the same batch, as when one cannot read the others' checkpoints."""
        if self.num_workers == 1:
            return
        replicas, position = self._strategy.num_replicas_in_sync, self.position

        @tf.function
        def sums() -> tf.Tensor:
            def add() -> tf.Tensor:
                here = tf.constant([position, position**2], tf.int64)
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

            return self._strategy.experimental_local_results(self._strategy.run(add))[0]

        total, total_of_squares = map(int, sums())
        if replicas * total_of_squares != total**2:  # By Cauchy-Schwarz they are equal only if all positions are.
            raise ValueError(
                f"all workers must go on from the same batch, received {position} here and others elsewhere; give them "
                "a run directory that all can read"
            )

    def _size_of(self, batch: int) -> int:
        """Examples in this batch of an epoch."""
        return min(self.batch_size, self.num_examples - batch * self.batch_size)

    def _call_block_from(
        self, batches: Iterator[Batch], rates: NDArray[np.float32], momentums: NDArray[np.float32] | None
    ) -> Metrics:
        n = len(rates)
        vectors = [None if v is None else tf.constant(np.pad(v, (0, self.block_steps - n))) for v in (rates, momentums)]
        metrics, num_taken, waited = self._block(batches, *vectors, tf.constant(n))
        self.input_wait_seconds += float(waited)
        return {name: values.numpy()[: int(num_taken)] for name, values in metrics.items()}

    def _what_is_wrong(self, epoch: int, batch: int, n: int, error: tf.errors.OpError) -> Exception:
        """Goes through the batches of a block that failed; returns an error that names the bad one, or the error."""
        if self.num_workers > 1 and isinstance(error, _LOST):
            return ConnectionError(
                f"all {self.num_workers} workers must stay, received no more from one of them after step {self.step}; "
                "see what ended it, and start all of them again with --resume"
            )
        batches = iter(self._dataset_of(self.seed, epoch).skip(batch))
        for index in range(batch, batch + n):
            where = f"batch {index} of epoch {epoch + 1}"
            try:
                arrays = [np.asarray(tensor) for tensor in next(batches)]
                check_batch(arrays, self._first_batch, self._size_of(index), self._num_classes)
            except StopIteration:
                return ValueError(
                    f"dataset must have {self.steps_per_epoch} batches in an epoch, received {index} in epoch "
                    f"{epoch + 1}; give num_examples as they are, or repair it"
                )
            except tf.errors.OpError as reading:
                return ValueError(f"dataset failed at {where} ({reading.message.splitlines()[0]}); repair it")
            except (ValueError, TypeError) as bad:
                return ValueError(f"{where}: {bad}")
        return error


def _num_workers(strategy: tf.distribute.Strategy) -> int:
    resolver = strategy.cluster_resolver
    return len(resolver.cluster_spec().as_dict().get("worker", [])) if resolver is not None else 1


def _checked_jit_compile(
    jit_compile: bool | Literal["auto"], strategy: tf.distribute.Strategy
) -> bool | Literal["auto"]:
    """Raises for a strategy, or XLA with one, that cannot work."""
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "strategy must sum the gradients of every step over all replicas, received ParameterServerStrategy, whose "
            "workers do not wait for each other; use MultiWorkerMirroredStrategy"
        )
    if strategy.num_replicas_in_sync == 1:
        return jit_compile
    if jit_compile is True:
        raise ValueError(
            f"jit_compile must be False or auto with {strategy.num_replicas_in_sync} replicas, received True: XLA "
            "cannot compile the exchange between them; leave it out"
        )
    return False


def from_arrays(
    images: NDArray[np.uint8] | NDArray[np.float32], labels: NDArray[Any], batch_size: int, shuffle: bool = True
) -> DatasetOf:
    """Returns a function (seed, epoch) → dataset of the very batches that a resident loop visits, short last one too.

    The images stay in the host's memory; each batch is gathered by the input pipeline.

    Args: see `TrainLoop`.
    """
    with tf.device("CPU"):
        arrays = tf.convert_to_tensor(images), tf.cast(labels, tf.int32)

    def dataset_of(seed: int, epoch: int) -> tf.data.Dataset:
        order = data.epoch_order(len(images), seed, epoch) if shuffle else np.arange(len(images), dtype=np.int32)
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
        return batches.map(lambda chosen: tuple(tf.gather(array, chosen) for array in arrays))

    return dataset_of


def check_batch(batch: list[np.ndarray], first: tuple[np.ndarray, ...], size: int, num_classes: int) -> None:
    """Raises ValueError or TypeError if a batch is not like the first one of its dataset."""
    images, labels, *sample_weight = batch
    if images.shape != (size, *first[0].shape[1:]) or len(labels) != size:
        raise ValueError(
            f"a batch must have {size} images of shape {first[0].shape[1:]}, received {images.shape} and labels "
            f"{labels.shape}; only an epoch's last batch may be short, by what num_examples leaves"
        )
    check_examples(images, labels, num_classes)
    for weights in sample_weight:
        if weights.shape != labels.shape or not np.isfinite(weights).all():
            raise ValueError(
                f"sample_weight must be one finite number for each of {size} examples, received {weights.dtype} "
                f"{weights.shape}; correct it"
            )


def _first_batch(dataset: tf.data.Dataset) -> tuple[np.ndarray, ...]:
    spec = dataset.element_spec
    if not isinstance(spec, tuple) or len(spec) not in (2, 3) or not all(isinstance(s, tf.TensorSpec) for s in spec):
        raise ValueError(
            f"dataset must yield (images, labels) or (images, labels, sample_weight), received {spec}; map it to these"
        )
    try:
        for batch in dataset.take(1):
            arrays = tuple(np.asarray(tensor) for tensor in batch)
            if any(array.ndim == 0 for array in arrays):
                raise ValueError(f"dataset must yield batches, received {spec}; batch it with dataset.batch")
            return arrays
    except tf.errors.OpError as error:
        raise ValueError(f"dataset failed at its first batch ({error.message.splitlines()[0]}); repair it") from error
    raise ValueError("dataset must yield at least one batch, received none; look at what it reads")


def _check_length(dataset: tf.data.Dataset, num_examples: int, batch_size: int) -> None:
    cardinality = int(dataset.cardinality())
    num_batches = -(-num_examples // batch_size)
    if num_examples < batch_size or (cardinality >= 0 and cardinality != num_batches):
        length = f"{cardinality} batches" if cardinality >= 0 else "at least one batch"
        raise ValueError(
            f"num_examples must fit the dataset, received {num_examples} with {length} of {batch_size}; count them "
            "again, or leave it out to have them counted"
        )
