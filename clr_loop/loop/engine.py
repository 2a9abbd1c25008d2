"""Several devices, several machines, lower precision: TensorFlow's and Keras' own engines, checked before use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import keras
import tensorflow as tf

from clr_loop.loop.layers import has_convolutions, has_dropout
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.streaming import StreamingLoop

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]

# So long may an exchange between workers take; one that died without a trace is noticed then.
_EXCHANGE_SECONDS = 50.0


def split_cpu(num_devices: int) -> None:
    """Splits the CPU into logical devices; to be called before TensorFlow has begun to compute.

    Args:
        num_devices: int, at least 1.

    Raises:
        ValueError: if it is below 1, or TensorFlow has begun.
    """
    if num_devices < 1:
        raise ValueError(f"logical_devices must be at least 1, received {num_devices}; 2 try out two replicas")
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    except RuntimeError as error:
        raise ValueError(
            f"logical_devices must be set before TensorFlow computes, received {num_devices} after it; split the CPU "
            "first"
        ) from error


def make_strategy(name: Literal["none", "mirrored", "multi_worker"]) -> tf.distribute.Strategy | None:
    """Makes the strategy of this name; None where there is one replica, which needs none.

    Args:
        name: "mirrored": a replica on each GPU of this machine, or where there is none on each logical CPU;
            "multi_worker": a worker for each that TF_CONFIG names. `workers.meet` first: it waits for all of them.

    Raises:
        ValueError: for "multi_worker", if TensorFlow has begun to compute.
        ConnectionError: if the workers cannot be joined.
    """
    if name == "multi_worker":
        options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=_EXCHANGE_SECONDS)
        try:
            return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
        except tf.errors.OpError as error:
            raise ConnectionError(
                f"the workers of TF_CONFIG must be able to join, received: {error.message.splitlines()[0]}; start all "
                "of them again"
            ) from error
        except RuntimeError as error:
            raise ValueError(
                f"workers must join before TensorFlow computes, received: {str(error).splitlines()[0]}; let the "
                "dataset's function compute nothing with TensorFlow until it is asked for batches"
            ) from error
    if name == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        if len(devices) > 1:
            return tf.distribute.MirroredStrategy([device.name for device in devices])
    return None


@contextlib.contextmanager
def scope(strategy: tf.distribute.Strategy | None, precision: Precision) -> Iterator[None]:
    """In here a model and its optimizer are made for this strategy and precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        with strategy.scope() if strategy is not None else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_dtype_policy(before)


def scaled(optimizer: keras.optimizers.Optimizer, precision: Precision) -> keras.optimizers.Optimizer:
    """Returns the optimizer as the precision needs it: with a loss scale for float16, whose range is small.

    Args:
        optimizer: made in the same `scope`.
    """
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def describe(
    train_loop: TrainLoop, strategy: tf.distribute.Strategy | None, why_this_feed: str, precision: Precision
) -> str:
    """Returns what was chosen and why, in one line.

    Args:
        train_loop: that was made.
        strategy: it was made with.
        why_this_feed: from `feeding.choose`.
        precision: it was made in the `scope` of.
    """
    feed = "stream" if isinstance(train_loop, StreamingLoop) else "resident"
    replicas = "one replica" if strategy is None else f"{strategy.num_replicas_in_sync} replicas of {_name(strategy)}"
    if train_loop.jit_compile:
        xla = "with XLA"
    elif strategy is not None:
        xla = "without XLA (it cannot compile the exchange between replicas)"
    elif train_loop.device.startswith("CPU") and has_convolutions(train_loop.model):
        xla = "without XLA (slow for convolutions on a CPU)"
    elif train_loop.device.startswith("CPU") and has_dropout(train_loop.model):
        xla = "without XLA (slow for dropout on a CPU)"
    else:
        xla = "without XLA (as asked)"
    return f"{train_loop.device}, {replicas}; feed {feed} ({why_this_feed}); {precision}; {xla}"


def _name(strategy: tf.distribute.Strategy) -> str:
    """The name that users know: TensorFlow makes a MultiWorkerMirroredStrategy of an older class."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return "MultiWorkerMirroredStrategy"
    return type(strategy).__name__
