"""The workers of a run on several machines: who they are, whether all are there, and where each of them writes.

Nothing here needs TensorFlow. TensorFlow's own start waits forever for a missing worker and cannot be interrupted, even
where its coordination service has a time-out. So the workers meet first, on the ports that TensorFlow will use.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

_RETRY_SECONDS = 0.1
# A worker says hello, its index and its facts; the chief says at last go, or no and why. A stranger says neither.
_HELLO, _GO, _NO = b"clr_loop worker ", b"clr_loop go", b"clr_loop no"
_NUMBER_BYTES, _MOST_BYTES = 4, 2**20


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
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        shown = repr(tf_config)[:300]
        raise ValueError(
            f"TF_CONFIG is {shown}, which does not describe the workers ({reason}); set it like {example}."
        ) from error
    return Task(workers, index)


def meet(task: Task, facts: Mapping[str, str] | None = None, timeout_seconds: float = 50.0) -> None:
    """Wait until all workers are there and have the same facts, and leave the ports free for TensorFlow.

    Every other worker calls the chief and stays on the line. When all have called, the chief tells each of them to go.
    Nobody goes on before that. A worker listens on the host of its own address. Where that is no interface of this
    machine, as behind NAT, it listens on all interfaces. Whoever can reach the ports is believed, here as by
    TensorFlow's server, which has no authentication: run workers on a network that you trust.

    Args:
        task: from `read_task`.
        facts: what must be the same in all workers, such as settings and versions; name → value.
        timeout_seconds: float, how long to wait.

    Raises:
        ConnectionError: if a worker does not appear in time, or this worker's port is taken.
        ValueError: in all workers, if a fact differs.
    """
    others = range(1, len(task.workers)) if task.is_chief else range(1)
    lines: dict[int, asyncio.StreamWriter] = {}
    facts = facts or {}
    gathering = partial(_gather, facts=facts, others=others, lines=lines)
    with _listen(task.workers[task.index]) as listener:
        meeting = gathering(listener) if task.is_chief else _call_chief(task, facts)
        try:
            asyncio.run(asyncio.wait_for(meeting, timeout_seconds))
        except asyncio.TimeoutError as error:
            missing = ", ".join(f"{index} ({task.workers[index]})" for index in others if index not in lines)
            raise ConnectionError(
                f"Worker {missing} did not appear within {timeout_seconds:g} s; start all {len(task.workers)} workers "
                "together, each with its own index in TF_CONFIG."
            ) from error


async def _gather(
    listener: socket.socket, facts: Mapping[str, str], others: range, lines: dict[int, asyncio.StreamWriter]
) -> None:
    """Serve all callers side by side, until the lines of every other worker stand; then tell each to go, or why not."""
    called, facts_of = asyncio.Event(), dict[int, Any]()

    async def serve(reader: asyncio.StreamReader, line: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError), contextlib.closing(line):
            is_worker = await reader.readexactly(len(_HELLO)) == _HELLO
            caller = int.from_bytes(await reader.readexactly(_NUMBER_BYTES), "big")
            if not is_worker or caller not in others:
                return
            told = json.loads(await _read_text(reader))
            if caller in lines:
                line.write(_NO + _as_text(f"Two workers have index {caller} in TF_CONFIG; give each its own."))
                return
            facts_of[caller], lines[caller] = told, line
            called.set()
            await reader.read()  # Until it hangs up.
            if lines[caller] is line:
                del lines[caller]

    server = await asyncio.start_server(serve, sock=listener)
    try:
        while len(lines) < len(others):
            called.clear()
            await called.wait()
        why_not = _difference(facts, facts_of)
        for line in lines.values():
            line.write(_GO if why_not is None else _NO + _as_text(why_not))
            await line.drain()
    finally:
        server.close()
    if why_not is not None:
        raise ValueError(why_not)


def _difference(facts: Mapping[str, str], facts_of: Mapping[int, Mapping[str, str]]) -> str | None:
    """Return in a sentence what differs first between the chief's facts and those of another worker."""
    for index, theirs in sorted(facts_of.items()):
        for name in sorted({*facts, *theirs}):
            if facts.get(name) != theirs.get(name):
                pair = f"worker 0 has {name} {facts.get(name)}, and worker {index} has {theirs.get(name)}"
                return (
                    f"The workers were not started alike: {pair}. Start all of them with the same flags and versions."
                )
    return None


def _as_text(text: str) -> bytes:
    content = text.encode()
    return len(content).to_bytes(_NUMBER_BYTES, "big") + content


async def _read_text(reader: asyncio.StreamReader) -> str:
    length = int.from_bytes(await reader.readexactly(_NUMBER_BYTES), "big")
    return (await reader.readexactly(min(length, _MOST_BYTES))).decode()


async def _call_chief(task: Task, facts: Mapping[str, str]) -> None:
    """Call the chief until it says go, or why not."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # It is not there yet.
            reader, line = await asyncio.open_connection(*_address(task.workers[0]))
            with contextlib.closing(line):
                line.write(_HELLO + task.index.to_bytes(_NUMBER_BYTES, "big") + _as_text(json.dumps(dict(facts))))
                answer = await reader.readexactly(len(_GO))
                if answer == _GO:
                    return
                if answer == _NO:
                    raise ValueError(await _read_text(reader))
        await asyncio.sleep(_RETRY_SECONDS)


@contextlib.contextmanager
def private_copy(run_dir: str | os.PathLike[str], resume: bool) -> Iterator[Path]:
    """Give a worker that is not the chief a directory of its own, which is removed at the end.

    Every worker then takes the same steps, and only the chief's files remain. On resuming, the directory is a copy of
    the run's, which all workers must be able to read. Copy it before `meet`, or the chief will have changed it.

    Args:
        run_dir: the run's directory, which the chief writes to.
        resume: whether the run goes on from a checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="clr_loop_") as name:
        copy = Path(name) / "run"
        if resume and Path(run_dir).is_dir():
            shutil.copytree(run_dir, copy, symlinks=True, ignore=_specials)
        else:
            copy.mkdir()
        yield copy


def _specials(directory: str, names: list[str]) -> list[str]:
    """Return what cannot be copied, such as pipes."""
    paths = {name: Path(directory) / name for name in names}
    return [name for name, path in paths.items() if not (path.is_file() or path.is_dir() or path.is_symlink())]


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
