"""Replicas and workers from the command line."""

import os
import shlex
import signal
import time

import numpy as np
import pytest

from clr_loop.studies.comparison.identity import differences
from helpers.processes import finish, tf_configs
from helpers.scripts import run_script, start_script

FLAGS = ["--strategy=multi_worker", "--model=relu_mlp", "--batch_size=64", "--max_lr=0.01", "--step_size=50",
         "--checkpoint_every=7", "--clip_norm=1"]  # fmt: skip


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """300 + 100 images of noise: five batches of 64, the last one short."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (400, 8, 8), np.uint8), np.arange(400) % 10
    np.savez(path, x_train=images[:300], y_train=labels[:300], x_test=images[300:], y_test=labels[300:])
    return path


def start_workers(npz, run_dir, *flags):
    return [
        start_script(
            "train.py",
            f"--dataset={npz}",
            f"--run_dir={run_dir}",
            *FLAGS,
            *flags,
            env=os.environ | {"TF_CONFIG": config},
        )
        for config in tf_configs(2)
    ]


def test_workers_with_different_flags_name_the_difference_and_nobody_trains(npz, tmp_path):
    processes = [
        start_script("train.py", f"--dataset={npz}", f"--run_dir={tmp_path}/run", *FLAGS, flag,
                     env=os.environ | {"TF_CONFIG": config})
        for config, flag in zip(tf_configs(2), ("--seed=1", "--seed=2"), strict=True)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 2
        assert "worker 0 has --seed 1, and worker 1 has 2. Start all of them with the same flags" in errors
    assert not (tmp_path / "run" / "config.json").exists()


def newest_checkpoint(run_dir):
    return max((int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").glob("step_*")), default=0)


def end_after_a_checkpoint(npz, run_dir, told, number):
    """Start or resume a run without an end, and send one worker a signal after the next checkpoint; return the ends."""
    before = newest_checkpoint(run_dir)
    processes = start_workers(npz, run_dir, "--epochs=100000", *(["--resume"] if before else []))
    while newest_checkpoint(run_dir) <= before:
        assert processes[0].poll() is None, processes[0].communicate()
        time.sleep(0.01)
    processes[told].send_signal(number)
    ends = [process.communicate() for process in processes]
    return [(process.returncode, *end) for process, end in zip(processes, ends, strict=True)]


def test_what_ends_one_worker_ends_all_and_the_run_goes_on_to_the_same_last_bit(npz, tmp_path):
    run_dir = tmp_path / "run"
    (code, _, errors), _ = end_after_a_checkpoint(npz, run_dir, 1, signal.SIGKILL)
    assert code == 2, errors
    assert errors.startswith("error: A worker has gone, and the others cannot go on without it")
    assert errors.count("\n") == 1

    for told, number in ((0, signal.SIGTERM), (1, signal.SIGINT)):
        ends = end_after_a_checkpoint(npz, run_dir, told, number)
        stopped, other = ends[told], ends[1 - told]
        assert (stopped[0], other[0]) == (128 + number, 2)
        assert stopped[2] == "stopping after this block of steps; once more stops at once\n"
        newest = newest_checkpoint(run_dir)
        said, _, command = other[2].partition("; resume: ")
        assert said == f"error: Another worker was told to stop, so all stopped after {newest} steps"
        assert shlex.split(command)[-1] == "--resume"
        assert len((run_dir / "history.csv").read_text().splitlines()) == 1 + newest

    epochs = f"--epochs={newest // 5 + 2}"
    finish(*start_workers(npz, run_dir, "--resume", epochs, "--on_change=replace"))
    said, nothing = finish(*start_workers(npz, tmp_path / "whole", epochs))
    assert "2 replicas of MultiWorkerMirroredStrategy" in said
    assert nothing == ""  # Only the chief speaks, and only the chief writes.
    assert len(list((tmp_path / "whole").glob("*tfevents*"))) == 2  # The run's, and that of its pictures.
    assert differences(tmp_path / "whole", run_dir) == []


def test_two_logical_devices_train_from_the_command_line(npz, tmp_path):
    flags = ["--strategy=mirrored", "--logical_devices=2", "--batch_size=64", "--epochs=2", "--accumulate=2"]
    done = run_script("train.py", f"--dataset={npz}", *flags, f"--run_dir={tmp_path}/run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 replicas of MirroredStrategy" in done.stdout
    assert "2 replicas of MirroredStrategy, feed resident (" in done.stdout
    assert "without XLA (it cannot compile the exchange between replicas)" in done.stdout
