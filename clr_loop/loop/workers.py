"""The workers of a run on several machines: who they are, whether all are there, and where each of them writes.

Nothing here needs TensorFlow. TensorFlow's own start waits forever for a missing worker and cannot be interrupted. So
the workers meet first, on the ports that TensorFlow will use.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_RETRY_SECONDS = 0.1
_INDEX_BYTES = 4
_NONCE_BYTES = 16
_PROOF_BYTES = 32

# A worker on the line to the chief, and the chief's proof that it may go.
Line = tuple[asyncio.StreamWriter, bytes]


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


def meet(task: Task, token: str = "", timeout_seconds: float = 50.0) -> None:
    """Wait until all workers are there, and leave the ports free for TensorFlow.

    Every other worker calls the chief and stays on the line. When all have called, the chief tells each of them to go.
    Nobody goes on before that. Each side proves that it has the token by an HMAC-SHA256 over a nonce of the other's, so
    the token itself never travels. A worker listens on the host of its own address. Where that is no interface of this
    machine, as behind NAT, it listens on all interfaces, as TensorFlow's server does in any case.

    Args:
        task: from `read_task`.
        token: a secret that all workers share; with "" anybody who can reach the ports is believed.
        timeout_seconds: float, how long to wait.

    Raises:
        ConnectionError: if a worker does not appear in time, or this worker's port is taken.
    """
    others = range(1, len(task.workers)) if task.is_chief else range(1)
    lines: dict[int, Line] = {}
    with _listen(task.workers[task.index]) as listener:
        meeting = _gather(listener, others, lines, token) if task.is_chief else _call_chief(task, token)
        try:
            asyncio.run(asyncio.wait_for(meeting, timeout_seconds))
        except asyncio.TimeoutError as error:
            named = ", ".join(f"{index} ({task.workers[index]})" for index in others if index not in lines)
            raise ConnectionError(
                f"Worker {named} did not appear within {timeout_seconds:g} s; start all {len(task.workers)} workers "
                "together, each with its own index in TF_CONFIG and all with the same CLR_LOOP_TOKEN."
            ) from error


async def _gather(listener: socket.socket, others: range, lines: dict[int, Line], token: str) -> None:
    """Serve all callers side by side, until the lines of every other worker stand; then tell each to go."""
    called = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, line: asyncio.StreamWriter) -> None:
        challenge = os.urandom(_NONCE_BYTES)
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError), contextlib.closing(line):
            line.write(challenge)
            hello = await reader.readexactly(_INDEX_BYTES + _NONCE_BYTES)
            proof, caller = await reader.readexactly(_PROOF_BYTES), int.from_bytes(hello[:_INDEX_BYTES], "big")
            if caller not in others or not hmac.compare_digest(proof, _proof(token, b"call", challenge + hello)):
                return
            lines[caller] = line, _proof(token, b"go", challenge + hello)
            called.set()
            await reader.read()  # Until it hangs up.
            if lines[caller][0] is line:
                del lines[caller]

    server = await asyncio.start_server(serve, sock=listener)
    try:
        while len(lines) < len(others):
            called.clear()
            await called.wait()
        for line, proof in lines.values():
            line.write(proof)
            await line.drain()
    finally:
        server.close()


async def _call_chief(task: Task, token: str) -> None:
    """Call the chief until it says go."""
    hello = task.index.to_bytes(_INDEX_BYTES, "big") + os.urandom(_NONCE_BYTES)
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # It is not there yet.
            reader, line = await asyncio.open_connection(*_address(task.workers[0]))
            with contextlib.closing(line):
                challenge = await reader.readexactly(_NONCE_BYTES)
                line.write(hello + _proof(token, b"call", challenge + hello))
                answer = await reader.readexactly(_PROOF_BYTES)
                if hmac.compare_digest(answer, _proof(token, b"go", challenge + hello)):
                    return
        await asyncio.sleep(_RETRY_SECONDS)


def _proof(token: str, role: bytes, nonces: bytes) -> bytes:
    return hmac.digest(token.encode(), role + nonces, "sha256")


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
    """Listen on this worker's address; on all interfaces if the host is none of this machine's."""
    host, port = _address(worker)
    try:
        try:
            return socket.create_server((host, port))
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
            return socket.create_server(("", port))
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]
        raise ConnectionError(
            f"This worker cannot listen on {worker} ({reason}); end what uses the port, or give another one in every "
            "worker's TF_CONFIG."
        ) from error


def _address(worker: str) -> tuple[str, int]:
    host, _, port = worker.rpartition(":")
    return host, int(port)
