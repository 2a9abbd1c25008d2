"""Runs parts of a script's work in processes of their own, side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import TypeVar

from tqdm import tqdm

from shared import terminal as command_line

T = TypeVar("T")


def run(work: Callable[[Sequence[T]], None], items: Sequence[T], num_processes: int) -> None:
    """Deals the items out to processes, and waits until all are done.

    Args:
        work: a function that can be pickled; each process calls it once, with its items, the script's flags read.
        items: at least one.
        num_processes: int, at least 1; no more are started than there are items.

    Raises:
        ChildProcessError: if a process failed, after it has said why; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    shares = [items[i::num_processes] for i in range(min(num_processes, len(items)))]
    processes = [context.Process(target=_serve, args=(work, share)) for share in shares]
    try:
        for process in processes:
            process.start()
        running = list(processes)
        while running:
            ended = wait([process.sentinel for process in running])
            for process in [process for process in running if process.sentinel in ended]:
                process.join()  # Its exit code may come a moment later.
                running.remove(process)
                if process.exitcode:
                    raise ChildProcessError(
                        f"all processes must finish, received exit code {process.exitcode} from one of "
                        f"{len(processes)}; what it said stands above. {command_line.resume_line()}"
                    )
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _serve(work: Callable[[Sequence[T]], None], items: Sequence[T]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent has it too, and ends its children.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # Its own is a semaphore, which Python would call leaked if this process is ended.
    command_line.run_child(lambda: work(items))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
