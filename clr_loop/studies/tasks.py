"""Spreads work over the processes of an executor: on this machine, or on many.

An executor is any of `concurrent.futures`: that of `pool.pool`, Python's ProcessPoolExecutor if it spawns, Dask's
(`Client.get_executor()`), or one of MPI, SLURM or Ray. What all items have in common is pickled once, by cloudpickle,
so that functions of a notebook can travel. Processes that see the directory read it from a file there; to others it
travels with each item.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import socket
import threading
import traceback
import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import keras
import tensorflow as tf

from clr_loop.arguments import are_flags_spoken, checked_types, checked_whole, speaking_flags, spelled
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
    """The processes of an executor, or the way to them, are gone.

    Attributes:
        num_done: int, how many results came before.
    """

    def __init__(self, words: str, num_done: int) -> None:
        super().__init__(words)
        self.num_done = num_done


class WorkerError(RuntimeError):
    """Something failed in a worker that was no mistake of the user."""


@checked_types
@dataclass(frozen=True)
class Processes:
    """The processes of an executor.

    Attributes:
        executor: see this module.
        shared_dir: whether they see the directory that this process writes to. If not, results travel back.
        threads: int, at least 1, with which TensorFlow computes in each of them; None takes those of a `pool`, else as
            many as there are here.

    Raises:
        ValueError: if threads is below 1, or the executor forks its processes: TensorFlow hangs in a copy of a process
            in which it has begun.
    """

    executor: Executor
    shared_dir: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None:
            checked_whole("threads", self.threads)
        context = getattr(self.executor, "_mp_context", None)  # Of Python's own executor; it has no public name.
        if context is not None and context.get_start_method() == "fork":
            raise ValueError(
                "The executor forks its processes, and TensorFlow would hang in them. Use clr_loop.studies.pool.pool, "
                'or give ProcessPoolExecutor mp_context=multiprocessing.get_context("spawn").'
            )

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
        keras_settings: what Keras is told in each process.
        speaks_flags: see `arguments.spelled`.
    """

    digest: str
    place: Path
    pickled: bytes | None
    facts: dict[str, Any]
    keras_settings: dict[str, Any]
    speaks_flags: bool

    def read(self) -> bytes:
        if self.pickled is not None:
            return self.pickled
        try:
            content = self.place.read_bytes()
        except OSError as error:
            advice = "--noshared_dir" if self.speaks_flags else "Processes(executor, shared_dir=False)"
            raise FileNotFoundError(
                f"{_here()} cannot see the directory {self.place.parent}. Choose one that all workers share, or give "
                f"{advice} to have results sent back."
            ) from error
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise ValueError(f"The file {self.place} was changed; start the comparison again.")
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
        directory: where a file with `begin` lies in the meantime.

    Raises:
        ValueError: if `begin` or an item cannot be pickled, or `begin` is larger than 1 MiB where it travels with each
            item; if a process differs in its versions, its device, in oneDNN or in its threads.
        OSError: if a process does not see the directory.
        WorkersLostError: if the executor is broken, or its processes or its scheduler are gone.
        WorkerError: if a process failed. What this package raises for a mistake is raised as it is.
    """
    if not items:
        return
    pickled, place = _pickled(begin), directory.resolve() / f"{_prefix()}{os.getpid()}_{uuid.uuid4().hex}"
    if not processes.shared_dir and len(pickled) > _MOST_BYTES:
        raise ValueError(
            f"{len(pickled) / 2**20:.0f} MiB would travel with each of {len(items)} runs; give a function that loads "
            'the data where they are needed, such as functools.partial(clr_loop.load, "mnist").'
        )
    common = _Common(
        hashlib.sha256(pickled).hexdigest(),
        place,
        None if processes.shared_dir else pickled,
        {**_facts(), "threads": processes.num_threads},
        _keras_settings(),
        are_flags_spoken(),
    )
    waiting: dict[Future[Any], Item] = {}
    num_done = 0
    try:
        if processes.shared_dir:
            _remove_left_behind(place.parent)
            place.write_bytes(pickled)
        try:
            for item in items:
                waiting[processes.executor.submit(_do, common, _pickled(item))] = item
        except (BrokenExecutor, OSError, RuntimeError) as error:
            raise _lost(error, num_done) from error
        while waiting:
            done = wait(waiting, return_when=FIRST_COMPLETED).done
            in_order = [future for future in waiting if future in done]
            for future in sorted(in_order, key=_has_failed):  # What is finished is told before what has failed.
                yield waiting.pop(future), _result_of(future, num_done)
                num_done += 1
    finally:
        for future in waiting:  # Before the others stop, so that none is begun in their place.
            future.cancel()
        place.unlink(missing_ok=True)


def is_wanted() -> bool:
    """Return whether the work that this process is at is still waited for, as far as it can see."""
    if _current is None or _current.pickled is not None:
        return True
    try:
        return _current.place.exists()
    except OSError:  # A network's file system hiccups.
        return True


def _prefix() -> str:
    return f".work_{socket.gethostname()}_"


def _remove_left_behind(directory: Path) -> None:
    """Remove the files of processes of this machine that are gone, so that what still works for them stops."""
    for path in directory.glob(f"{_prefix()}*"):
        pid = path.name.removeprefix(_prefix()).partition("_")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, OSError):  # Somebody else's.
            continue


def _pickled(value: Any) -> bytes:
    try:
        return bytes(cloudpickle.dumps(value))
    except Exception as error:  # Whatever the user's objects raise.
        raise ValueError(
            f"What the runs need cannot be sent to other processes ({' '.join(str(error).split())}); give functions "
            "that make it there."
        ) from error


def _has_failed(future: Future[Any]) -> bool:
    return future.cancelled() or future.exception() is not None or isinstance(future.result(), _Raised)


def _result_of(future: Future[Any], num_done: int) -> Any:
    try:
        answer = future.result()
    except Exception as error:
        raise _lost(error, num_done) from error
    if isinstance(answer, _Raised):
        raise answer.error
    return answer


def _lost(error: Exception, num_done: int) -> WorkersLostError:
    said = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return WorkersLostError(
        f"The workers did not finish ({type(error).__name__}{': ' * bool(said)}{said}). What is finished is kept; go "
        f"on with {spelled(resume=True)}.",
        num_done,
    )


# --- In a worker ---


def _do(common: _Common, pickled_item: bytes) -> Any:
    """Do one item, and return what came of it."""
    global _current
    with _one_at_a_time, speaking_flags() if common.speaks_flags else contextlib.nullcontext():
        _current = common
        try:
            _check(common.facts)
            _tell_keras(common.keras_settings)
            if common.digest not in _begun:
                _begun.clear()  # The memory of earlier work is needed now.
                _begun[common.digest] = pickle.loads(common.read())()
            return _begun[common.digest](pickle.loads(pickled_item))
        except Exception as error:
            logging.getLogger(__name__).debug("In a worker:", exc_info=True)
            return _Raised(_that_travels(error))
        finally:
            _current = None


def _here() -> str:
    return f"The worker on {socket.gethostname()}, process {os.getpid()},"


def _facts() -> dict[str, Any]:
    return {
        **versions(),
        "device": "GPU" if tf.config.list_physical_devices("GPU") else "CPU",
        "threads": num_threads(),
        "TF_ENABLE_ONEDNN_OPTS": int(keras_private.has_onednn()),
    }


def _check(expected: dict[str, Any]) -> None:
    """Raise ValueError if this process would compute something else than the one that the work comes from."""
    with contextlib.suppress(ValueError):  # What differs is said below.
        use_threads(expected["threads"])  # Of a process that has not computed yet.
    own = _facts()
    differing = [f"{name} {own[name]} in place of {expected[name]}" for name in own if own[name] != expected[name]]
    if differing:
        raise ValueError(f"{_here()} has {', '.join(differing)}; start it with the same versions and settings.")


def _keras_settings() -> dict[str, Any]:
    config = keras.config
    return {
        "floatx": config.floatx(),
        "epsilon": config.epsilon(),
        "image_data_format": config.image_data_format(),
        "dtype_policy": config.dtype_policy().name,
    }


def _tell_keras(settings: dict[str, Any]) -> None:
    """Give Keras the settings of the process that the work comes from; its policy belongs to a thread."""
    for name, value in settings.items():
        getattr(keras.config, f"set_{name}")(value)


def _that_travels(error: Exception) -> Exception:
    """Return an error of this package that can be pickled, or one that says the same, and where it was raised."""
    is_ours = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(str(Path(__file__).parents[1]))
    if isinstance(error, _EXPECTED) and is_ours:
        with contextlib.suppress(Exception):
            if str(pickle.loads(pickle.dumps(error))) == str(error):
                return error
    return WorkerError(f"{_here()} failed: {in_one_line(error, ())}")
