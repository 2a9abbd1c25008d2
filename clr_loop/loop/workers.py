"""The workers of a run on several machines: who they are, whether all are there, and where each of them writes.

Nothing here needs TensorFlow. TensorFlow's own start waits forever for a missing worker and cannot be interrupted. So
the workers meet first, on the ports that TensorFlow will use.
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
        workers: `host:port` of each worker, in the same order everywhere.
        index: int, the place of this process among them. The first worker is the chief, and it alone writes.
    """

    workers: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes."""
        return self.index == 0


def read_task(tf_config: str | None) -> Task:
    """Read TF_CONFIG, TensorFlow's own description of a cluster.

    Args:
        tf_config: the environment variable, such as
            `{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}`.

    Raises:
        ValueError: if it is missing, or does not describe this task among tasks of type worker.
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
            f"TF_CONFIG is {tf_config!r}, which does not describe the workers ({reason}); set it like {example}."
        ) from error
    return Task(workers, index)


def meet(task: Task, timeout_seconds: float = 50.0) -> None:
    """Wait until all workers are there, and leave the ports free for TensorFlow.

    Every other worker calls the chief and stays on the line. When all have called, the chief tells each of them to go.
    Nobody goes on before that.

    Raises:
        ConnectionError: if a worker does not appear in time, or this worker's port is taken.
    """
    deadline = time.monotonic() + timeout_seconds
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(task.workers[task.index]))
        missing = _gather(listener, task, deadline, stack) if task.is_chief else _call_chief(task, deadline)
    if missing:
        named = ", ".join(f"{index} ({task.workers[index]})" for index in missing)
        raise ConnectionError(
            f"Worker {named} did not appear within {timeout_seconds:g} s; start all {len(task.workers)} workers "
            "together, each with its own index in TF_CONFIG."
        )


def _gather(listener: socket.socket, task: Task, deadline: float, stack: contextlib.ExitStack) -> list[int]:
    """Wait for the call of every other worker, and answer all; return those that have not called."""
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
    """Call the chief until it answers; return it if it does not."""
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
    """Give a worker that is not the chief a directory of its own, which is removed at the end.

    So every worker takes the same steps, and only the chief's files remain. On resuming, the directory is a copy of the
    run's, which all workers must be able to read. Copy it before `meet`, or the chief will have changed it.

    Args:
        run_dir: the run's directory, which the chief writes to.
        resume: whether the run goes on from a checkpoint.
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
            f"This worker cannot listen on {worker} ({error.strerror}); end what uses the port, or give another one in "
            "every worker's TF_CONFIG."
        ) from error
    listener.listen()
    return listener


def _address(worker: str) -> tuple[str, int]:
    host, _, port = worker.rpartition(":")
    return host, int(port)
