"""Checks of a model and its data, before anything is traced."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from clr_loop.arguments import checked_integer
from clr_loop.data import nests
from clr_loop.data.functions import guarded, in_one_line
from clr_loop.data.nests import flatten
from clr_loop.loop import inputs as model_inputs
from clr_loop.loop import keras_private
from clr_loop.loop.batches import Batch, batch_of, num_examples_of, with_class_weight
from clr_loop.loop.losses import function_of
from clr_loop.loop.result import flat
from clr_loop.loop.transforms.halves import KNOWN_MEANS

_SPARSE = keras.losses.sparse_categorical_crossentropy
_PROBABILITIES = {keras.losses.categorical_crossentropy, keras.losses.binary_crossentropy, _SPARSE}
# Losses whose targets have another shape than the outputs, or may have.
_OTHER_SHAPES = {
    keras.losses.cosine_similarity, keras.losses.ctc, keras.losses.circle,
    keras.losses.categorical_generalized_cross_entropy, _SPARSE,
}  # fmt: skip
# What a loss makes of the values of its examples, where it takes their mean.
MEANS = ("sum_over_batch_size", "mean")
# How far the outputs of a softmax may be from adding up to 1.
_ROUNDING = 1e-3


def check_model(model: keras.Model) -> None:
    """Raise ValueError unless this is a compiled Keras model."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"The model is a {type(model).__name__}; give a compiled keras.Model.")
    if not model.compiled or model.optimizer is None:
        raise ValueError(
            f"The model {model.name} is not compiled. The loop takes optimizer, loss and metrics from it: call "
            "model.compile(optimizer, loss, metrics=[…]) first."
        )
    if tf.config.functions_run_eagerly() or model.run_eagerly:
        what = "tf.config.run_functions_eagerly(True)" if tf.config.functions_run_eagerly() else "run_eagerly=True"
        raise ValueError(
            f"{what} is set, for debugging, and this loop is a compiled program; turn it off, or debug the model with "
            "model.fit."
        )
    for loss in keras.tree.flatten(model.loss):
        if isinstance(loss, keras.losses.Loss) and loss.reduction in (None, "none"):
            raise ValueError(
                f"The loss {loss.name} has reduction={loss.reduction!r}, so it gives a value for each example, and a "
                'step needs one number; use reduction="sum_over_batch_size", or "sum", which has the gradients that '
                "Keras would take."
            )
    scales_loss = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    if model.dtype_policy.name == "mixed_float16" and not scales_loss:
        warnings.warn(
            f"The model {model.name} computes in float16 without a loss scale, so small gradients become 0; compile it "
            "with auto_scale_loss=True, or wrap its optimizer in LossScaleOptimizer.",
            stacklevel=3,
        )


def check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    """Raise ValueError for an optimizer whose learning rate cannot be assigned at every step."""
    optimizer = keras_private.inner(optimizer)
    if type(optimizer).__name__ == "MultiOptimizer":
        raise ValueError("MultiOptimizer has several learning rates, and this loop assigns one; use one optimizer.")
    if not isinstance(optimizer.get_config().get("learning_rate"), float):
        raise ValueError(
            f"{type(optimizer).__name__} was made with a schedule, but this loop assigns the rate of every step; make "
            "it with a number, and give the schedule's rates to the loop."
        )
    if optimizer.gradient_accumulation_steps is not None:
        raise ValueError(
            f"{type(optimizer).__name__} has gradient_accumulation_steps={optimizer.gradient_accumulation_steps}, "
            "which leaves steps without an update; give the loop StepOptions(accumulate=…) instead."
        )


def check_shares(model: keras.Model, num_examples: int, batch_size: int, parts: int) -> None:
    """Raise ValueError if a batch cannot be split among replicas and parts, whose losses are weighted and summed."""
    num_replicas = model.distribute_strategy.num_replicas_in_sync
    last = num_examples % batch_size or batch_size
    if last < num_replicas * parts:
        raise ValueError(
            f"A batch of {last} examples cannot be split among {num_replicas} replicas and {parts} parts of "
            f"accumulate; with {num_examples:,} examples choose another batch_size than {batch_size}."
        )
    for loss in keras.tree.flatten(model.loss) if num_replicas * parts > 1 else ():
        if not isinstance(loss, keras.losses.Loss):
            continue
        if loss.reduction not in MEANS:
            raise ValueError(
                f"The loss {loss.name} has reduction={loss.reduction!r}. A batch that is split among replicas or parts "
                'of accumulate needs a mean over its examples: use reduction="sum_over_batch_size".'
            )
        if _config(loss).get("ignore_class") is not None:
            raise ValueError(
                f"The loss {loss.name} has ignore_class, so it is a mean over the labels that count, and the parts of "
                "a batch have different numbers of them. Use one replica and accumulate=1, or give weights of 0 as "
                "sample_weight."
            )


