"""Evaluation and prediction between the steps: a model's outputs for examples, and their loss and metrics."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from clr_loop.arguments import checked_whole
from clr_loop.data.functions import in_one_line
from clr_loop.loop import checks, keras_private, other_data
from clr_loop.loop.batches import Batch, batch_of, num_examples_of
from clr_loop.loop.losses import losses_of
from clr_loop.loop.own_step import has_own
from clr_loop.loop.result import Total, Values, flat
from clr_loop.loop.step import batch_gradients
from clr_loop.loop.strategies import is_distributed, noticing_lost_workers, run_on_replicas, share_out
from clr_loop.loop.stream import WITHOUT_AUTOTUNE, as_tuples

_SUM = tf.distribute.ReduceOp.SUM


class Evaluation:
    """Evaluates a model in inference mode.

    Args:
        model: compiled and built.
        names: of the values that training records.
        limits: what the numbers in each array of inputs and targets may be; see `checks.limits_of`.
        text: whether inputs may be strings.
    """

    def __init__(
        self, model: keras.Model, names: tuple[str, ...], limits: list[checks.Limit | None], text: bool = False
    ) -> None:
        self._model, self._strategy, self._names = model, model.distribute_strategy, names
        self._limits, self._takes_text = limits, text
        self._has_own_step = has_own(model, "test_step") or has_own(model, "train_step")
        self._evaluate = keras_private.graph_function(self._test_step)
        # Datasets may give batches of many shapes, each of which would be another program.
        self._evaluate_any = keras_private.graph_function(self._test_step, reduce_retracing=True)
        self._predict = keras_private.graph_function(self._predict_step)
        self._gradients = keras_private.graph_function(self._gradients_of)

    def evaluate(self, inputs: Any, targets: Any, sample_weight: Any, batch_size: int) -> dict[str, float]:
        """See `TrainLoop.evaluate`."""
        checked_whole("batch_size", batch_size)
        with noticing_lost_workers(self._strategy):
            self._reset()
            num_examples, totals, metrics = 0, dict[str, float](), Values()
            evaluate = self._evaluate_any if isinstance(inputs, tf.data.Dataset) else self._evaluate
            for batch in self._batches(inputs, targets, sample_weight, batch_size):
                size = int(num_examples_of(batch))
                shared = share_out(batch, self._strategy, axis=0) if is_distributed(self._strategy) else batch
                try:
                    losses, metrics = evaluate(shared, tf.constant(size))
                except Exception as error:
                    _check_targets(inputs, batch, error)
                    raise
                totals = {name: totals.get(name, 0.0) + float(loss) * size for name, loss in losses.items()}
                num_examples += size
            self._reset()
            values = {**flat(metrics), **{name: total / num_examples for name, total in totals.items()}}
            names = self._names if not self._has_own_step else tuple(values)
            return {name: float(np.reshape(values[name], ())) for name in names if name in values}

    def predict(self, inputs: Any, batch_size: int) -> Any:
        """See `TrainLoop.predict`."""
        checked_whole("batch_size", batch_size)
        parts = [self._predict(batch) for batch in self._batches(inputs, None, None, batch_size)]
        return keras.tree.map_structure(lambda *of_parts: np.concatenate(of_parts), *parts)

    def score(self, outputs: Any, targets: Any, sample_weight: Any) -> dict[str, float]:
        """See `TrainLoop.score`."""
        self._reset()
        batch = keras.tree.map_structure(tf.convert_to_tensor, batch_of(targets, targets, sample_weight))
        outputs = keras.tree.map_structure(tf.convert_to_tensor, outputs)
        losses = losses_of(self._model, batch, outputs, None, training=False)
        values = {**flat(self._metrics_of(batch, outputs)), **losses}
        self._reset()
        return {name: float(np.reshape(values[name], ())) for name in self._names if name in values}

    def gradients(self, inputs: Any, targets: Any, sample_weight: Any) -> NDArray[np.float32]:
        """See `TrainLoop.gradients`."""
        (batch,) = self._batches(inputs, targets, sample_weight, None)
        gradients = self._gradients(batch)
        self._reset()
        return np.concatenate([gradient.numpy().ravel() for gradient in gradients])

    def _batches(self, inputs: Any, targets: Any, sample_weight: Any, batch_size: int | None) -> Iterator[Batch]:
        """Yield checked batches of tensors, from arrays or from a dataset of batches."""
        if isinstance(inputs, tf.data.Dataset):
            yield from self._read(inputs)
            return
        other_data.refuse(inputs)
        batch = batch_of(inputs, targets, sample_weight)
        self._check(batch)
        num_examples = int(num_examples_of(batch))
        for start in range(0, num_examples, batch_size or num_examples):
            end = None if batch_size is None else start + batch_size
            yield keras.tree.map_structure(lambda x, start=start, end=end: tf.convert_to_tensor(x[start:end]), batch)

    def _read(self, dataset: tf.data.Dataset) -> Iterator[Batch]:
        batches = iter(as_tuples(dataset.with_options(WITHOUT_AUTOTUNE)))
        for i in itertools.count():
            try:
                batch = next(batches, None)
            except tf.errors.OpError as error:
                raise ValueError(f"Batch {i}: the dataset failed ({in_one_line(error)}); repair it.") from error
            if batch is None:
                if i == 0:
                    raise ValueError("The dataset gives no batch at all; look at what it reads.")
                return
            self._check(batch, f"Batch {i}: ")
            yield batch

    def _check(self, batch: Batch, where: str = "") -> None:
        checks.check_arrays(batch, where, self._takes_text)
        checks.check_limits(batch, self._limits, where)

    def _test_step(self, batch: Batch, size: tf.Tensor) -> tuple[Values, Values]:
        """Return a batch's losses, and the metrics of all batches since their last reset."""
        if self._has_own_step:
            return {}, self._model.test_step(keras.utils.pack_x_y_sample_weight(*batch))
        losses, metrics = run_on_replicas(self._strategy, self._test_one, batch, size)
        if self._strategy.num_replicas_in_sync > 1:
            losses = {name: self._strategy.reduce(_SUM, loss, axis=None) for name, loss in losses.items()}
            metrics = self._model.get_metrics_result()
        return losses, metrics

    def _test_one(self, batch: Batch, size: tf.Tensor) -> tuple[Values, Values]:
        total: Total = size if self._strategy.num_replicas_in_sync > 1 else None
        y_pred = keras_private.call(self._model, batch[0], training=False)
        losses = losses_of(self._model, batch, y_pred, total, training=False)
        return losses, self._metrics_of(batch, y_pred)

    def _metrics_of(self, batch: Batch, y_pred: Any) -> Values:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        return self._model.compute_metrics(x, y, y_pred, sample_weight)

    def _predict_step(self, batch: Batch) -> Any:
        if has_own(self._model, "predict_step"):
            return self._model.predict_step(keras.utils.pack_x_y_sample_weight(*batch))
        return keras_private.call(self._model, batch[0], training=False)

    def _gradients_of(self, batch: Batch) -> list[tf.Tensor]:
        scale = self._model.optimizer.scale_loss(1.0)
        gradients = batch_gradients(self._model)(batch).gradients
        return [tf.cast(tf.convert_to_tensor(g), tf.float32) / scale for g in gradients if g is not None]

    def _reset(self) -> None:
        for metric in self._model.metrics:
            metric.reset_state()


