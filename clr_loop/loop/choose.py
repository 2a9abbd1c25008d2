"""What a step runs on, and why, in words: the device, XLA or the plain graph, whole batches or halves."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

import keras
import tensorflow as tf

from clr_loop.loop import checks, keras_private
from clr_loop.loop.batches import num_examples_of
from clr_loop.loop.feeds import Feed, Resident
from clr_loop.loop.options import StepOptions
from clr_loop.loop.strategies import describe_replicas
from clr_loop.loop.transforms import halves
from clr_loop.loop.trial import Trial

_CONVOLUTIONS = {"Conv2D", "Conv3D", "Conv2DBackpropInput", "Conv3DBackpropInputV2", "DepthwiseConv2dNative"}
# The least batch that is computed in halves. At 100 halves are 2% to 5% slower than a whole batch, at 400 18% faster.
_SMALLEST_TO_HALVE = 256


class Choice(NamedTuple):
    """What a loop runs on.

    Attributes:
        device: for example `CPU:0`.
        jit_compile: whether the step is an XLA program.
        halves: whether each batch is computed in two halves.
        words: what was decided, with the reason, by subject.
        not_resumable: Why no checkpoint can hold all of the training's state, in words, or None.
    """

    device: str
    jit_compile: bool
    halves: bool
    words: dict[str, str]
    not_resumable: str | None = None


def choose(model: keras.Model, trial: Trial, feed: Feed, options: StepOptions) -> Choice:
    """Choose what a model's steps run on. Raises ValueError for an option that the model or the device rules out."""
    where = device()
    jit_compile, xla = choose_xla(model, trial, feed, options.jit_compile, where)
    in_halves = jit_compile and where.startswith("CPU") and _may_halve(model, feed, options)
    words = {
        "device": where,
        "replicas": describe_replicas(model.distribute_strategy),
        "feed": "resident" if isinstance(feed, Resident) else "stream",
        "precision": model.dtype_policy.name,
        "xla": f"{xla}, batches in two halves" if in_halves else xla,
        "oneDNN": "on" if keras_private.has_onednn() else "off (TF_ENABLE_ONEDNN_OPTS=1 asks for it)",
    }
    if jit_compile and _computes_ids(model, trial):
        words["ids"] = "not checked, as the model computes those of its Embedding, and XLA takes any"
    not_resumable = trial.not_resumable or getattr(feed, "not_repeated", None)
    if not_resumable is not None:
        words["resuming"] = f"not exact ({not_resumable})"
    return Choice(where, jit_compile, in_halves, words, not_resumable)


def _computes_ids(model: keras.Model, trial: Trial) -> bool:
    """Return whether there is an Embedding, and no input is known to be its ids."""
    has_rows = any(isinstance(layer, keras.layers.Embedding) for layer in keras_private.layers_of(model))
    return has_rows and not any(limit is not None and limit.of_inputs for limit in trial.limits)


def device() -> str:
    """Return the device that TensorFlow computes on, for example `CPU:0`."""
    return tf.zeros(()).device.rpartition("device:")[2]


def choose_xla(
    model: keras.Model, trial: Trial, feed: Feed, wish: bool | Literal["auto"], device_name: str
) -> tuple[bool, str]:
    """Decide whether a step is compiled with XLA.

    "auto" uses XLA except with several replicas, for a `train_step` of the model's own, for strings, for shapes that
    vary, where a layer says that it does not support it, and on a CPU for convolutions (100 times slower there) and
    random numbers such as dropout's (50 times slower). These are found in the graph of the forward pass, so they are
    found inside any layer. XLA leaves assertions out, so a model that has some is left to the plain graph, too.

    Returns:
        The decision, and the reason in words.

    Raises:
        ValueError: if XLA is asked for with several replicas, for strings, or on a CPU for a model with convolutions.
    """
    num_replicas = model.distribute_strategy.num_replicas_in_sync
    if num_replicas > 1 and wish is True:
        raise ValueError(
            f"jit_compile is True with {num_replicas} replicas, but XLA cannot compile the exchange between them; "
            "leave it out."
        )
    on_cpu = device_name.startswith("CPU")
    is_convolutional = bool(trial.operations & _CONVOLUTIONS)
    if on_cpu and is_convolutional and wish is True:
        raise ValueError(
            "jit_compile is True for a model with convolutions on a CPU, where XLA is a hundred times slower; "
            "leave it out."
        )
    is_text = checks.has_text(feed.first_batch)
    if is_text and wish is True:
        raise ValueError("jit_compile is True for inputs that are strings, which XLA does not know; leave it out.")
    if wish is True:
        return True, "with XLA (as asked)"
    unable = [layer.name for layer in keras_private.layers_of(model) if not layer.supports_jit]
    draws = any("Random" in name for name in trial.operations)
    reasons = {
        "as asked": wish is False,
        "it cannot compile the exchange between replicas": num_replicas > 1,
        "the model has a train_step of its own": trial.own_step is not None,
        "batches vary in shape, and it would compile each shape; batches of one shape, declared in the dataset's "
        "element_spec, are faster": getattr(feed, "signature", None) is not None,
        "it does not know strings": is_text,
        "slow for convolutions on a CPU": on_cpu and is_convolutional,
        f"layer {(unable or [''])[0]} does not support it": bool(unable),
        "slow for random numbers, such as dropout's, on a CPU": on_cpu and draws,
        "it leaves out the assertions in the model": "Assert" in trial.operations,
    }
    reason = next((words for words, holds in reasons.items() if holds), None)
    return (True, "with XLA") if reason is None else (False, f"without XLA ({reason})")


def check_cache(error: Exception) -> None:
    """Raise OSError if it is not XLA that refuses a model, but its cache of programs that fails."""
    refusals = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)
    is_cached = "persistent_cache" in os.environ.get("TF_XLA_FLAGS", "")
    if is_cached and isinstance(error, tf.errors.OpError) and not isinstance(error, refusals):
        raise OSError(
            f"XLA's cache of programs failed ({error.message.splitlines()[0]}); free its disk, or remove it from "
            "TF_XLA_FLAGS."
        ) from error


def _may_halve(model: keras.Model, feed: Feed, options: StepOptions) -> bool:
    batch_size = int(num_examples_of(feed.first_batch))
    is_large = batch_size >= _SMALLEST_TO_HALVE and feed.num_examples % batch_size != 1
    return options.halve_batches and options.accumulate == 1 and is_large and halves.add_up(model)
