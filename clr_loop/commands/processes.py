"""Runs parts of a command's work in processes of their own, side by side."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import TypeVar

from tqdm import tqdm

from clr_loop.commands import terminal

T = TypeVar("T")


def run(module: str, work: Callable[[Sequence[T]], None], items: Sequence[T], num_processes: int) -> None:
    """Deal the items out to processes, and wait until all are done.

    Args:
        module: the command's, whose flags each process reads.
        work: a function that can be pickled. Each process calls it once with its items.
        items: at least one.
        num_processes: int, at least 1; no more are started than there are items.

    Raises:
        ChildProcessError: if a process failed, after it has said why; the others are ended.
    """
    context = multiprocessing.get_context("spawn")
    shares = [items[i::num_processes] for i in range(min(num_processes, len(items)))]
    # A process starts TensorFlow before it reads the work, which may import it.
    processes = [context.Process(target=_serve, args=(module, pickle.dumps(work), share)) for share in shares]
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
                        f"One of {len(processes)} processes ended with exit code {process.exitcode}; its message "
                        f"stands above. Resume by {terminal.resume_command()}"
                    )
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _serve(module: str, pickled: bytes, items: Sequence[T]) -> None:
    def work() -> None:
        terminal.start_tensorflow()
        pickle.loads(pickled)(items)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent has it too, and ends its children.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # Python would call its own, a semaphore, leaked if this process is ended.
    terminal.run_child(module, work)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
