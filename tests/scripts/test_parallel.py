"""Runs that go side by side: in processes of this machine, and in those of a Dask scheduler."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from clr_loop.cores import cores
from helpers.processes import Fork, fork_for_spawn, free_addresses
from helpers.scripts import (
    assert_one_line_error,
    assert_success,
    finished,
    run_script,
    start_python,
    start_script,
    succeed,
)

NAME = "compare_batch_sizes.py"
COMPARISON = ["--batch_sizes=64,300", "--epochs=2", "--seeds=3", "--measure=val_loss", "--reach=2.2"]
LONG = ["--batch_sizes=30", "--schedules=constant,triangular", "--epochs=80", "--seeds=2"]
# As many as a run on this machine does not have by itself.
THREADS = "--threads=1" if len(cores()) > 1 else "--threads=2"


def start(npz, output_dir, *flags, prepare=fork_for_spawn):
    """Start a comparison in a process of its own, which forks what it would spawn."""
    return start_script(NAME, f"--dataset={npz}", f"--output_dir={output_dir}", *flags, prepare=prepare)


def compare(npz, output_dir, *flags, **arguments):
    return finished(start(npz, output_dir, *flags, **arguments), NAME)


@pytest.fixture(scope="module")
def alone(npz, tmp_path_factory):
    """The comparison, run after run."""
    output_dir = tmp_path_factory.mktemp("alone") / "out"
    assert_success(compare(npz, output_dir, *COMPARISON, THREADS))
    return output_dir


@pytest.fixture(scope="module")
def long_alone(npz, tmp_path_factory):
    """A comparison of runs that last for a moment, run after run."""
    output_dir = tmp_path_factory.mktemp("long_alone") / "out"
    assert_success(compare(npz, output_dir, *LONG, THREADS))
    return output_dir


def content_of(output_dir):
    return json.loads((output_dir / "comparison.json").read_text())


def digests(output_dir):
    return [(run["arm"], run["seed"], run["weights_sha256"]) for run in content_of(output_dir)["runs"]]


def runs_told(stdout):
    """The runs that a comparison has said to be finished."""
    return re.findall(r"^run \d+ of \d+.*: (\w+, batch \d+, seed \d+): ", stdout, re.MULTILINE)


def wait_for(process, is_so):
    """Wait until something is so while a process runs."""
    while not is_so():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def begun(output_dir):
    """The directories of runs that are in the midst of training."""
    places = [path.parent for path in output_dir.glob("*/seed_*/epochs.csv")]
    return [place for place in places if not (place / "result.json").exists()]


def is_under_way(output_dir):
    """Whether both processes are at a run, or the slower one has not come to one yet."""
    return len(begun(output_dir)) == 2 or (begun(output_dir) and list(output_dir.glob("*/*/result.json")))


# --- In processes of this machine ---


@pytest.fixture(scope="module")
def beside(npz, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("beside") / "out"
    return assert_success(compare(npz, output_dir, *COMPARISON, "--parallel=2", THREADS)), output_dir


def test_runs_side_by_side_end_as_they_do_one_after_another(beside, alone):
    done, output_dir = beside
    assert digests(output_dir) == digests(alone)
    final = [[arm["final"] for arm in content_of(place)["arms"]] for place in (output_dir, alone)]
    assert final[0] == final[1]
    told = runs_told(done.stdout)
    assert len(told) == len(set(told)) == 12


def test_runs_on_cores_of_their_own_are_timed_and_the_report_says_how_they_ran(beside):
    done, output_dir = beside
    is_timed = {run["is_timed"] for run in content_of(output_dir)["runs"]}
    report = (output_dir / "report.md").read_text()
    threads = THREADS.removeprefix("--threads=")
    assert f"on CPU:0 with {threads} thread" in report
    if len(cores()) >= 2 * int(threads):
        assert is_timed == {True}
        assert "Up to 2 runs went side by side, each on cores of its own." in report
        assert done.stdout.count(", trained ") == 12
    else:
        assert is_timed == {False}
        assert "No run is timed, because none is known to have had its cores to itself." in report


def test_auto_takes_the_cores_there_are_for_runs_of_one_thread_and_resumes_with_as_many(npz, alone, tmp_path):
    output_dir = tmp_path / "out"
    flags = [*COMPARISON[:2], "--seeds=2"]
    done = assert_success(compare(npz, output_dir, *flags, "--parallel=auto"))
    assert json.loads((output_dir / "plan.json").read_text())["threads"] == 1
    assert {run["seed"] for run in content_of(output_dir)["runs"]} == {0, 1}
    before = digests(output_dir)
    if THREADS == "--threads=1":
        assert before == [run for run in digests(alone) if run[1] < 2]
    shutil.rmtree(output_dir / "constant_batch_64" / "seed_1")
    done = assert_success(compare(npz, output_dir, *flags, "--resume"))  # In one process, and without --threads.
    assert digests(output_dir) == before
    assert len(runs_told(done.stdout)) == 8
    refused = compare(npz, output_dir, *flags, "--resume", "--threads=3")
    assert_one_line_error(refused, "with another plan: threads 1, now 3")


def children_of(process):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_what_a_killed_process_was_at_is_run_again_in_a_new_pool(npz, long_alone, tmp_path):
    output_dir = tmp_path / "out"
    process = start_python(NAME, f"--dataset={npz}", f"--output_dir={output_dir}", *LONG, "--parallel=2", THREADS)
    wait_for(process, lambda: len(children_of(process)) == 2 and is_under_way(output_dir))
    os.kill(children_of(process)[0], signal.SIGKILL)
    done = assert_success(finished(process, NAME))
    assert done.stderr == ""
    assert "a process died, killed or out of memory; its run is done again" in done.stdout
    assert digests(output_dir) == digests(long_alone)


def test_a_run_that_cannot_be_made_ends_the_comparison_in_one_line_and_resumed_it_goes_on(npz, alone, tmp_path):
    output_dir = tmp_path / "out"
    shutil.copytree(alone, output_dir)
    place = output_dir / "constant_batch_64" / "seed_1"
    shutil.rmtree(place)
    place.write_text("in the way")
    done = compare(npz, output_dir, *COMPARISON, "--parallel=2", "--resume")
    assert_one_line_error(done, "seed_1")
    place.unlink()
    assert_success(compare(npz, output_dir, *COMPARISON, "--resume"))
    assert digests(output_dir) == digests(alone)


def test_a_mistake_in_a_worker_is_told_as_one_here(npz, tmp_path):
    code = """
