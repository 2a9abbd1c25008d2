"""A user's own model and data, by the names of their functions, on the command line."""

import json

import pytest
from test_scripts import run_script

MODULE = """
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
    images, labels = mnist.train.images[:500].astype(np.float32) / 255, mnist.train.labels[:500]
    if bad is not None:
        images[bad] = np.nan

    def batches(batch_size, seed, epoch):
        dataset = tf.data.Dataset.from_tensor_slices((images, labels))
        return dataset.shuffle(500, seed=1000 * seed + epoch).batch(batch_size)

    validation = data.Split(*(array[:100] for array in mnist.validation))
    validation = validation._replace(images=validation.images.astype(np.float32) / 255)
    return data.StreamedDataset("my digits", batches, 500, validation, 10)

def load_nan():
    return load(bad=300)

def load_nothing():
    return None
"""


@pytest.fixture
def run_with_module(tmp_path, monkeypatch):
    """Runs a script in a directory that holds the module `mine`."""
    (tmp_path / "mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return run_script


FLAGS = ["--model=mine:build", "--dataset=mine:load", "--batch_size=64", "--epochs=2", "--max_lr=0.01"]


def test_train_with_a_model_and_a_stream_of_ones_own(run_with_module, tmp_path):
    done = run_with_module("train.py", *FLAGS, "--step_size=8", f"--run_dir={tmp_path}/run")
    assert (done.returncode, done.stderr) == (0, "")
    assert "feed stream (read as it is trained on)" in done.stdout
    assert "of it waiting for input" in done.stdout
    shares = json.loads((tmp_path / "run" / "result.json").read_text())["input_wait_shares"]
    assert len(shares) == 2
    assert all(0.0 < share < 1.0 for share in shares)


@pytest.mark.parametrize("script", ["range_test.py", "compare_batch_sizes.py"])
def test_the_other_scripts_take_them_too(run_with_module, tmp_path, script):
    flags = ["--num_steps=40", "--seeds=1", "--batch_size=64"]
    if script == "compare_batch_sizes.py":
        flags = ["--seeds=1", "--batch_sizes=50,250", "--epochs=1"]
    done = run_with_module(
        script, "--model=mine:build", "--dataset=mine:load", *flags, f"--output_dir={tmp_path}/output"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert any((tmp_path / "output").glob("*.png"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset=mine:load_nan"], "error: batch "),
        (
            ["--dataset=mine:load_nothing"],
            "error: dataset mine:load_nothing must return a Dataset, a StreamedDataset or",
        ),
        (["--feed=resident"], "error: feed must be auto or stream for my digits, which is read as it is trained on"),
        (["--model=small_cnn", "--jit_compile=true"], "error: jit_compile must be False or auto for a model with con"),
    ],
)
def test_a_mistake_in_them_is_one_line(run_with_module, tmp_path, flags, message):
    done = run_with_module("train.py", *FLAGS, "--step_size=8", *flags, f"--run_dir={tmp_path}/run")
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "result.json").exists()
