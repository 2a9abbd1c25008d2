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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from contenders.loops import CONTENDERS, Job
from shared import terminal as command_line

# Some libraries' threads go on spinning when their work is done, OpenBLAS' for 0.1 s; the next turn begins after that.
_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Measurement:
    """What the turns of a contender gave.

    Attributes:
        compile_seconds: the first epoch less a median one: all that happens once, tracing and compiling above all.
        epoch_seconds, recorded_seconds: of each turn; the second with every step written for TensorBoard, empty if
            that was not asked for.
        examples: trained on in an epoch.
        loss: the mean over the steps of the first epoch, None for the floor; equal for all that do the same work.
        peak_bytes: the most memory that the process ever held.
    """

    compile_seconds: float
    epoch_seconds: list[float]
    recorded_seconds: list[float]
    examples: int
    loss: float | None
    peak_bytes: int

    @property
    def median(self) -> float:
        """Median seconds of an epoch."""
        return statistics.median(self.epoch_seconds)

    @property
    def recorded_median(self) -> float:
        """Median seconds of an epoch that is recorded for TensorBoard."""
        return statistics.median(self.recorded_seconds)

    @property
    def recording_share(self) -> float:
        """What of a recorded epoch the recording is: the median over the rounds, whose two epochs follow each other."""
        pairs = zip(self.epoch_seconds, self.recorded_seconds, strict=True)
        return statistics.median(1.0 - plain / recorded for plain, recorded in pairs)

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as JSON types."""
        return {**asdict(self), "median_epoch_seconds": self.median}


def measure_in_turns(
    jobs: Mapping[str, Job], rounds: int, record: bool, on_round: Callable[[], None]
) -> dict[str, Measurement]:
    """Runs contenders in turns, A B C A B C …, so that a machine that slows down meanwhile slows all alike.

    Args:
        jobs: the job of each contender, by its key in `CONTENDERS`.
        rounds: int, at least 1: epochs of each that are timed, each after one that is not, because caches and cores
            that others have used, or that have rested, are cold; an epoch of a training follows another.
        record: whether to time an epoch that writes every step for TensorBoard after each that does not.
        on_round: called after each round.

    Raises:
        ChildProcessError: if a contender failed; its own process has said why.
    """
    # A child would inherit the settings of a shell that chose a kernel for another machine.
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    kinds = (False, True) if record else (False,)
    first: dict[str, tuple[float, float | None]] = {}
    seconds: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in jobs}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {name: stack.enter_context(_Worker(name, job, scratch / name)) for name, job in jobs.items()}
        for name, worker in workers.items():
            first[name] = worker.epoch(record=False)
            time.sleep(_PAUSE_SECONDS)
        for _ in range(rounds):
            for name, worker in workers.items():
                for kind in kinds:
                    worker.epoch(kind)  # Warms up.
                    seconds[name][kind].append(worker.epoch(kind)[0])
                time.sleep(_PAUSE_SECONDS)
            on_round()
        peaks = {name: worker.peak_bytes() for name, worker in workers.items()}
    return {
        name: Measurement(
            compile_seconds=max(first[name][0] - statistics.median(seconds[name][False]), 0.0),
            epoch_seconds=seconds[name][False],
            recorded_seconds=seconds[name][True],
            examples=jobs[name].examples,
            loss=first[name][1],
            peak_bytes=peaks[name],
        )
        for name in jobs
    }


class _Worker:
    """A contender's process, as its parent sees it."""

    def __init__(self, name: str, job: Job, log_dir: Path) -> None:
        log_dir.mkdir()
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, job, log_dir, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def epoch(self, record: bool) -> tuple[float, float | None]:
        """Returns the seconds that an epoch took, and its mean loss."""
        self._connection.send(record)
        return self._receive()

    def peak_bytes(self) -> int:
        """Returns the most memory that the process ever held; it takes no more epochs."""
        self._connection.send(None)
        return self._receive()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError as error:
            raise ChildProcessError(f"{self._name} failed; its message stands above") from error


def _serve(name: str, job: Job, log_dir: Path, connection: Connection) -> None:
    """The process itself: trains an epoch whenever it is told to."""
    flags.FLAGS.mark_as_parsed()  # Its parent has read the flags; here they keep their defaults.
    if CONTENDERS[name].on_tensorflow:
        command_line.start_tensorflow()
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
