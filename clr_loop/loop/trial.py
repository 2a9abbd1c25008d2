"""What is learned about a model by trying it on a few examples, which leaves it as it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from clr_loop.data.functions import guarded
from clr_loop.loop import checks, keras_private
from clr_loop.loop.batches import Batch
from clr_loop.loop.feeds import Feed
from clr_loop.loop.options import StepOptions
from clr_loop.loop.own_step import check_options, has_own, optimizers_of, own_step
from clr_loop.loop.result import Take, flat
from clr_loop.loop.state import kept
from clr_loop.loop.strategies import run_on_replicas
from clr_loop.loop.transforms.multipliers import check_multipliers

# Examples that loss and metrics are tried on before anything is compiled.
_MOST_TRIED = 32
# Operations of `tf.random`, which keep their state to themselves.
_DRAWS = {
    "RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal", "ParameterizedTruncatedNormal",
    "RandomShuffle", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "Multinomial",
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """What was learned about a model.

    Attributes:
        names: what each step records: "loss" and the compiled metrics, or the logs of a `train_step` of its own.
        limits: what the numbers in each array of inputs and targets may be; see `checks.limits_of`.
        has_plain_mean: see `checks.has_plain_mean`.
        not_means: those of the names whose mean over steps is not the value of all their examples, such as AUC.
        operations: the types of all operations of the forward pass in training mode; of a whole `train_step` if it is
            the model's own.
        others: variables that these read or change, and that belong to neither the model nor its optimizers.
        optimizers: those whose rate the loop assigns.
        own_step: the model's own `train_step` as a step, or None.
    """

    names: tuple[str, ...]
    limits: list[checks.Limit | None]
    operations: frozenset[str]
    others: list[tf.Variable]
    optimizers: list[keras.optimizers.Optimizer]
    own_step: Take | None = None
    has_plain_mean: bool = False
    not_means: tuple[str, ...] = ()

    @property
    def not_resumable(self) -> str | None:
        """Why no checkpoint can hold all of the training's state, or None."""
        draws = sorted(self.operations & _DRAWS)
        if not draws:
            return None
        return (
            f"the model draws from tf.random ({draws[0]}), whose state is inside TensorFlow; draw from keras.random "
            "with a keras.random.SeedGenerator, which is saved"
        )


def try_out(model: keras.Model, feed: Feed, examples: Batch, options: StepOptions) -> Trial:
    """Build a compiled model, its losses, metrics and optimizers, and see whether they take such examples.

    Args:
        model: compiled.
        feed, options: see `TrainLoop`.
        examples: nests of arrays [n, …].

    Raises:
        ValueError: if they do not, see `checks`; or if an optimizer or an option does not go with the model.
    """
    if has_own(model, "train_step"):
        trial = _try_own_step(model, feed, examples, options)
    else:
        trial = _try_keras_step(model, feed, examples, options)
    for optimizer in trial.optimizers:
        checks.check_optimizer(optimizer)
    check_multipliers(model.trainable_variables, options.rate_multipliers)
    return trial


def _try_keras_step(model: keras.Model, feed: Feed, examples: Batch, options: StepOptions) -> Trial:
    few = keras.tree.map_structure(
        lambda x: tf.convert_to_tensor(x[: fixed_batch_size(model) or _MOST_TRIED]), examples
    )
    with model.distribute_strategy.scope():
        problem = f"The model {model.name} fails on inputs of shape {checks.shapes(few[0])}"
        is_shared = model.distribute_strategy.num_replicas_in_sync > 1
        if is_shared and not model.built:  # In replicas no variables can be created.
            symbols = keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype.name), few[0])
            guarded(problem, model, symbols)

        def forward() -> Any:
            return keras_private.call(model, few[0], training=True)

        operations, variables = guarded(problem, _traced, lambda: run_on_replicas(model.distribute_strategy, forward))
        model.optimizer.build(variables_with_state(model))
        others = _others(model, [model.optimizer], variables)
        with kept([*model.variables, *others]):
            limits = checks.limits_of(model, few)
            checks.check_limits(examples, limits)
            names = checks.build(model, few)
            adds_up = not keras_private.adds_losses(model)
            is_masked = keras_private.carries_mask(keras_private.call(model, few[0], training=False))
            if is_shared or options.accumulate > 1:
                draws = any("Random" in operation for operation in operations)
                checks.check_loss_of_parts(model, few, draws)
    has_plain_mean = checks.has_plain_mean(model) and adds_up and not is_masked and not has_own(model, "compute_loss")
    varies = is_masked or getattr(feed, "signature", None) is not None
    weighted = keras_private.weighted_metrics(model) if len(examples) > 2 else []
    not_means = tuple(name for name in names[1:] if varies or not _is_mean(model, name, True, weighted))
    return Trial(
        names, limits, operations, others, [model.optimizer], has_plain_mean=has_plain_mean, not_means=not_means
    )


