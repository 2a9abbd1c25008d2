"""Spreads work over the processes of an executor: on this machine, or on many.

An executor is any of `concurrent.futures`: that of `pool.pool`, Python's ProcessPoolExecutor if it spawns, Dask's
(`Client.get_executor()`), or one of MPI, SLURM or Ray. What all items have in common is pickled once, by
cloudpickle, so that functions of a notebook can travel. Processes that see the directory read it from a file there;
to others it travels with each item.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import socket
import threading
import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle

from clr_loop.arguments import are_flags_spoken, speaking_flags, spelled
from clr_loop.data.functions import in_one_line
from clr_loop.loop import keras_private
from clr_loop.loop.threads import num_threads, use_threads
from clr_loop.runs.settings import versions

Item = TypeVar("Item")
Result = TypeVar("Result")

# What may travel with each item. Data are larger, and a function that loads them is not.
_MOST_BYTES = 2**20
# What a mistake of the user raises; it is raised again in the process that spread the work.
_EXPECTED = (ValueError, TypeError, OSError, ArithmeticError)

_one_at_a_time = threading.Lock()
_begun: dict[str, Callable[[Any], Any]] = {}
_current: _Common | None = None


class WorkersLostError(ConnectionError):
    """The processes of an executor, or the way to them, are gone."""


class WorkerError(RuntimeError):
    """Something failed in a worker that was no mistake of the user."""


@dataclass(frozen=True)
class Processes:
    """The processes of an executor.

    Attributes:
        executor: see this module.
        shared_dir: whether they see the directory that this process writes to. If not, results travel back.
        threads: int, at least 1, with which TensorFlow computes in each of them; None takes those of a `pool`, else as
            many as there are here.
    """

    executor: Executor
    shared_dir: bool = True
    threads: int | None = None

    @classmethod
    def of(cls, executor: Executor | Processes | None) -> Processes | None:
        """Return what is known of an executor."""
        return cls(executor) if isinstance(executor, Executor) else executor

    @property
    def num_threads(self) -> int:
        """The threads that TensorFlow computes with in each of them."""
        return self.threads or getattr(self.executor, "threads", None) or num_threads()


@dataclass(frozen=True)
class _Common:
    """What travels with every item.

    Attributes:
        digest: of the pickled function.
        place: the file that holds it, and that goes when no more work is wanted.
        pickled: the function itself, for those who do not see the file; else None.
        facts: what a process must have in common with this one.
        speaks_flags: see `arguments.spelled`.
    """

    digest: str
    place: Path
    pickled: bytes | None
    facts: dict[str, Any]
    speaks_flags: bool

    def read(self) -> bytes:
        if self.pickled is not None:
            return self.pickled
        try:
            content = self.place.read_bytes()
        except OSError as error:
            raise FileNotFoundError(
                f"{_here()} cannot see the directory {self.place.parent}. Choose one that all workers share, or give "
                f"{spelled(shared_dir=False)}, and results are sent back."
            ) from error
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ValueError(f"{self.place} is not what the comparison has written there; start it again.")
        return content


@dataclass(frozen=True)
class _Raised:
    error: Exception


def spread(
    begin: Callable[[], Callable[[Item], Result]], items: Sequence[Item], processes: Processes, directory: Path
) -> Generator[tuple[Item, Result]]:
    """Yield each item with its result, in the order in which they come.

    Close the generator where it is not read to its end: work that has not begun is then cancelled, and work that looks
    at `is_wanted` stops.

    Args:
        begin: called once in each process; returns what is called with each of its items, one at a time. The results
            are pickled.
        items: each can be pickled.
        directory: claimed by this process.

    Raises:
        ValueError: if `begin` cannot be pickled, or is larger than 1 MiB where it travels with each item; if a process
            differs in its versions, in oneDNN or in its threads.
        OSError: if a process does not see the directory.
        WorkersLostError: if the executor is broken, or its processes or its scheduler are gone.
        WorkerError: if a process failed. What an item raises as a mistake of the user is raised as it is.
    """
    directory = directory.resolve()
    for left_behind in directory.glob(".work_*"):
        left_behind.unlink()
    pickled, place = _pickled(begin), directory / f".work_{uuid.uuid4().hex}"
    if not processes.shared_dir and len(pickled) > _MOST_BYTES:
        raise ValueError(
            f"{len(pickled) / 2**20:.0f} MiB would travel with each of {len(items)} runs; give a function that loads "
            'the data where they are needed, such as functools.partial(clr_loop.load, "mnist").'
        )
    digest = hashlib.sha256(pickled).hexdigest()
    facts = {**_facts(), "threads": processes.num_threads}
    common = _Common(digest, place, None if processes.shared_dir else pickled, facts, are_flags_spoken())
    waiting: dict[Future[Any], Item] = {}
    try:
        place.write_bytes(pickled)
        waiting.update((processes.executor.submit(_do, common, item, i), item) for i, item in enumerate(items))
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), _result_of(future)
    finally:
        place.unlink(missing_ok=True)
        for future in waiting:
            future.cancel()


def is_wanted() -> bool:
    """Return whether the work that this process is at is still waited for, as far as it can see."""
    return _current is None or _current.pickled is not None or _current.place.exists()


def _pickled(begin: Callable[[], Any]) -> bytes:
    try:
        return cloudpickle.dumps(begin)
    except Exception as error:  # Whatever the user's objects raise.
        raise ValueError(
            f"What the runs need cannot be sent to other processes ({' '.join(str(error).split())}); give functions "
            "that make it there."
        ) from error


def _result_of(future: Future[Any]) -> Any:
    try:
        answer = future.result()
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise WorkersLostError(
            f"The workers are gone ({type(error).__name__}{': ' * bool(said)}{said}). What is finished is kept; go on "
            f"with {spelled(resume=True)}."
        ) from error
    if isinstance(answer, _Raised):
        raise answer.error
    return answer


# --- In a worker ---


def _do(common: _Common, item: Any, number: int) -> Any:
    """Do one item, and return what came of it. The number alone tells it from others, for executors that compare."""
    global _current
    with _one_at_a_time, speaking_flags() if common.speaks_flags else contextlib.nullcontext():
        _current = common
        try:
            if common.digest not in _begun:
                _check(common.facts)
                _begun.clear()  # The memory of earlier work is needed now.
                _begun[common.digest] = pickle.loads(common.read())()
            return _begun[common.digest](item)
        except Exception as error:
            logging.getLogger(__name__).debug("In a worker:", exc_info=True)
            return _Raised(_that_travels(error))
        finally:
            _current = None


def _here() -> str:
    return f"The worker on {socket.gethostname()}, process {os.getpid()},"


def _facts() -> dict[str, Any]:
    return {**versions(), "threads": num_threads(), "TF_ENABLE_ONEDNN_OPTS": int(keras_private.has_onednn())}


def _check(expected: dict[str, Any]) -> None:
    """Raise ValueError if this process would compute something else than the one that the work comes from."""
    with contextlib.suppress(ValueError):  # What differs is said below.
        use_threads(expected["threads"])  # Of a process that has not computed yet.
    own = _facts()
    differing = [f"{name} {own[name]} in place of {expected[name]}" for name in own if own[name] != expected[name]]
    if differing:
        raise ValueError(f"{_here()} has {', '.join(differing)}; start it with the same.")


def _that_travels(error: Exception) -> Exception:
    """Return an error, or one that says the same if it cannot be pickled or is no mistake of the user."""
    if isinstance(error, _EXPECTED):
        with contextlib.suppress(Exception):
            if str(pickle.loads(pickle.dumps(error))) == str(error):
                return error
    return WorkerError(f"{_here()} failed: {in_one_line(error, ())}")
