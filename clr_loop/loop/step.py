"""One update: forward pass, loss, gradients, optimizer. It is the same for every way of feeding the loop.

Loss and metrics are Keras' own: `model.compute_loss` and the compiled metrics. The step knows nothing of classes,
images or accuracy.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import keras
import tensorflow as tf

from clr_loop.data.arguments import checked_types
from clr_loop.loop.averages import Average, Averages
from clr_loop.loop.batches import Batch, num_examples_of, parts_of
from clr_loop.loop.rates import momentum_in_graph, rates_scaled
from clr_loop.schedules.checks import checked_whole

Values = dict[str, tf.Tensor]

# What rounding may do to a sum of two halves, as a share of the largest value.
_ROUNDING = 1e-4


@checked_types
@dataclass(frozen=True)
class StepOptions:
    """How one update is made.

    Attributes:
        jit_compile: Whether to compile with XLA. "auto" decides by the model and the device; see `engine.choose_xla`.
        clip_norm: float above 0. Gradients with a larger global norm are scaled down to it. None leaves them alone.
        accumulate: int, at least 1. Each batch is split into this many parts, which are computed one after another and
            summed into one update. It saves memory. Layers that look at a whole batch (batch-norm) see one part.
        skip_non_finite: Whether to skip a batch whose loss or a gradient is not finite. A skipped batch changes no
            variable and counts no step, so the next batch gets its learning rate.
        halve_batches: Whether a batch of 256 or more may be computed in two halves side by side, where a CPU runs an
            XLA program and a trial shows that the halves add up to the whole batch. It is faster and rounds otherwise.
        average: An average of the weights beside the training, or None; see `TrainLoop.averaged`. A float above 0 and
            below 1 is the momentum of an exponential average over all steps, as Keras' `ema_momentum`. "swa" is the
            mean of the weights at the moments at which `TrainLoop.add_to_average` is called.
        rate_multipliers: regex → factor, at least 0. A variable whose path has a match (`re.search`) learns at the rate
            of the step times the factor of the first such regex; its weight decay goes with that rate. 0 freezes it.

    Raises:
        ValueError: if a value is out of its range.
        TypeError: if accumulate is not a whole number.
    """

    jit_compile: bool | Literal["auto"] = "auto"
    clip_norm: float | None = None
    accumulate: int = 1
    skip_non_finite: bool = False
    halve_batches: bool = True
    average: Average | None = None
    rate_multipliers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.jit_compile not in (True, False, "auto"):
            raise ValueError(f'jit_compile is {self.jit_compile!r}; choose True, False or "auto".')
        if self.clip_norm is not None and not 0.0 < self.clip_norm < math.inf:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be a finite number above 0, and 1 is usual.")
        checked_whole("accumulate", self.accumulate)
        if isinstance(self.average, float) and not 0.0 < self.average < 1.0:
            raise ValueError(f"average is {self.average}; the momentum of an average is above 0 and below 1, as 0.999.")
        for regex, factor in self.rate_multipliers.items():
            if not 0.0 <= factor < math.inf:
                raise ValueError(f"The rate multiplier of {regex!r} is {factor}; it must be finite and at least 0.")


class TrainStep:
    """A step of training and one of evaluation, to be traced into a graph.

    Each replica works on its share of the batch. A share's loss is weighted by its examples, so the sum over replicas
    is the mean over the whole batch. Clipping and the check for finite values come after that sum. The parts of
    `accumulate` are weighted and summed in the same way. So are two halves, but neither waits for the other, so each
    can have a core to itself.

    Args:
        model: a compiled model whose losses and metrics are built. Its strategy is `model.distribute_strategy`.
        options: see `StepOptions`.
        metric_names: "loss", then the names of the compiled metrics.
        averages: what follows the weights, if anything.
        halves: whether each batch, of at least two examples, is computed in two halves; not with accumulate.

    Attributes:
        names: The names of what a step returns, without "momentum".
        strategy: The strategy that the model was made for.
    """

    def __init__(
        self,
        model: keras.Model,
        options: StepOptions,
        metric_names: tuple[str, ...],
        halves: bool = False,
        averages: Averages | None = None,
    ) -> None:
        self.names = ("learning_rate", *metric_names, "examples")
        self.strategy = model.distribute_strategy
        self._model = model
        self._options = options
        self._averages = averages
        self._metric_names = metric_names
        self._num_parts = 2 if halves else options.accumulate
        self._scales_loss = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        # A model with several outputs tracks the loss of each in a Mean of its own.
        means = [metric for metric in model.metrics if type(metric) is keras.metrics.Mean]
        self._output_losses = [metric for metric in means if metric.name.endswith("_loss")]
        self._loss_names = {"loss", *(metric.name for metric in self._output_losses)}
        self._training_argument = "training" in inspect.signature(model.compute_loss).parameters

    def __call__(
        self, batch: Batch, size: tf.Tensor | int, learning_rate: tf.Tensor, momentum: tf.Tensor | None
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Take a step, unless it is skipped. It is called outside of any replica.

        Args:
            batch: with several replicas a share for each.
            size: int32 [], the examples of the whole batch.
            learning_rate: float32 [].
            momentum: float32 [], or None for the optimizer's own.

        Returns:
            The step's metrics, float32 [] each; and 1 if the update was taken, 0 if it was skipped, int32 [].
        """
        self._model.optimizer.learning_rate.assign(learning_rate)  # Before the forward pass, as Keras' callbacks do.
        statistics = self._model.non_trainable_variables
        kept = [tf.identity(variable.value) for variable in statistics] if self._options.skip_non_finite else []

        def put_back() -> tf.Tensor:
            for variable, value in zip(statistics, kept, strict=True):
                variable.assign(value)  # The forward pass alone may have spoiled them (batch-norm).
            return tf.constant(0)

        losses, results, gradients = self.strategy.run(self._gradients, args=(batch, size))
        losses = self._summed(losses)
        metrics = {"learning_rate": learning_rate, **self._named(results), **losses}
        metrics["examples"] = self.strategy.experimental_local_results(size)[0]
        if not self._options.skip_non_finite:
            taken = self._update(gradients, momentum)
        elif self._scales_loss:  # It skips by itself, and must see what is not finite to halve its scale.
            taken = self._update(gradients, momentum)
            taken = tf.cond(taken > 0, lambda: taken, put_back)
        else:
            is_good = _all_finite([losses["loss"], *self.strategy.experimental_local_results(gradients)[0]])
            taken = tf.cond(is_good, lambda: self._update(gradients, momentum), put_back)
        if momentum is not None:
            metrics["momentum"] = momentum
        return {name: tf.cast(value, tf.float32) for name, value in metrics.items()}, taken

    def evaluate(self, batch: Batch, size: tf.Tensor | int) -> tuple[Values, Values]:
        """Evaluate a batch in inference mode, and add it to the compiled metrics.

        Args:
            batch, size: as for a step of training.

        Returns:
            "loss" and the losses of single outputs, means over the batch; and the metrics of all batches since their
            last reset. All are float32 [].
        """
        losses, results = self.strategy.run(self._evaluate, args=(batch, size))
        return self._summed(losses), self._named(results)

    def gradients(self, batch: Batch) -> list[tf.Tensor]:
        """Return the gradients of a batch's mean loss in training mode, before any clipping, one replica's alone.

        Nothing is changed. A variable that the loss does not depend on has none.
        """
        with self._kept_statistics(), tf.GradientTape() as tape:
            losses, _ = self._forward(batch, num_examples_of(batch), training=True)
        found = tape.gradient(losses["loss"], self._model.trainable_variables)
        return [tf.cast(tf.convert_to_tensor(g), tf.float32) for g in found if g is not None]

    def predict(self, batch: Batch) -> Any:
        """Return the model's outputs in inference mode."""
        return self._model(batch[0], training=False)

    def score(self, batch: Batch, y_pred: Any) -> Values:
        """Add given outputs to the compiled metrics, and return their loss and the metrics so far, float32 [] each."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        loss = self._model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight)
        results = self._model.compute_metrics(x, y, y_pred, sample_weight)
        values = {"loss": loss, **self._named(results)}
        return {name: tf.cast(value, tf.float32) for name, value in values.items()}

    def forward(self, batch: Batch, size: tf.Tensor | int) -> tf.Tensor:
        """Call the model in training mode, and return the batch's loss."""
        losses, _ = self.strategy.run(self._forward, args=(batch, size, True))
        return self._summed(losses)["loss"]

    @contextlib.contextmanager
    def _kept_statistics(self) -> Iterator[None]:
        """Put back what a forward pass changes: averages of batch-norm, states of random numbers."""
        statistics = self._model.non_trainable_variables
        kept = [tf.identity(variable.value) for variable in statistics]
        try:
            yield
        finally:
            for variable, value in zip(statistics, kept, strict=True):
                variable.assign(value)

    def halves_add_up(self, batch: Batch) -> bool:
        """Try out whether the loss and gradients of two halves add up to those of a whole batch.

        They do not where examples have a say in each other's results (batch-norm), where random numbers are drawn,
        where the loss is no mean, or where the output carries a mask. Nothing is changed.
        """
        found = []
        for self._num_parts in (1, 2):
            try:
                with self._kept_statistics():
                    losses, _, gradients = self._gradients(batch, num_examples_of(batch))
            except ValueError:
                return False
            found.append([losses["loss"], *(tf.convert_to_tensor(g) for g in gradients if g is not None)])
        reset_metrics(self._model)
        sizes = [float(tf.reduce_max(tf.abs(whole))) for whole in found[0]]
        # Gradients that are 0 in theory are rounding errors, which need not agree.
        return all(
            float(tf.reduce_max(tf.abs(whole - halves))) <= _ROUNDING * (size + 0.01 * max(sizes))
            for whole, halves, size in zip(*found, sizes, strict=True)
        )

    def _update(self, gradients: Any, momentum: tf.Tensor | None) -> tf.Tensor:
        """Apply the gradients; return 1, or 0 where a loss scale made the optimizer skip."""
        optimizer = self._model.optimizer
        before = tf.identity(optimizer.iterations)
        scaled = rates_scaled(optimizer, self._model.trainable_variables, self._options.rate_multipliers)
        with momentum_in_graph(optimizer, momentum), scaled, _summed_over_replicas(optimizer):
            self.strategy.run(self._apply, args=(gradients,))
        taken = tf.cast(optimizer.iterations - before, tf.int32) if self._scales_loss else tf.constant(1)
        if self._averages is not None:
            self._averages.follow(before, taken)
        return taken

    def _apply(self, gradients: list[tf.Tensor | None]) -> None:
        self._model.optimizer.apply_gradients(zip(gradients, self._model.trainable_variables, strict=True))

    def _gradients(self, batch: Batch, size: tf.Tensor | int) -> tuple[Values, Values, list[tf.Tensor | None]]:
        """Return a replica's share of the losses, its metrics, and the whole batch's gradients, summed and clipped."""
        reset_metrics(self._model)
        losses, results = Values(), Values()
        gradients: list[tf.Tensor | None] = []
        for part in parts_of(batch, self._num_parts):
            # Each part waits for the gradients of the one before, or all would need their memory at the same time.
            before = [g for g in gradients if g is not None and self._options.accumulate > 1]
            with tf.control_dependencies(before), tf.GradientTape() as tape:
                part_losses, results = self._forward(part, size, training=True)
                scaled = self._model.optimizer.scale_loss(part_losses["loss"])
            new = tape.gradient(scaled, self._model.trainable_variables)
            gradients = [_sum(a, b) for a, b in zip(gradients, new, strict=True)] if gradients else new
            losses = {name: losses.get(name, 0.0) + loss for name, loss in part_losses.items()}
        if self._options.skip_non_finite and self._scales_loss:  # The loss scale looks at the gradients alone.
            zero = tf.where(tf.math.is_finite(losses["loss"]), 0.0, math.nan)
            gradients = [None if g is None else tf.convert_to_tensor(g) + tf.cast(zero, g.dtype) for g in gradients]
        if self.strategy.num_replicas_in_sync > 1:
            present = [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]
            summed = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, present))
            gradients = [None if gradient is None else next(summed) for gradient in gradients]
        if self._options.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self._model.optimizer.scale_loss(self._options.clip_norm))
        return losses, results, gradients

    def _evaluate(self, batch: Batch, size: tf.Tensor | int) -> tuple[Values, Values]:
        return self._forward(batch, size, training=False)

    def _forward(self, batch: Batch, size: tf.Tensor | int, training: bool) -> tuple[Values, Values]:
        """Return what these examples contribute to the mean losses over `size` examples, and the compiled metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        y_pred = self._model(x, training=training)
        argument = {"training": training} if self._training_argument else {}
        for metric in self._output_losses:  # Keras weighs batches of them by a static shape, which may be unknown.
            metric.reset_state()
        loss = self._model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, **argument)
        results = self._model.compute_metrics(x, y, y_pred, sample_weight)
        losses = {metric.name: tf.cast(metric.result(), tf.float32) for metric in self._output_losses}
        num_replicas = self.strategy.num_replicas_in_sync
        if num_replicas > 1 or (training and self._num_parts > 1):
            _check_no_mask(y_pred)
            share = tf.cast(num_examples_of(batch), tf.float32) / tf.cast(size, tf.float32)
            losses = {name: share * value for name, value in losses.items()}
            loss = num_replicas * share * tf.cast(loss, tf.float32)  # Keras has divided it by their number.
        losses["loss"] = tf.cast(loss, tf.float32)
        return losses, {name: tf.cast(value, tf.float32) for name, value in results.items()}

    def _summed(self, losses: Values) -> Values:
        """Return the losses of the whole batch: the sum over replicas."""
        return {n: self.strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None) for n, loss in losses.items()}

    def _named(self, results: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Return the metrics without the losses; those of several replicas merge when their variables are read here."""
        if self.strategy.num_replicas_in_sync > 1:
            results = self._model.get_metrics_result()
        return {name: results[name] for name in self._metric_names if name not in self._loss_names}


