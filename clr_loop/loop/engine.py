"""What a step runs on: device, XLA or the plain graph, precision, strategy; chosen, with the reason in words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
import tensorflow as tf
from tensorflow.python.util import _pywrap_util_port

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"clr_loop trains with TensorFlow, but Keras runs on {keras.backend.backend()} here; set "
        "KERAS_BACKEND=tensorflow in the environment before Keras is imported."
    )

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]

_CONVOLUTIONS = {"Conv2D", "Conv3D", "Conv2DBackpropInput", "Conv3DBackpropInputV2", "DepthwiseConv2dNative"}


# What an exchange between workers ends with when one of them is gone.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.CancelledError)


def device() -> str:
    """Return the device that TensorFlow computes on, for example `CPU:0`."""
    return tf.zeros(()).device.rpartition("device:")[2]


def has_onednn() -> bool:
    """Return whether TensorFlow computes with oneDNN's kernels, which round otherwise than its own.

    TensorFlow decides it once for a process: by TF_ENABLE_ONEDNN_OPTS, or else by the processor. It has no public name
    for what it decided.
    """
    return bool(_pywrap_util_port.IsMklEnabled())


def graph_function(function: Callable[..., Any], jit_compile: bool | None = None) -> Any:
    """Return a `tf.function`, without AutoGraph and without a warning when a process makes many loops.

    Each loop traces its own functions once. TensorFlow counts the traces of all loops together, for it knows functions
    by their line, and advises against what it takes for retracing. It has no public way to say so.
    """
    made = tf.function(function, jit_compile=jit_compile, autograph=False)
    made._omit_frequent_tracing_warning = True
    return made


def choose_xla(
    model: keras.Model, wish: bool | Literal["auto"], forward: Callable[[], Any], device_name: str
) -> tuple[bool, str]:
    """Decide whether a step is compiled with XLA.

    "auto" uses XLA except with several replicas, where a layer says that it does not support it, and on a CPU for
    convolutions (100 times slower there) and random numbers such as dropout's (50 times slower). These are found in the
    graph of the forward pass, so they are found inside any layer.

    Args:
        model: a built model.
        wish: the option.
        forward: runs the model on some inputs in training mode; it is traced, not run.
        device_name: from `device`.

    Returns:
        The decision, and the reason in words.

    Raises:
        ValueError: if XLA is asked for with several replicas, or on a CPU for a model with convolutions.
    """
    num_replicas = model.distribute_strategy.num_replicas_in_sync
    if num_replicas > 1:
        if wish is True:
            raise ValueError(
                f"jit_compile is True with {num_replicas} replicas, but XLA cannot compile the exchange between them; "
                "leave it out."
            )
        return False, "without XLA (it cannot compile the exchange between replicas)"
    if wish is False:
        return False, "without XLA (as asked)"
    unable = [layer.name for layer in model._flatten_layers() if not layer.supports_jit]
    operations = _operations(forward)
    on_cpu = device_name.startswith("CPU")
    if on_cpu and operations & _CONVOLUTIONS:
        if wish is True:
            raise ValueError(
                "jit_compile is True for a model with convolutions on a CPU, where XLA is a hundred times slower; "
                "leave it out."
            )
        return False, "without XLA (slow for convolutions on a CPU)"
    if wish is True:
        return True, "with XLA (as asked)"
    if unable:
        return False, f"without XLA (layer {unable[0]} does not support it)"
    if on_cpu and any("Random" in name for name in operations):
        return False, "without XLA (slow for random numbers, such as dropout's, on a CPU)"
    return True, "with XLA"


def check_cache(error: Exception) -> None:
    """Raise OSError if it is not XLA that refuses a model, but its cache of programs that fails."""
    refusals = (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)
    is_cached = "persistent_cache" in os.environ.get("TF_XLA_FLAGS", "")
    if is_cached and isinstance(error, tf.errors.OpError) and not isinstance(error, refusals):
        raise OSError(
            f"XLA's cache of programs failed ({error.message.splitlines()[0]}); free its disk, or go without it "
            "(--noxla_cache for scripts; else remove it from TF_XLA_FLAGS)."
        ) from error


def _operations(forward: Callable[[], Any]) -> set[str]:
    """Return the types of all operations in a function's graph, those of its loops and branches included."""
    graph = graph_function(forward).get_concrete_function().graph.as_graph_def()
    functions = [node for function in graph.library.function for node in function.node_def]
    return {node.op for node in [*graph.node, *functions]}


