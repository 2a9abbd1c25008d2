"""Processes on this machine, each with cores of its own. They import this before TensorFlow, so it can be quiet."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from typing import Any

from tqdm import tqdm

from clr_loop.arguments import checked_types, checked_whole
from clr_loop.cores import cores
from clr_loop.silence import quiet

_has_own_cores = False


class Pool(ProcessPoolExecutor):
    """What `pool` holds. Its `threads` are those of TensorFlow in each process."""

    threads: int


@contextlib.contextmanager
@checked_types
def pool(num_processes: int, threads: int = 1) -> Iterator[Pool]:
    """Hold an executor of spawned processes, whose TensorFlow computes with so many threads.

    Where there are enough cores, and the system can bind processes to them, each process has cores of its own, so the
    runs in it are timed. If the context is left by an exception, or this process dies, so do they, in mid-run.

    Args:
        num_processes: int, at least 1.
        threads: int, at least 1, of each process.
    """
    checked_whole("num_processes", num_processes)
    checked_whole("threads", threads)
    context = multiprocessing.get_context("spawn")
    mine, shares = sorted(cores()), context.SimpleQueue()
    is_enough = num_processes * threads <= len(mine) and hasattr(os, "sched_setaffinity")
    for i in range(num_processes):
        shares.put(mine[i * threads : (i + 1) * threads] if is_enough else [])
    executor = Pool(num_processes, context, _begin, (shares, threads))
    executor.threads = threads
    try:
        yield executor
    except BaseException:
        for process in list((executor._processes or {}).values()):  # Python 3.14 has terminate_workers.
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def has_own_cores() -> bool:
    """Return whether this process belongs to a `pool` and has cores that no other process of it has."""
    return _has_own_cores


def _begin(shares: Any, threads: int) -> None:
    """Begin a process: bind it to its cores, and start its TensorFlow."""
    global _has_own_cores
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent has it too, and ends its children.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # Python would call its own, a semaphore, leaked if this process is ended.
    if share := shares.get():
        os.sched_setaffinity(0, share)
        _has_own_cores = True
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3":  # As in the parent.
        quiet()
    import_module("clr_loop.loop.threads").use_threads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
