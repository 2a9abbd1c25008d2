import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import closing
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest

from clr_loop.arguments import checked_whole, speaking_flags
from clr_loop.cores import cores
from clr_loop.loop.threads import num_threads, use_threads
from clr_loop.runs.checkpoints import Checkpoint, CheckpointError
from clr_loop.runs.errors import NonFiniteError, NonFiniteLossError
from clr_loop.studies import tasks
from clr_loop.studies.pool import has_own_cores, pool
from clr_loop.studies.range_test import NoSuggestionError
from clr_loop.studies.tasks import Processes, WorkerError, WorkersLostError, is_wanted, spread
from helpers.processes import LIMIT_SECONDS, fork_for_spawn, run_code


@pytest.fixture
def forking(monkeypatch):
    """Let what would be spawned be forked."""
    fork_for_spawn(monkeypatch)


class OnThread(Executor):
    """Does each item here, on a thread, after `prepare` was called with what travels with it."""

    def __init__(self, prepare=lambda common: common):
        self._prepare, self._threads = prepare, ThreadPoolExecutor(1)

    def submit(self, function, common, *arguments):
        return self._threads.submit(function, self._prepare(common), *arguments)


class AtOnce(OnThread):
    """Has done an item when it returns."""

    def submit(self, *work):
        future = super().submit(*work)
        wait([future])
        return future


def results_of(do, items, directory, executor=None, **attributes):
    """Spread what a function does with items; return its results by item."""
    with closing(spread(lambda: do, items, Processes(executor or OnThread(), **attributes), directory)) as done:
        return dict(done)


def test_every_item_comes_back_once_and_each_process_begins_once_on_cores_of_its_own(forking, tmp_path):
    offset = 100  # It is taken along with the function.

    def begin():
        begun = time.monotonic_ns()

        def do(item):
            time.sleep(0.05)
            return item + offset, os.getpid(), begun, num_threads(), tuple(cores()), has_own_cores()

        return do

    with pool(2, threads=1) as executor, closing(spread(begin, range(12), Processes(executor), tmp_path)) as done:
        results = dict(done)
    assert {item: values[0] for item, values in results.items()} == {item: item + 100 for item in range(12)}
    of_process = {values[1:] for values in results.values()}
    assert len(of_process) == len({process for process, *_ in of_process}) <= 2
    assert os.getpid() not in {process for process, *_ in of_process}
    is_enough = len(cores()) >= 2
    assert {(threads, has_own) for *_, threads, _, has_own in of_process} == {(1, is_enough)}
    if is_enough:
        places = [place for *_, place, _ in of_process]
        assert {len(place) for place in places} == {1}
        assert len(set(places)) == len(places)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_share_their_cores_are_not_bound_to_them(forking, tmp_path):
    number = len(cores())
    with pool(number + 1, threads=1) as executor:
        results = results_of(lambda item: (len(cores()), has_own_cores()), range(2), tmp_path, executor)
    assert set(results.values()) == {(number, False)}


def test_what_travels_is_pickled_once_and_small_work_needs_no_directory_that_is_seen(tmp_path):
    data = np.zeros(10**6)
    seen = []
    executor = OnThread(lambda common: seen.append(common) or common)
    assert results_of(lambda item: item + len(data), [1, 2], tmp_path, executor) == {1: 10**6 + 1, 2: 10**6 + 2}
    assert max(len(pickle.dumps(common)) for common in seen) < 2000
    with pytest.raises(ValueError, match="8 MiB would travel with each of 2 runs; give a function that loads the data"):
        results_of(lambda item: item + len(data), [1, 2], tmp_path, shared_dir=False)
    assert results_of(lambda item: -item, [1, 2], tmp_path, shared_dir=False) == {1: -1, 2: -2}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("speaks_flags", [False, True])
