"""One device or several: strategies, how replicas and workers share the work, and workers that are lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from clr_loop.arguments import spelled
from clr_loop.loop import keras_private

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"clr_loop trains with TensorFlow, but Keras runs on {keras.backend.backend()} here; set "
        "KERAS_BACKEND=tensorflow in the environment before Keras is imported."
    )

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16"]

# What an exchange between workers ends with when one of them is gone.
LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError, tf.errors.CancelledError)


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
    """Return whether batches are split among replicas, or among workers, of which there may be one."""
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
            f"with {spelled(resume=True)}."
        ) from error


def sums_over_workers(strategy: tf.distribute.Strategy) -> Callable[..., list[int]]:
    """Return a function that adds up the whole numbers which the workers call it with, each by its place.

    All must call it at the same point of the training. With several replicas in a worker its numbers count once for
    each.
    """
    if num_workers(strategy) == 1:
        return lambda *numbers: list(numbers)

    def add(here: tf.Tensor) -> tf.Tensor:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(here))

    added = keras_private.graph_function(lambda here: strategy.run(add, (here,)))

    def sums(*numbers: int) -> list[int]:
        with noticing_lost_workers(strategy):
            here = added(tf.constant(numbers, tf.int64))
            return [int(number) for number in strategy.experimental_local_results(here)[0]]

    return sums


def check_together(sums: Callable[..., list[int]], position: int) -> None:
    """Raise ValueError if the workers do not all stand at the same batch, as when one cannot read a checkpoint."""
    if _differing(sums, [position]):
        raise ValueError(
            f"This worker stands at batch {position}, and others elsewhere; give all of them a run directory that they "
            "can read."
        )


def check_alike(sums: Callable[..., list[int]], facts: Mapping[str, Any]) -> None:
    """Raise ValueError in all workers, which names the difference, if they do not all have these facts.

    Args:
        sums: from `sums_over_workers`.
        facts: JSON types by name.
    """
    names = sorted(facts)
    if _differing(sums, [_hashed(names)]):
        raise ValueError("The workers have settings of different names; start all of them from the same code.")
    differing = _differing(sums, [_hashed(facts[name]) for name in names])
    if differing:
        listed = ", ".join(f"{names[i]} (here {str(facts[names[i]])[:80]})" for i in differing)
        raise ValueError(f"The workers do not train the same run; they differ in {listed}. Start all of them alike.")


def _differing(sums: Callable[..., list[int]], numbers: Sequence[int]) -> list[int]:
    """Return the places of those numbers that are not the same in all workers."""
    num_replicas, *totals = sums(1, *numbers, *(number**2 for number in numbers))
    pairs = zip(totals[: len(numbers)], totals[len(numbers) :], strict=True)
    # By Cauchy-Schwarz they are equal only if all numbers are.
    return [i for i, (total, of_squares) in enumerate(pairs) if num_replicas * of_squares != total**2]


def _hashed(fact: Any) -> int:
    """Return 28 bits of a digest, whose squares can be added up over many replicas."""
    return int(hashlib.sha256(json.dumps(fact, sort_keys=True).encode()).hexdigest()[:7], 16)


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Raise ValueError for a strategy whose workers do not wait for each other."""
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ValueError(
            "The model was made for ParameterServerStrategy, whose workers do not wait for each other. This loop sums "
            "the gradients of every step over all replicas: use MultiWorkerMirroredStrategy."
        )


def run_on_replicas(strategy: tf.distribute.Strategy, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in each replica, with its share of those arguments that were split by `share_out`."""
    if strategy.num_replicas_in_sync == 1:
        return function(*arguments)
    return strategy.run(function, args=arguments)


def share_out(nest: Any, strategy: tf.distribute.Strategy, axis: int) -> Any:
    """Give each replica its share of the examples, which lie along an axis.

    The shares are even, and none is empty while there is an example for each replica.
    """
    num_replicas = strategy.num_replicas_in_sync

    def share(context: tf.distribute.experimental.ValueContext) -> Any:
        def cut(x: tf.Tensor) -> tf.Tensor:
            size, replica = int(x.shape[axis]), context.replica_id_in_sync_group
            begin, end = size * replica // num_replicas, size * (replica + 1) // num_replicas
            with tf.device("CPU"):
                part = x[begin:end] if axis == 0 else x[:, begin:end]
            with tf.device(strategy.extended.worker_devices[replica % len(strategy.extended.worker_devices)]):
                return tf.identity(part)

        return keras.tree.map_structure(cut, nest)

    return strategy.experimental_distribute_values_from_function(share)
