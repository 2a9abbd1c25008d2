"""The loop: a compiled Keras model, trained with a learning rate that is given for every step.

One idea carries this room: *the learning rates of a block of steps are an input of the compiled block.* A schedule
never enters the graph, so any vector of rates runs through the same program, and resuming needs the step counter only.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from clr_loop.data.arguments import checked_types
from clr_loop.data.functions import in_one_line
from clr_loop.data.order import sha256_of
from clr_loop.loop import checks, engine
from clr_loop.loop import inputs as model_inputs
from clr_loop.loop.averages import Averages, measure_statistics, to_numpy
from clr_loop.loop.batches import Batch, batch_of, num_examples_of, with_class_weight
from clr_loop.loop.feeds import Feed, Resident, in_order
from clr_loop.loop.rates import check_multipliers, checked_momentums, checked_rates, momentum_attribute
from clr_loop.loop.step import StepOptions, TrainStep, reset_metrics
from clr_loop.loop.stream import DatasetOf, Stream, dataset_of_arrays
from clr_loop.schedules.checks import checked_integer

Metrics = dict[str, NDArray[np.float32]]

# The least batch that is computed in halves. At 100 halves are 2 to 5 % slower than a whole batch, at 400 18 % faster.
_SMALLEST_TO_HALVE = 256

# Examples that loss and metrics are tried on before anything is compiled.
_TRIED = 32


@dataclass(frozen=True)
class Snapshot:
    """All that training changes: variables of model and optimizer, the data order's seed, skipped updates, averages."""

    model: list[np.ndarray]
    optimizer: list[np.ndarray]
    seed: int
    num_skipped: int = 0
    averages: list[np.ndarray] = field(default_factory=list)
    num_averaged: int = 0


