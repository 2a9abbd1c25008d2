"""The loop: a compiled Keras model, trained with a learning rate that is given for every step.

One idea carries this package: *the learning rates of a block of steps are an input of the compiled block.* A schedule
never enters the graph, so any vector of rates runs through the same program, and resuming needs the step counter only.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from clr_loop.data.arguments import checked_types
from clr_loop.data.functions import in_one_line
from clr_loop.data.order import sha256_of
from clr_loop.loop import checks, keras_private
from clr_loop.loop import inputs as model_inputs
from clr_loop.loop.batches import Batch, batch_of, num_examples_of, with_class_weight
from clr_loop.loop.block import Block, batch_at
from clr_loop.loop.choose import check_cache, choose
from clr_loop.loop.evaluation import Evaluation, measure_statistics
from clr_loop.loop.feeds import Feed, Place, Resident, Window, made_ready
from clr_loop.loop.options import StepOptions
from clr_loop.loop.own_step import check_options, has_own, optimizers_of, own_step
from clr_loop.loop.rates import Rates, checked_momentums, checked_rates
from clr_loop.loop.state import Snapshot, assign, kept, values_of
from clr_loop.loop.step import batch_begin, make_step
from clr_loop.loop.strategies import check_strategy, is_distributed, noticing_lost_workers, num_workers, run_on_replicas
from clr_loop.loop.stream import DatasetOf, Stream
from clr_loop.loop.transforms.averages import Averages
from clr_loop.loop.transforms.momentum import momentum_attribute
from clr_loop.loop.transforms.multipliers import check_multipliers
from clr_loop.loop.trial import try_out, try_out_own
from clr_loop.schedules.checks import checked_integer

Metrics = dict[str, NDArray[np.float32]]


class TrainLoop:
    """Trains a compiled Keras model with a learning rate given for every step.

        model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
        loop = TrainLoop(model, inputs, targets, batch_size=100)
        metrics = loop.run(schedule(np.arange(600)))

    Loss, metrics and optimizer are the model's own. Each epoch visits every example once, in an order made from (seed,
    epoch) alone. If batch_size does not divide the examples, the last batch of an epoch is short, and its loss is the
    mean over its own examples. The loop counts its own steps, from 0, whatever the model was trained for before.

    A model with a `train_step` of its own is trained by that: the loop assigns the rate to its optimizers and calls it,
    and what it returns is recorded.

    A layer that is frozen or unfrozen between two runs is trained accordingly from then on; the optimizer keeps its
    state.

    Attributes:
        model, optimizer: The model, and the optimizer that it was compiled with. The loop's state is in their
            variables.
        options: How one update is made.
        feed: Where the batches come from.
        batch_size: int, examples in a step.
        num_examples: int, examples in an epoch.
        steps_per_epoch: int, steps in which every example is visited once.
        block_steps: int, steps that one call of the compiled program takes at most; `run` chains calls for more.
        metric_names: what each step records: "loss", then the names of the compiled metrics, as Keras has them.
        batch_sizes: int32 [n], examples of each step of the last call to `run`.
        seed: int, of the data order; it may be set between runs.
        shuffle: bool, whether the seed makes an epoch's order. False for a dataset, which has its own.
        jit_compile: bool, whether the step is an XLA program.
        halves: bool, whether each batch is computed in two halves; see `StepOptions.halve_batches`.
        averages: the average of the weights, or None; see `StepOptions.average`.
        device: The device the loop runs on, for example `CPU:0`.
        chosen: What was decided and why, in words: device, replicas, feed, precision, xla, oneDNN.
        not_resumable: Why no checkpoint can hold all of the training's state, in words, or None.
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
                are None for a model whose loss needs none. In place of inputs, a `Feed`, which has all of them, and its
                own batch size and order.
            batch_size: int, 1 to n: examples in a step, over all replicas.
            seed: int in [0, 2**32), of the data order.
            shuffle: False visits the examples in the order given.
            class_weight: class → weight of its examples' loss, as for `fit`; for one array of targets: classes, or
                one-hot vectors.
            options: see `StepOptions`.

        Raises:
            ValueError: if the model is not compiled, or has an optimizer with a schedule; if arrays differ in length or
                are not finite; if the model does not take the inputs, or its loss or a metric does not take the
                targets; if batch_size or seed is out of range; if an option cannot be had for this model.
            TypeError: if an array does not hold numbers.
        """
        checks.check_model(model)
        check_strategy(model.distribute_strategy)
        if not 0 <= checked_integer("seed", seed) < 2**32:
            raise ValueError(f"seed is {seed}; choose one from 0 to 2**32 - 1.")
        if isinstance(inputs, Feed):
            if any(given is not None for given in (targets, sample_weight, class_weight)):
                raise ValueError("A feed gives targets and weights itself; leave out those that stand beside it.")
            feed, examples = inputs, inputs.first_batch
        else:
            examples = batch_of(inputs, targets, sample_weight)
            checks.check_arrays(examples)
            if class_weight is not None:
                examples = with_class_weight(examples, class_weight)
            checks.check_batch_size(batch_size, int(num_examples_of(examples)))
            feed = Resident(examples, batch_size, shuffle, on_host=is_distributed(model.distribute_strategy))
        self.model, self.optimizer, self.feed, self.seed = model, model.optimizer, feed, seed
        self.options = options or StepOptions()
        self._running = threading.Lock()
        self._counts = tf.Variable([0, 0], dtype=tf.int64, trainable=False)  # Steps taken, and batches visited.
        self._place = Place(feed, model.distribute_strategy)
        self.batch_size, self.batch_sizes = int(num_examples_of(feed.first_batch)), np.zeros(0, np.int32)
        self.num_examples, self.steps_per_epoch = feed.num_examples, feed.steps_per_epoch
        self.block_steps, self.shuffle = feed.window_batches, getattr(feed, "shuffle", False)
        self._set_up(examples)
        model_inputs.warn_if_unusual(model, examples[0], stacklevel=4)

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
            dataset: the batches of an epoch: inputs, (inputs, targets) or (inputs, targets, sample_weight). Every batch
                has the size of the first, except for the last, which may be short; only where the `element_spec` leaves
                a dimension other than the batch open may batches vary, in shape and, if they are counted, in size. Read
                again, the dataset must give the same batches. For another order in each epoch give a function of (seed,
                epoch), ints, that returns the dataset of that epoch. It is read without tf.data's autotuning, so
                AUTOTUNE in a `map` stands for as many calls as there are cores.
            num_examples: int, examples in an epoch. None reads the first epoch once to count them.

        Raises:
            ValueError, TypeError: as above; and if the dataset is empty, not batched, endless, gives other batches when
                it is read again, or has another length than num_examples says. `run` raises them for a batch that is
                not like the first, and ConnectionError if another worker has gone.
        """
        checks.check_model(model)

        def weighted(dataset: tf.data.Dataset) -> tf.data.Dataset:
            return dataset.map(lambda *batch: with_class_weight(batch, class_weight)) if class_weight else dataset

        if callable(dataset):
            feed = Stream(lambda seed, epoch: weighted(dataset(seed, epoch)), num_examples, seed)
        else:
            every = weighted(dataset)
            feed = Stream(lambda seed, epoch: every, num_examples, seed)
        checks.check_arrays(feed.first_batch, "The first batch: ")
        return cls(model, feed, seed=seed, options=options)

    def _set_up(self, examples: Batch) -> None:
        """Try out the model, and choose what its steps run on."""
        model, options, strategy = self.model, self.options, self.model.distribute_strategy
        self._has_own_step = has_own(model, "train_step")
        self._check_shares()
        if self._has_own_step:
            check_options(options, strategy.num_replicas_in_sync)
            self.optimizers = optimizers_of(model, options.optimizers)
            is_bare = getattr(self.feed, "is_bare", not isinstance(examples[0], tuple | list)) and len(examples) == 1
            self._own_step = own_step(model, is_bare)
            trial = try_out_own(model, self._own_step, self.optimizers, self.feed.first_batch)
        else:
            self.optimizers = [model.optimizer]
            trial = try_out(model, examples)
        for optimizer in self.optimizers:
            checks.check_optimizer(optimizer)
        self.metric_names, self.not_resumable, self._others = trial.names, trial.not_resumable, trial.others
        if isinstance(self.feed, Stream):
            self.feed.know_classes(trial.classes)
        self.averages = None
        if options.average is not None:
            if options.average != "swa" and strategy.num_replicas_in_sync > 1:
                raise ValueError("An exponential average follows one replica; use average='swa', or no strategy.")
            self.averages = Averages(keras_private.all_trainable(model), options.average)
        check_multipliers(model.trainable_variables, options.rate_multipliers)
        choice = choose(model, trial, self.feed, options)
        self.device, self.jit_compile, self.halves = choice.device, choice.jit_compile, choice.halves
        self.chosen, self.num_workers = choice.words, num_workers(strategy)
        self._classes = trial.classes
        self._compiled_with = keras_private.compiled_with(model), list(map(id, model.variables))
        self._trained: Any = None
        self._traces_before = 0  # Of blocks that were made for other layers.
        self._block: Any = None
        self._sums: Any = None

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

    # --- Where the loop stands ---

    @property
    def step(self) -> int:
        """Steps that this loop has taken so far."""
        return int(self._counts.numpy()[0])

    @property
    def position(self) -> int:
        """Batches visited so far, in all epochs: steps taken and updates skipped."""
        return int(self._counts.numpy()[1])

    @property
    def num_skipped(self) -> int:
        """Updates skipped so far because their loss or a gradient was not finite."""
        return self.position - self.step

    @property
    def num_traces(self) -> int:
        """How often the block was traced."""
        return self._traces_before + (0 if self._block is None else self._block.num_traces)

    @property
    def input_wait_seconds(self) -> float:
        """Seconds spent so far in waiting for batches; 0 where the data is resident."""
        return self._place.wait_seconds

    # --- Training ---

    def compile(self, with_momentums: bool = False) -> None:
        """Trace and compile all that `run` will need, so that this can be timed by itself. It changes nothing.

        `run` calls it, so there is no need to. It traces anew only after a layer was frozen or unfrozen, or for the
        first rates that come with momentums. A model that XLA refuses is compiled as a plain graph, with a warning.
        """
        self._begin_if_needed()
        if with_momentums in self._compiled:
            return
        none = np.zeros(0, np.float32)
        momentums = none if with_momentums else None
        with noticing_lost_workers(self.model.distribute_strategy):
            self._check_together()
            for window in self._empty_windows():  # A block of no steps is enough.
                try:
                    self._block(window, 0, none, momentums)
                except (tf.errors.OpError, ValueError, NotImplementedError) as error:
                    self._go_without_xla(error)
                    self._block(window, 0, none, momentums)
        self._compiled.add(with_momentums)

    def _begin_if_needed(self) -> None:
        """Make the step and its block, and make them anew if another layer is frozen than before."""
        if (keras_private.compiled_with(self.model), list(map(id, self.model.variables))) != self._compiled_with:
            raise ValueError(
                f"The model {self.model.name} was compiled again, or has other variables, since this loop was made; "
                "make a new loop of it."
            )
        layers = tuple(layer.trainable for layer in keras_private.layers_of(self.model))
        trained = tuple(map(id, self.model.trainable_variables)), layers
        if trained != self._trained:
            self._trained, self._compiled = trained, set[bool]()
            self._evaluation = Evaluation(self.model, self.metric_names, self._classes)
            self._make_block()

    def _make_block(self) -> None:
        model, strategy = self.model, self.model.distribute_strategy
        take = self._own_step if self._has_own_step else make_step(model, self.options, self.halves, self.averages)
        begin = batch_begin(model, self.optimizers)
        signature = None if is_distributed(strategy) else getattr(self.feed, "signature", None)
        self._traces_before = self.num_traces
        self._block = Block(take, begin, self.metric_names, strategy, self.jit_compile, self._counts, signature)

    def _empty_windows(self) -> Iterator[Window]:
        """Yield a window of each shape that the feed gives; memory that nobody fills takes no room."""
        short = 0 if getattr(self.feed, "signature", None) is not None else self.num_examples % self.batch_size
        for k, size in ((self.block_steps, self.batch_size), (1, short)):
            if size:
                empty = keras.tree.map_structure(
                    lambda x, k=k, size=size: tf.raw_ops.Empty(shape=(k, size, *x.shape[1:]), dtype=x.dtype),
                    self.feed.first_batch,
                )
                yield made_ready(empty, k, self.batch_size, self.model.distribute_strategy)

    def _go_without_xla(self, error: Exception) -> None:
        """Make the block of a plain graph, with a warning; raise the error if XLA is not to blame, or was asked for."""
        if not self.jit_compile or self.options.jit_compile is True:
            raise error
        check_cache(error)
        self.jit_compile = self.halves = False
        self.chosen["xla"] = "without XLA (it refuses the model)"
        warnings.warn(
            f"XLA cannot compile the model {self.model.name} ({in_one_line(error)}); the loop goes on "
            "without it. Give StepOptions(jit_compile=False) to say so yourself.",
            stacklevel=4,
        )
        self._make_block()

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
                in [0, 1), the optimizer has no momentum, or the model was compiled again.
            RuntimeError: if another thread runs the loop, or the optimizer's counter did not grow by the steps taken.
        """
        rates = checked_rates(learning_rates)
        if momentums is not None:
            momentums = checked_momentums(momentums, len(rates))
            self.check_momentum()
        if not self._running.acquire(blocking=False):
            raise RuntimeError("Another thread is in this loop's run; a loop trains one block at a time.")
        try:
            self.compile(momentums is not None)
            with noticing_lost_workers(self.model.distribute_strategy):
                return self._run(rates, momentums)
        finally:
            self._running.release()

    def check_momentum(self) -> None:
        """Raise ValueError if a momentum cannot be given for each step."""
        if self._has_own_step:
            raise ValueError("The schedule cycles the momentum, and the model's own train_step decides on that itself.")
        momentum_attribute(self.optimizer)

    def _run(self, rates: Rates, momentums: Rates | None) -> Metrics:
        names = ("learning_rate", *self.metric_names, *(("momentum",) if momentums is not None else ()))
        none = np.zeros(0, np.float32)
        parts, sizes, visited = [dict.fromkeys(names, none)], [np.zeros(0, np.int32)], 0
        iterations = self._iterations()
        while visited < len(rates):
            window, first = self._place.window_at(self.seed, self.position)
            n = min(len(rates) - visited, window.num_batches - first)
            taken = sum(map(len, sizes))
            part = self._take_steps(
                window, first, rates[taken:][:n], None if momentums is None else momentums[taken:][:n]
            )
            self._place.move(n)
            visited += n
            parts.append(part)
            sizes.append(np.full(len(part["learning_rate"]), window.batch_size, np.int32))
        self.batch_sizes = np.concatenate(sizes)
        self._check_counted(iterations, len(self.batch_sizes))
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

    def _take_steps(self, window: Window, first: int, rates: Rates | None, momentums: Rates | None) -> Metrics:
        try:
            return self._block(window, first, rates, momentums)
        except tf.errors.InvalidArgumentError as error:
            if getattr(self.feed, "signature", None) is None:
                raise
            epoch, batch = divmod(self.position, self.steps_per_epoch)
            shapes = checks.shapes(keras.tree.map_structure(lambda x: x[0], window.batches))
            raise ValueError(
                f"Batch {batch} of epoch {epoch + 1}, of shape {shapes}: the step failed ({in_one_line(error)})."
            ) from error

    def _iterations(self) -> int | None:
        """Return the optimizer's own count, or None where it does not count the loop's steps."""
        if self._has_own_step or not self.model.trainable_variables:
            return None
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    def _check_counted(self, before: int | None, num_steps: int) -> None:
        if before is not None and self._iterations() != before + num_steps:
            raise RuntimeError(
                f"The optimizer counted {(self._iterations() or 0) - before} iterations for {num_steps} steps, so "
                "something else has changed its variables meanwhile."
            )

    # --- Evaluation ---

    def evaluate(
        self, inputs: Any, targets: Any = None, sample_weight: Any = None, batch_size: int = 1000
    ) -> dict[str, float]:
        """Return `loss` and every compiled metric over a whole set, with the model in inference mode.

        A model with a `test_step` or `train_step` of its own is evaluated by its `test_step`; what it returns for the
        last batch holds, as in Keras.

        Args:
            inputs, targets, sample_weight: as the training data's; or, as inputs, a `tf.data.Dataset` of batches.
            batch_size: int, at least 1: examples in one call. It changes nothing but speed and memory.

        Raises:
            ValueError, TypeError: as for the training data.
        """
        self._begin_if_needed()
        return self._evaluation.evaluate(inputs, targets, sample_weight, batch_size)

    def predict(self, inputs: Any, batch_size: int = 1000) -> Any:
        """Return the model's outputs in inference mode, on the host: arrays [n, …] in the nest of its outputs.

        Args:
            inputs: as the training data's.
            batch_size: int, at least 1: examples in one call.

        Raises:
            ValueError, TypeError: as for the training data.
        """
        self._begin_if_needed()
        return self._evaluation.predict(inputs, batch_size)

    def score(self, outputs: Any, targets: Any, sample_weight: Any = None) -> dict[str, float]:
        """Return the loss and every compiled metric of given outputs over a whole set, as `evaluate` does."""
        self._begin_if_needed()
        return self._evaluation.score(outputs, targets, sample_weight)

    def gradients(self, inputs: Any, targets: Any = None, sample_weight: Any = None) -> NDArray[np.float32]:
        """Return the gradient of the mean loss of these examples, in training mode, as one vector [parameters].

        Nothing is changed, and clip_norm is left out. The arguments are those of the training data.

        Raises:
            ValueError: if the model is trained on several replicas; else, and TypeError, as for the training data.
        """
        if is_distributed(self.model.distribute_strategy):
            raise ValueError("The gradients of several replicas are not at hand; make the model without a strategy.")
        self._begin_if_needed()
        return self._evaluation.gradients(inputs, targets, sample_weight)

    # --- The average of the weights ---

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
        with kept([*self.model.variables, *self._others]):
            self.averages.put_in_place()
            measure_statistics(self.model, self._batches_of_an_epoch())
            yield

    def _batches_of_an_epoch(self) -> Iterator[Batch]:
        """Yield the batches of the first epoch, each shared out among the replicas."""
        strategy = self.model.distribute_strategy
        place = Place(self.feed, strategy)
        for position in range(self.steps_per_epoch):
            window, i = place.window_at(self.seed, position)
            place.move(1)
            yield run_on_replicas(strategy, batch_at, window.batches, tf.constant(i))

    # --- State ---

    def finalize(self) -> None:
        """Give the variables the values that Keras' `fit` ends with: averages, for an optimizer with use_ema=True."""
        keras_private.inner(self.optimizer).finalize_variable_values(self.model.trainable_variables)

    @property
    def optimizer_variables(self) -> list[keras.Variable]:
        """The variables of all optimizers whose rate the loop assigns."""
        return [variable for optimizer in self.optimizers for variable in optimizer.variables]

    @property
    def other_variables(self) -> list[tf.Variable]:
        """Variables outside of model and optimizers that a step reads or changes, such as states of random numbers."""
        return self._others

    def snapshot(self) -> Snapshot:
        """Return a copy of all that training changes, on the host."""
        return Snapshot(
            model=values_of(self.model.variables),
            optimizer=values_of(self.optimizer_variables),
            seed=self.seed,
            step=self.step,
            num_skipped=self.num_skipped,
            others=values_of(self._others),
            averages=[] if self.averages is None else values_of(self.averages.values),
            num_averaged=0 if self.averages is None else self.averages.count,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back as it was at `snapshot`: weights, optimizer, step and with it the place in the epoch."""
        variables = [*self.model.variables, *self.optimizer_variables, *self._others]
        assign(variables, [*snapshot.model, *snapshot.optimizer, *snapshot.others])
        self.seed = snapshot.seed
        self._counts.assign([snapshot.step, snapshot.step + snapshot.num_skipped])
        if self.averages is not None and snapshot.averages:
            self.averages.count = snapshot.num_averaged
            assign(self.averages.values, snapshot.averages)

    def weights_sha256(self) -> str:
        """Return the hex digest of all variables of model and optimizers: their dtypes, shapes and bytes, in order."""
        return sha256_of([*values_of(self.model.variables), *values_of(self.optimizer_variables)])

    def data_sha256(self) -> str:
        """Return the hex digest of the data that the loop trains on; of a stream, of its first batch."""
        return self.feed.sha256()

    # --- Workers ---

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

            self._sums = keras_private.graph_function(lambda here: strategy.run(add, (here,)))
        with noticing_lost_workers(strategy):
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