def _try_own_step(model: keras.Model, feed: Feed, examples: Batch, options: StepOptions) -> Trial:
    """Trace a `train_step` of the model's own, which builds the model and its optimizers; nothing is run."""
    check_options(options, model.distribute_strategy.num_replicas_in_sync)
    optimizers = optimizers_of(model, options.optimizers)
    is_bare = len(examples) == 1 and getattr(feed, "is_bare", not isinstance(examples[0], tuple | list))
    take = own_step(model, is_bare)
    names: list[str] = []

    def once(batch: Batch) -> Any:
        result, _ = take(batch, None)
        names.extend(flat(result.metrics))
        return result.metrics

    tensors = keras.tree.map_structure(tf.convert_to_tensor, feed.first_batch)
    problem = f"The train_step of {type(model).__name__} fails on data of shape {checks.shapes(feed.first_batch)}"
    operations, variables = guarded(problem, _traced, lambda: once(tensors))
    recorded = tuple(checks.checked_name(name) for name in dict.fromkeys(names))
    not_means = tuple(name for name in recorded if not _is_mean(model, name, False))
    others = _others(model, optimizers, variables)
    return Trial(recorded, [], operations, others, optimizers, take, not_means=not_means)


def _is_mean(model: keras.Model, name: str, is_known: bool, weighted: Sequence[keras.metrics.Metric] = ()) -> bool:
    """Return whether a recorded value comes from a mean over examples, in which all count alike.

    Args:
        is_known: whether it comes from a metric in any case.
        weighted: metrics in which examples have weights.
    """
    parts = [part for metric in model.metrics for part in [metric, *getattr(metric, "metrics", [])]]
    same = [m for m in parts if re.fullmatch(rf"(.*_)?{re.escape(m.name)}(_\d+)?", name)]
    is_mean = [isinstance(m, keras.metrics.Mean) and type(m).result is keras.metrics.Mean.result for m in same]
    is_mean += [False for m in same if any(m is other for other in weighted)]
    return all(is_mean) and (bool(is_mean) or not is_known)


def variables_with_state(model: keras.Model) -> list[keras.Variable]:
    """Return the variables that the optimizer has a state for: also of frozen layers, which may be trained later.

    Keras finds the averages of `use_ema` by their place among the variables that are trained, so there it is those.
    """
    has_averages = keras_private.inner(model.optimizer).use_ema
    return model.trainable_variables if has_averages else keras_private.all_trainable(model)


def fixed_batch_size(model: keras.Model) -> int | None:
    """Return the number of examples that a model was made for, as with `batch_shape`; None where any number goes."""
    inputs = keras.tree.flatten(getattr(model, "inputs", None) or [])
    fixed = [tensor.shape[0] for tensor in inputs if tensor.shape and tensor.shape[0] is not None]
    return fixed[0] if fixed else None


def _traced(function: Any) -> tuple[frozenset[str], list[tf.Variable]]:
    """Return the types of all operations of a function's graph, its loops and branches too, and its variables."""
    graph = keras_private.graph_function(function).get_concrete_function().graph
    definition = graph.as_graph_def()
    functions = [node for function in definition.library.function for node in function.node_def]
    # TensorFlow keeps the variables in a set, by address. A checkpoint needs an order that a fresh model has, too.
    order = {id(handle): place for place, handle in enumerate(graph.external_captures)}
    variables = sorted(graph.variables, key=lambda variable: order.get(id(variable.handle), len(order)))
    return frozenset(node.op for node in [*definition.node, *functions]), variables


def _others(
    model: keras.Model, optimizers: Sequence[keras.optimizers.Optimizer], variables: Sequence[tf.Variable]
) -> list[tf.Variable]:
    of_metrics = [variable for metric in model.metrics for variable in metric.variables]  # Reset at each step.
    of_optimizers = [variable for optimizer in optimizers for variable in optimizer.variables]
    known = [variable.value for variable in [*model.variables, *of_metrics, *of_optimizers]]
    of_replicas = [part for each in known for part in model.distribute_strategy.experimental_local_results(each)]
    references = {variable.ref() for variable in [*known, *of_replicas]}
    return [variable for variable in variables if variable.ref() not in references]