class TrainLoop:
    """Trains a compiled Keras model with a learning rate given for every step.

        model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
        loop = TrainLoop(model, inputs, targets, batch_size=100)
        metrics = loop.run(schedule(np.arange(600)))

    Loss, metrics and optimizer are the model's own. Each epoch visits every example once, in an order made from (seed,
    epoch) alone. If batch_size does not divide the examples, the last batch of an epoch is short, and its loss is the
    mean over its own examples. The place in the data follows from the number of batches visited: the optimizer's step
    counter plus the updates that were skipped.

    A layer that is frozen or unfrozen between two runs is trained accordingly from then on; the optimizer keeps its
    state.

    Attributes:
        model, optimizer: The model, and the optimizer that it was compiled with. The loop's state is in their
        variables.
        options: How one update is made.
        batch_size: int, examples in a step.
        num_examples: int, examples in an epoch.
        steps_per_epoch: int, steps in which every example is visited once.
        block_steps: int, steps that one call of the compiled program takes at most; `run` chains calls for more.
        metric_names: "loss", then the names of the compiled metrics, as Keras has them.
        batch_sizes: int32 [n], examples of each step of the last call to `run`.
        seed: int, of the data order; it may be set between runs.
        shuffle: bool, whether the seed makes an epoch's order. False for a dataset, which has its own.
        num_skipped: int, updates skipped because their loss or a gradient was not finite.
        jit_compile: bool, whether the step is an XLA program.
        halves: bool, whether each batch is computed in two halves; see `StepOptions.halve_batches`.
        averages: the average of the weights, or None; see `StepOptions.average`.
        device: The device the loop runs on, for example `CPU:0`.
        chosen: What was decided and why, in words: device, replicas, feed, precision, xla, oneDNN.
    """

    @checked_types
    def __init__(
        self,
        model: keras.Model,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int = 100,
        seed: int = 0,
        shuffle: bool = True,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        options: StepOptions | None = None,
    ) -> None:
        """Check everything and move the data to the device; compile nothing yet.

        Args:
            model: compiled, as for `fit`. Made in the scope of a strategy, it is trained with that strategy.
            inputs, targets, sample_weight: any nest (array, tuple, list, dict) of arrays [n, …] of numbers. Tensors,
                and on a CPU arrays that cannot be written to, are not copied, so several loops can share them. targets
                are None for a model whose loss needs none.
            batch_size: int, 1 to n: examples in a step, over all replicas.
            seed: int in [0, 2**32), of the data order.
            shuffle: False visits the examples in the order given.
            class_weight: class → weight of its examples' loss, as for `fit`; for one array of targets: classes, or
                one-hot vectors.
            options: see `StepOptions`.

        Raises:
            ValueError: if the model is not compiled, has a train_step of its own, or has an optimizer with a schedule;
                if arrays differ in length or are not finite; if the model does not take the inputs, or its loss or a
                metric does not take the targets; if batch_size or seed is out of range.
            TypeError: if an array does not hold numbers.
        """
        checks.check_model(model)
        batch = batch_of(inputs, targets, sample_weight)
        checks.check_arrays(batch)
        if class_weight is not None:
            batch = with_class_weight(batch, class_weight)
        num_examples = int(num_examples_of(batch))
        checks.check_batch_size(batch_size, num_examples)
        strategy = model.distribute_strategy
        if engine.is_distributed(strategy):
            feed: Feed = Stream(dataset_of_arrays(batch, batch_size, shuffle), num_examples, seed, strategy)
        else:
            feed = Resident(batch, batch_size, shuffle)
        self._set_up(model, feed, batch, seed, options or StepOptions())
        self.shuffle = shuffle
        model_inputs.warn_if_unusual(model, batch[0], stacklevel=4)

    @classmethod
    @checked_types
    def from_dataset(
        cls,
        model: keras.Model,
        dataset: tf.data.Dataset | DatasetOf,
        num_examples: int | None = None,
        *,
        seed: int = 0,
        class_weight: Mapping[int, float] | None = None,
        options: StepOptions | None = None,
    ) -> TrainLoop:
        """Make a loop over the batches of a dataset, for data that does not fit in memory.

        Every batch is checked in the input pipeline, beside the training.

        Args:
            model, seed, class_weight, options: as above.
            dataset: the batches (inputs, targets[, sample_weight]) of an epoch. Every batch has the size of the first,
                except for the last, which may be short. Read again, it must give the same batches. For another order in
                each epoch give a function of (seed, epoch), ints, that returns the dataset of that epoch. It is read
                without tf.data's autotuning, so AUTOTUNE in a `map` stands for as many calls as there are cores.
            num_examples: int, examples in an epoch. None reads the first epoch once to count them.

        Raises:
            ValueError, TypeError: as above; and if the dataset is empty, not batched, endless, gives other batches when
                it is read again, or has another length than num_examples says. `run` raises them for a batch that is
                not like the first, and ConnectionError if another worker has gone.
        """
        checks.check_model(model)
        dataset_of = dataset if callable(dataset) else lambda seed, epoch: dataset
        if class_weight is not None:
            unweighted, weights = dataset_of, dict(class_weight)

            def dataset_of(seed: int, epoch: int) -> tf.data.Dataset:
                return unweighted(seed, epoch).map(lambda *batch: with_class_weight(batch, weights))

        feed = Stream(dataset_of, num_examples, seed, model.distribute_strategy)
        checks.check_arrays(feed.first_batch, "The first batch: ")
        loop = cls.__new__(cls)
        loop._set_up(model, feed, feed.first_batch, seed, options or StepOptions())
        loop.shuffle = False
        model_inputs.warn_if_unusual(model, feed.first_batch[0], stacklevel=4)
        return loop

    def _set_up(self, model: keras.Model, feed: Feed, batch: Batch, seed: int, options: StepOptions) -> None:
        """Build loss, metrics and optimizer, and choose what the step runs on."""
        if not 0 <= checked_integer("seed", seed) < 2**32:
            raise ValueError(f"seed is {seed}; choose one from 0 to 2**32 - 1.")
        strategy = model.distribute_strategy
        engine.check_strategy(strategy)
        self.model, self.optimizer, self.options = model, model.optimizer, options
        self.seed, self.num_skipped = seed, 0
        self.batch_size, self.num_examples, self.block_steps = feed.batch_size, feed.num_examples, feed.block_steps
        self.steps_per_epoch = -(-feed.num_examples // feed.batch_size)
        self.num_workers = engine.num_workers(strategy)
        self.batch_sizes = np.zeros(0, np.int32)
        self._check_shares()
        tried = keras.tree.map_structure(lambda x: tf.convert_to_tensor(x[:_TRIED]), batch)
        with strategy.scope():
            if not model.built:
                checks.try_model(model, keras.tree.map_structure(lambda x: x[:1], tried[0]))
            self._classes = checks.check_targets(model, tried)
            checks.check_classes(batch, self._classes)
            self.metric_names = checks.build(model, tried)
            self.optimizer.build(_all_trainable(model))
        self.averages = None
        if options.average is not None:
            if options.average != "swa" and strategy.num_replicas_in_sync > 1:
                raise ValueError("An exponential average follows one replica; use average='swa', or no strategy.")
            self.averages = Averages(_all_trainable(model), options.average)
        check_multipliers(model.trainable_variables, options.rate_multipliers)
        if isinstance(feed, Stream):
            feed.know_classes(self._classes)
        self.device = engine.device()
        self.jit_compile, xla = engine.choose_xla(
            model,
            options.jit_compile,
            lambda: checks.try_model(model, tried[0], training=True),
            self.device,
        )
        self.halves = self._choose_halves(tried)
        self.chosen = {
            "device": self.device,
            "replicas": engine.describe_replicas(strategy),
            "feed": "stream" if isinstance(feed, Stream) else "resident",
            "precision": model.dtype_policy.name,
            "xla": f"{xla}, batches in two halves" if self.halves else xla,
            "oneDNN": "on" if engine.has_onednn() else "off (TF_ENABLE_ONEDNN_OPTS=1 asks for it)",
        }
        self._feed = feed
        self._running = threading.Lock()
        self._compiled: set[Any] = set()
        self._trained: Any = None
        self._sums: Any = None

    @property
    def step(self) -> int:
        """Steps taken so far; equals `optimizer.iterations`."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    @property
    def position(self) -> int:
        """Batches visited so far, in all epochs: steps taken and updates skipped."""
        return self.step + self.num_skipped

    @property
    def num_traces(self) -> int:
        """How often a block was traced."""
        return self._feed.num_traces

    @property
    def input_wait_seconds(self) -> float:
        """Seconds spent so far in waiting for batches; 0 where the data is resident."""
        return self._feed.wait_seconds

    def compile(self, with_momentums: bool = False) -> None:
        """Trace and compile all that `run` will need, so that this can be timed by itself. It changes nothing.

        `run` calls it, so there is no need to. It traces anew only after a layer was frozen or unfrozen, or for the
        first rates that come with momentums. A model that XLA refuses is compiled as a plain graph, with a warning.
        """
        trained = _trained(self.model)
        if trained != self._trained:
            self._begin(trained)
        if with_momentums not in self._compiled:
            with engine.noticing_lost_workers(self.model.distribute_strategy):
                self._compile(with_momentums)

    def _compile(self, with_momentums: bool) -> None:
        self._check_together()
        before = self.snapshot()
        try:
            self._feed.compile(self.seed, with_momentums)
        except (tf.errors.OpError, ValueError, NotImplementedError) as error:
            if not self.jit_compile or self.options.jit_compile is True:
                raise
            engine.check_cache(error)
            self.restore(before)
            self.jit_compile = self.halves = False
            self.chosen["xla"] = "without XLA (it refuses the model)"
            warnings.warn(
                f"XLA cannot compile the model {self.model.name} ({in_one_line(error)}); the loop goes on "
                "without it. Give StepOptions(jit_compile=False) to say so yourself.",
                stacklevel=3,
            )
            self._begin(self._trained)
            self._feed.compile(self.seed, with_momentums)
        self.restore(before)
        self._compiled.add(with_momentums)

    def _begin(self, trained: Any) -> None:
        step = TrainStep(self.model, self.options, self.metric_names, self.halves, self.averages)
        self._step = step
        self._feed.begin(step, self.jit_compile)
        self._evaluate_batch = engine.graph_function(step.evaluate)
        self._gradients_of = engine.graph_function(step.gradients)
        self._predict_batch = engine.graph_function(lambda batch, size: step.predict(batch))
        self._trained, self._compiled = trained, set()

    def run(self, learning_rates: ArrayLike, momentums: ArrayLike | None = None) -> Metrics:
        """Visit one batch for each learning rate, going on from where the last call ended.

        Args:
            learning_rates: floats [n], finite and at least 0; n may be 0, or reach over the end of an epoch.
            momentums: floats [n] in [0, 1), for the optimizer's beta_1 or, where it has none, its momentum, which must
                have been made other than 0. None leaves the optimizer's own.

        Returns:
            float32 [n] each: `learning_rate`, `loss` and every compiled metric by its name, of the batch that each step
            was taken on, before its update; with momentums also `momentum`. There are fewer than n by the updates that
            were skipped. The arrays are on the host: when they are here, the steps are done.

        Raises:
            ValueError: if learning_rates is not a vector of finite numbers of at least 0, momentums not one of as many
                in [0, 1), or the optimizer has no momentum.
            RuntimeError: if another thread runs the loop, or the optimizer's counter did not grow by the steps taken.
        """
        rates = checked_rates(learning_rates)
        if momentums is not None:
            momentums = checked_momentums(momentums, len(rates))
            momentum_attribute(self.optimizer)
        if not self._running.acquire(blocking=False):
            raise RuntimeError("Another thread is in this loop's run; a loop trains one block at a time.")
        try:
            with engine.noticing_lost_workers(self.model.distribute_strategy):
                return self._run(rates, momentums)
        finally:
            self._running.release()

    def _run(self, rates: NDArray[np.float32], momentums: NDArray[np.float32] | None) -> Metrics:
        self.compile(momentums is not None)
        first_step = self.step
        parts = self._feed.visit(self.seed, self.position, rates, momentums)
        names = ("learning_rate", *self.metric_names, *(("momentum",) if momentums is not None else ()), "examples")
        metrics = {name: np.concatenate([np.empty(0, np.float32), *(part[name] for part in parts)]) for name in names}
        self.batch_sizes = metrics.pop("examples").astype(np.int32)
        if self.step != first_step + len(self.batch_sizes):
            raise RuntimeError(
                f"The optimizer counted {self.step - first_step} iterations for {len(self.batch_sizes)} steps, so "
                "something else has changed its variables meanwhile."
            )
        self.num_skipped += len(rates) - len(self.batch_sizes)
        return metrics

    def evaluate(
        self, inputs: Any, targets: Any = None, sample_weight: Any = None, batch_size: int = 1000
    ) -> dict[str, float]:
        """Return `loss` and every compiled metric over a whole set, with the model in inference mode.

        Args:
            inputs, targets, sample_weight: as the training data's; or, as inputs, a `tf.data.Dataset` of batches.
            batch_size: int, at least 1: examples in one call. It changes nothing but speed and memory.

        Raises:
            ValueError, TypeError: as for the training data.
        """
        self._begin_if_needed()
        with engine.noticing_lost_workers(self.model.distribute_strategy):
            reset_metrics(self.model)
            num_examples, totals = 0, dict[str, float]()
            metrics: dict[str, tf.Tensor] = {}
            for size, (losses, so_far) in self._evaluated(inputs, targets, sample_weight, batch_size):
                totals = {name: totals.get(name, 0.0) + float(loss) * size for name, loss in losses.items()}
                num_examples += size
                metrics = so_far
            reset_metrics(self.model)
            values = {name: total / num_examples for name, total in totals.items()} | metrics
            return {name: float(values[name]) for name in self.metric_names}

    def _evaluated(self, inputs: Any, targets: Any, sample_weight: Any, batch_size: int) -> Iterator[tuple[int, Any]]:
        """Evaluate batch by batch; yield each batch's number of examples, loss and the metrics so far."""
        strategy = self.model.distribute_strategy
        if isinstance(inputs, tf.data.Dataset):
            stream = Stream(lambda seed, epoch: inputs, None, 0, strategy)
            stream.know_classes(self._classes)
            yield from stream.evaluate(self._evaluate_batch)
            return
        batch = batch_of(inputs, targets, sample_weight)
        checks.check_arrays(batch)
        checks.check_classes(batch, self._classes)
        num_examples = int(num_examples_of(batch))
        if engine.is_distributed(strategy):
            dataset_of = dataset_of_arrays(batch, min(batch_size, num_examples), shuffle=False)
            yield from Stream(dataset_of, num_examples, 0, strategy).evaluate(self._evaluate_batch)
            return
        yield from in_order(self._evaluate_batch, batch, batch_size)

    def predict(self, inputs: Any, batch_size: int = 1000) -> Any:
        """Return the model's outputs in inference mode, on the host: arrays [n, …] in the nest of its outputs.

        Args:
            inputs: as the training data's.
            batch_size: int, at least 1: examples in one call.

        Raises:
            ValueError, TypeError: as for the training data.
        """
        self._begin_if_needed()
        batch = batch_of(inputs, None, None)
        checks.check_arrays(batch)
        parts = [part for _, part in in_order(self._predict_batch, batch, batch_size)]
        return keras.tree.map_structure(lambda *of_parts: np.concatenate(of_parts), *parts)

    def score(self, outputs: Any, targets: Any, sample_weight: Any = None) -> dict[str, float]:
        """Return the loss and every compiled metric of given outputs over a whole set, as `evaluate` does."""
        reset_metrics(self.model)
        batch = keras.tree.map_structure(tf.convert_to_tensor, batch_of(targets, targets, sample_weight))
        values = self._step.score(batch, keras.tree.map_structure(tf.convert_to_tensor, outputs))
        reset_metrics(self.model)
        return {name: float(values[name]) for name in self.metric_names if name in values}

    def _begin_if_needed(self) -> None:
        """Trace anew if another layer is frozen than before."""
        if _trained(self.model) != self._trained:
            self._begin(_trained(self.model))

    def gradients(self, inputs: Any, targets: Any = None, sample_weight: Any = None) -> NDArray[np.float32]:
        """Return the gradient of the mean loss of these examples, in training mode, as one vector [parameters].

        Nothing is changed, and clip_norm is left out. The arguments are those of the training data.

        Raises:
            ValueError: if the model is trained on several replicas; else, and TypeError, as for the training data.
        """
        if engine.is_distributed(self.model.distribute_strategy):
            raise ValueError("The gradients of several replicas are not at hand; make the model without a strategy.")
        self._begin_if_needed()
        batch = batch_of(inputs, targets, sample_weight)
        checks.check_arrays(batch)
        checks.check_classes(batch, self._classes)
        found = self._gradients_of(keras.tree.map_structure(tf.convert_to_tensor, batch))
        reset_metrics(self.model)
        return np.concatenate([gradient.numpy().ravel() for gradient in found])

    def add_to_average(self) -> None:
        """Add the weights as they are to the average; for `StepOptions(average="swa")`."""
        if self.options.average != "swa" or self.averages is None:
            raise ValueError(f"average is {self.options.average!r}; only that of 'swa' is added to from outside.")
        self.averages.add()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the average in the place of the weights inside this context, and afterwards everything back.

        What batch-norm layers average over batches is measured anew, in one pass over the training data.

        Raises:
            ValueError: if there is no average, or nothing in it yet.
        """
        if self.averages is None or not self.averages.is_there:
            raise ValueError("There is no average of the weights yet; see StepOptions.average.")
        self._begin_if_needed()
        before = [_to_numpy(variable) for variable in self.model.variables]
        try:
            for variable, average in zip(_all_trainable(self.model), self.averages.values, strict=True):
                variable.assign(average)
            measure_statistics(self.model, self._feed.evaluate, self._step.forward)
            yield
        finally:
            reset_metrics(self.model)
            for variable, value in zip(self.model.variables, before, strict=True):
                variable.assign(value)

    def finalize(self) -> None:
        """Give the variables the values that Keras' `fit` ends with: averages, for an optimizer with use_ema=True."""
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        optimizer.finalize_variable_values(self.model.trainable_variables)

    def snapshot(self) -> Snapshot:
        """Return a copy of all that training changes, on the host."""
        return Snapshot(
            model=[_to_numpy(variable) for variable in self.model.variables],
            optimizer=[_to_numpy(variable) for variable in self.optimizer.variables],
            seed=self.seed,
            num_skipped=self.num_skipped,
            averages=to_numpy(self.averages),
            num_averaged=0 if self.averages is None else self.averages.count,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back as it was at `snapshot`: weights, optimizer, step and with it the place in the epoch."""
        variables = [*self.model.variables, *self.optimizer.variables]
        for variable, value in zip(variables, [*snapshot.model, *snapshot.optimizer], strict=True):
            variable.assign(value)
        self.seed = snapshot.seed
        self.num_skipped = snapshot.num_skipped
        if self.averages is not None and snapshot.averages:
            self.averages.count = snapshot.num_averaged
            for average, value in zip(self.averages.values, snapshot.averages, strict=True):
                average.assign(value)

    def weights_sha256(self) -> str:
        """Return the hex digest of all variables of model and optimizer: their dtypes, shapes and bytes, in order."""
        now = self.snapshot()
        return sha256_of([*now.model, *now.optimizer])

    def data_sha256(self) -> str:
        """Return the hex digest of the data that the loop trains on; of a stream, of its first batch."""
        return self._feed.sha256()

    def _choose_halves(self, tried: Batch) -> bool:
        """Decide whether a batch is computed in two halves, by the model and the batch size alone."""
        may_halve = self.options.halve_batches and self.options.accumulate == 1 and self.jit_compile
        is_large = self.batch_size >= _SMALLEST_TO_HALVE and self.num_examples % self.batch_size != 1
        if not (may_halve and is_large and self.device.startswith("CPU")):
            return False
        return TrainStep(self.model, self.options, self.metric_names).halves_add_up(tried)

    def _check_shares(self) -> None:
        num_replicas, parts = self.model.distribute_strategy.num_replicas_in_sync, self.options.accumulate
        last = self.num_examples % self.batch_size or self.batch_size
        if last < num_replicas * parts:
            raise ValueError(
                f"A batch of {last} examples cannot be split among {num_replicas} replicas and {parts} parts of "
                f"accumulate; with {self.num_examples:,} examples choose another batch_size than {self.batch_size}."
            )
        if num_replicas * parts > 1:
            checks.check_means(self.model)

    def sum_over_workers(self, *numbers: int) -> list[int]:
        """Return each sum of what the workers give; all must call this at the same point of the training.

        With several replicas in a worker its numbers count once for each.
        """
        if self.num_workers == 1:
            return list(numbers)
        strategy = self.model.distribute_strategy
        if self._sums is None:

            def add(here: tf.Tensor) -> tf.Tensor:
                return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(here))

            self._sums = engine.graph_function(lambda here: strategy.run(add, (here,)))
        with engine.noticing_lost_workers(strategy):
            sums = self._sums(tf.constant(numbers, tf.int64))
            return [int(number) for number in strategy.experimental_local_results(sums)[0]]

    def _check_together(self) -> None:
        """Raise ValueError if the workers do not all stand at the same batch, as when one cannot read a checkpoint."""
        num_replicas, total, total_of_squares = self.sum_over_workers(1, self.position, self.position**2)
        # By Cauchy-Schwarz they are equal only if all positions are.
        if num_replicas * total_of_squares != total**2:
            raise ValueError(
                f"This worker stands at batch {self.position}, and others elsewhere; give all of them a run directory "
                "that they can read."
            )


def _all_trainable(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that are trained, or would be if nothing were frozen: the optimizer has state for each."""
    own = {id(variable) for layer in model._flatten_layers() for variable in layer._trainable_variables}
    return [variable for variable in model.variables if id(variable) in own]


def _trained(model: keras.Model) -> tuple[Any, ...]:
    """Return what a trace depends on: which variables are trained, and which layers are in training mode."""
    return tuple(map(id, model.trainable_variables)), tuple(layer.trainable for layer in model._flatten_layers())


def _to_numpy(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))