def _check_targets(inputs: Any, batch: Batch, error: Exception) -> None:
    """Raise ValueError if an evaluation without targets has failed."""
    if len(batch) > 1:
        return
    advice = "give evaluate(inputs, targets)"
    if isinstance(inputs, tf.data.Dataset):
        advice = "give a dataset of (inputs, targets)"
    elif isinstance(inputs, tuple):
        advice = "a tuple is several inputs, so for inputs and targets give evaluate(*data)"
    raise ValueError(
        f"The data are inputs alone, and the model, its loss or a metric fails without targets ({in_one_line(error)}); "
        f"{advice}."
    ) from error


def measure_statistics(model: keras.Model, batches: Iterable[Batch]) -> None:
    """Measure the statistics of batch-norm layers again: their mean over one pass, with the weights as they are.

    Args:
        batches: of training, each shared out among the replicas of the model's strategy.
    """
    norms = [layer for layer in keras_private.layers_of(model) if isinstance(layer, keras.layers.BatchNormalization)]
    if not norms:
        return
    forward = keras_private.graph_function(
        lambda x: run_on_replicas(model.distribute_strategy, lambda x: keras_private.call(model, x, training=True), x)
    )
    own = [layer.momentum for layer in norms]
    momentum = tf.Variable(0.0, trainable=False)
    try:
        for layer in norms:
            layer.momentum = momentum
        for i, batch in enumerate(batches):
            forward(batch[0])
            momentum.assign((i + 1) / (i + 2))  # So that each batch counts alike in the end.
    finally:
        for layer, value in zip(norms, own, strict=True):
            layer.momentum = value
