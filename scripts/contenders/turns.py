"""Measures contenders in turns, each in a process of its own: one computes at a time, and its memory is its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from clr_loop.commands import terminal
from contenders.loops import CONTENDERS, Job

# Some libraries' threads spin on when their work is done, OpenBLAS' for 0.1 s; the next turn begins after that.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Measurement:
    """What the turns of a contender gave."""

    compile_seconds: float  # The first epoch less a median one: all that happens once.
    epoch_seconds: list[float]
    recorded_seconds: list[float]  # With every step written for TensorBoard; empty if nobody asked for that.
    examples: int
    loss: float | None  # The mean of the first epoch, None for the floor; equal for all that do the same work.
    peak_bytes: int

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
    """Run contenders in turns, A B C A B C …, so that a machine that slows down meanwhile slows all alike.

    An untimed epoch comes before each timed one, because caches and cores that others have used, or that have rested,
    are cold; in a training one epoch follows another. `record` times an epoch with records after each without.
    """
    # A child would inherit the settings of a shell that chose a kernel for another machine.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    first: dict[str, tuple[float, float | None]] = {}
    seconds: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in jobs}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        asked = {name: stack.enter_context(_process(name, job, scratch / name)) for name, job in jobs.items()}
        for name, ask in asked.items():
            first[name] = ask(False)
            time.sleep(_PAUSE_SECONDS)
        for _ in range(rounds):
            for name, ask in asked.items():
                for kind in (False, True) if record else (False,):
                    ask(kind)  # Warms up.
                    seconds[name][kind].append(ask(kind)[0])
                time.sleep(_PAUSE_SECONDS)
            on_round()
        peaks = {name: ask(None) for name, ask in asked.items()}
    return {
        name: Measurement(
            compile_seconds=max(first[name][0] - statistics.median(plain[False]), 0.0),
            epoch_seconds=plain[False],
            recorded_seconds=plain[True],
            examples=jobs[name].examples,
            loss=first[name][1],
            peak_bytes=peaks[name],
        )
        for name, plain in seconds.items()
    }


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
            raise ChildProcessError(f"The contender {name} failed; its message stands above.") from error

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
    """The process itself: trains an epoch whenever it is told to."""
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
