"""The flags of what the loop runs on: its feed, its devices and workers, its precision."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from clr_loop.commands import cores, model_flags, output_flags, terminal
from clr_loop.data import AnyDataset
from clr_loop.loop import workers
from clr_loop.runs import files as run_files

if TYPE_CHECKING:
    import tensorflow as tf

    from clr_loop.loop.loop import TrainLoop

FLAGS = flags.FLAGS

flags.DEFINE_enum(
    "feed",
    "auto",
    ("auto", "resident", "stream"),
    "resident: the arrays lie on the device; stream: batches come through tf.data; auto streams what would take more "
    "than a third of the device's memory.",
)
flags.DEFINE_enum(
    "strategy",
    "none",
    ("none", "mirrored", "multi_worker"),
    "mirrored: all devices of this machine share each batch; multi_worker: all workers that TF_CONFIG names do. "
    "--batch_size is always that of the whole batch.",
)
flags.DEFINE_integer("logical_devices", None, "Split the CPU into so many devices, to try --strategy=mirrored.")
flags.DEFINE_enum(
    "precision",
    "float32",
    ("float32", "mixed_bfloat16", "mixed_float16"),
    "What layers compute in. Variables stay float32, and mixed_float16 scales the loss.",
)
flags.declare_key_flag("threads")

# Where a worker finds and writes things, and how much it says.
_OF_EACH_WORKER = (
    "run_dir",
    "data_dir",
    "verbosity",
    "v",
    "stderrthreshold",
    "log_dir",
    "logtostderr",
    "alsologtostderr",
)


def check() -> None:
    """Raise ValueError for flags that are out of range or cannot go together, before anything is started."""
    options = model_flags.step_options()
    if FLAGS.logical_devices is not None and FLAGS.strategy != "mirrored":
        raise ValueError(f"--logical_devices is of use with --strategy=mirrored only, and that is {FLAGS.strategy}.")
    if FLAGS.strategy != "none" and options.jit_compile is True:
        raise ValueError("--jit_compile=true cannot go with --strategy: XLA cannot compile the exchange of replicas.")
    if FLAGS.strategy != "none" and FLAGS.feed == "resident":
        raise ValueError("--feed=resident cannot go with --strategy: replicas share batches and not arrays.")
    if FLAGS.strategy == "multi_worker":
        workers.read_task(os.environ.get("TF_CONFIG"))


@contextlib.contextmanager
def claim(path: str, resume: bool) -> Iterator[Path]:
    """Hold a run directory; a worker that is not the chief gets one of its own, and prints nothing."""
    if FLAGS.strategy != "multi_worker" or workers.read_task(os.environ.get("TF_CONFIG")).is_chief:
        with output_flags.claim(path, "run", resume) as run_dir:
            yield run_dir
        return
    with (
        workers.private_copy(path, resume) as run_dir,
        run_files.claim(run_dir, resume=True),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield run_dir


def start() -> tf.distribute.Strategy | None:
    """Start TensorFlow with the devices that the flags ask for, meet the other workers, and make the strategy."""
    made: list[tf.distribute.Strategy | None] = []

    def prepare() -> None:
        from clr_loop.loop import strategies

        cores.use_threads()
        if FLAGS.logical_devices is not None:
            strategies.split_cpu(FLAGS.logical_devices)
        if FLAGS.strategy == "multi_worker":
            workers.meet(workers.read_task(os.environ.get("TF_CONFIG")), _facts())
        made.append(strategies.make_strategy(FLAGS.strategy))

    terminal.start_tensorflow(prepare)
    return made[0]


def _facts() -> dict[str, str]:
    """Return what all workers must be started with: the versions, and the flags, of paths the last part alone."""
    packages = ("tensorflow", "keras", "numpy", "clr_loop")
    versions = {f"the version of {name}": importlib.metadata.version(name) for name in packages}
    names = [name for name in FLAGS if name not in _OF_EACH_WORKER]
    return {**versions, **{f"--{name}": str(FLAGS[name].value).rpartition("/")[2] for name in names}}


def make_loop(dataset: AnyDataset, strategy: tf.distribute.Strategy | None, seed: int = 0) -> TrainLoop:
    """Make the loop that the flags ask for, and print in a line what was chosen and why."""
    from clr_loop.loop import make_loop, strategies

    with strategies.scope(strategy, FLAGS.precision):
        model = model_flags.make_model(dataset, seed)
    options = model_flags.step_options()
    loop = make_loop.make_loop(model, dataset, FLAGS.batch_size, seed=seed, feed=FLAGS.feed, options=options)
    words = [text if name in ("replicas", "xla") else f"{name} {text}" for name, text in loop.chosen.items()]
    terminal.note(f"chosen:  {', '.join(words)}")
    return loop
