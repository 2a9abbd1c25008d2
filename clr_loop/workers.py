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
    """Returns when every worker has reached every other one, and leaves the ports free for TensorFlow.

    Raises:
        ConnectionError: if a worker does not appear in time, or this one's port is taken.
    """
    deadline = time.monotonic() + timeout_seconds
    others = {index for index in range(len(task.workers)) if index != task.index}
    to_reach, to_answer = set(others), set(others)
    with _listen(task.workers[task.index]) as listener:
        while to_reach or to_answer:
            for index in sorted(to_reach):
                with contextlib.suppress(OSError), socket.create_connection(_address(task.workers[index]), 1.0) as out:
                    out.sendall(f"{task.index}\n".encode())
                    out.settimeout(1.0)
                    if out.recv(1) == b"!":
                        to_reach.remove(index)
            with contextlib.suppress(OSError, ValueError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(1.0)
                    caller = int(connection.makefile().readline())
                    connection.sendall(b"!")
                    to_answer.discard(caller)
            if time.monotonic() > deadline and (to_reach or to_answer):
                missing = ", ".join(f"{index} ({task.workers[index]})" for index in sorted(to_reach | to_answer))
                raise ConnectionError(
                    f"all {len(task.workers)} workers must start within {timeout_seconds:g} s, received nothing from "
                    f"worker {missing}; start them together, each with its own index in TF_CONFIG"
                )


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
