"""The flags of runs that outgrow one array, one device, one machine; shared by the scripts that train one model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop.data import AnyDataset
from clr_loop.loop import workers
from clr_loop.runs import files as run_files
from shared import model_flags
from shared import terminal as command_line

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from clr_loop.loop.loop import TrainLoop
    from clr_loop.runs.result import EpochRecord

FLAGS = flags.FLAGS

flags.DEFINE_enum(
    "feed",
    "auto",
    ("auto", "resident", "stream"),
    "How batches reach the step: resident (the images lie on the device), stream (through tf.data); auto streams what "
    "would take more than a third of the device's memory.",
)
flags.DEFINE_enum(
    "strategy",
    "none",
    ("none", "mirrored", "multi_worker"),
    "mirrored: all devices of this machine share each batch; multi_worker: all workers that TF_CONFIG names do. "
    "--batch_size is always that of the whole batch.",
)
flags.DEFINE_integer("logical_devices", None, "Splits the CPU into so many devices, to try --strategy=mirrored.")
flags.DEFINE_enum(
    "precision",
    "float32",
    ("float32", "mixed_bfloat16", "mixed_float16"),
    "What layers compute in; variables stay float32, and mixed_float16 scales the loss.",
)
flags.DEFINE_integer("accumulate", 1, "Micro-batches that each batch is taken in, one after another, for one update.")
flags.DEFINE_float("clip_norm", None, "Scales the gradients down to this global norm where theirs is larger.")

_strategy: tf.distribute.Strategy | None = None


def check() -> None:
    """Raises ValueError for flags that cannot go together, before anything is started."""
    if FLAGS.logical_devices is not None and FLAGS.strategy != "mirrored":
        raise ValueError(
            f"--logical_devices must go with --strategy=mirrored, received it with {FLAGS.strategy}; leave it out"
        )
    if FLAGS.strategy != "none" and FLAGS.jit_compile == "true":
        raise ValueError(
            f"--jit_compile must be auto or false with --strategy={FLAGS.strategy}, received true: XLA cannot compile "
            "the exchange between replicas; leave it out"
        )
    if FLAGS.strategy != "none" and FLAGS.feed == "resident":
        raise ValueError(f"--feed must be auto or stream with --strategy={FLAGS.strategy}, received resident")
    if FLAGS.strategy == "multi_worker":
        workers.read_task(os.environ.get("TF_CONFIG"))


def is_chief() -> bool:
    """Returns whether this process is the one that prints and writes."""
    return FLAGS.strategy != "multi_worker" or workers.read_task(os.environ.get("TF_CONFIG")).is_chief


@contextlib.contextmanager
def claim(path: str, kind: str, resume: bool, overwrite: bool) -> Iterator[Path]:
    """As `run_files.claim`; for a worker that is not the chief, a directory of its own, and silence."""
    if is_chief():
        with run_files.claim(path, kind, resume=resume, overwrite=overwrite) as run_dir:
            yield run_dir
    else:
        with (
            workers.private_copy(path, resume) as run_dir,
            run_files.claim(run_dir, kind, resume=True),
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            yield run_dir


def start() -> None:
    """Starts TensorFlow with the devices and the strategy that the flags ask for."""
    global _strategy

    def prepare() -> None:
        global _strategy
        from clr_loop.loop import engine as scaling

        if FLAGS.logical_devices is not None:
            scaling.split_cpu(FLAGS.logical_devices)
        if FLAGS.strategy == "multi_worker":
            workers.meet(workers.read_task(os.environ.get("TF_CONFIG")))
        _strategy = scaling.make_strategy(FLAGS.strategy)

    command_line.start_tensorflow(prepare)


def make_loop(make_model: Callable[[], keras.Model], dataset: AnyDataset, **arguments: Any) -> TrainLoop:
    """Makes the loop that the flags ask for, and prints in a line what was chosen and why."""
    from clr_loop.loop import engine as scaling
    from clr_loop.loop import feeding

    with scaling.scope(_strategy, FLAGS.precision):
        model, optimizer = make_model(), scaling.scaled(model_flags.make_optimizer(), FLAGS.precision)
    train_loop = feeding.make_loop(
        model,
        optimizer,
        dataset,
        feed=FLAGS.feed,
        strategy=_strategy,
        jit_compile=model_flags.jit_compile(),
        clip_norm=FLAGS.clip_norm,
        accumulate=FLAGS.accumulate,
        **arguments,
    )
    _, why = feeding.choose(dataset, FLAGS.feed, _strategy)
    print(f"chosen:  {scaling.describe(train_loop, _strategy, why, FLAGS.precision)}", flush=True)
    return train_loop


def waiting(record: EpochRecord) -> str:
    """Returns the share of the epoch spent in waiting for batches, in words; nothing where there was none."""
    return f", {record.input_wait_share:.0%} of it waiting for input" if record.input_wait_seconds else ""
