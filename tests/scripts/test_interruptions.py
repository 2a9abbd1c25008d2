"""What happens to runs: signals, a second process, a full disk, a directory that goes away. In real processes."""

import functools
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import time

import numpy as np
import pytest
from filelock import FileLock

from clr_loop.studies.comparison.identity import differences
from helpers import processes
from helpers.scripts import SCRIPTS, assert_one_line_error, epoch_rows
from helpers.scripts import start_script as start


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """A run of 40 epochs of 150 steps on small images: about two seconds of training after the start."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    rng = np.random.default_rng(0)
    labels = np.arange(1200) % 4
    images = np.clip(rng.normal(60.0 * labels[:, None, None], 40.0, (1200, 6, 6)), 0, 255).astype(np.uint8)
    np.savez(path, x_train=images[:900], y_train=labels[:900], x_test=images[900:], y_test=labels[900:])
    return [f"--dataset={path}", "--model=relu_mlp", "--batch_size=6", "--epochs=40", "--step_size=2ep"]


def finish(script, *flags, **arguments):
    process = start(script, *flags, **arguments)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def start_line(line):
    """Start what a line "resume: …" says."""
    python, script, *flags = shlex.split(line.removeprefix("resume:"))
    assert os.path.samefile(shutil.which(python), sys.executable)
    assert os.path.samefile(os.path.dirname(script), SCRIPTS)
    return start(os.path.basename(script), *flags)


def num_epochs(run_dir):
    """Return how many epochs a run has recorded."""
    path = run_dir / "epochs.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def wait_for_epochs(process, run_dir, number):
    """Waits until a run has recorded so many epochs; fails if the process ends before."""
    while num_epochs(run_dir) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(commands, flags, tmp_path_factory):
    """The run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    commands.succeed("train", *flags, f"--run_dir={run_dir}")
    return run_dir


def test_a_signal_ends_the_run_with_a_checkpoint_and_the_line_that_resumes_it(flags, whole, tmp_path):
    run_dir = tmp_path / "run"
    process = start("train.py", *flags, "--checkpoint_every=50%", f"--run_dir={run_dir}")
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        wait_for_epochs(process, run_dir, num_epochs(run_dir) + 2)
        process.send_signal(number)
        stdout, stderr = process.communicate()
        assert process.returncode == code
        assert stderr == "stopping after this block of steps; once more stops at once\n"
        assert not (run_dir / "result.json").exists()
        (line,) = [line for line in stdout.splitlines() if line.startswith("resume:")]
        process = start_line(line)
    _, stderr = process.communicate()
    assert differences(whole, run_dir) == [], stderr


def test_stopped_without_checkpoints_it_says_that_there_is_nothing_to_go_on_from(flags, tmp_path):
    process = start("train.py", *flags, "--checkpoint_every=never", f"--run_dir={tmp_path}/run")
    wait_for_epochs(process, tmp_path / "run", 1)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate()
    assert process.returncode == 130
    assert stdout.endswith("no checkpoint was asked for\n")


def test_a_second_ctrl_c_stops_at_once():
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from clr_loop.commands.callbacks import SignalWatch;"
        "watch = SignalWatch();"
        "os.kill(os.getpid(), signal.SIGINT); assert watch.received == signal.SIGINT;"
        "os.kill(os.getpid(), signal.SIGINT); print('still here')"
    )
    process = processes.start(code, SCRIPTS)
    stdout, stderr = process.communicate()
    assert process.returncode == -signal.SIGINT
    assert stderr == "stopping after this block of steps; once more stops at once\n"
    assert stdout == ""


def test_killed_it_loses_the_steps_since_the_checkpoint_and_goes_on_with_the_flags_that_it_was_started_with(
    commands, flags, whole, tmp_path
):
    run_dir = tmp_path / "run"
    process = start("train.py", *flags, "--epochs=41", f"--run_dir={run_dir}")
    wait_for_epochs(process, run_dir, 3)
    for arguments in (["--resume"], ["--overwrite"]):
        done = commands.run("train", *flags, *arguments, f"--run_dir={run_dir}")
        assert done.returncode == 2
        assert f"The directory {run_dir} is held by another process" in done.stderr
    assert process.poll() is None
    process.kill()
    process.communicate()
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").glob("step_*"))
    assert int(checkpoints[-1].removeprefix("step_")) >= (num_epochs(run_dir) - 2) * 150  # A thread writes them.
    done = commands.run("train", flags[0], f"--run_dir={run_dir}", "--resume")
    assert done.returncode == 2
    assert "started with different settings" in done.stderr
    assert "model relu_mlp, now article_mlp" in done.stderr
    # --epochs changes no step, so it may be another; the schedule counts its steps in epochs' lengths.
    # Data and code come from the command alone: a run directory may be anybody's.
    kept = ("--epochs=40", f"--run_dir={run_dir}", "--resume", "--on_change=keep")
    done = commands.run("train", *kept)
    assert done.returncode == 2
    assert (
        f"takes no flags that name code or files from {run_dir}/config.json; if you trust them, add {flags[0]}."
        in done.stderr
    )
    done = commands.succeed("train", flags[0], *kept)
    assert epoch_rows(done.stdout)[0]["epoch"] != "1/40"
    assert differences(whole, run_dir) == []