def reset_metrics(model: keras.Model) -> None:
    """Set every compiled metric of a model to its beginning."""
    for metric in model.metrics:
        metric.reset_state()


@contextlib.contextmanager
def _summed_over_replicas(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Trace what stands inside with gradients that are summed already, in place of Keras' own sum over replicas.

    Keras clips the gradients of each replica and sums them afterwards, which is not what one replica would do. It has
    no argument that leaves the sum out.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    own = inner._all_reduce_sum_gradients
    inner._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        inner._all_reduce_sum_gradients = own


def _check_no_mask(y_pred: Any) -> None:
    """Refuse to split a masked batch: Keras averages over unmasked tokens, and each part has another number of them."""
    if any(getattr(leaf, "_keras_mask", None) is not None for leaf in keras.tree.flatten(y_pred)):
        raise ValueError(
            "The model's output carries a mask, so its loss is a mean over the tokens that are not masked. Such a "
            "batch cannot be split into equal shares: use accumulate=1 and one replica, or give the mask as "
            "sample_weight."
        )


def _sum(a: tf.Tensor | None, b: tf.Tensor | None) -> tf.Tensor | None:
    return None if a is None else tf.convert_to_tensor(a) + tf.convert_to_tensor(b)


def _all_finite(tensors: list[tf.Tensor | None]) -> tf.Tensor:
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(t))) for t in tensors if t is not None])
