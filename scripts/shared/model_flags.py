"""The flags of what is trained: data, model, optimizer; shared by the scripts that train."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data
from clr_loop.data import named
from shared import terminal as command_line

if TYPE_CHECKING:
    import keras

FLAGS = flags.FLAGS

OPTIMIZERS = ("adam", "rmsprop", "sgd")

flags.DEFINE_string(
    "dataset",
    "mnist",
    "mnist, fashion_mnist, the path of an .npz with x_train, y_train, x_test, y_test, or package.module:function that "
    "returns one.",
)
flags.DEFINE_string("data_dir", None, "Folder with the dataset's four gzipped IDX files, instead of the usual place.")
flags.DEFINE_string(
    "model",
    "article_mlp",
    "article_mlp (softmax on every layer), relu_mlp (ReLU in the hidden ones), small_cnn, or package.module:function "
    "that returns a Keras model of logits.",
)
flags.DEFINE_enum("optimizer", "adam", OPTIMIZERS, "Keras' own defaults; sgd has momentum 0.9.")
flags.DEFINE_enum(
    "jit_compile",
    "auto",
    ("auto", "true", "false"),
    "Compile with XLA; auto: except convolutions and dropout on a CPU.",
)


def jit_compile() -> Any:
    """Returns the flag as `TrainLoop` takes it."""
    return {"auto": "auto", "true": True, "false": False}[FLAGS.jit_compile]


def make_optimizer() -> keras.optimizers.Optimizer:
    """Returns a fresh optimizer; its learning rate is overwritten at every step."""
    import keras

    if FLAGS.optimizer == "sgd":
        return keras.optimizers.SGD(momentum=0.9)
    return keras.optimizers.get(FLAGS.optimizer)


def load_dataset() -> data.AnyDataset:
    """Loads what --dataset names; before a user's function, TensorFlow is imported without its messages."""
    if named.is_function_name(FLAGS.dataset):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        with command_line.without_stderr():
            import tensorflow  # noqa: F401
    return data.load(FLAGS.dataset, FLAGS.data_dir)