def check_loss_of_parts(model: keras.Model, batch: Batch, draws: bool) -> None:
    """Raise ValueError if a batch's loss is not the mean of its parts', weighted by examples.

    So it is with a loss of the user's own that divides by what it finds in the batch. Structure cannot tell, but values
    can: those of a few examples, cut into parts of different size.

    Args:
        draws: whether the model draws random numbers. Then its outputs for the whole batch are cut into parts.
    """
    size, strategy = int(num_examples_of(batch)), model.distribute_strategy

    def loss(begin: int, end: int) -> tf.Tensor:
        part = keras.tree.map_structure(lambda x: x[begin:end], batch)
        if draws:
            y_pred = keras.tree.map_structure(lambda x: x[begin:end], outputs)
        else:
            y_pred = keras_private.call(model, part[0], training=False)
        return tf.reduce_mean(keras_private.compute_loss(model, part, y_pred, training=False))

    def loss_of(begin: int, end: int) -> float:
        return float(strategy.experimental_local_results(strategy.run(loss, args=(begin, end)))[0])

    outputs = keras_private.call(model, batch[0], training=False)

    cuts = sorted({0, size // 3, size // 3 + 1, size})
    parts = sum((end - begin) / size * loss_of(begin, end) for begin, end in itertools.pairwise(cuts))
    whole = loss_of(0, size)
    if not np.isclose(parts, whole, rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"The loss of a batch is not the mean of its examples' losses ({whole:.5g} for {size} examples, "
            f"{parts:.5g} in parts), so a batch cannot be split; use one replica and accumulate=1."
        )


def has_plain_mean(model: keras.Model) -> bool:
    """Return whether the loss of a set of examples is known to be the mean of theirs, however they are batched."""
    losses = keras_private.losses_called(model)
    is_known = [function_of(loss) in KNOWN_MEANS and loss.reduction in MEANS for loss in losses]
    return all(is_known) and not any(_config(loss).get("ignore_class") is not None for loss in losses)


def checked_examples(
    inputs: Any, targets: Any, sample_weight: Any, class_weight: Mapping[int, float] | None = None
) -> Batch:
    """Return arrays as a batch, with weights of classes as those of examples; raises as `check_arrays`."""
    examples = batch_of(inputs, targets, sample_weight)
    check_arrays(examples)
    return examples if class_weight is None else with_class_weight(examples, class_weight)


def is_text(leaf: Any) -> bool:
    """Return whether an array holds strings; TensorFlow gives them as Python objects."""
    return np.asarray(leaf).dtype.kind in "SUO"


def has_text(batch: Batch) -> bool:
    """Return whether the inputs of a batch are strings, or some of them."""
    return any(map(is_text, keras.tree.flatten(batch[0])))


def check_arrays(batch: Batch, where: str = "", text: bool = False) -> None:
    """Raise ValueError or TypeError unless all arrays of a batch are numbers, finite, and of one length.

    Args:
        batch: nests of arrays [n, …].
        where: how an error begins, such as `Batch 3: `.
        text: whether inputs may be strings.
    """
    for name, leaf in named_leaves(batch):
        takes_text = text and name.startswith("inputs")
        if not (np.issubdtype(leaf.dtype, np.number) or leaf.dtype == np.bool_ or (takes_text and is_text(leaf))):
            raise TypeError(
                f"{where}{name} is of dtype {leaf.dtype}; turn it into numbers first, text into tokens. A model that "
                "looks text up itself takes it from a dataset; see TrainLoop.from_dataset."
            )
        if not leaf.ndim:
            advice = "give an array with one entry for each example; of a list of numbers make one with np.array(…)"
            raise ValueError(f"{where}{name} is a single number; {advice}.")
        if not np.issubdtype(leaf.dtype, np.inexact) or np.isfinite(leaf).all():
            continue
        bad = int(np.argmin(np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)))
        raise ValueError(f"{where}{name} holds NaN or infinity, first in example {bad}; remove or repair that example.")
    nests.num_examples(dict(named_leaves(batch)))


def check_batch_size(batch_size: int, num_examples: int) -> None:
    """Raise TypeError or ValueError unless batch_size is an integer from 1 to the number of examples."""
    if not 1 <= checked_integer("batch_size", batch_size) <= num_examples:
        raise ValueError(
            f"batch_size is {batch_size}; choose one from 1 to the {num_examples:,} examples that there are."
        )


def named_leaves(batch: Batch) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each array of a batch with a name such as `inputs['image']`."""
    for name, nest in zip(("inputs", "targets", "sample_weight"), batch, strict=False):
        yield from ((path, np.asarray(leaf)) for path, leaf in flatten(nest, name).items())


class Limit(NamedTuple):
    """What the integers of an array may be, beside those from 0 to `number` - 1.

    XLA computes nonsense for others without a word.

    Attributes:
        number: int, classes of a sparse loss, or rows of an Embedding.
        what: in words, what takes them.
        ignored: int, a class that the loss leaves out, or None.
        of_inputs: whether these are ids among the inputs.
    """

    number: int
    what: str
    ignored: int | None = None
    of_inputs: bool = False


def limits_of(model: keras.Model, batch: Batch) -> list[Limit | None]:
    """Check inputs and targets against the model and its loss; return the limit of each array of theirs, or None.

    Args:
        model: compiled.
        batch: a few examples.

    Raises:
        ValueError: if the model does not take such inputs, or a loss of Keras' own cannot be meant for such targets and
            outputs.
    """
    x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
    y_pred = call_model(model, x, training=False)
    pairs: list[tuple[Any, Any, keras.losses.Loss]] = []
    model.distribute_strategy.run(lambda: pairs.extend(keras_private.pairs_of_losses(model, batch, y_pred)))
    num_rows = model_inputs.rows_of_embeddings(model, x)
    limits = [
        None if number is None else Limit(number, "the model's Embedding has rows", of_inputs=True)
        for number in num_rows
    ]
    of_targets = {}
    for target, output, loss in pairs if y is not None else ():
        _check_pair(np.asarray(target), np.asarray(output), loss)
        if function_of(loss) is _SPARSE:
            ignored = _config(loss).get("ignore_class")
            of_targets[id(target)] = Limit(output.shape[-1], "the model's output has classes", ignored)
    return [*limits, *(of_targets.get(id(leaf)) for leaf in keras.tree.flatten(y))]


def call_model(model: keras.Model, inputs: Any, training: bool) -> Any:
    """Return what the model makes of a few inputs. Raises ValueError, with the user's own line, if it fails."""
    problem = f"The model {model.name} fails on inputs of shape {shapes(inputs)}"
    return guarded(problem, keras_private.call, model, inputs, training)


def build(model: keras.Model, batch: Batch) -> tuple[str, ...]:
    """Run loss and metrics once, eagerly, on a few examples, which builds them; return the names of their values.

    Args:
        model: compiled.
        batch: a few examples.

    Returns:
        "loss", then the names of the compiled metrics.

    Raises:
        ValueError: if the loss or a metric does not take such targets, or a metric has no name or several values.
    """
    results: list[dict[str, Any]] = []

    def run(batch: Batch) -> None:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        y_pred = keras_private.call(model, x, training=True)
        keras_private.compute_loss(model, batch, y_pred, training=True)
        results.append(flat(model.compute_metrics(x, y, y_pred, sample_weight)))

    try:
        model.distribute_strategy.run(run, args=(batch,))
    except (Exception, SystemExit) as error:
        if len(batch) == 1:
            advice = ""
            if isinstance(batch[0], tuple):
                advice = "; a tuple is several inputs, so for inputs and targets give TrainLoop(model, *data)"
            raise ValueError(
                f"The data are inputs alone, and the model's loss or a metric needs targets ({in_one_line(error)})"
                f"{advice}."
            ) from error
        raise ValueError(
            f"The model's loss or a metric does not take these targets: targets have shape {shapes(batch[1])}, the "
            f"model's outputs {shapes(keras_private.call(model, batch[0], training=False))} ({in_one_line(error)})."
        ) from error
    for metric in model.metrics:
        metric.reset_state()
    parts = [part for metric in model.metrics for part in [metric, *getattr(metric, "metrics", [])]]
    if sum(part.name == "loss" for part in parts) > 1:
        raise ValueError("A metric has the name loss, which is that of the compiled loss; rename it.")
    for name, value in results[0].items():
        checked_name(name)
        if np.size(value) != 1:
            raise ValueError(
                f"The metric {name} has {np.size(value)} values, and the loop records one a step; let it average them, "
                'as with average="macro".'
            )
    return ("loss", *(name for name in results[0] if name != "loss"))


def checked_name(name: Any) -> str:
    """Return the name under which a step records a value; raise ValueError for none, and for one that is taken."""
    if not isinstance(name, str) or not name:
        raise ValueError("A metric has no name; give it one, as in keras.metrics.MeanMetricWrapper(fn, name=…).")
    if name in ("learning_rate", "momentum"):
        raise ValueError(f"A metric has the name {name}, which the loop uses for that of each step; rename it.")
    return name


def check_limits(batch: Batch, limits: Sequence[Limit | None], where: str = "") -> None:
    """Raise ValueError if an array of inputs or targets holds a number beyond its limit; see `limits_of`."""
    for (name, leaf), limit in zip(named_leaves(batch[:2]), limits, strict=False):
        if limit is None or not leaf.size:
            continue
        used = leaf if limit.ignored is None else leaf[leaf != limit.ignored]
        if used.size and not (used.min() >= 0 and used.max() < limit.number):
            raise ValueError(
                f"{where}{name} holds numbers from {used.min()} to {used.max()}, but {limit.what} 0 to "
                f"{limit.number - 1}; correct the numbers, or build the model with more."
            )


def is_within(leaf: tf.Tensor, limit: Limit) -> tf.Tensor:
    """Return in a graph what `check_limits` asks of one array."""
    is_good = (leaf >= 0) & (leaf < tf.cast(limit.number, leaf.dtype))
    if limit.ignored is not None:
        is_good |= leaf == tf.cast(limit.ignored, leaf.dtype)
    return tf.reduce_all(is_good)


def _check_pair(target: np.ndarray, output: np.ndarray, loss: keras.losses.Loss) -> None:
    """Raise ValueError if a loss of Keras' own cannot be meant for these targets and outputs."""
    function = function_of(loss)
    if function is None or not output.ndim:
        return
    shapes = f"targets have shape {_shape(target)}, the model's outputs {_shape(output)}"
    name = type(loss).__name__ if hasattr(keras.losses, type(loss).__name__) else function.__name__
    if function is _SPARSE:
        if target.shape == output.shape and output.shape[-1] > 1:
            raise ValueError(
                f"{name} takes the number of the class, but the targets look one-hot: {shapes}. Compile the model with "
                "CategoricalCrossentropy, or give np.argmax(targets, axis=-1)."
            )
        if target.shape not in (output.shape[:-1], (*output.shape[:-1], 1)):
            raise ValueError(f"{name} takes one class for each output vector, but {shapes}.")
    elif function not in _OTHER_SHAPES and target.shape != output.shape:
        short, long = sorted((target.shape, output.shape), key=len)
        if (*short, 1) != long:
            raise ValueError(f"{name} takes targets of the outputs' shape, but {shapes}.")
    if function in _PROBABILITIES:
        _check_probabilities(np.asarray(output, np.float64), name, bool(_config(loss).get("from_logits")))


def _check_probabilities(output: np.ndarray, name: str, from_logits: bool) -> None:
    inside = bool((output >= 0.0).all() and (output <= 1.0 + _ROUNDING).all())
    is_softmax = output.shape[-1] > 1 and inside and bool(np.allclose(output.sum(axis=-1), 1.0, atol=_ROUNDING))
    if from_logits and is_softmax and "inary" not in name:
        raise ValueError(
            f"The model ends in softmax, but its loss, {name} with from_logits=True, applies it once more; compile it "
            f"with {name}(), or leave out the last activation."
        )
    if not from_logits and not inside:
        raise ValueError(
            f"{name} takes probabilities, but the model's outputs reach from {output.min():.3g} to {output.max():.3g}; "
            "make the loss with from_logits=True, or end the model in softmax or sigmoid."
        )


def _config(loss: Any) -> dict[str, Any]:
    return loss.get_config() if isinstance(loss, keras.losses.Loss) else {}


def _shape(array: np.ndarray) -> tuple[Any, ...]:
    return ("n", *array.shape[1:])


def shapes(nest: Any) -> str:
    """Return the shapes in a nest of arrays, in words."""
    if nest is None:
        return "none"
    shapes = keras.tree.map_structure(lambda x: f"[n{''.join(f', {d}' for d in x.shape[1:])}]", nest)
    return str(shapes).replace("'", "")