def test_a_directory_that_the_worker_does_not_see_is_named_with_the_way_out(tmp_path, speaks_flags):
    def hide(common):
        common.place.unlink(missing_ok=True)
        return common

    advice = "give --noshared_dir to" if speaks_flags else r"give Processes\(executor, shared_dir=False\) to"
    with speaking_flags() if speaks_flags else contextlib.nullcontext():
        executor = OnThread(hide)
        with pytest.raises(FileNotFoundError, match=rf"cannot see the directory {tmp_path}. .*{advice}"):
            results_of(str, [1], tmp_path, executor)


def test_a_file_that_somebody_else_has_put_in_place_is_not_unpickled(tmp_path):
    def replace(common):
        common.place.write_bytes(pickle.dumps(partial(os.mkdir, tmp_path / "mine")))
        return common

    with pytest.raises(ValueError, match="was changed; start the comparison again"):
        results_of(str, [1], tmp_path, OnThread(replace))
    assert not (tmp_path / "mine").exists()


def test_a_worker_of_other_versions_is_refused_and_both_are_named(tmp_path, monkeypatch):
    real = tasks._facts()
    expected = {**real, "tensorflow": "2.0.0", "clr_loop": "0.0.1"}
    monkeypatch.setattr(tasks, "_facts", lambda: real if threading.current_thread().name != "MainThread" else expected)
    with pytest.raises(ValueError, match=rf"process {os.getpid()}, has clr_loop .* in place of 0.0.1, tensorflow "):
        results_of(str, [1], tmp_path)


def test_a_worker_whose_tensorflow_has_begun_with_other_threads_is_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"has threads {num_threads()} in place of 77; start it with the same"):
        results_of(str, [1], tmp_path, threads=77)
    with pytest.raises(ValueError, match="threads in this process already, and 77 were asked for; begin a new process"):
        use_threads(77)


def test_threads_are_set_before_tensorflow_computes_and_counted_as_it_counts_them():
    code = """if True:
        import os
        from clr_loop.loop.threads import num_threads, use_threads
        print(num_threads() == len(os.sched_getaffinity(0)), end=" ")
        os.environ["TF_NUM_INTRAOP_THREADS"] = "5"
        print(num_threads(), end=" ")
        use_threads(3)
        import tensorflow as tf
        tf.constant(1) + 1
        use_threads(3)  # It is so already.
        print(num_threads(), tf.config.threading.get_intra_op_parallelism_threads())
    """
    assert run_code(code) == "True 5 3 3\n"


MISTAKES = [
    ValueError("seed is -1"),
    FileExistsError("it is there"),
    NonFiniteError("val_loss is nan", None),
    NonFiniteLossError(7, 0.5, float("inf"), Checkpoint(Path("here"), {"step": 4})),
    CheckpointError("all are damaged"),
    NoSuggestionError("the loss never falls"),
]


@pytest.mark.parametrize("error", MISTAKES, ids=lambda error: type(error).__name__)
def test_the_packages_own_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_mistake_that_this_package_finds_in_a_worker_is_raised_here_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="epochs is 0; it must be at least 1") as caught:
        results_of(partial(checked_whole, "epochs"), [0], tmp_path)
    assert type(caught.value) is ValueError


def look_up(item):
    return {}[item]


def test_what_the_users_code_raises_names_the_worker_and_the_line(tmp_path):
    with pytest.raises(WorkerError, match=rf"process {os.getpid()}, failed: KeyError: 'a' .*test_tasks.py, line \d+"):
        results_of(look_up, ["a"], tmp_path)


