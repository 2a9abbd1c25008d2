"""The scripts as a user meets them: in a process of their own."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


def run_script(name, *flags, **environment):
    """Runs a script; returns the finished process."""
    return subprocess.run(
        [sys.executable, SCRIPTS / name, *map(str, flags)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


@pytest.fixture(scope="module")
def npz(tmp_path_factory, mnist):
    """300 + 100 images of MNIST as a user's own file, so that a run takes no time."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    (x_train, y_train), (x_test, y_test) = mnist.train, mnist.validation
    np.savez(path, x_train=x_train[:300], y_train=y_train[:300], x_test=x_test[:100], y_test=y_test[:100])
    return path


@pytest.fixture(scope="module")
def small_flags(npz):
    return [f"--dataset={npz}", "--model=relu_mlp", "--batch_size=64", "--epochs=2", "--max_lr=0.01", "--step_size=5"]


@pytest.fixture(scope="module")
def trained(small_flags, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    done = run_script("train.py", *small_flags, f"--run_dir={run_dir}")
    assert done.returncode == 0, done.stderr
    return done, run_dir


def test_train_writes_its_files(trained):
    _, run_dir = trained
    assert {path.name for path in run_dir.iterdir() if "tfevents" not in path.name} == {
        "config.json", "history.csv", "epochs.csv", "result.json", "curves.png", "train", "validation", "checkpoints",
        "run.lock",
    }  # fmt: skip
    result = json.loads((run_dir / "result.json").read_text())
    assert result["steps"] == 10
    assert result["schedule"]["name"] == "Triangular"
    assert len(result["epoch_seconds"]) == 2
    with open(run_dir / "history.csv", newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(rates[:6], np.linspace(0.001, 0.01, 6), rtol=1e-6)


def test_train_prints_a_line_for_each_epoch_and_where_to_look_and_nothing_else(trained):
    done, run_dir = trained
    lines = done.stdout.splitlines()
    assert [line[:12] for line in lines if line.startswith("epoch")] == ["epoch   1/2 ", "epoch   2/2 "]
    look = shlex.split(lines[-1].removeprefix("look:"))
    assert Path(look[0]).name == "tensorboard"
    assert look[1:4] == ["--logdir", str(run_dir), "--samples_per_plugin"]
    assert done.stderr == ""  # No bar where there is no terminal, and no start-up noise of TensorFlow.


def test_the_same_command_gives_the_same_digest_and_another_seed_another(trained, small_flags, tmp_path):
    digests = [json.loads((trained[1] / "result.json").read_text())["weights_sha256"]]
    for seed in (0, 1):
        run_dir = tmp_path / str(seed)
        done = run_script("train.py", *small_flags, f"--seed={seed}", f"--run_dir={run_dir}")
        assert done.returncode == 0, done.stderr
        digests.append(json.loads((run_dir / "result.json").read_text())["weights_sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_compare_writes_and_prints_the_report(npz, tmp_path):
    output_dir = tmp_path / "compared"
    done = run_script(
        "compare_batch_sizes.py", f"--dataset={npz}", "--batch_sizes=50,300", "--epochs=2", "--seeds=2",
        f"--output_dir={output_dir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output_dir.iterdir()} == {
        "comparison.lock", "comparison.json", "comparison.csv", "report.md", "comparison.png",
        "constant_batch_50", "triangular_batch_50", "constant_batch_300", "triangular_batch_300",
    }  # fmt: skip
    assert (output_dir / "report.md").read_text() in done.stdout
    content = json.loads((output_dir / "comparison.json").read_text())
    assert len(content["runs"]) == 8
    assert len({run["weights_sha256"] for run in content["runs"]}) == 8


def compare_script(npz, output_dir, *flags):
    arguments = [f"--dataset={npz}", "--batch_sizes=64,300", "--epochs=2", f"--output_dir={output_dir}"]
    return run_script("compare_batch_sizes.py", *arguments, *flags)


@pytest.fixture(scope="module")
def in_parallel(npz, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("parallel") / "compared"
    done = compare_script(npz, output_dir, "--seeds=4", "--parallel=2")
    assert done.returncode == 0, done.stderr
    return done, output_dir


def test_seeds_side_by_side_end_as_they_do_one_after_another(in_parallel, npz, tmp_path):
    _, output_dir = in_parallel
    done = compare_script(npz, tmp_path / "compared", "--seeds=4")
    assert done.returncode == 0, done.stderr
    beside, alone = (
        json.loads((directory / "comparison.json").read_text()) for directory in (output_dir, tmp_path / "compared")
    )
    for one, other in zip(beside["runs"], alone["runs"], strict=True):
        assert (one["arm"], one["seed"]) == (other["arm"], other["seed"])
        assert one["weights_sha256"] == other["weights_sha256"]
        assert (one["is_timed"], other["is_timed"]) == (one["seed"] == 0, True)
    assert [arm["val_accuracy"] for arm in beside["arms"]] == [arm["val_accuracy"] for arm in alone["arms"]]


def test_seeds_side_by_side_are_not_timed(in_parallel):
    done, output_dir = in_parallel
    said = [line for line in done.stdout.splitlines() if "validation accuracy 0" in line and ", seed " in line]
    assert len(said) == 16  # Each run once.
    assert {line.partition("seed ")[2][0] for line in said if "trained" in line} == {"0"}
    assert "Times are of seed 0 alone: seeds 1, 2, 3 ran side by side" in (output_dir / "report.md").read_text()
    content = json.loads((output_dir / "comparison.json").read_text())
    counted = {effect["measure"]: len(effect["values"]) for effect in content["effects"]}
    assert counted == {"val_accuracy": 4, "epoch_seconds": 1}


def test_a_process_that_fails_ends_the_comparison_in_one_line_each(in_parallel, npz, tmp_path):
    output_dir = tmp_path / "compared"
    place = output_dir / "constant_batch_64"
    assert compare_script(npz, output_dir, "--seeds=1").returncode == 0
    (place / "seed_1").write_text("in the way")
    done = compare_script(npz, output_dir, "--seeds=3", "--parallel=2", "--resume")
    assert done.returncode == 2
    child, parent = done.stderr.splitlines()
    assert "seed_1" in child
    assert "all processes must finish, received exit code 2 from one of 2" in parent
    (place / "seed_1").unlink()
    done = compare_script(npz, output_dir, "--seeds=3", "--parallel=2", "--resume")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def without_tensorflow(tmp_path):
    """An environment in which importing TensorFlow or Keras fails."""
    for name in ("tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


@pytest.mark.parametrize("name", ["train.py", "compare_batch_sizes.py"])
def test_help_tells_units_without_starting_tensorflow(name, without_tensorflow):
    done = run_script(name, "--help", **without_tensorflow)
    assert "2ep (epochs)" in done.stdout
    assert "python scripts/" in done.stdout
    assert "imported" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("train.py", ["--schedule=square"], "--schedule=square: value should be one of <constant|triangular|"),
        ("train.py", ["--no_such_flag=1"], "Unknown command line flag 'no_such_flag'"),
        ("train.py", ["triangular"], "arguments must be flags, received 'triangular'; write it as --name=value"),
        ("train.py", ["--base_lr=0.1", "--max_lr=0.01"], "base_lr must not be above max_lr, received base_lr 0.1"),
        ("train.py", ["--base_lr=-0.1"], "base_lr must be a finite number of at least 0, received -0.1"),
        ("train.py", ["--schedule=constant", "--learning_rate=nan"], "learning_rate must be a finite number"),
        ("train.py", ["--step_size=0"], "step_size must be at least 1 step, received '0'"),
        ("train.py", ["--schedule=exp_range", "--gamma=1.5"], "gamma must be above 0 and at most 1, received 1.5"),
        ("compare_batch_sizes.py", ["--batch_sizes=100,many"], "must be whole numbers, none twice, such as 100,2000"),
        ("compare_batch_sizes.py", ["--schedules=constant,square"], "must be of constant, triangular"),
    ],
)
def test_a_bad_flag_is_one_line_without_starting_tensorflow(name, flags, message, without_tensorflow, tmp_path):
    where = f"--run_dir={tmp_path}/run" if name == "train.py" else f"--output_dir={tmp_path}/run"
    done = run_script(name, *flags, where, **without_tensorflow)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--dataset=minst"],
            "dataset must be one of mnist, fashion_mnist, a path ending in .npz or package.module:function, received",
        ),
        (["--dataset=none.npz"], "dataset file none.npz does not exist; give the path of an .npz file"),
        (["--dataset=mnist", "--data_dir=nowhere"], "data file nowhere/train-images-idx3-ubyte.gz is missing"),
        (
            ["--model=mlp"],
            "model must be one of article_mlp, relu_mlp, small_cnn or package.module:function, received 'mlp'",
        ),
        (["--batch_size=0"], "batch_size must be from 1 to the 300 training examples, received 0; choose one"),
        (["--batch_size=301"], "batch_size must be from 1 to the 300 training examples, received 301; choose one"),
        (["--epochs=0"], "epochs must be at least 1, received 0; give the number of visits to the data"),
        (
            ["--base_lr=1e38", "--max_lr=1e38"],
            "step_0000000000; resume from it with a lower rate and --on_change=replace",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(small_flags, tmp_path, flags, message):
    done = run_script("train.py", *small_flags, *flags, f"--run_dir={tmp_path}/run")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(("name", "flag"), [("train.py", "--run_dir"), ("compare_batch_sizes.py", "--output_dir")])
def test_a_directory_that_holds_a_run_is_refused_and_untouched(name, flag, tmp_path, without_tensorflow):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "result.json").write_text("precious")
    done = run_script(name, f"{flag}={run_dir}", **without_tensorflow)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: output directory {run_dir} is not empty and holds no ")
    assert [(file.name, file.read_text()) for file in run_dir.iterdir()] == [("result.json", "precious")]


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path, without_tensorflow):
    (tmp_path / "file").write_text("")
    done = run_script("train.py", f"--run_dir={tmp_path}/file/run", **without_tensorflow)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: output directory {tmp_path}/file/run cannot be made: a file has its name; choose another\n"
    )
