"""A user's own model and data, by the names of their functions, on the command line."""

import csv
import hashlib
import json
import re

import numpy as np
import pytest

from helpers.scripts import assert_one_line_error, epoch_rows, succeed

MODULE = """
import dataclasses
import sys
import keras
import numpy as np
import tensorflow as tf
from clr_loop import data

def build(input_shape, num_classes):
    return keras.Sequential([
        keras.Input(input_shape), keras.layers.Flatten(), keras.layers.Dense(20, "relu", kernel_regularizer="l2"),
        keras.layers.BatchNormalization(), keras.layers.Dropout(0.2), keras.layers.Dense(num_classes),
    ])

def load(bad=None):
    mnist = data.load("mnist")
    images, labels = mnist.train.inputs[:500].astype(np.float32) / 255, mnist.train.targets[:500]
    if bad is not None:
        images[bad] = np.nan

    def batches(batch_size, seed, epoch):
        dataset = tf.data.Dataset.from_tensor_slices((images, labels))
        return dataset.shuffle(500, seed=1000 * seed + epoch, reshuffle_each_iteration=False).batch(batch_size)

    validation = data.Examples(*(array[:100] for array in mnist.validation[:2]))
    validation = validation._replace(inputs=validation.inputs.astype(np.float32) / 255)
    return data.StreamedDataset("my digits", batches, 500, validation, 10, (28, 28))

def load_nan():
    return load(bad=300)

def load_nothing():
    return None

def load_and_exit():
    sys.exit(0)

def build_and_fail():
    raise KeyError("no such layer")

class Failing(keras.Model):
    def call(self, inputs):
        raise RuntimeError("the user's own words")

def load_and_divide():
    stream = load()
    return dataclasses.replace(stream, batches=lambda *arguments: stream.batches(*arguments).map(divided))

def divided(images, labels):
    return images, 1 // 0

def build_a_failing_call():
    model = Failing()
    model.compile("adam", "mse")
    return model

def numbers():
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    return data.Dataset("numbers", data.Examples([x, x[:, :1]], {"sum": x.sum(axis=1, keepdims=True)}), None, None)

def saw(steps_per_epoch, max_lr):
    return lambda steps: max_lr * (1 - steps % steps_per_epoch / steps_per_epoch)

def compiled():
    inputs = [keras.Input((3,)), keras.Input((1,))]
    joined = keras.layers.Concatenate()(inputs)
    model = keras.Model(inputs, {"sum": keras.layers.Dense(1, name="sum")(joined)})
    model.compile(keras.optimizers.RMSprop(), {"sum": "mse"}, metrics={"sum": ["mae"]})
    return model
"""


_DIVIDED = "integer division or modulo by zero"


def _place(text):
    """Where the module has this text; HERE stands for its directory."""
    return f"HERE/mine.py, line {next(n for n, line in enumerate(MODULE.splitlines(), 1) if text in line)}"


@pytest.fixture(autouse=True, scope="module")
def directory(tmp_path_factory):
    """Runs the commands in a directory that holds the module `mine`."""
    directory = tmp_path_factory.mktemp("mine")
    (directory / "mine.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield directory


FLAGS = ["--model=mine:build", "--dataset=mine:load", "--batch_size=64", "--epochs=2", "--max_lr=0.01"]


def test_train_with_a_model_and_a_stream_of_ones_own(commands, tmp_path):
    done = commands.succeed("train", *FLAGS, "--step_size=8", f"--run_dir={tmp_path}/run")
    assert done.stderr == ""
    assert "feed stream (read while it is trained on)" in done.stdout
    assert all(re.fullmatch(r"\d+%", row["waiting"]) for row in epoch_rows(done.stdout))
    shares = json.loads((tmp_path / "run" / "result.json").read_text())["input_wait_shares"]
    assert len(shares) == 2
    assert all(0.0 < share < 1.0 for share in shares)


@pytest.mark.parametrize("script", ["range_test", "compare_batch_sizes"])
def test_the_other_commands_take_them_too(commands, tmp_path, script):
    flags = ["--num_steps=40", "--seeds=1", "--batch_size=64"]
    if script == "compare_batch_sizes":
        flags = ["--seeds=1", "--batch_sizes=50,250", "--epochs=1"]
    done = commands.succeed(
        script, "--model=mine:build", "--dataset=mine:load", *flags, f"--output_dir={tmp_path}/output"
    )
    assert done.stderr == ""
    assert any((tmp_path / "output").glob("*.png"))


def test_a_comparison_takes_a_schedule_of_ones_own_and_what_train_takes_of_device_and_precision(tmp_path):
    flags = ["--schedules=constant,mine:saw", "--max_lr=0.01", "--batch_sizes=2000", "--epochs=1", "--seeds=7,"]
    flags += ["--strategy=mirrored", "--logical_devices=2", "--precision=mixed_bfloat16", "--model=relu_mlp"]
    done = succeed("compare_batch_sizes.py", *flags, f"--output_dir={tmp_path}/output")
    assert done.stderr == ""
    (run_dir,) = (tmp_path / "output" / "saw_batch_2000").iterdir()
    assert run_dir.name == "seed_7"
    config = json.loads((run_dir / "config.json").read_text())
    assert config["precision"] == "mixed_bfloat16"
    assert config["chosen"]["replicas"].startswith("2 replicas")
    assert config["schedule"]["name"] == "mine:saw"
    with open(run_dir / "history.csv", newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.01 * (1 - step / 30) for step in range(30)], rel=1e-5)


