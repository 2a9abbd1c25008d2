"""The loop: a compiled Keras model, trained with a learning rate for every step.

One idea carries this package: *the learning rates of a block of steps are an input of the compiled block.* A schedule
never enters the graph, so any vector of rates runs through the same program, and resuming needs the step counter only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from clr_loop.arguments import checked_integer, checked_types, checked_whole
from clr_loop.data.datasets import Dataset, Examples
from clr_loop.data.order import sha256_of
from clr_loop.display import Shown
from clr_loop.loop import checks, keras_private, other_data
from clr_loop.loop import inputs as model_inputs
from clr_loop.loop.batches import num_examples_of, with_class_weight
from clr_loop.loop.block import Metrics
from clr_loop.loop.evaluation import measure_statistics
from clr_loop.loop.feeds import Feed, Place, Resident, first_epoch
from clr_loop.loop.options import StepOptions
from clr_loop.loop.program import Program
from clr_loop.loop.rates import Vector, checked_momentums, checked_rates
from clr_loop.loop.state import Snapshot, assign, kept, values_of
from clr_loop.loop.strategies import (
    check_alike,
    check_strategy,
    check_together,
    is_distributed,
    noticing_lost_workers,
    num_workers,
    sums_over_workers,
)
from clr_loop.loop.stream import Stream, checked_dataset
from clr_loop.loop.transforms.averages import averages_of
from clr_loop.loop.trial import fixed_batch_size, try_out
from clr_loop.schedules import to_steps

# What a Keras model would have under these names.
_ELSEWHERE = {
    "fit": "call clr_loop.fit(loop, schedule, validation, epochs=…)",
    "summary": "call loop.model.summary()",
    "save": "call loop.model.save(path)",
    "history": "clr_loop.fit returns it, with a record of each step and of each epoch",
    "learning_rate": "the rates are those that fit's schedule or loop.run(rates) gives",
}


class TrainLoop(Shown):
    """Trains a compiled Keras model with a learning rate for every step.

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

    Making a loop checks everything and moves the data to the device. It compiles nothing yet.

    Args:
        model: compiled, as for `fit`. Made in the scope of a strategy, it is trained with that strategy.
        inputs, targets, sample_weight: any nest (array, tuple, list, dict) of arrays [n, …] of numbers. Tensors,
            and on a CPU arrays that cannot be written to, are not copied, so several loops can share them. targets
            are None for a model whose loss needs none. Instead of inputs, `Examples`, which hold all three, a
            `Dataset`, whose training examples are taken, or a `Feed`, which has its own batch size and order, too.
        batch_size: int, 1 to n: examples in a step, over all replicas.
        seed: int in [0, 2**32), of the data order.
        shuffle: False visits the examples in the order given.
        class_weight: class → weight of its examples' loss, as for `fit`; for one array of targets: classes, or
            one-hot vectors.
        options: see `StepOptions`.

    Attributes:
        model, optimizer: The model, and the optimizer that it was compiled with. The loop's state is in their
            variables.
        optimizers: All optimizers whose rate the loop assigns. Some models with a `train_step` have several.
        options: How one update is made.
        feed: Where the batches come from.
        batch_size: int, examples in a step.
        num_examples: int, examples in an epoch.
        steps_per_epoch: int, steps in which every example is visited once.
        block_steps: int, steps that one call of the compiled program takes at most; `run` chains calls for more.
        metric_names: what each step records: "loss", then the names of the compiled metrics, as Keras has them.
        not_means: those of the metrics whose mean over steps is not the value of all their examples, such as AUC.
        batch_sizes: int32 [n], examples of each step of the last call to `run`.
        seed: int, of the data order; it may be set between runs.
        shuffle: bool, whether the seed makes an epoch's order. False for a dataset, which has its own.
        averages: the average of the weights, or None; see `StepOptions.average`.
        device: The device the loop runs on, for example `CPU:0`.
        num_workers: int, processes that share the training.
        chosen: What was decided and why, in words: device, replicas, feed, precision, xla, oneDNN.
        other_variables: Variables outside of model and optimizers that a step reads or changes, such as states of
            random numbers.
        not_resumable: Why no checkpoint can hold all of the training's state, in words, or None.

    Raises:
        ValueError: if the model is not compiled, or has an optimizer with a schedule; if arrays differ in length or
            are not finite; if the model does not take the inputs, or its loss or a metric does not take the
            targets; if batch_size or seed is out of range; if an option does not go with this model.
        TypeError: if an array does not hold numbers.
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
        checks.check_model(model)
        strategy = model.distribute_strategy
        check_strategy(strategy)
        if not 0 <= checked_integer("seed", seed) < 2**32:
            raise ValueError(f"seed is {seed}; choose one from 0 to 2**32 - 1.")
        if isinstance(inputs, tf.data.Dataset):
            raise TypeError("The inputs are a dataset; make the loop with TrainLoop.from_dataset(model, dataset).")
        if isinstance(inputs, Dataset) and targets is None and sample_weight is None:
            inputs = inputs.train
        other_data.refuse(inputs)
        if isinstance(inputs, Examples) and targets is None and sample_weight is None:
            inputs, targets, sample_weight = inputs
        if isinstance(inputs, Feed):
            if any(nest is not None for nest in (targets, sample_weight, class_weight)):
                raise ValueError("A feed gives targets and weights itself; leave out the arguments for them.")
            feed, examples = inputs, inputs.first_batch
        else:
            examples = checks.checked_examples(inputs, targets, sample_weight, class_weight)
            checks.check_batch_size(batch_size, int(num_examples_of(examples)))
            feed = Resident(examples, batch_size, shuffle, on_host=is_distributed(strategy))
        self.model, self.optimizer, self.feed, self.seed = model, model.optimizer, feed, seed
        self.options = options = options or StepOptions()
        self.batch_size, self.batch_sizes = int(num_examples_of(feed.first_batch)), np.zeros(0, np.int32)
        self.num_examples, self.steps_per_epoch = feed.num_examples, feed.steps_per_epoch
        self.block_steps, self.shuffle = feed.window_batches, getattr(feed, "shuffle", False)
        if isinstance(feed, Stream) and feed.not_repeated is not None and num_workers(strategy) > 1:
            raise ValueError(f"Several workers share each batch, and {feed.not_repeated}; see TrainLoop.from_dataset.")
        checks.check_shares(model, self.num_examples, self.batch_size, options.accumulate)
        trial = try_out(model, feed, examples, options)
        if isinstance(feed, Stream):
            feed.know_limits(trial.limits)
        self.optimizers, self.other_variables = trial.optimizers, trial.others
        self.metric_names, self.not_means = trial.names, trial.not_means
        self.averages = averages_of(model, options.average)
        self._has_own_step, self._has_plain_mean = trial.own_step is not None, trial.has_plain_mean
        self._running = threading.Lock()
        self._counts = tf.Variable([0, 0], dtype=tf.int64, trainable=False)  # Steps taken, and batches visited.
        self._place = Place(feed, strategy)
        self._program = Program(model, feed, options, trial, self.averages, self._counts)
        self._sums = sums_over_workers(strategy)
        choice = self._program.choice
        self.device, self.chosen, self.not_resumable = choice.device, choice.words, choice.not_resumable
        self.num_workers = num_workers(strategy)
        model_inputs.warn_if_unusual(model, examples[0], stacklevel=4)

    @classmethod
    @checked_types
    def from_dataset(
        cls,
        model: keras.Model,
        dataset: Any,
        num_examples: int | None = None,
        *,
        seed: int = 0,
        class_weight: Mapping[int, float] | None = None,
        options: StepOptions | None = None,
    ) -> TrainLoop:
        """Make a loop over the batches of a dataset, for data that does not fit in memory.

        Every batch is checked in the input pipeline, while the model trains.

        Args:
            model, seed, class_weight, options: as above.
            dataset: a `tf.data.Dataset` of the batches of an epoch: inputs, (inputs, targets) or (inputs, targets,
                sample_weight), each any nest. Inputs may be strings, for a model that looks them up. Every batch has
                the size of the first, except for the last, which may be short; only where the `element_spec` leaves a
                dimension other than the batch open may batches vary, in shape and, if they are counted, in size. A
                dataset that gives other batches when it is read again, as after `shuffle`, is trained on with a
                warning, but such a run cannot be resumed. For an order of each epoch that comes again give a function
                of (seed, epoch), ints, that returns the dataset of that epoch. It is read without tf.data's
                autotuning, so AUTOTUNE in a `map` stands for as many calls as there are cores.
            num_examples: int, examples in an epoch. None reads the first epoch once to count them.

        Raises:
            ValueError, TypeError: as above; and if the dataset is empty, not batched, endless, or has another length
                than num_examples says; or if several workers share a dataset that gives other batches when it is read
                again. The TypeError for a `PyDataset`, a generator or a `DataLoader` has the code that makes a dataset
                of it. `run` raises them for a batch that is not like the first, and ConnectionError if another worker
                has gone.
        """
        checks.check_model(model)
        other_data.refuse(dataset)

        def weighted(dataset: tf.data.Dataset) -> tf.data.Dataset:
            return dataset.map(lambda *batch: with_class_weight(batch, class_weight)) if class_weight else dataset

        if callable(dataset):
            feed = Stream(lambda seed, epoch: weighted(dataset(seed, epoch)), num_examples, seed)
        else:
            every = weighted(checked_dataset(dataset))
            feed = Stream(lambda seed, epoch: every, num_examples, seed)
        checks.check_arrays(feed.first_batch, "The first batch: ", text=True)
        return cls(model, feed, seed=seed, options=options)

    if not TYPE_CHECKING:  # A type checker would take any name.

        def __getattr__(self, name: str) -> Any:
            if name in _ELSEWHERE:
                raise AttributeError(f"TrainLoop has no attribute {name}; {_ELSEWHERE[name]}.", name=name, obj=self)
            return object.__getattribute__(self, name)  # Raises what was raised first.

    # --- Where the loop stands ---

    def steps(self, length: str, epochs: int | None = None) -> int:
        """Return a length in steps: `loop.steps("2ep")`, `loop.steps("25%", epochs=15)`; see `schedules.to_steps`.

        Args:
            length: a number above 0 with its unit: "ep", "%" (of the run), or "st" or nothing for steps.
            epochs: int, at least 1, of the run; only a share of it needs them.

        Raises:
            ValueError: if it is no such length, or a share of a run whose epochs are not given.
        """
        if epochs is None and length.rstrip().endswith("%"):
            raise ValueError(f"{length} is a share of a run; say how long that is: steps({length!r}, epochs=15).")
        num_epochs = 1 if epochs is None else checked_whole("epochs", epochs)
        return to_steps(length, self.steps_per_epoch, num_epochs * self.steps_per_epoch)

    def _rows(self) -> list[dict[str, object]]:
        return [
            {
                "model": self.model.name,
                "optimizer": type(self.optimizer).__name__,
                "examples": f"{self.num_examples:,}",
                "batch size": self.batch_size,
                "steps per epoch": f"{self.steps_per_epoch:,}",
                "step": f"{self.step:,}",
                "device": self.device,
            }
        ]

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
    def jit_compile(self) -> bool:
        """Whether the step is an XLA program."""
        return self._program.choice.jit_compile

    @property
    def halves(self) -> bool:
        """Whether each batch is computed in two halves; see `StepOptions.halve_batches`."""
        return self._program.choice.halves

    @property
    def num_traces(self) -> int:
        """How often the block was traced."""
        return self._program.num_traces

    @property
    def input_wait_seconds(self) -> float:
        """Seconds spent so far in waiting for batches; 0 where the data is resident."""
        return self._place.wait_seconds

    # --- Training ---

    def compile(self, with_momentums: bool = False) -> None:
        """Trace and compile all that `run` will need, so that this can be timed by itself. It changes nothing.

        `run` calls it, so there is no need to. It traces again only after a layer was frozen or unfrozen, or for the
        first rates that come with momentums. A model that XLA refuses is compiled as a plain graph, with a warning.
        """
        if not self._program.is_compiled(with_momentums):
            with noticing_lost_workers(self.model.distribute_strategy):
                check_together(self._sums, self.position)
                self._program.compile(with_momentums)

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
        """Raise ValueError if the optimizer's momentum cannot be set at each step."""
        if self._has_own_step:
            raise ValueError("The schedule cycles the momentum, and the model's own train_step decides on that itself.")
        keras_private.momentum_attribute(self.optimizer)

    def _run(self, rates: Vector, momentums: Vector | None) -> Metrics:
        names = ("learning_rate", *self.metric_names, *(("momentum",) if momentums is not None else ()))
        none = np.zeros(0, np.float32)
        parts, sizes, visited = [dict.fromkeys(names, none)], [np.zeros(0, np.int32)], 0
        iterations = self._iterations()
        while visited < len(rates):
            window, first = self._place.window_at(self.seed, self.position)
            n = min(len(rates) - visited, window.num_batches - first)
            taken = sum(map(len, sizes))
            some = None if momentums is None else momentums[taken:][:n]
            part = self._program.take_steps(window, first, rates[taken:][:n], some, self.position)
            self._place.move(n)
            visited += n
            parts.append(part)
            sizes.append(np.full(len(part["learning_rate"]), window.batch_size, np.int32))
        self.batch_sizes = np.concatenate(sizes)
        self._check_counted(iterations, len(self.batch_sizes))
        return {name: np.concatenate([part[name] for part in parts]) for name in names}

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

    @checked_types
    def evaluate(
        self, inputs: Any, targets: Any = None, sample_weight: Any = None, batch_size: int | None = None
    ) -> dict[str, float]:
        """Return `loss` and every compiled metric over a whole set, with the model in inference mode.

        A model with a `test_step` or `train_step` of its own is evaluated by its `test_step`; what it returns for the
        last batch holds, as in Keras.

        Args:
            inputs, targets, sample_weight: as the training data's; or, as inputs, a `tf.data.Dataset` of batches, or
                `Examples`.
            batch_size: int, at least 1: examples in one call. None takes 1000 where the loss is a plain mean over
                examples. Where it may be another with other batches, as with masks, `ignore_class` or reduction="sum",
                None takes the loop's own batch size, as Keras does.

        Raises:
            ValueError, TypeError: as for the training data.
        """
        if isinstance(inputs, Examples) and targets is None and sample_weight is None:
            inputs, targets, sample_weight = inputs
        if batch_size is None:
            batch_size = self._largest_call() if self._has_plain_mean else self.batch_size
        return self._program.evaluation.evaluate(inputs, targets, sample_weight, batch_size)

    def _largest_call(self) -> int:
        """Return how many examples are evaluated at once where that changes nothing."""
        return fixed_batch_size(self.model) or 1000

    def predict(self, inputs: Any, batch_size: int | None = None) -> Any:
        """Return the model's outputs in inference mode, on the host: arrays [n, …] in the nest of its outputs.

        Args:
            inputs: as the training data's; of `Examples` their inputs.
            batch_size: int, at least 1: examples in one call. None takes 1000, or as many as the model was made for.

        Raises:
            ValueError, TypeError: as for the training data.
        """
        if isinstance(inputs, Examples):
            inputs = inputs.inputs
        return self._program.evaluation.predict(inputs, batch_size or self._largest_call())

    def score(self, outputs: Any, targets: Any, sample_weight: Any = None) -> dict[str, float]:
        """Return what `evaluate` would of a model with these outputs: the loss and every compiled metric."""
        return self._program.evaluation.score(outputs, targets, sample_weight)

    def gradients(self, inputs: Any, targets: Any = None, sample_weight: Any = None) -> NDArray[np.float32]:
        """Return the gradient of the mean loss of these examples, in training mode, as one vector [parameters].

        Nothing is changed, and clip_norm is left out. The arguments are those of the training data.

        Raises:
            ValueError: if the model is trained on several replicas; else, and TypeError, as for the training data.
        """
        if is_distributed(self.model.distribute_strategy):
            raise ValueError("The gradients of several replicas are not available; make the model without a strategy.")
        with kept([*self.model.non_trainable_variables, *self.other_variables]):
            return self._program.evaluation.gradients(inputs, targets, sample_weight)

    # --- The average of the weights ---

    def add_to_average(self) -> None:
        """Add the weights as they are to the average; for `StepOptions(average="swa")`."""
        if self.options.average != "swa" or self.averages is None:
            raise ValueError(f"average is {self.options.average!r}; only that of 'swa' is added to from outside.")
        self.averages.add()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Replace the weights by their average inside this context, and put everything back afterwards.

        The statistics of batch-norm layers are measured again, in one pass over the training data.

        Raises:
            ValueError: if there is no average, or nothing in it yet.
        """
        if self.averages is None or not self.averages.is_there:
            raise ValueError("There is no average of the weights yet; see StepOptions.average.")
        self._program.bring_up_to_date()
        with kept([*self.model.variables, *self.other_variables]):
            self.averages.put_in_place()
            measure_statistics(self.model, first_epoch(self.feed, self.model.distribute_strategy, self.seed))
            yield

    # --- State ---

    def finalize(self) -> None:
        """Give the variables the values that Keras' `fit` ends with: averages, for an optimizer with use_ema=True."""
        keras_private.inner(self.optimizer).finalize_variable_values(self.model.trainable_variables)

    @property
    def optimizer_variables(self) -> list[keras.Variable]:
        """The variables of all optimizers whose rate the loop assigns."""
        return [variable for optimizer in self.optimizers for variable in optimizer.variables]

    def snapshot(self) -> Snapshot:
        """Return a copy of all that training changes, on the host."""
        return Snapshot(
            model=values_of(self.model.variables),
            optimizer=values_of(self.optimizer_variables),
            seed=self.seed,
            step=self.step,
            num_skipped=self.num_skipped,
            others=values_of(self.other_variables),
            averages=[] if self.averages is None else values_of(self.averages.values),
            num_averaged=0 if self.averages is None else self.averages.count,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything back as it was at `snapshot`: weights, optimizer, step and with it the place in the epoch."""
        variables = [*self.model.variables, *self.optimizer_variables, *self.other_variables]
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

    def check_workers_alike(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError in all workers, which names the difference, if they do not all have these facts (JSON)."""
        if self.num_workers > 1:
            check_alike(self._sums, facts)

    def sum_over_workers(self, *numbers: int) -> list[int]:
        """Return the sum over all workers of each number; see `strategies.sums_over_workers`."""
        return self._sums(*numbers)
