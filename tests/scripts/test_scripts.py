"""What train.py and compare_batch_sizes.py write and say, and how they answer mistakes."""

import csv
import json
import os
import shlex
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from clr_loop.studies.comparison.measures import Measure
from helpers.processes import fork_for_spawn
from helpers.scripts import assert_one_line_error, epoch_rows, finished, run_script, start_python, start_script, succeed


@pytest.fixture(scope="module")
def small_flags(npz):
    return [f"--dataset={npz}", "--model=relu_mlp", "--batch_size=64", "--epochs=2", "--max_lr=0.01", "--step_size=5"]


@pytest.fixture(scope="module")
def trained(small_flags, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    return succeed("train.py", *small_flags, f"--run_dir={run_dir}"), run_dir


def test_train_writes_its_files(trained):
    _, run_dir = trained
    assert {path.name for path in run_dir.iterdir() if "tfevents" not in path.name} == {
        "config.json", "history.csv", "epochs.csv", "result.json", "curves.png", "checkpoints", "run.lock",
        "final.keras", "best.keras",
    }  # fmt: skip
    result = json.loads((run_dir / "result.json").read_text())
    assert result["steps"] == 10
    assert result["schedule"]["name"] == "Triangular"
    assert len(result["epoch_seconds"]) == 2
    with open(run_dir / "history.csv", newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(rates[:6], np.linspace(0.001, 0.01, 6), rtol=1e-6)


def test_train_prints_a_row_for_each_epoch_and_where_to_look_and_nothing_else(trained):
    done, run_dir = trained
    lines = done.stdout.splitlines()
    assert lines[0].startswith("chosen:  device CPU:0, one replica, feed resident (")
    assert lines[0].endswith("precision float32, with XLA, oneDNN on")
    rows = epoch_rows(done.stdout)
    assert list(rows[0]) == ["epoch", "lr", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"]
    assert [(row["epoch"], row["lr"]) for row in rows] == [("1/2", "0.0082"), ("2/2", "0.0028")]
    final = json.loads((run_dir / "result.json").read_text())["final"]
    assert {name: rows[1][name] for name in final} == {name: f"{value:#.4g}" for name, value in final.items()}
    with open(run_dir / "epochs.csv", newline="") as file:
        accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(file)]
    assert f"best.keras: epoch {np.argmax(accuracies) + 1} of 2, val_accuracy {max(accuracies):#.4g}" in lines
    look = shlex.split(lines[-1].removeprefix("look:").partition("2>&1")[0])
    assert Path(look[0]).name == "tensorboard"
    assert look[1:4] == ["--logdir", str(run_dir), "--samples_per_plugin"]
    assert Path(look[2]).is_absolute()  # So the line works from any folder.
    assert done.stderr == ""  # No bar where there is no terminal.


def test_config_json_holds_the_options_of_the_step_and_what_was_chosen(commands, small_flags, tmp_path):
    options = [
        "--clip_norm=0.5",
        "--accumulate=2",
        "--skip_non_finite",
        "--jit_compile=false",
    ]
    options += ["--optimizer=sgd", "--feed=stream"]
    done = commands.succeed("train", *small_flags, *options, f"--run_dir={tmp_path}/run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    expected = {
        "clip_norm": 0.5, "accumulate": 2, "skip_non_finite": True, "jit_compile": False,
        "optimizer": "SGD", "precision": "float32", "model": "relu_mlp", "batch_size": 64, "seed": 0, "epochs": 2,
        "snapshots": False, "average_from": 0.5,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert config["optimizer_config"]["momentum"] == 0.9
    assert set(options) <= set(config["command"])
    assert config["chosen"]["feed"].startswith("stream")
    assert "without XLA (as asked)" in done.stdout


def test_resumed_without_epochs_a_run_has_those_that_it_was_started_with(commands, trained, small_flags, tmp_path):
    shutil.copytree(trained[1], tmp_path / "run")
    flags = [flag for flag in small_flags if not flag.startswith("--epochs")]
    resume = ["train", *flags, f"--run_dir={tmp_path}/run", "--resume"]
    commands.succeed(*resume)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 10
    done = commands.succeed(*resume, "--epochs=3")
    assert [row["epoch"] for row in epoch_rows(done.stdout)] == ["3/3"]


def digest(run_dir):
    return json.loads((run_dir / "result.json").read_text())["weights_sha256"]


def test_another_seed_gives_another_digest(commands, trained, small_flags, tmp_path):
    commands.succeed("train", *small_flags, "--seed=1", f"--run_dir={tmp_path}/run")
    assert digest(tmp_path / "run") != digest(trained[1])


def test_the_same_command_gives_the_same_digest_whatever_keras_was_told_outside_of_it(trained, small_flags, tmp_path):
    (tmp_path / "keras.json").write_text(
        json.dumps({"backend": "jax", "floatx": "float16", "epsilon": 0.1, "image_data_format": "channels_first"})
    )
    environment = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1"}
    done = succeed("train.py", *small_flags, f"--run_dir={tmp_path}/run", **environment)
    assert done.stderr == ""  # TensorFlow starts without a word, too.
    assert digest(tmp_path / "run") == digest(trained[1])


COMPARISON = ["--batch_sizes=64,300", "--epochs=2", "--seeds=3", "--measure=val_loss", "--reach=2.2"]


def compare(npz, output_dir, *flags):
    """Compare in a process of its own, which forks what it would spawn."""
    flags = [f"--dataset={npz}", *COMPARISON, f"--output_dir={output_dir}", *flags]
    return finished(start_script("compare_batch_sizes.py", *flags, prepare=fork_for_spawn), "compare_batch_sizes.py")


@pytest.fixture(scope="module")
def compared(npz, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("compared") / "out"
    return compare(npz, output_dir), output_dir


def content_of(output_dir):
    return json.loads((output_dir / "comparison.json").read_text())


def test_compare_writes_and_prints_the_report(compared):
    done, output_dir = compared
    assert done.returncode == 0, done.stderr
    assert {path.name for path in output_dir.iterdir()} == {
        "comparison.lock", "comparison.json", "comparison.csv", "report.md", "report", "comparison.png",
        "plan.json", "arms.csv", "comparison.tex",
        "comparison.found.json", "comparison.loss_against_rate.png",
        "constant_batch_64", "triangular_batch_64", "constant_batch_300", "triangular_batch_300",
    }  # fmt: skip
    report = (output_dir / "report.md").read_text()
    follows = report.partition("## What follows\n\n")[2].partition("\n\n## Pictures")[0]
    assert follows in done.stdout  # Which says where the rest is, too.
    assert f"report:  {output_dir / 'report.md'} has the rest and the pictures" in done.stdout
    opened = [line.partition("--logdir ")[2].split()[0] for line in done.stdout.splitlines() if "--logdir" in line]
    assert opened == [str(output_dir / "report"), str(output_dir)]  # The summary, and then all runs.
    content = content_of(output_dir)
    assert len(content["runs"]) == 12
    assert len({run["weights_sha256"] for run in content["runs"]}) == 12
    assert content["measure"] == vars(Measure("val_loss", target=2.2))
    assert {effect["measure"] for effect in content["effects"]} == {"val_loss", "epoch_seconds"}


def test_a_measure_that_the_model_does_not_give_is_named_before_anything_is_run_or_removed(commands, compared, npz):
    _, output_dir = compared
    before = sorted(output_dir.rglob("*"))
    flags = [f"--dataset={npz}", *COMPARISON, f"--output_dir={output_dir}", "--measure=val_mae", "--overwrite"]
    assert_one_line_error(commands.run("compare_batch_sizes", *flags), "val_mae")
    assert sorted(output_dir.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=minst"], "There is no dataset 'minst'. Choose mnist, fashion_mnist, "),
        (["--model=mlp"], "There is no model 'mlp'. Choose article_mlp, relu_mlp, small_cnn, "),
        (["--profile=10:20"], "The profile begins at batch 10, and the run has 10"),
        (["--seed=-1"], "seed is -1"),
    ],
)
def test_a_mistake_is_one_line_and_no_run_is_removed_for_it(commands, trained, small_flags, flags, message):
    _, run_dir = trained
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    done = commands.run("train", *small_flags, *flags, f"--run_dir={run_dir}", "--overwrite")
    assert_one_line_error(done, message)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_rates_beyond_all_sense_end_in_one_line_that_names_the_checkpoint(commands, small_flags, tmp_path):
    done = commands.run("train", *small_flags, "--base_lr=1e38", "--max_lr=1e38", f"--run_dir={tmp_path}/run")
    assert_one_line_error(done, "--resume_from=0")
    assert not (tmp_path / "run" / "result.json").exists()


def test_overwrite_moves_what_is_there_aside_and_says_where_to(commands, trained, small_flags, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained[1], run_dir)
    (run_dir / "notes.txt").write_text("mine")
    done = commands.succeed("train", *small_flags, "--epochs=1", "--overwrite", f"--run_dir={run_dir}")
    assert f"what was in {run_dir} was moved to {run_dir}.1" in done.stdout + done.stderr
    assert json.loads((run_dir / "result.json").read_text())["steps"] == 5
    assert len((run_dir / "history.csv").read_text().splitlines()) == 6
    assert (tmp_path / "run.1" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "run.1" / "history.csv").read_bytes() == (trained[1] / "history.csv").read_bytes()


def test_ctrl_c_while_tensorflow_starts_is_one_line(tmp_path):
    # A TensorFlow that tells when its import begins, and then takes as long as it likes.
    (tmp_path / "tensorflow.py").write_text("print('importing', flush=True)\nwhile True: pass\n")
    (tmp_path / "keras.py").write_text("import tensorflow\n")
    process = start_python("train.py", f"--run_dir={tmp_path}/run", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.startswith("error: Interrupted")
    assert stderr.count("\n") == 1


def test_a_cache_of_xla_that_fails_ends_the_run_and_does_not_change_its_arithmetic(small_flags, tmp_path):
    (tmp_path / "file").write_text("")
    flags = f"--tf_xla_persistent_cache_directory={tmp_path}/file --tf_xla_persistent_cache_device_types=CPU"
    done = run_script("train.py", *small_flags, f"--run_dir={tmp_path}/run", TF_XLA_FLAGS=flags)
    assert_one_line_error(done, "XLA's cache of programs failed")
