"""A loop for a dataset, and the choice of its feed: resident or stream."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from clr_loop.arguments import checked_types
from clr_loop.data.datasets import AnyDataset, Dataset, StreamedDataset
from clr_loop.loop.batches import Batch
from clr_loop.loop.checks import check_batch_size
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.loop.strategies import is_distributed
from clr_loop.loop.stream import dataset_of_arrays

FeedName = Literal["auto", "resident", "stream"]

_LARGEST_SHARE = 1 / 3
_CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@checked_types
def make_loop(
    model: keras.Model,
    dataset: AnyDataset,
    batch_size: int,
    *,
    seed: int = 0,
    feed: FeedName = "auto",
    class_weight: Mapping[int, float] | None = None,
    options: StepOptions | None = None,
) -> TrainLoop:
    """Make a loop over the training split; both feeds visit the same batches in the same order.

    Args:
        model, batch_size, seed, class_weight, options: see `TrainLoop`.
        dataset: in memory, or streamed.
        feed: see `choose_feed`.

    Raises:
        ValueError: as `choose_feed` and `TrainLoop`.
    """
    check_batch_size(batch_size, dataset.num_examples)
    chosen, why = choose_feed(dataset, feed, model.distribute_strategy)
    common: Any = {"seed": seed, "class_weight": class_weight, "options": options}
    if isinstance(dataset, StreamedDataset):
        streamed = dataset

        def batches(seed: int, epoch: int) -> tf.data.Dataset:
            return streamed.batches(batch_size, seed, epoch)

        loop = TrainLoop.from_dataset(model, batches, dataset.num_examples, **common)
        if loop.batch_size != batch_size:
            raise ValueError(
                f"The dataset {dataset.name} was asked for batches of {batch_size} and gives batches of "
                f"{loop.batch_size}; let its function use the batch_size that it is given."
            )
    elif chosen == "resident":
        inputs, targets, sample_weight = dataset.train
        loop = TrainLoop(model, inputs, targets, sample_weight=sample_weight, batch_size=batch_size, **common)
    else:
        loop = TrainLoop.from_dataset(
            model, dataset_of_arrays(arrays_of(dataset), batch_size, True), dataset.num_examples, **common
        )
    loop.chosen["feed"] = f"{loop.chosen['feed']} ({why})"
    return loop


def choose_feed(
    dataset: AnyDataset, feed: FeedName, strategy: tf.distribute.Strategy
) -> tuple[Literal["resident", "stream"], str]:
    """Choose the feed for a dataset; return it and the reason in words.

    Args:
        feed: "auto" streams what is streamed by nature, and arrays that would take more than a third of the memory of
            the device. All else is resident, which is faster.
        strategy: with several replicas the arrays stay with the host, which deals out windows of batches.

    Raises:
        ValueError: if a streamed dataset is to be resident; if there is no such feed.
    """
    if feed not in ("auto", "resident", "stream"):
        raise ValueError(f"There is no feed {feed!r}; choose auto, resident or stream.")
    if isinstance(dataset, StreamedDataset):
        if feed == "resident":
            raise ValueError(f"feed is resident, but {dataset.name} is read while it is trained on; leave it out.")
        return "stream", "read while it is trained on"
    if feed != "auto":
        return feed, "as asked"
    memory = host_memory_bytes() if is_distributed(strategy) else device_memory_bytes()
    size = sum(np.asarray(leaf).nbytes for leaf in keras.tree.flatten(arrays_of(dataset)))
    is_small = size <= memory * _LARGEST_SHARE
    compared = "at most" if is_small else "more than"
    words = f"arrays of {size / 1e6:,.0f} MB are {compared} a third of {memory / 1e9:,.1f} GB"
    return ("resident" if is_small else "stream"), words


def arrays_of(dataset: Dataset) -> Batch:
    """Return the training split as a batch, without the parts that are not there."""
    return tuple(nest for nest in dataset.train if nest is not None)


def device_memory_bytes() -> int:
    """Return the memory of the first GPU, or else of the host."""
    if not tf.config.list_physical_devices("GPU"):
        return host_memory_bytes()
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0]) * 2**20


def host_memory_bytes() -> int:
    """Return the memory of the machine, or of the container that the process runs in."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, _CONTAINER_LIMITS):
        if path.is_file() and path.read_text().strip().isdecimal():
            limits.append(int(path.read_text()))
    return min(limits)
