"""Which of the two feeds a run takes, resident or stream, and the loop that goes with it."""

from __future__ import annotations

import os
from typing import Any, Literal

import keras
import tensorflow as tf
from tensorflow.python.client import device_lib

from clr_loop.data import AnyDataset, Dataset, StreamedDataset
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.streaming import from_arrays

Feed = Literal["auto", "resident", "stream"]

_LARGEST_SHARE = 1 / 3


def make_loop(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    dataset: AnyDataset,
    batch_size: int,
    seed: int = 0,
    feed: Feed = "auto",
    strategy: tf.distribute.Strategy | None = None,
    **arguments: Any,
) -> TrainLoop:
    """Makes a loop over the training split; both feeds visit the same batches in the same order.

    Args:
        dataset: in memory or streamed.
        feed, strategy: see `choose`; model and optimizer made in the scope of the strategy.
        model, optimizer, batch_size, seed, **arguments: see `TrainLoop`.

    Raises:
        ValueError: as `choose` and `TrainLoop`.
    """
    chosen, _ = choose(dataset, feed, strategy)
    if chosen == "resident":
        assert isinstance(dataset, Dataset)
        return TrainLoop(model, optimizer, *dataset.train, batch_size=batch_size, seed=seed, **arguments)
    if isinstance(dataset, Dataset):
        batches = from_arrays(*dataset.train, batch_size)
    else:
        streamed = dataset

        def batches(seed: int, epoch: int) -> tf.data.Dataset:
            return streamed.batches(batch_size, seed, epoch)

    return TrainLoop.from_dataset(
        model, optimizer, batches, dataset.num_examples, seed=seed, strategy=strategy, **arguments
    )


def choose(
    dataset: AnyDataset,
    feed: Feed = "auto",
    strategy: tf.distribute.Strategy | None = None,
    memory_bytes: int | None = None,
) -> tuple[Literal["resident", "stream"], str]:
    """Returns the feed for a dataset and the reason, in words.

    Args:
        feed: "auto" streams what is streamed by nature, and images that would take more than a third of the memory of
            the device; the rest is resident, which is faster.
        strategy: with one, everything is streamed, because tf.distribute deals out batches and not arrays.
        memory_bytes: of the device; None asks for it.

    Raises:
        ValueError: if a streamed dataset, or one for several replicas, is to be resident.
    """
    if strategy is not None and feed == "resident":
        raise ValueError(
            f"feed must be auto or stream with a strategy, received resident with {type(strategy).__name__}; "
            "leave it out"
        )
    if isinstance(dataset, StreamedDataset):
        if feed == "resident":
            raise ValueError(
                f"feed must be auto or stream for {dataset.name}, which is read as it is trained on, received resident"
            )
        return "stream", "read as it is trained on"
    if feed != "auto":
        return feed, "as asked"
    if strategy is not None:
        return "stream", "several replicas share each batch"
    memory = device_memory_bytes() if memory_bytes is None else memory_bytes
    images = dataset.train.images.nbytes
    is_small = images <= memory * _LARGEST_SHARE
    compared = "at most" if is_small else "more than"
    words = f"images of {images / 1e6:,.0f} MB are {compared} a third of {memory / 1e9:,.1f} GB"
    return ("resident" if is_small else "stream"), words


def device_memory_bytes() -> int:
    """Returns the memory of the device that TensorFlow computes on: of the first GPU, or else of the machine."""
    gpus = [device.memory_limit for device in device_lib.list_local_devices() if device.device_type == "GPU"]
    return gpus[0] if gpus else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