@pytest.mark.parametrize(
    "command", [["--run_dir=elsewhere"], ["--model=os:getcwd", "--noflag"], "--seed=1", [3], [["--seed=1"]]]
)
def test_a_strangers_directory_orders_nothing(commands, whole, flags, tmp_path, command):
    shutil.copytree(whole, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "command": command}))
    done = commands.run("train", f"--run_dir={tmp_path}/run", "--resume", "--on_change=keep")
    assert done.returncode == 2
    assert "has no flags to keep of this command; leave out --on_change=keep and repeat them" in done.stderr


@pytest.mark.usefixtures("whole")  # XLA's programs are in their cache already.
def test_no_room_for_a_first_checkpoint_is_one_line(flags, tmp_path):
    # What a full disk looks like to one process: no file of it can grow beyond this.
    full = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    returncode, _, stderr = finish("train.py", *flags, f"--run_dir={tmp_path}/run", prepare=full)
    assert returncode == 2
    assert stderr.startswith("error: ")
    assert f"{tmp_path}/run" in stderr
    assert stderr.count("\n") == 1


def test_a_directory_that_goes_away_in_mid_run_is_one_line(flags, tmp_path):
    process = start("train.py", *flags, "--epochs=100000", f"--run_dir={tmp_path}/run")
    wait_for_epochs(process, tmp_path / "run", 3)
    (tmp_path / "run").rename(tmp_path / "moved")
    _, stderr = process.communicate()
    assert process.returncode == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert list((tmp_path / "moved" / "checkpoints").glob("step_*"))


def test_a_run_is_not_started_over_another_unless_it_is_to_be_overwritten(commands, flags, whole):
    before = (whole / "result.json").read_bytes()
    done = commands.run("train", *flags, f"--run_dir={whole}")
    assert done.returncode == 2
    assert "already holds a run. Choose another, give --resume to go on with it" in done.stderr
    assert (whole / "result.json").read_bytes() == before


def test_a_stopped_run_is_finished_with_its_kept_feed_strategy_and_epochs(flags, tmp_path):
    run_dir = tmp_path / "run"
    own = ["--feed=stream", "--strategy=mirrored", "--logical_devices=2", "--epochs=4"]
    process = start("train.py", *flags, *own, f"--run_dir={run_dir}")
    wait_for_epochs(process, run_dir, 1)
    process.kill()
    process.communicate()
    returncode, stdout, stderr = finish("train.py", flags[0], f"--run_dir={run_dir}", "--resume", "--on_change=keep")
    assert returncode == 0, stderr
    assert "2 replicas of MirroredStrategy, feed stream" in stdout
    assert epoch_rows(stdout)[-1]["epoch"] == "4/4"
    assert json.loads((run_dir / "result.json").read_text())["epochs"] == 4


def test_a_comparison_resumed_runs_only_what_is_not_finished(commands, flags, tmp_path):
    arguments = [*flags[:2], "--epochs=2", "--batch_sizes=50,100", "--seeds=2", f"--output_dir={tmp_path}/out"]
    done = commands.run("compare_batch_sizes", *arguments)
    assert done.returncode == 0, done.stderr
    results = sorted((tmp_path / "out").glob("*/seed_*/result.json"))
    assert len(results) == 8
    before = json.loads((tmp_path / "out" / "comparison.json").read_text())
    results[3].unlink()  # As if the process had been killed in this run.
    written = {path: path.stat().st_mtime_ns for path in results if path.exists()}
    (tmp_path / "out" / "comparison.json").unlink()

    done = commands.run("compare_batch_sizes", *arguments, "--resume")
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in written} == written
    after = json.loads((tmp_path / "out" / "comparison.json").read_text())
    digests = [[run["weights_sha256"] for run in content["runs"]] for content in (before, after)]
    assert digests[0] == digests[1]

    done = commands.run("compare_batch_sizes", *arguments, "--resume", "--learning_rate=0.2")
    assert done.returncode == 2
    assert "plan: constant, batch 50 {'learning_rate': 0.1}, now {'learning_rate': 0.2}" in done.stderr
    done = commands.run("compare_batch_sizes", *arguments, "--resume", "--epochs=1")
    assert done.returncode == 2
    assert "plan: epochs of each arm {'constant, batch 50': 2, " in done.stderr
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_prove_resume_kills_and_compares(flags, tmp_path):
    train_flags = shlex.join([*flags, "--epochs=10", "--checkpoint_every=200"])
    returncode, stdout, stderr = finish(
        "prove_resume.py", "--kills=1", "--seed=1", f"--train_flags={train_flags}", f"--output_dir={tmp_path}/out"
    )
    assert returncode == 0, stderr
    assert stdout.endswith("kills: 1\nbit-identical: yes\n")


@pytest.mark.parametrize("place", ["/proc/clr_loop_run", "/proc"])
def test_a_place_that_cannot_be_written_to_is_one_line(commands, flags, place):
    assert_one_line_error(commands.run("train", *flags, f"--run_dir={place}"), place)


def test_processes_side_by_side_end_with_the_one_that_began_them(flags, tmp_path):
    output_dir = tmp_path / "compared"
    arguments = [*flags[:2], "--batch_sizes=6", "--schedules=constant", "--epochs=100", "--seeds=2", "--parallel=2"]
    parent = start("compare_batch_sizes.py", *arguments, f"--output_dir={output_dir}")
    run_dir = output_dir / "constant_batch_6" / "seed_1"
    wait_for_epochs(parent, run_dir, 1)
    parent.kill()
    parent.communicate()
    with FileLock(run_dir / "run.lock", timeout=5):  # Free when the process that held it has gone.
        assert len((run_dir / "epochs.csv").read_text().splitlines()) < 100
        assert not (run_dir / "result.json").exists()