def test_a_compiled_model_keeps_its_loss_metrics_and_optimizer_and_needs_no_validation(commands, tmp_path):
    flags = ["--model=mine:compiled", "--dataset=mine:numbers", "--batch_size=50", "--epochs=2", "--step_size=4"]
    done = commands.succeed("train", *flags, f"--run_dir={tmp_path}/run")
    assert done.stderr == ""
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["optimizer"] == "RMSprop"
    with open(tmp_path / "run" / "epochs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = [name for name in rows[0] if name not in ("epoch", "step", "learning_rate") and "seconds" not in name]
    assert metrics[0] == "loss"
    assert any("mae" in name for name in metrics)
    assert not any(name.startswith("val_") for name in metrics)
    told = epoch_rows(done.stdout)[1]
    for name in metrics:
        assert told[name] == f"{float(rows[1][name]):#.4g}"
    assert (tmp_path / "run" / "curves.png").is_file()


@pytest.mark.parametrize("example", ["regression", "text"])
def test_the_documented_examples_of_a_regression_and_of_text_run_and_learn(commands, tmp_path, example):
    place = f"clr_loop.data.examples:{example}"
    flags = [f"--model={place}_model", f"--dataset={place}", "--batch_size=500", "--epochs=2", "--max_lr=0.01"]
    done = commands.succeed("train", *flags, "--step_size=10", f"--run_dir={tmp_path}/run")
    assert done.stderr == ""
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=mine:load_nan"], "inputs holds NaN or infinity"),
        (["--dataset=mine:load_nothing"], "dataset mine:load_nothing: the function must return "),
        (["--dataset=mine:load_and_exit"], f"load_and_exit failed: it called sys.exit(0) ({_place('sys.exit')})"),
        (["--model=mine:build_and_fail"], f"failed: KeyError: 'no such layer' ({_place('raise KeyError')})"),
        (["--model=mine:build_a_failing_call"], f"RuntimeError: the user's own words ({_place('raise RuntimeError')})"),
        (["--dataset=mine:load_and_divide"], f"error: ZeroDivisionError: {_DIVIDED} ({_place('1 // 0')})"),
        (["--model=mine:missing"], "model mine:missing cannot be imported"),
        (["--model=mine:compiled", "--dataset=mine:numbers", "--optimizer=sgd"], "comes compiled with RMSprop, so SGD"),
        (["--feed=resident"], "feed is resident, but my digits is read while it is trained on"),
        (["--model=small_cnn", "--jit_compile=true"], "jit_compile is True for a model with convolutions on a CPU"),
    ],
)
def test_a_mistake_in_them_is_one_line(commands, directory, tmp_path, flags, message):
    done = commands.run("train", *FLAGS, "--step_size=8", *flags, f"--run_dir={tmp_path}/run")
    assert_one_line_error(done, message.replace("HERE", str(directory)))
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.fixture(scope="module")
def trees(directory):
    """Flags for a table of 90 trees of three kinds, in which the kind follows from the height."""
    rng = np.random.default_rng(0)
    rows = [(round(10 * kind + rng.normal(), 3), rng.random(), ("ash", "fir", "oak")[kind]) for kind in [0, 1, 2] * 30]
    with open(directory / "trees.csv", "w", newline="") as file:
        csv.writer(file).writerows([("height", "noise", "kind"), *rows])
    return ["--dataset=trees.csv", "--target=kind", "--batch_size=12", "--max_lr=0.03", "--step_size=50%"]


READ = "read:    90 rows, of which 72 train and 18 validate; target kind: 3 classes (ash, fir, oak); "


def test_a_table_is_trained_on_and_the_model_that_it_gave_is_trained_further(commands, trees, tmp_path):
    first = commands.succeed("train", *trees, "--model=relu_mlp", "--epochs=8", f"--run_dir={tmp_path}/first")
    assert first.stdout.splitlines()[0] == f"{READ}2 features: height, noise"
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    assert (config["target"], config["features"], config["classes"]) == (
        "kind", ["height", "noise"], ["ash", "fir", "oak"],
    )  # fmt: skip
    before = json.loads((tmp_path / "first" / "result.json").read_text())["final"]
    assert before["val_accuracy"] > 0.9
    model = tmp_path / "first" / "final.keras"
    done = commands.succeed(
        "train", *trees, f"--model={model}", "--epochs=1", "--max_lr=1e-9", "--base_lr=1e-10",
        f"--run_dir={tmp_path}/second",
    )  # fmt: skip
    assert f"weights: from {model} with every seed" in done.stdout
    after = json.loads((tmp_path / "second" / "result.json").read_text())["final"]
    assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-4)
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["model_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()


def test_a_comparison_takes_a_table_and_a_model_of_a_module_and_counts_its_runs(commands, trees, directory, tmp_path):
    layers = "[keras.Input((2,)), keras.layers.Dense(8, 'relu'), keras.layers.Dense(3)]"
    (directory / "tree_model.py").write_text(f"import keras\nmodel = keras.Sequential({layers})\n")
    done = commands.succeed(
        "compare_batch_sizes", *trees[:2], "--model=tree_model.py:model", "--batch_sizes=12", "--epochs=1", "--seeds=2",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    assert READ in done.stdout
    counted = [line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith("run ")]
    assert [words.split(",")[0] for words in counted] == [f"run {n} of 4" for n in (1, 2, 3, 4)]
    assert all("about " in words and words.endswith(" left") for words in counted[:3])
    with open(tmp_path / "out" / "constant_batch_12" / "seed_0" / "history.csv", newline="") as file:
        first = next(csv.DictReader(file))["loss"]
    with open(tmp_path / "out" / "constant_batch_12" / "seed_1" / "history.csv", newline="") as file:
        assert next(csv.DictReader(file))["loss"] != first  # Other initial weights.
