"""Everything that reaches into names which Keras and TensorFlow keep private, so that a new version breaks here alone.

`tests/loop/test_keras_private.py` has a test for each, which says in words what a version has moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src.models.functional import Functional
from tensorflow.python.util import _pywrap_util_port


def has_onednn() -> bool:
    """Return whether TensorFlow computes with oneDNN's kernels, whose rounding differs from its own.

    TensorFlow decides it once for a process: by TF_ENABLE_ONEDNN_OPTS, or else by the processor.
    """
    return bool(_pywrap_util_port.IsMklEnabled())


def graph_function(function: Callable[..., Any], **options: Any) -> Any:
    """Return a `tf.function`, without AutoGraph and without a warning when a process makes many loops.

    Each loop traces its own functions once. TensorFlow counts the traces of all loops together, because it knows
    functions by their line, and advises against what it takes for retracing.
    """
    made = tf.function(function, autograph=False, **options)
    made._omit_frequent_tracing_warning = True
    return made


class Shuffle(NamedTuple):
    """A call of `shuffle` in a dataset.

    Attributes:
        dataset: int, the identity of the shuffled dataset.
        reshuffles: whether each reading of this dataset has another order.
        seeds: ints, which are the same for another dataset of the same order; (0, 0) for random ones.
    """

    dataset: int
    reshuffles: bool
    seeds: tuple[int, int]


def shuffles_of(dataset: tf.data.Dataset) -> list[Shuffle]:
    """Return all calls of `shuffle` in a dataset, except for those whose results it keeps in a cache."""
    if type(dataset).__name__ == "CacheDataset":
        return []
    shuffles = [shuffle for each in dataset._inputs() for shuffle in shuffles_of(each)]
    if hasattr(dataset, "_reshuffle_each_iteration"):
        seeds = int(dataset._seed), int(dataset._seed2)
        shuffles.append(Shuffle(id(dataset), bool(dataset._reshuffle_each_iteration), seeds))
    return shuffles


# --- What Keras' own train_step reads from a model ---


def training_argument(model: keras.Model, training: bool) -> dict[str, bool]:
    """Return the argument with which Keras calls a model: `training`, only where its `call` has that."""
    return {"training": training} if model._call_has_training_arg else {}


def call(model: keras.Model, x: Any, training: bool) -> Any:
    """Call a model as Keras' `fit` does."""
    return model(x, **training_argument(model, training))


def compute_loss(model: keras.Model, batch: Any, y_pred: Any, training: bool) -> Any:
    """Return what `compute_loss` does, with `training` only where an override has that argument."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    return model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)


def output_losses(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the means in which a model with several losses keeps each; [] for one loss."""
    return list(getattr(model._compile_loss, "metrics", []))


def losses_called(model: keras.Model) -> list[keras.losses.Loss]:
    """Return the loss of each output, as objects, once they are built; [] without compiled losses."""
    return [each.loss for each in getattr(model._compile_loss, "_flat_losses", None) or []]


