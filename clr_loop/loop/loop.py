"""The compiled training block.

One idea carries this file: *the learning rates of a block of steps are an input of the compiled block.* A schedule
therefore never enters the graph; any vector of rates runs through the same program. So do the batches: they are
gathered before the block and handed to it, padded to a fixed number of steps, and the block takes the first n. One
program thus serves every schedule, every n and every place in an epoch, with one trace and one compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from clr_loop import data
from clr_loop.loop.layers import has_convolutions, has_dropout, works_by_example
from clr_loop.loop.momentum import momentum_attribute
from clr_loop.loop.step import Loss, TrainStep, cross_entropy, metric_names
from clr_loop.schedules.base import checked_integer

Metrics = dict[str, NDArray[np.float32]]

# A block's batches are copied together before it runs. This many bytes, or steps, at most: a whole epoch of MNIST,
# which is 3 to 14 % faster than a third of it, and no more memory than such data takes itself.
_BLOCK_BYTES = 64 * 2**20
_BLOCK_STEPS = 1000

_EVALUATION_BATCH_SIZE = 1000

# The least batch that is computed in halves: below it a step is too short to be shared by two cores.
_SMALLEST_TO_HALVE = 64


@dataclass(frozen=True)
class Snapshot:
    """All that training changes: every variable of model and optimizer, the data order's seed, the skipped updates."""

    model: list[np.ndarray]
    optimizer: list[np.ndarray]
    seed: int
    num_skipped: int = 0


