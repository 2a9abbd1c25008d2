"""What all scripts share: one-line errors, signals, the progress bar, closing lines, and how TensorFlow is started.

Nothing here imports TensorFlow before `start_tensorflow`, so `--help` and a wrong flag answer at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from logging import Formatter
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags, logging
from tqdm import tqdm

from clr_loop.runs import files as run_files

if TYPE_CHECKING:
    from clr_loop.loop.loop import Metrics

FLAGS = flags.FLAGS

flags.DEFINE_integer("epochs", 15, "How often to visit the training set.")
flags.DEFINE_bool("overwrite", False, "Remove what an earlier run of this script has left where this one writes.")


def run(main: Callable[[], int | None]) -> None:
    """Runs a script's main: a user's mistake becomes one line on stderr and exit code 2; --verbosity=1 shows where."""

    def guarded(argv: list[str]) -> int:
        if len(argv) > 1:
            return _fail(f"arguments must be flags, received {argv[1]!r}; write it as --name=value")
        return _guard(main)

    app.run(guarded, flags_parser=_parse_flags)


def run_child(work: Callable[[], None]) -> NoReturn:
    """Does a part of a script's work in a process that the script has spawned, under the same flags and rules."""
    FLAGS(sys.argv)
    sys.exit(_guard(work))


def _guard(main: Callable[[], int | None]) -> int:
    """Calls it, and returns an exit code."""
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(Formatter("%(levelname)s: %(message)s"))
    # The description of a schedule, printed before it is used, says this already, with the value to use instead.
    warnings.filterwarnings("ignore", message=".* holds its last rate", category=UserWarning)
    try:
        return main() or 0
    except KeyboardInterrupt:
        goes_on = f"; {resume_line()}" if "resume" in FLAGS else ""
        return _fail(f"interrupted; what was written until then is kept{goes_on}", code=130)
    except (ValueError, OSError, ArithmeticError) as error:
        logging.debug("Where it was raised:", exc_info=True)
        return _fail(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return FLAGS(arguments)
    except flags.Error as error:
        sys.exit(_fail(f"{' '.join(str(error).split())}; --help lists the flags"))


def _fail(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def run_length(num_examples: int, batch_size: int) -> tuple[int, int]:
    """Returns steps_per_epoch and total_steps of a run of --epochs, before a loop is there to ask."""
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size must be from 1 to the {num_examples} training examples, received {batch_size}; choose one in "
            "this range"
        )
    if FLAGS.epochs < 1:
        raise ValueError(f"epochs must be at least 1, received {FLAGS.epochs}; give the number of visits to the data")
    steps_per_epoch = -(-num_examples // batch_size)  # The last batch of an epoch may be short.
    return steps_per_epoch, FLAGS.epochs * steps_per_epoch


def start_tensorflow(prepare: Callable[[], None] = lambda: None) -> None:
    """Imports TensorFlow without its start-up messages; lets a GPU take memory as needed and compute repeatably.

    `prepare` is called when nothing has been computed yet, for what must be set by then.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_stderr():
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if gpus:
            tf.config.experimental.enable_op_determinism()
        prepare()
        tf.config.list_logical_devices()
    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discards stderr, that of C++ too, which logs before it can be asked not to; --verbosity=1 keeps it."""
    if FLAGS.verbosity > 0:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def where(directory: Path) -> str:
    """Returns the closing lines: where the results are, and how to see them in TensorBoard with every step in it."""
    # TensorBoard draws a random 1,000 points of a longer series unless told otherwise; 0, once "all", now means none.
    look = [_as_typed("tensorboard"), "--logdir", str(directory), "--samples_per_plugin", "scalars=1000000000"]
    return f"results: {directory}\nlook:    {shlex.join(look)}"


class SignalWatch:
    """Notes the first SIGINT or SIGTERM, so that a run can end between two steps; a second one ends it at once.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.watch()

    def watch(self) -> None:
        """Begins to watch; once more where another has taken the signals since, as TensorFlow does among workers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)
        print("stopping after this block of steps; once more stops at once", file=sys.stderr, flush=True)


def given_flags(not_of_run: Collection[str]) -> list[str]:
    """Returns the script's flags that were given, as arguments, but for those that say nothing of what the run is."""
    return [flag.serialize() for flag in _flags_of_run(not_of_run) if flag.present]


def use_saved_flags(run_dir: str, not_of_run: Collection[str]) -> None:
    """Sets the script's flags to those that a run was begun with, as `given_flags` returned them."""
    config = Path(run_dir) / run_files.CONFIG
    if config.exists():
        for flag in _flags_of_run(not_of_run):
            flag.unparse()
        command = run_files.read_json(config).get("command")
        if not isinstance(command, list):
            raise ValueError(f"{config} must hold the command that began the run, received none; repeat its flags")
        FLAGS([sys.argv[0], *command])


def _flags_of_run(not_of_run: Collection[str]) -> list[flags.Flag]:
    return [flag for flag in FLAGS.get_key_flags_for_module(sys.argv[0]) if flag.name not in not_of_run]


def resume_line() -> str:
    """Returns the command that goes on with this run."""
    kept = [argument for argument in sys.argv if argument not in ("--resume", "--overwrite")]
    return f"resume:  {shlex.join([_as_typed('python'), *kept, '--resume'])}"


def _as_typed(program: str) -> str:
    """How to call a program of this Python's environment from here: by its name if that finds it, else by its path."""
    own = Path(sys.executable).with_name(program)
    found = shutil.which(program)
    return program if found and Path(found).samefile(own) else os.path.relpath(own)


class ProgressBar:
    """A tqdm bar with the current rate, loss and accuracy; silent when stderr is not a terminal."""

    def __init__(self) -> None:
        self._bar: tqdm = tqdm(disable=True)

    def start(self, total_steps: int, description: str = "") -> None:
        """Starts a bar for a run."""
        self._bar = tqdm(
            total=total_steps, desc=description, unit="step", disable=None, leave=False, dynamic_ncols=True
        )

    def block(self, steps_done: int, metrics: Metrics) -> None:
        """Moves the bar on."""
        last = {name: f"{values[-1]:.4g}" for name, values in metrics.items() if len(values)}
        self._bar.set_postfix(last, refresh=False)
        self._bar.update(steps_done - self._bar.n)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line)
        sys.stdout.flush()

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()