def pairs_of_losses(model: keras.Model, batch: Any, y_pred: Any) -> list[tuple[Any, Any, keras.losses.Loss]]:
    """Return (targets, outputs, loss) for each loss of a model, paired by Keras itself; [] where it pairs none.

    Builds the compiled losses. None of them is computed once they are built.
    """
    pairs: list[tuple[Any, Any, keras.losses.Loss]] = []

    def noting(loss: keras.losses.Loss) -> Callable[..., Any]:
        def note(y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            pairs.append((y, y_pred, loss))
            return 0.0

        return note

    compiled = model._compile_loss
    if compiled is None:
        return []
    with contextlib.suppress(Exception):  # Whoever computes the loss learns what is wrong with it.
        if not compiled.built:
            compute_loss(model, batch, y_pred, training=False)
    own = compiled._flat_losses
    compiled._flat_losses = [each._replace(loss=noting(each.loss)) for each in own or []]
    try:
        with contextlib.suppress(Exception):
            compute_loss(model, batch, y_pred, training=False)
    finally:
        compiled._flat_losses = own
    return pairs


def compiled_with(model: keras.Model) -> tuple[Any, ...]:
    """Return what `compile` has made; a model that is compiled again has other objects."""
    return model.optimizer, model._compile_loss, model._compile_metrics


def carries_mask(y_pred: Any) -> bool:
    """Return whether an output carries a mask, by which Keras weights the loss."""
    return any(getattr(leaf, "_keras_mask", None) is not None for leaf in keras.tree.flatten(y_pred))


def operations_of(model: keras.Model) -> list[keras.Operation] | None:
    """Return what a `Sequential` or a `keras.Model(inputs, outputs)` is made of; None for a class of the user's own."""
    if type(model) is keras.Sequential:
        return list(model.layers)
    return list(model.operations) if type(model) is Functional else None


def takes_dict(model: keras.Model) -> bool:
    """Return whether a functional model was made with a dictionary of inputs."""
    return isinstance(getattr(model, "_inputs_struct", None), dict)


def adds_losses(model: keras.Model) -> bool:
    """Return whether a layer has added to the loss of the last batch, by `add_loss` or a penalty on its activity."""
    return any(layer._losses for layer in layers_of(model))


def weighted_metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    """Return the compiled metrics that take the weights of examples, once they are built."""
    flat = getattr(model._compile_metrics, "_flat_weighted_metrics", None) or []
    return [metric for of_output in flat if of_output for metric in of_output.metrics]


def layers_of(model: keras.Layer) -> list[keras.Layer]:
    """Return a model, or a layer, and all layers inside it, nested ones too."""
    return list(model._flatten_layers())


def all_trainable(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that are trained, or would be if nothing were frozen: the optimizer has state for each."""
    own = {id(variable) for layer in layers_of(model) for variable in layer._trainable_variables}
    return [variable for variable in model.variables if id(variable) in own]


# --- What an optimizer does in the graph ---


def inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return the optimizer inside a `LossScaleOptimizer`, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


@contextlib.contextmanager
def summed_already(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Trace what stands inside with gradients that are summed already, instead of Keras' own sum over replicas.

    Keras clips the gradients of each replica and sums them afterwards, which is not what one replica would do. It has
    no argument that leaves the sum out.
    """
    optimizer = inner(optimizer)
    own = optimizer._all_reduce_sum_gradients
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:
        optimizer._all_reduce_sum_gradients = own


def momentum_attribute(optimizer: keras.optimizers.Optimizer) -> str:
    """Return the name under which the optimizer keeps its momentum: `beta_1`, or `momentum` where it has none.

    Raises:
        ValueError: if it has neither, or was made with 0, for which Keras keeps no velocities.
    """
    for name in ("beta_1", "momentum"):
        if getattr(inner(optimizer), name, 0.0) != 0.0:
            return name
    raise ValueError(
        f"The schedule cycles the momentum, but {type(inner(optimizer)).__name__} has none; make it with one, as in "
        "SGD(momentum=0.9)."
    )


@contextlib.contextmanager
def at_momentum(optimizer: keras.optimizers.Optimizer, momentum: tf.Tensor) -> Iterator[None]:
    """Trace what stands inside with this momentum, a scalar float tensor.

    Keras keeps it in a Python float, which a `tf.function` freezes when it is traced. Adam's bias correction then uses
    the momentum of the step, `1 - beta_1 ** (step + 1)`, as Keras and PyTorch do when it is assigned from Python.
    """
    optimizer, name = inner(optimizer), momentum_attribute(optimizer)
    own = getattr(optimizer, name)
    setattr(optimizer, name, momentum if name == "beta_1" else _HasMomentum(momentum))
    try:
        yield
    finally:
        setattr(optimizer, name, own)


class _HasMomentum:
    """A tensor to TensorFlow; to SGD and RMSprop, which ask in Python whether they have momentum at all: yes."""

    def __init__(self, value: tf.Tensor) -> None:
        self._value = value

    def __tf_tensor__(self, dtype: tf.DType | None = None, name: str | None = None) -> tf.Tensor:
        return self._value if dtype is None else tf.cast(self._value, dtype)

    def __ne__(self, other: object) -> bool:
        return True

    def __gt__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def _computing(name: str) -> Callable[..., tf.Tensor]:
    return lambda self, *others: getattr(self._value, name)(*others)


for _name in ("add", "sub", "mul", "truediv", "pow", "radd", "rsub", "rmul", "rtruediv", "rpow", "neg"):
    setattr(_HasMomentum, f"__{_name}__", _computing(f"__{_name}__"))  # Muon computes with it.


@contextlib.contextmanager
def rates_scaled(
    optimizer: keras.optimizers.Optimizer, factors: Sequence[tuple[keras.Variable, float]]
) -> Iterator[None]:
    """Trace what stands inside with the learning rate of each variable times its factor.

    Weight decay goes with the rate. A variable of factor 0 is not updated at all: some optimizers divide by the rate.
    """
    optimizer = inner(optimizer)
    by_key = {optimizer._var_key(variable): factor for variable, factor in factors}
    update_step, decay_weights, decay = optimizer.update_step, optimizer._apply_weight_decay, optimizer.weight_decay

    def scaled_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = by_key[optimizer._var_key(variable)]
        if factor:
            update_step(gradient, variable, learning_rate * factor)

    def scaled_decay(variables: Sequence[keras.Variable]) -> None:
        for variable in variables if decay is not None else ():
            optimizer.weight_decay = decay * by_key[optimizer._var_key(variable)]
            decay_weights([variable])
        optimizer.weight_decay = decay

    optimizer.update_step, optimizer._apply_weight_decay = scaled_step, scaled_decay
    try:
        yield
    finally:
        del optimizer.update_step, optimizer._apply_weight_decay