def split_cpu(num_devices: int) -> None:
    """Split the CPU into logical devices, before TensorFlow has begun to compute.

    Args:
        num_devices: int, at least 1.

    Raises:
        ValueError: if it is below 1, or TensorFlow has begun.
    """
    if num_devices < 1:
        raise ValueError(f"logical_devices is {num_devices}; it must be at least 1, and 2 try out two replicas.")
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    except RuntimeError as error:
        raise ValueError(
            f"The CPU cannot be split into {num_devices} logical devices any more, because TensorFlow has computed "
            "already; split it first."
        ) from error


def make_strategy(name: Literal["none", "mirrored", "multi_worker"]) -> tf.distribute.Strategy | None:
    """Make the strategy of this name; None where there is one replica, which needs none.

    Args:
        name: "mirrored" puts a replica on each GPU of this machine, or on each logical CPU where there is no GPU.
            "multi_worker" makes a worker of each process that TF_CONFIG names. Call `workers.meet` first, which waits
            for all of them.

    Raises:
        ValueError: if the name is another one; for "multi_worker", if TensorFlow has begun to compute.
        ConnectionError: if the workers cannot join.
    """
    if name == "multi_worker":
        try:
            # Without a time-out of its own: TensorFlow 2.21 keeps a sleeping thread for every exchange until its
            # time-out has passed, thousands of them after some epochs. A dead worker is noticed by its peers' health
            # check.
            return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise ConnectionError(
                f"The workers of TF_CONFIG could not join ({error.message.splitlines()[0]}); start all of them again."
            ) from error
        except RuntimeError as error:
            raise ValueError(
                f"The workers must join before TensorFlow computes anything ({str(error).splitlines()[0]}); let the "
                "dataset's function compute nothing until it is asked for batches."
            ) from error
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices]) if len(devices) > 1 else None
    if name != "none":
        raise ValueError(f"There is no strategy {name!r}; choose none, mirrored or multi_worker.")
    return None


@contextlib.contextmanager
def scope(strategy: tf.distribute.Strategy | None, precision: Precision) -> Iterator[None]:
    """Make a model and its optimizer for this strategy and precision inside this context."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_dtype_policy(before)


def describe_replicas(strategy: tf.distribute.Strategy) -> str:
    """Return the number of replicas in words, with the name of the strategy that users know."""
    if not is_distributed(strategy):
        return "one replica"
    name = type(strategy).__name__
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):  # TensorFlow makes it of an older class.
        name = "MultiWorkerMirroredStrategy"
    return f"{strategy.num_replicas_in_sync} replicas of {name}"


def is_distributed(strategy: tf.distribute.Strategy) -> bool:
    """Return whether batches are dealt out: to several replicas, or to workers, of which there may be one."""
    return strategy.num_replicas_in_sync > 1 or strategy.cluster_resolver is not None


def num_workers(strategy: tf.distribute.Strategy) -> int:
    """Return the number of processes that share the training."""
    resolver = strategy.cluster_resolver
    return len(resolver.cluster_spec().as_dict().get("worker", [])) if resolver is not None else 1


@contextlib.contextmanager
def noticing_lost_workers(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Turn what TensorFlow raises inside this context when a worker has gone into a ConnectionError.

    TensorFlow notices a process that has ended at the next exchange with it, and one that does not answer after some
    ten seconds without a heartbeat.
    """
    try:
        yield
    except LOST as error:
        if num_workers(strategy) == 1:
            raise
        raise ConnectionError(
            "A worker has gone, and the others cannot go on without it; see what ended it, and start all of them again "
            "with --resume."
        ) from error


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Raise ValueError for a strategy whose workers do not wait for each other."""
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "The model was made for ParameterServerStrategy, whose workers do not wait for each other. This loop sums "
            "the gradients of every step over all replicas: use MultiWorkerMirroredStrategy."
        )