class TrainLoop:
    """Trains a Keras model with a learning rate given for every step.

        train_loop = TrainLoop(model, keras.optimizers.Adam(), images, labels, batch_size=100)
        metrics = train_loop.run(schedule(np.arange(600)))

    Each epoch visits every example once, in an order made from (seed, epoch) alone. If batch_size does not divide the
    examples, the last batch of an epoch is short and its loss is the mean over its own examples. Where an epoch stands
    follows from the number of batches visited: the optimizer's step counter plus the updates that were skipped.

    Attributes:
        model, optimizer: as given; the loop's state lives in their variables.
        batch_size: examples per step.
        num_examples: examples in an epoch.
        steps_per_epoch: steps in which every example is visited once.
        block_steps: steps that one call of the compiled program can take; `run` chains calls for more.
        seed: int, of the data order; may be set between runs.
        shuffle: bool, whether an epoch's order is made from the seed or is the one given.
        num_skipped: updates left out because their loss or a gradient was not finite; 0 without `skip_non_finite`.
        jit_compile: bool, whether the block is an XLA program.
        device: that computes, for example `CPU:0`.
        input_wait_seconds: float, spent so far in waiting for batches; 0 where the data is resident.
        num_workers: processes that share the training; 1, unless the loop streams with a strategy of several.
        num_traces: how often the block has been traced; 1, or 2 with a short last batch; as often again for rates that
            come with momentums.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        images: NDArray[np.uint8] | NDArray[np.float32] | tf.Tensor,
        labels: NDArray[Any],
        batch_size: int = 100,
        seed: int = 0,
        shuffle: bool = True,
        jit_compile: bool | Literal["auto"] = "auto",
        loss: Loss = cross_entropy,
        skip_non_finite: bool = False,
        clip_norm: float | None = None,
        accumulate: int = 1,
    ) -> None:
        """Checks the arguments and moves the data to the device; compiles nothing yet.

        Args:
            model: float32 [batch, *image shape] → logits [batch, num_classes].
            optimizer: any Keras optimizer with a plain learning rate, whose value is overwritten at every step.
            images: uint8 [n, …], scaled to 0–1 inside each step, or float32 [n, …], taken as they are. A tensor is not
                copied, so that several loops can share it.
            labels: integers [n], from 0 to num_classes - 1.
            batch_size: int, 1 to n.
            seed: int in [0, 2**32), of the data order.
            shuffle: False visits the examples in the order given.
            jit_compile: whether to compile with XLA; "auto" does, except for a model with convolutions or dropout on a
                CPU, where XLA is slower by far. On a CPU, XLA takes a batch of 64 or more in two halves side by side
                where the model is known to treat each example by itself; apart from rounding that is the whole batch.
            loss: (labels [batch], logits [batch, num_classes]) → a loss for each example, or their mean. Losses that
                the model's layers add (regularisation) are added to its mean.
            skip_non_finite: whether a batch whose loss or a gradient is not finite is passed over: it changes no
                variable and counts no step, so that the next batch has its learning rate.
            clip_norm: float above 0: the gradients are scaled down to this global norm where theirs is larger.
            accumulate: int, at least 1: a batch is taken in so many parts, one after another, whose gradients are
                summed into one update; it needs the memory of a part. What looks at a whole batch (batch-norm) sees a
                part.

        Raises:
            ValueError: if an argument is out of range, images and labels differ in length, a float image is not
                finite, a label is outside the model's classes, or the optimizer was made with a schedule.
            TypeError: if images or labels are of another dtype.
        """
        num_classes = num_classes_of(model, images)
        check_examples(images, labels, num_classes)
        checked_integer("batch_size", batch_size)
        if not 1 <= batch_size <= len(images):
            raise ValueError(
                f"batch_size must be from 1 to the {len(images)} training examples, received {batch_size}; choose one "
                "in this range"
            )
        self._set_up(
            model, optimizer, batch_size, len(images), seed, jit_compile, loss, skip_non_finite, clip_norm, accumulate,
            tf.distribute.get_strategy(),
        )  # fmt: skip
        self.shuffle = shuffle
        self._images = tf.convert_to_tensor(images)
        self._labels = tf.cast(labels, tf.int32)
        self._order: tuple[tuple[int, int], NDArray[np.int32]] = ((-1, -1), np.empty(0, np.int32))

        batch_bytes = batch_size * self._images[0].numpy().nbytes
        self.block_steps = max(1, min(_BLOCK_BYTES // batch_bytes, _BLOCK_STEPS, len(images) // batch_size))
        self._block = tf.function(self._train_block, jit_compile=self.jit_compile)

    @classmethod
    def from_dataset(
        cls,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        dataset: tf.data.Dataset | Callable[[int, int], tf.data.Dataset],
        num_examples: int | None = None,
        **arguments: Any,
    ) -> TrainLoop:
        """Makes a loop over data that does not fit in memory; see `streaming.StreamingLoop`, which it is.

            train_loop = TrainLoop.from_dataset(model, keras.optimizers.Adam(), dataset, num_examples=1_000_000)

        Args:
            model, optimizer: as above.
            dataset: of (images, labels) batches, for every epoch the same; or a function (seed, epoch) → dataset.
            num_examples: int, examples in an epoch. None reads the dataset once to count them.
            **arguments: see `streaming.StreamingLoop`.
        """
        from clr_loop.loop.streaming import StreamingLoop  # It stands above: it is a TrainLoop that is fed otherwise.

        return StreamingLoop(model, optimizer, dataset, num_examples, **arguments)

    def _set_up(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        batch_size: int,
        num_examples: int,
        seed: int,
        jit_compile: bool | Literal["auto"],
        loss: Loss,
        skip_non_finite: bool,
        clip_norm: float | None,
        accumulate: int,
        strategy: tf.distribute.Strategy,
    ) -> None:
        """Checks and keeps what a loop has however it is fed."""
        checked_integer("seed", seed)
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1, received {seed}; choose a smaller one")
        if jit_compile not in (True, False, "auto"):
            raise ValueError(
                f'jit_compile must be True, False or "auto", received {jit_compile!r}; choose one of these'
            )
        if clip_norm is not None and not 0.0 < clip_norm < float("inf"):
            raise ValueError(f"clip_norm must be a finite number above 0, received {clip_norm}; 1 is usual")
        _check_shares(accumulate, strategy, batch_size, num_examples)
        _check_optimizer(optimizer, strategy)
        with strategy.scope():
            optimizer.build(model.trainable_variables)

        self.model = model
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.num_examples = num_examples
        self.seed = seed
        self.steps_per_epoch = -(-num_examples // batch_size)
        self.num_skipped = 0
        self.num_traces = 0
        self.input_wait_seconds = 0.0
        self.num_workers = 1
        self.device = _device()
        if jit_compile is True and self.device.startswith("CPU") and has_convolutions(model):
            raise ValueError(
                "jit_compile must be False or auto for a model with convolutions on a CPU, where XLA is a hundred "
                "times slower, received True; leave it out"
            )
        if jit_compile == "auto":
            is_slow = self.device.startswith("CPU") and (has_convolutions(model) or has_dropout(model))
            jit_compile = not is_slow
        self.jit_compile = jit_compile
        halves = (
            self.jit_compile
            and self.device.startswith("CPU")
            and accumulate == strategy.num_replicas_in_sync == 1
            and loss is cross_entropy
            and works_by_example(model)
            and batch_size >= _SMALLEST_TO_HALVE
            and num_examples % batch_size != 1
        )
        self._take_step = TrainStep(model, optimizer, loss, skip_non_finite, clip_norm, accumulate, strategy, halves)
        self._evaluate_batch = tf.function(self._take_step.evaluate)

    @property
    def step(self) -> int:
        """Steps taken so far; equals `optimizer.iterations`."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    @property
    def position(self) -> int:
        """Batches visited so far, in all epochs: steps taken and updates skipped."""
        return self.step + self.num_skipped

    def compile(self, with_momentums: bool = False) -> None:
        """Traces and compiles all that `run` will need, and changes nothing; so that it can be timed by itself."""
        none = np.zeros(0, np.float32)
        for size, capacity in self._block_shapes():
            indices = np.zeros(capacity * size, np.int32)
            self._call_block(indices, none, none if with_momentums else None, size, capacity)

    def run(self, learning_rates: ArrayLike, momentums: ArrayLike | None = None) -> Metrics:
        """Visits one batch for each learning rate, going on from where the last call ended.

        Args:
            learning_rates: floats [n], finite and at least 0; n may be 0, or reach over the end of an epoch.
            momentums: floats [n] in [0, 1), for the optimizer's beta_1 or, where it has none, its momentum, which
                must then have been made other than 0. None leaves the optimizer's own.

        Returns:
            float32 [n] each, of the batch that each step was taken on and before its update: `loss` and `accuracy`
            (0–1); and `learning_rate`, read back from the optimizer after the update that used it; with momentums
            also `momentum`. Fewer than n by the updates that were skipped.
            The arrays are on the host: when they are here, the steps are done.

        Raises:
            ValueError: if learning_rates is not a vector of finite numbers of at least 0, momentums not one of as many
                in [0, 1), or the optimizer has no momentum.
            RuntimeError: if the optimizer's counter did not grow by exactly the steps taken.
        """
        rates = checked_rates(learning_rates)
        if momentums is not None:
            momentums = _checked_momentums(momentums, len(rates))
            momentum_attribute(self.optimizer)
        first_step = self.step
        parts = self._visit(self.position, rates, momentums)
        taken = sum(len(part["loss"]) for part in parts)
        if self.step != first_step + taken:
            raise RuntimeError(
                f"the optimizer must count one iteration per step, received {self.step - first_step} for {taken}; "
                "its variables were changed from outside"
            )
        self.num_skipped += len(rates) - taken
        names = metric_names(momentums is not None)
        return {name: np.concatenate([np.empty(0, np.float32), *(part[name] for part in parts)]) for name in names}

    def evaluate(self, images: NDArray[np.uint8] | NDArray[np.float32], labels: NDArray[Any]) -> dict[str, float]:
        """Returns the mean `loss` and `accuracy` (0–1) over all examples, the model in inference mode.

        Args:
            images, labels: as the training data's; any number of examples of at least 1.

        Raises:
            ValueError, TypeError: as for the training data.
        """
        check_examples(images, labels, num_classes_of(self.model, images))
        loss_sum, num_correct = 0.0, 0
        for start in range(0, len(images), _EVALUATION_BATCH_SIZE):
            batch = slice(start, start + _EVALUATION_BATCH_SIZE)
            loss, correct = self._evaluate_batch(tf.convert_to_tensor(images[batch]), tf.cast(labels[batch], tf.int32))
            loss_sum += float(loss) * len(images[batch])
            num_correct += int(correct)
        return {"loss": loss_sum / len(images), "accuracy": num_correct / len(images)}

    def snapshot(self) -> Snapshot:
        """Returns a copy of all that training changes, on the host."""
        return Snapshot(
            model=[_to_numpy(variable) for variable in self.model.variables],
            optimizer=[_to_numpy(variable) for variable in self.optimizer.variables],
            seed=self.seed,
            num_skipped=self.num_skipped,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Puts everything back as it was at `snapshot`: weights, optimizer, step and with it the place in the epoch."""
        variables = [*self.model.variables, *self.optimizer.variables]
        for variable, value in zip(variables, [*snapshot.model, *snapshot.optimizer], strict=True):
            variable.assign(value)
        self.seed = snapshot.seed
        self.num_skipped = snapshot.num_skipped

    def weights_sha256(self) -> str:
        """Returns the hex digest of all variables of model and optimizer: their dtypes, shapes and bytes, in order."""
        now = self.snapshot()
        return data.sha256_of([*now.model, *now.optimizer])

    def data_sha256(self) -> str:
        """Returns the hex digest of the images and labels that the loop trains on."""
        return data.sha256_of([self._images.numpy(), self._labels.numpy()])

    # The compiled part: a block of steps.

    def _train_block(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        learning_rates: tf.Tensor,
        momentums: tf.Tensor | None,
        n: tf.Tensor,
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Visits the first n of the batches: images [capacity, batch, …], labels [capacity, batch], rates [capacity].

        Returns the metrics [capacity] and how many of their values, from the first on, are those of a step taken.
        """
        self.num_traces += 1
        capacity = images.shape[0]
        names = metric_names(momentums is not None)
        columns = {name: tf.TensorArray(tf.float32, capacity) for name in names}
        i, num_taken = tf.constant(0), tf.constant(0)
        while i < n:  # A loop in the graph; n is a tensor, so that its value does not need a new program.
            metrics, taken = self._take_step(
                tf.gather(images, i),
                tf.gather(labels, i),
                tf.gather(learning_rates, num_taken),
                None if momentums is None else tf.gather(momentums, num_taken),
            )
            columns = {name: column.write(num_taken, metrics[name]) for name, column in columns.items()}
            num_taken += taken
            i += 1
        return {name: column.stack() for name, column in columns.items()}, num_taken

    # What is fed to it.

    def _visit(self, position: int, rates: NDArray[np.float32], momentums: NDArray[np.float32] | None) -> list[Metrics]:
        """Visits a batch for each rate, from this position on; returns the metrics of each block."""
        taken = 0
        parts: list[Metrics] = []
        for start, n in self._blocks(position, len(rates)):
            epoch, batch = divmod(start, self.steps_per_epoch)
            size, capacity = self._shape_at(batch)
            indices = np.zeros(capacity * size, np.int32)
            indices[: n * size] = self._epoch_order(epoch)[batch * self.batch_size :][: n * size]
            part = self._call_block(
                indices, rates[taken:][:n], None if momentums is None else momentums[taken:][:n], size, capacity
            )
            parts.append(part)
            taken += len(part["loss"])
        return parts

    def _block_shapes(self) -> list[tuple[int, int]]:
        """The (batch size, steps) of each compiled program: whole batches, and the short last one if there is one."""
        short = self.num_examples % self.batch_size
        return [(self.batch_size, self.block_steps)] + ([(short, 1)] if short else [])

    def _shape_at(self, position: int) -> tuple[int, int]:
        return self._block_shapes()[0 if position < self.num_examples // self.batch_size else 1]

    def _blocks(self, first: int, num_steps: int) -> Iterator[tuple[int, int]]:
        """Cuts steps first … first + num_steps - 1 into (step, n) that each fit one program."""
        step, end = first, first + num_steps
        whole = self.num_examples // self.batch_size
        while step < end:
            position = step % self.steps_per_epoch
            n = min(end - step, self.block_steps, whole - position) if position < whole else 1
            yield step, n
            step += n

    def _epoch_order(self, epoch: int) -> NDArray[np.int32]:
        key = (self.seed, epoch)
        if self._order[0] != key:
            num_examples = self.num_examples
            order = (
                data.epoch_order(num_examples, self.seed, epoch)
                if self.shuffle
                else np.arange(num_examples, dtype=np.int32)
            )
            self._order = (key, order)
        return self._order[1]

    def _call_block(
        self,
        indices: NDArray[np.int32],
        rates: NDArray[np.float32],
        momentums: NDArray[np.float32] | None,
        size: int,
        capacity: int,
    ) -> Metrics:
        n = len(rates)
        # The gather stays outside the XLA program, which would copy uint8 one element at a time.
        chosen = tf.constant(indices.reshape(capacity, size))
        images, labels = tf.gather(self._images, chosen), tf.gather(self._labels, chosen)
        vectors = [None if v is None else tf.constant(np.pad(v, (0, capacity - n))) for v in (rates, momentums)]
        metrics, num_taken = self._block(images, labels, *vectors, tf.constant(n))
        return {name: values.numpy()[: int(num_taken)] for name, values in metrics.items()}


def _device() -> str:
    """The device that TensorFlow computes on, for example `CPU:0`."""
    return tf.zeros(()).device.rpartition("device:")[2]


def _to_numpy(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


def num_classes_of(model: keras.Model, images: np.ndarray | tf.Tensor) -> int:
    """Runs the model on one empty image, which also builds it, and returns the number of its logits.

    Args:
        images: [n, *image shape], of which only the shape is used.

    Raises:
        ValueError: if the model does not take such images, or does not return logits [batch, num_classes].
    """
    try:
        shape = tuple(model(tf.zeros((1, *images.shape[1:])), training=False).shape)
    except ValueError as error:
        raise ValueError(
            f"the model must take images of shape {images.shape[1:]}, received one that does not "
            f"({str(error).strip().splitlines()[0]}); build it with this input_shape"
        ) from error
    if len(shape) != 2:
        raise ValueError(
            f"the model must return logits [batch, num_classes], received shape {shape}; flatten its output"
        )
    return shape[1]


def check_examples(images: np.ndarray | tf.Tensor, labels: np.ndarray, num_classes: int) -> None:
    """Raises if images and labels are not what a loop can train on: see `TrainLoop`."""
    if images.dtype not in (np.uint8, np.float32):
        raise TypeError(f"images must be uint8 or float32, received {images.dtype}; convert them")
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels must be integers, received {labels.dtype}; give the class of each image as a number")
    if len(images) != len(labels) or labels.ndim != 1 or not len(images):
        raise ValueError(
            f"images and labels must pair up, received {len(images)} images and labels of shape {labels.shape}; "
            "give one label for each image"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, the model's classes, received {labels.min()} to "
            f"{labels.max()}; correct the labels or build the model with more classes"
        )
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise ValueError("images must be finite, received NaN or inf among them; remove or repair those images")


def _check_shares(accumulate: int, strategy: tf.distribute.Strategy, batch_size: int, num_examples: int) -> None:
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1 micro-batch, received {accumulate}; 1 takes batches whole")
    num_replicas, last = strategy.num_replicas_in_sync, num_examples % batch_size or batch_size
    if last < num_replicas * accumulate:
        raise ValueError(
            f"every batch must have an example for each of {num_replicas} replicas x {accumulate} micro-batches, "
            f"received batches of {batch_size} and a last one of {last}; choose another batch_size"
        )


def _check_optimizer(optimizer: keras.optimizers.Optimizer, strategy: tf.distribute.Strategy) -> None:
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = optimizer.get_config().get("learning_rate")
    if not isinstance(rate, float):
        raise ValueError(
            f"the optimizer must have a plain learning rate, received {type(optimizer).__name__} made with a schedule; "
            "make it with a number and give the schedule's rates to run"
        )
    if optimizer.gradient_accumulation_steps is not None:
        raise ValueError(
            f"the optimizer must take every step, received gradient_accumulation_steps "
            f"{optimizer.gradient_accumulation_steps}; give the loop accumulate instead"
        )


def checked_rates(learning_rates: ArrayLike) -> NDArray[np.float32]:
    """Returns rates as the block takes them.

    Raises:
        ValueError: unless they are a vector of finite numbers of at least 0.
    """
    rates = np.asarray(learning_rates, np.float64)
    if rates.ndim != 1:
        raise ValueError(f"learning_rates must be a vector, received shape {rates.shape}; give one rate for each step")
    bad = ~(np.isfinite(rates) & (rates >= 0.0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"learning_rates must be finite and at least 0, received {rates[i]} at index {i}; correct it")
    return rates.astype(np.float32)


def _checked_momentums(momentums: ArrayLike, num_rates: int) -> NDArray[np.float32]:
    values = np.asarray(momentums, np.float64)
    if values.shape != (num_rates,):
        raise ValueError(
            f"momentums must be one for each of {num_rates} rates, received shape {values.shape}; pair them"
        )
    bad = ~((values >= 0.0) & (values < 1.0))
    if bad.any():
        i = int(np.argmax(bad))
        raise ValueError(f"momentums must be at least 0 and below 1, received {values[i]} at index {i}; correct it")
    return values.astype(np.float32)