def test_work_that_cannot_be_pickled_is_refused_before_anything_is_begun(tmp_path):
    lock = threading.Lock()
    with pytest.raises(ValueError, match="What the runs need cannot be sent to other processes"):
        results_of(lambda item: lock, [1], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_process_of_a_pool_is_named_and_what_came_before_is_kept(forking, tmp_path):
    def do(item):
        if item == 3:
            time.sleep(1)  # Until the others are told.
            os.kill(os.getpid(), 9)
        return item

    with pool(1) as executor, closing(spread(lambda: do, range(6), Processes(executor), tmp_path)) as done:
        assert sorted(next(done) for _ in range(3)) == [(0, 0), (1, 1), (2, 2)]
        with pytest.raises(WorkersLostError, match=r"The workers did not finish .* is kept; go on with resume=True"):
            next(done)
    assert list(tmp_path.iterdir()) == []


said, has_begun = [], threading.Event()


def do_as_long_as_wanted(item):
    if item:
        has_begun.set()
        while is_wanted():
            time.sleep(0.01)
    said.append((item, is_wanted()))


def test_work_is_wanted_until_the_generator_is_closed(tmp_path):
    said.clear()
    has_begun.clear()
    executor = OnThread()
    with closing(spread(partial(partial, do_as_long_as_wanted), [0, 1, 2], Processes(executor), tmp_path)) as done:
        next(done)
        has_begun.wait()
    executor._threads.shutdown()
    assert said == [(0, True), (1, False)]  # The last one was cancelled.
    assert is_wanted()
    assert list(tmp_path.iterdir()) == []


def test_keras_is_told_what_it_was_told_here(tmp_path):
    before = keras.config.epsilon(), keras.config.dtype_policy()
    try:
        keras.config.set_epsilon(0.5)
        keras.config.set_dtype_policy("mixed_bfloat16")
        results = results_of(lambda item: (keras.config.epsilon(), keras.config.dtype_policy().name), [1], tmp_path)
    finally:
        keras.config.set_epsilon(before[0])
        keras.config.set_dtype_policy(before[1])
    assert results == {1: (0.5, "mixed_bfloat16")}


def test_what_is_finished_is_told_before_what_has_failed_and_nothing_is_begun_for_nothing(tmp_path):
    executor = AtOnce()
    with closing(spread(lambda: look_up_a_letter, ["a", 1, 2], Processes(executor), tmp_path)) as done:
        assert [next(done), next(done)] == [(1, 1), (2, 2)]
        with pytest.raises(WorkerError):
            next(done)
    assert list(spread(lambda: 1 / 0, [], Processes(executor), tmp_path)) == []


def look_up_a_letter(item):
    return look_up(item) if item == "a" else item


def test_an_item_may_be_of_a_class_that_only_this_process_knows(forking, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Own:
        number: int

    with pool(1) as executor:
        results = results_of(lambda item: item.number + 1, [Own(1)], tmp_path, executor)
    assert list(results.values()) == [2]


def test_a_pool_whose_process_was_killed_between_two_studies_is_a_lost_one(forking, tmp_path):
    with pool(1) as executor:
        (pid,) = results_of(lambda item: os.getpid(), [1], tmp_path, executor).values()
        os.kill(pid, 9)
        time.sleep(1)
        with pytest.raises(WorkersLostError) as caught:
            results_of(str, [1], tmp_path, executor)
    assert caught.value.num_done == 0


def test_an_executor_that_forks_is_refused_with_what_to_take_instead():
    forks, spawns = (ProcessPoolExecutor(1, multiprocessing.get_context(method)) for method in ("fork", "spawn"))
    with pytest.raises(ValueError, match=r"forks its processes, and TensorFlow would hang in them\. Use .*pool, or"):
        Processes.of(forks)
    assert Processes.of(spawns) == Processes(spawns)


def test_a_pool_that_an_exception_ends_ends_its_own_processes_and_no_others(forking, tmp_path):
    entered = pool(1)
    executor = entered.__enter__()
    (pid,) = results_of(lambda item: os.getpid(), [1], tmp_path, executor).values()
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(LIMIT_SECONDS,))
    other.start()
    assert not entered.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert other.is_alive()
    assert not Path(f"/proc/{pid}").exists()
    other.kill()
    other.join()


def test_files_of_processes_that_are_gone_are_removed_and_those_of_others_are_not(tmp_path):
    gone = tmp_path / f"{tasks._prefix()}999999999_1"
    others = [tmp_path / f"{tasks._prefix()}{os.getppid()}_1", tmp_path / ".work_of_another_machine_1_1"]
    for path in (gone, *others):
        path.touch()
    assert results_of(str, [1], tmp_path) == {1: "1"}
    assert sorted(tmp_path.iterdir()) == sorted(others)
