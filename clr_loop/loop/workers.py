"""The workers of a run on several machines: who they are, that all are there, and what each of them may write.

Nothing here needs TensorFlow. Its own start waits for ever for a worker that is missing, and cannot be interrupted; so
the workers meet first, on the very ports that TensorFlow will use.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_RETRY_SECONDS = 0.1
_HELLO_BYTES = 6
_GO = b"go"


@dataclass(frozen=True)
class Task:
    """This process among the workers of a run.

    Attributes:
        workers: `host:port` of each, in the same order everywhere.
        index: int, of this one; the first is the chief, which alone writes.
    """

    workers: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this is the worker that writes."""
        return self.index == 0


def read_task(tf_config: str | None) -> Task:
    """Reads TF_CONFIG, TensorFlow's own description of a cluster.

    Args:
        tf_config: the environment variable, such as
            `{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}`.

    Raises:
        ValueError: if it is missing, or does not describe this task among workers alone.
    """
    example = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(tf_config or "")
        cluster, task = config["cluster"], config["task"]
        workers, index = tuple(cluster["worker"]), task["index"]
        if set(cluster) != {"worker"} or task["type"] != "worker":
            raise ValueError("only tasks of type worker are known")
        for worker in workers:
            host, _, port = worker.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise ValueError(f"{worker!r} is not host:port")
        if len(set(workers)) != len(workers):
            raise ValueError("two workers have the same address")
        if not isinstance(index, int) or not 0 <= index < len(workers):
            raise ValueError(f"index {index!r} is none of {len(workers)} workers")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"TF_CONFIG must describe the workers, received {tf_config!r} ({reason}); set it like {example}"
        ) from error
    return Task(workers, index)


def meet(task: Task, timeout_seconds: float = 50.0) -> None:
    """Returns when all workers are there, and leaves the ports free for TensorFlow.

    Every other worker calls the chief and stays on the line. When all are on it the chief says so to each: nobody goes
    on before, and who goes on has heard it.

    Raises:
        ConnectionError: if a worker does not appear in time, or this one's port is taken.
    """
    deadline = time.monotonic() + timeout_seconds
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(task.workers[task.index]))
        missing = _gather(listener, task, deadline, stack) if task.is_chief else _call_chief(task, deadline)
    if missing:
        named = ", ".join(f"{index} ({task.workers[index]})" for index in missing)
        raise ConnectionError(
            f"all {len(task.workers)} workers must start within {timeout_seconds:g} s, received nothing from worker "
            f"{named}; start them together, each with its own index in TF_CONFIG"
        )


def _gather(listener: socket.socket, task: Task, deadline: float, stack: contextlib.ExitStack) -> list[int]:
    """Waits for the call of every other worker, and answers all; returns those that have not called."""
    lines: dict[int, socket.socket] = {}
    others = range(1, len(task.workers))
    while len(lines) < len(others):
        if time.monotonic() > deadline:
            return [index for index in others if index not in lines]
        try:
            connection, _ = listener.accept()
        except OSError:
            continue  # Nobody yet.
        caller = -1  # A stranger.
        with contextlib.suppress(OSError, ValueError):
            connection.settimeout(1.0)
            caller = int(connection.recv(_HELLO_BYTES).decode())
        if caller in others:
            lines[caller] = stack.enter_context(connection)
        else:
            connection.close()
    for connection in lines.values():
        connection.sendall(_GO)
    return []


def _call_chief(task: Task, deadline: float) -> list[int]:
    """Calls the chief until it has answered; returns it if it has not."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(_address(task.workers[0]), left) as line:
                line.sendall(str(task.index).zfill(_HELLO_BYTES).encode())
                if line.recv(len(_GO)) == _GO:
                    return []
        except OSError:
            pass  # It is not there yet.
        time.sleep(_RETRY_SECONDS)
    return [0]


@contextlib.contextmanager
def private_copy(run_dir: str | os.PathLike[str], resume: bool) -> Iterator[Path]:
    """A directory for a worker that is not the chief: to write to as the chief does, and gone in the end.

    So every worker goes through the same steps, and only the chief's remain. On resuming it holds what the run's
    directory holds, which all workers must be able to read; copy before `meet`, or the chief will have changed it.

    Args:
        run_dir: the run's directory; the chief's.
        resume: whether the run is to go on.
    """
    with tempfile.TemporaryDirectory(prefix="clr_loop_") as name:
        copy = Path(name) / "run"
        if resume and Path(run_dir).is_dir():
            shutil.copytree(run_dir, copy)
        else:
            copy.mkdir()
        yield copy


def _listen(worker: str) -> socket.socket:
    host, port = _address(worker)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.settimeout(_RETRY_SECONDS)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConnectionError(
            f"this worker's address {worker} must be free, received: {error.strerror}; end what uses it, or give "
            "another port in every worker's TF_CONFIG"
        ) from error
    listener.listen()
    return listener


def _address(worker: str) -> tuple[str, int]:
    host, _, port = worker.rpartition(":")
    return host, int(port)
