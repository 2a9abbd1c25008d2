"""The flags of what is trained, and of how one update is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data
from shared import terminal

if TYPE_CHECKING:
    import keras

    from clr_loop.loop.step import StepOptions

FLAGS = flags.FLAGS

_AUTO: dict[str, Any] = {"auto": "auto", "true": True, "false": False}

flags.DEFINE_string(
    "dataset",
    "mnist",
    "mnist, fashion_mnist, the path of an .npz file with x_train, y_train, x_test and y_test, or "
    "package.module:function, a function that returns a dataset: any nests of arrays.",
)
flags.DEFINE_string("data_dir", None, "Folder with the dataset's four gzipped IDX files, instead of the usual place.")
flags.DEFINE_string(
    "model",
    "article_mlp",
    "article_mlp (softmax on every layer), relu_mlp (ReLU in the hidden ones), small_cnn, or package.module:function, "
    "a function that returns a Keras model: compiled, or a classifier that ends in logits.",
)
flags.DEFINE_enum(
    "optimizer",
    None,
    ("adam", "rmsprop", "sgd"),
    "With Keras' own defaults, and momentum 0.9 for sgd. If it is not given: adam, or that of a compiled model.",
)
flags.DEFINE_enum(
    "jit_compile", "auto", list(_AUTO), "Compile with XLA; auto: not for convolutions and random numbers on a CPU."
)
flags.DEFINE_enum(
    "scale_inputs", "auto", list(_AUTO), "Divide uint8 inputs by 255; auto: images, unless the model scales them."
)
flags.DEFINE_bool(
    "halve_batches", True, "On a CPU with XLA, compute batches of 256 or more in two halves, where these add up."
)
flags.DEFINE_float("clip_norm", None, "Scale gradients of a larger global norm down to this one.")
flags.DEFINE_integer("accumulate", 1, "Parts into which a batch is split; they are computed one after another.")


def load_dataset() -> data.AnyDataset:
    """Load what --dataset names. A user's function may import TensorFlow, so that is imported quietly before."""
    if ":" in FLAGS.dataset:
        terminal.import_tensorflow()
    return data.load(FLAGS.dataset, FLAGS.data_dir)


def make_model(dataset: data.AnyDataset, seed: int) -> keras.Model:
    """Make the compiled model; its learning rate is overwritten at every step."""
    import keras

    from clr_loop.data.models import build_model

    optimizer = None
    if FLAGS.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=0.9)
    elif FLAGS.optimizer is not None:
        optimizer = keras.optimizers.get(FLAGS.optimizer)
    return build_model(FLAGS.model, dataset, seed, optimizer)


def step_options(skip_non_finite: bool = False) -> StepOptions:
    """Return how an update is made."""
    from clr_loop.loop.step import StepOptions

    return StepOptions(
        jit_compile=_AUTO[FLAGS.jit_compile],
        clip_norm=FLAGS.clip_norm,
        accumulate=FLAGS.accumulate,
        skip_non_finite=skip_non_finite,
        halve_batches=FLAGS.halve_batches,
        scale_inputs=_AUTO[FLAGS.scale_inputs],
    )


def settings(dataset: data.AnyDataset) -> dict[str, Any]:
    """Return what the results depend on, for config.json, as far as the loop does not know it."""
    return {"dataset": dataset.name, "dataset_sha256": dataset.sha256(), "model": FLAGS.model}
