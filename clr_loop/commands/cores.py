"""The flags of cores and machines: the threads of a run, and the processes that share the runs of a study."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from clr_loop.commands import terminal
from clr_loop.cores import cores
from clr_loop.runs import files as run_files

FLAGS = flags.FLAGS
T = TypeVar("T")

flags.DEFINE_integer(
    "threads",
    None,
    "Threads that TensorFlow computes with on a CPU. At large batches the last bits of a result depend on them, so "
    "they are kept with it. Not given: as many as before with --resume, else what --parallel says, else one for each "
    "core.",
    lower_bound=1,
    upper_bound=1024,
)

_DASK = "dask://"
# A lost process may be chance; a third one in a row is not.
_MOST_LOST = 3
_CONNECT_SECONDS = 10


def define_parallel() -> None:
    """Define the flags of a command whose runs can go side by side."""
    flags.DEFINE_string(
        "parallel",
        "1",
        "Processes in which runs go side by side: a number, auto (as many as there are cores for, of one thread "
        "each unless --threads says otherwise), or those of a Dask scheduler: dask://host:8786. With a number, the "
        "cores are divided evenly. With equal --threads the results are the same.",
    )
    flags.DEFINE_bool(
        "shared_dir",
        True,
        "Whether the processes of --parallel=dask://… see --output_dir. If not, they send results and CSV files back.",
    )
    flags.register_validator(
        "parallel",
        lambda text: text == "auto" or bool(re.fullmatch(rf"[1-9]\d{{0,3}}|{_DASK}[^/\s]+:\d+", text)),
        message="must be a number such as 4, auto, or dask://host:8786",
    )


def is_parallel() -> bool:
    """Return whether runs go side by side."""
    return "parallel" in FLAGS and FLAGS.parallel != "1"


def use_saved_threads(path: Path) -> None:
    """Unless --threads is given, set it to what a JSON file has as `threads`, if it is there and has it."""
    if FLAGS.threads is None and path.is_file():
        with contextlib.suppress(ValueError):  # What is wrong with the file is said when it is needed.
            threads = run_files.read_json(path).get("threads")
            FLAGS.threads = None if threads is None else FLAGS["threads"].parser.parse(threads)


def use_threads() -> None:
    """Let TensorFlow, which has not begun to compute, do so with --threads, or with the share of a process."""
    from clr_loop.loop import threads

    if FLAGS.threads is None and is_parallel():
        FLAGS.threads = max(1, len(cores()) // int(FLAGS.parallel)) if FLAGS.parallel.isdecimal() else 1
    if FLAGS.threads is not None:
        threads.use_threads(FLAGS.threads)


class Workers:
    """The processes that --parallel asks for. Those of this machine begin when they are needed first.

    In its context a Dask scheduler is connected to, and at its end all is let go.
    """

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._executor: Executor | None = None

    def __enter__(self) -> Workers:
        if FLAGS.parallel.startswith(_DASK):
            self._executor = self._dask()
        elif not FLAGS.shared_dir:
            raise ValueError("--noshared_dir is for --parallel=dask://…; processes of this machine see --output_dir.")
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def run(self, study: Callable[[Executor | None, bool], T], resume: bool) -> T:
        """Return what a study gives, which is called with an executor or None, and with whether to resume.

        A process of this machine that is lost takes the pool with it. The study then goes on in a new one.
        """
        from clr_loop.studies.tasks import WorkersLostError

        num_lost = 0
        while True:
            try:
                return study(self._executor_now(), resume)
            except WorkersLostError as error:
                num_lost = 1 if error.num_done else num_lost + 1
                if not isinstance(error.__cause__, BrokenExecutor) or num_lost == _MOST_LOST:
                    raise
                terminal.note("a process died, killed or out of memory; its run is done again")
                self._open.close()
                self._executor, resume = None, True

    def _executor_now(self) -> Executor | None:
        if self._executor is None and is_parallel():
            from clr_loop.studies.pool import pool

            number, threads = self.num_processes, FLAGS.threads
            terminal.note(f"{number} process{'es' * (number > 1)}, {threads} thread{'s' * (threads > 1)} each")
            self._executor = self._open.enter_context(pool(number, threads))
        return self._executor

    @property
    def num_processes(self) -> int:
        """How many processes of this machine run runs, this one alone among them; with Dask that is not known: 1."""
        if FLAGS.parallel == "auto":
            return max(1, len(cores()) // FLAGS.threads)
        return int(FLAGS.parallel) if FLAGS.parallel.isdecimal() else 1

    def _dask(self) -> Executor:
        try:
            from distributed import Client
        except ImportError as error:
            raise ValueError(f"--parallel={FLAGS.parallel} needs Dask; install clr_loop[dask].") from error
        for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
            getLogger(name).setLevel(CRITICAL)  # What a user must know is raised.
        address = FLAGS.parallel.removeprefix(_DASK)
        try:
            client = self._open.enter_context(Client(f"tcp://{address}", timeout=_CONNECT_SECONDS))
        except OSError as error:
            raise ConnectionError(
                f"No Dask scheduler answers at {address}; start one there (dask scheduler), or correct --parallel."
            ) from error
        if not client.scheduler_info()["workers"]:
            worker = f"TF_ENABLE_ONEDNN_OPTS=1 dask worker {address} --nthreads=1"
            terminal.note(f"the scheduler at {address} has no workers yet, and runs wait for one; {worker} adds one")
        return client.get_executor(pure=False)
