"""Measures contenders in turns, each in a process of its own: one computes at a time, and its memory is its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from clr_loop.commands import terminal
from contenders.loops import CONTENDERS, Job

# Some libraries' threads spin on when their work is done, OpenBLAS' for 0.1 s; the next turn begins after that.
_PAUSE_SECONDS = 0.2


@dataclass
class Measurement:
    """What the turns of a contender gave."""

    examples: int
    loss: float | None  # The mean of the first epoch, None for the floor; equal for all that do the same work.
    compile_seconds: float  # The first epoch less a median one: all that happens once.
    epoch_seconds: list[float] = field(default_factory=list)
    recorded_seconds: list[float] = field(default_factory=list)  # With every step written for TensorBoard.
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        """Median seconds of an epoch."""
        return statistics.median(self.epoch_seconds)

    @property
    def recording_share(self) -> float:
        """The share of a recorded epoch that the recording takes: the median over rounds, of two epochs in a row."""
        pairs = zip(self.epoch_seconds, self.recorded_seconds, strict=True)
        return statistics.median(1.0 - plain / recorded for plain, recorded in pairs)


def measure_in_turns(
    jobs: Mapping[str, Job], rounds: int, record: bool, on_round: Callable[[], Any]
) -> dict[str, Measurement]:
    """Run contenders in turns, A B C A B C …, so that a machine that slows down affects all alike.

    An untimed epoch comes before each timed one, because caches and cores that others have used, or that have rested,
    are cold; in a training one epoch follows another. `record` times an epoch with records after each without.
    """
    # A child would inherit the settings of a shell that chose a kernel for another machine.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    measured: dict[str, Measurement] = {}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ask = {name: stack.enter_context(_process(name, job, scratch / name)) for name, job in jobs.items()}
        for name, job in jobs.items():
            seconds, loss = ask[name](False)
            measured[name] = Measurement(job.examples, loss, seconds)
            time.sleep(_PAUSE_SECONDS)
        for _ in range(rounds):
            for name, measurement in measured.items():
                for is_recorded in (False, True) if record else (False,):
                    ask[name](is_recorded)  # Warms up.
                    seconds, _ = ask[name](is_recorded)
                    (measurement.recorded_seconds if is_recorded else measurement.epoch_seconds).append(seconds)
                time.sleep(_PAUSE_SECONDS)
            on_round()
        for name, measurement in measured.items():
            measurement.compile_seconds = max(measurement.compile_seconds - measurement.median, 0.0)
            measurement.peak_bytes = ask[name](None)
    return measured


@contextlib.contextmanager
def _process(name: str, job: Job, log_dir: Path) -> Iterator[Callable[[bool | None], Any]]:
    """Yield a function that asks a contender's process for the seconds and the mean loss of an epoch, recorded or not.

    Asked for None, the process tells the most memory that it ever held, and ends.
    """
    log_dir.mkdir()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(name, job, log_dir, theirs), daemon=True)
    process.start()
    theirs.close()

    def receive() -> Any:
        try:
            return ours.recv()
        except EOFError as error:
            raise ChildProcessError(f"The contender {name} failed; its message is above.") from error

    def ask(record: bool | None) -> Any:
        ours.send(record)
        return receive()

    try:
        receive()  # It is ready.
        yield ask
    finally:
        process.kill()
        process.join()


def _serve(name: str, job: Job, log_dir: Path, connection: Connection) -> None:
    """Train an epoch whenever asked to, in the process itself."""
    tqdm.set_lock(threading.RLock())  # Python would call its own, a semaphore, leaked when this process is killed.
    flags.FLAGS.mark_as_parsed()  # Its parent has read the flags; here they keep their defaults.
    if CONTENDERS[name].on_tensorflow:
        terminal.start_tensorflow()
    run_epoch = CONTENDERS[name].begin(job, log_dir)
    connection.send(None)
    number = 0
    while (record := connection.recv()) is not None:
        began = time.perf_counter()
        metrics = run_epoch(number, record)
        seconds = time.perf_counter() - began
        connection.send((seconds, float(np.mean(metrics["loss"])) if metrics else None))
        number += 1
    # Linux counts in KiB, macOS in bytes.
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