import multiprocessing
from clr_loop.data.models import build_model
def model(dataset):
    if multiprocessing.parent_process() is not None:
        raise RuntimeError("no")
    return build_model("relu_mlp", dataset, 0)
"""
    (tmp_path / "mine.py").write_text(code)
    process = start_python(
        NAME, f"--dataset={npz}", f"--output_dir={tmp_path}/out", *COMPARISON, "--parallel=2", "--model=mine:model",
        cwd=tmp_path,
    )  # fmt: skip
    done = finished(process, NAME)
    assert_one_line_error(done, "model mine:model failed")
    assert "RuntimeError: no" in done.stderr


def test_ctrl_c_ends_all_processes_with_the_line_that_goes_on(npz, long_alone, tmp_path):
    output_dir = tmp_path / "out"
    process = start_python(NAME, f"--dataset={npz}", f"--output_dir={output_dir}", *LONG, "--parallel=2", THREADS)
    wait_for(process, lambda: len(children_of(process)) == 2 and is_under_way(output_dir))
    children = children_of(process)
    process.send_signal(signal.SIGINT)
    done = finished(process, NAME)
    assert_one_line_error(done, "Interrupted; what was written is kept. Resume it by ", code=130)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert_success(compare(npz, output_dir, *LONG, "--parallel=2", "--resume"))
    assert digests(output_dir) == digests(long_alone)


def test_range_tests_side_by_side_are_those_that_go_one_after_another(separable, tmp_path):
    flags = [f"--dataset={separable}", "--model=relu_mlp", "--batch_size=50", "--num_steps=200", "--seeds=3", THREADS]
    for place, more in (("alone", []), ("beside", ["--parallel=2"])):
        flags_of_this = [*flags, *more, f"--output_dir={tmp_path / place}"]
        process = start_script("range_test.py", *flags_of_this, prepare=fork_for_spawn)
        assert_success(finished(process, "range_test.py"))
    files = [(tmp_path / place / "range_test.csv").read_bytes() for place in ("alone", "beside")]
    assert files[0] == files[1]


def test_trials_and_their_comparison_side_by_side_are_those_that_go_one_after_another(separable, tmp_path):
    flags = ["--model=relu_mlp", "--batch_sizes=50", "--epochs=2", "--seeds=2", "--tune=3", "--trials=2", THREADS]
    for place, more in (("alone", []), ("beside", ["--parallel=2"])):
        assert_success(compare(separable, tmp_path / place, *flags, *more))
    one, other = (content_of(tmp_path / place)["tuning"] for place in ("alone", "beside"))
    for search in (*one, *other):
        for trials in search["trials"]:
            trials.pop("seconds")
    assert one == other
    assert digests(tmp_path / "alone") == digests(tmp_path / "beside")


def test_threads_are_kept_resumed_with_and_compared(npz, tmp_path):
    flags = [f"--dataset={npz}", "--model=relu_mlp", "--batch_size=64", f"--run_dir={tmp_path}/run"]
    succeed("train.py", *flags, "--epochs=1", "--threads=3")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == 3
    succeed("train.py", *flags, "--epochs=2", "--resume")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == 3
    again = [*flags, "--epochs=3", "--resume", "--threads=2"]
    assert_one_line_error(run_script("train.py", *again), "different settings: threads 3, now 2. Choose --on_change")
    succeed("train.py", *again, "--on_change=replace")


# --- In those of a Dask scheduler ---


def _dask(*arguments):
    import dask.__main__

    sys.argv = ["dask", *arguments]
    dask.__main__.main()


def _start_dask(directory, *arguments):
    return Fork(_dask, *arguments, "--no-dashboard", env={**os.environ, "DASK_TEMPORARY_DIRECTORY": str(directory)})


@pytest.fixture
def dask(tmp_path):
    """Start a scheduler; return its process, the flag that names it, and what starts a worker of it."""
    (address,) = free_addresses(1)
    host, port = address.split(":")
    processes = [_start_dask(tmp_path, "scheduler", "--host", host, "--port", port)]
    while processes[0].poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 10.0):
            break
        time.sleep(0.05)

    def start_worker():
        options = ["--nthreads", "1", "--no-nanny", "--death-timeout", "300"]
        processes.append(_start_dask(tmp_path, "worker", f"tcp://{address}", *options))
        return processes[-1]

    yield processes[0], f"--parallel=dask://{address}", start_worker
    for process in reversed(processes):
        process.kill()
        process.communicate()


def test_every_run_is_there_once_though_a_worker_is_killed_in_its_midst(dask, npz, long_alone, tmp_path):
    _, flag, start_worker = dask
    output_dir = tmp_path / "out"
    comparing = start(npz, output_dir, *LONG, flag, THREADS)
    first, _ = start_worker(), start_worker()  # The command waits for them.
    wait_for(comparing, lambda: len(begun(output_dir)) == 2)
    first.kill()
    done = assert_success(finished(comparing, NAME))
    told = runs_told(done.stdout)
    assert len(told) == len(set(told)) == 4
    assert digests(output_dir) == digests(long_alone)
    assert {run["is_timed"] for run in content_of(output_dir)["runs"]} == {False}
    assert "No run is timed, because none is known" in (output_dir / "report.md").read_text()


def test_when_the_scheduler_dies_what_is_finished_is_kept_and_resume_goes_on(dask, npz, long_alone, tmp_path):
    scheduler, flag, start_worker = dask
    output_dir = tmp_path / "out"
    comparing = start(npz, output_dir, *LONG, flag, THREADS)
    start_worker()
    wait_for(comparing, lambda: list(output_dir.glob("*/*/result.json")) and begun(output_dir))
    scheduler.kill()
    done = finished(comparing, NAME)
    assert_one_line_error(done, "The workers did not finish")
    assert "go on with --resume" in done.stderr
    finished_before = {path: path.stat().st_mtime_ns for path in output_dir.glob("*/*/result.json")}
    assert 0 < len(finished_before) < 4
    assert_success(compare(npz, output_dir, *LONG, "--resume"))
    assert {path: path.stat().st_mtime_ns for path in finished_before} == finished_before
    assert digests(output_dir) == digests(long_alone)


def test_a_directory_that_workers_do_not_see_gets_results_and_tables_back(dask, npz, alone, tmp_path):
    _, flag, start_worker = dask
    start_worker()
    output_dir = tmp_path / "out"
    assert_success(compare(npz, output_dir, *COMPARISON, flag, THREADS, "--noshared_dir"))
    assert digests(output_dir) == digests(alone)
    files = {path.name for path in (output_dir / "constant_batch_64" / "seed_0").iterdir()}
    assert files == {"config.json", "result.json", "history.csv", "epochs.csv", "run.lock"}
    other = "--threads=5"
    refused = compare(npz, tmp_path / "other", *COMPARISON, flag, other)
    assert_one_line_error(
        refused, f"has threads {THREADS.removeprefix('--threads=')} in place of 5; start it with the same versions"
    )


def _without_dask():
    sys.modules["distributed"] = None


def _impatiently():
    from clr_loop.commands import cores

    cores._CONNECT_SECONDS = 1


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_without_dask, "needs Dask; install clr_loop[dask]"),
        (_impatiently, "No Dask scheduler answers at 127.0.0.1:{port}; start one there (dask scheduler), or correct"),
    ],
)
def test_a_scheduler_that_cannot_be_reached_is_one_line_before_anything_is_run(npz, tmp_path, prepare, message):
    port = free_addresses(1)[0].partition(":")[2]
    done = compare(npz, tmp_path / "out", *COMPARISON, f"--parallel=dask://127.0.0.1:{port}", prepare=prepare)
    assert_one_line_error(done, message.format(port=port))
    assert not list((tmp_path / "out").glob("*_batch_*"))
