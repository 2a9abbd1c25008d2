"""The flags of what is trained, and of how one update is made."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data
from shared import terminal

if TYPE_CHECKING:
    import keras

    from clr_loop.loop.step import StepOptions

FLAGS = flags.FLAGS

_AUTO: dict[str, Any] = {"auto": "auto", "true": True, "false": False}
# Flag → the optimizer's argument.
_OF_OPTIMIZER = {
    **{name: name for name in ("nesterov", "beta_1", "beta_2", "epsilon", "weight_decay")},
    "optimizer_momentum": "momentum",
}

flags.DEFINE_string(
    "dataset",
    "mnist",
    "mnist, fashion_mnist, cifar10, the path of an .npz file with x_train, y_train, x_test and y_test, or "
    "package.module:function, a function that returns a dataset: any nests of arrays.",
)
flags.DEFINE_string(
    "data_dir",
    None,
    "Folder with the dataset's files, instead of the usual place: the four gzipped IDX files or, for cifar10, one of "
    "the official folders or an .npz file.",
)
flags.DEFINE_bool(
    "subtract_mean", False, "Subtract the mean training input; uint8 images then keep their scale of 0-255 around it."
)
flags.DEFINE_string(
    "model",
    "article_mlp",
    "article_mlp (softmax on every layer), relu_mlp (ReLU in the hidden ones), small_cnn, caffe_cifar10, or "
    "package.module:function, a function that returns a Keras model: compiled, or a classifier that ends in logits.",
)
flags.DEFINE_string("init_from", None, "Begin with the weights of this file: .keras or .weights.h5.")
flags.DEFINE_enum(
    "optimizer",
    None,
    ("adam", "adamw", "lion", "nadam", "rmsprop", "sgd"),
    "With Keras' own defaults, and momentum 0.9 for sgd. If it is not given: adam, or that of a compiled model.",
)
flags.DEFINE_float("optimizer_momentum", None, "The optimizer's momentum (sgd, rmsprop).")
flags.DEFINE_bool("nesterov", None, "Nesterov's momentum (sgd).")
flags.DEFINE_float("beta_1", None, "Decay of the mean of gradients (adam, adamw, nadam, lion).")
flags.DEFINE_float(
    "beta_2", None, "Decay of the mean of squared gradients (adam, adamw, nadam), or of gradients (lion)."
)
flags.DEFINE_float("epsilon", None, "What is added to a divisor (adam, adamw, nadam, rmsprop).")
flags.DEFINE_float("weight_decay", None, "Decoupled weight decay, times the learning rate at each step.")
flags.DEFINE_list(
    "exclude_from_weight_decay", [], "Variables without weight decay: those whose name holds one of these."
)
flags.DEFINE_string(
    "average",
    None,
    "An average of the weights beside the training: ema:0.999 (exponential, over all steps) or swa (the mean at the "
    "cycles' lows).",
)
flags.DEFINE_list(
    "rate_multipliers",
    [],
    "regex=factor: variables whose path matches learn at the schedule's rate times the factor; 0 freezes them.",
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
    return data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.subtract_mean)


def make_model(dataset: data.AnyDataset, seed: int) -> keras.Model:
    """Make the compiled model; its learning rate is overwritten at every step."""
    from clr_loop.data.models import build_model
    from clr_loop.runs.models import load_weights

    model = build_model(FLAGS.model, dataset, seed, _make_optimizer())
    if FLAGS.init_from is not None:
        load_weights(model, FLAGS.init_from)
    return model


def _make_optimizer() -> keras.optimizers.Optimizer | None:
    """Make the optimizer, with those of its arguments that were given; None if no flag says anything of it."""
    import keras

    given = {argument: FLAGS[flag].value for flag, argument in _OF_OPTIMIZER.items() if FLAGS[flag].value is not None}
    if FLAGS.optimizer is None and not given and not FLAGS.exclude_from_weight_decay:
        return None
    name = FLAGS.optimizer or "adam"
    kind = type(keras.optimizers.get(name))
    for argument in given:
        if argument not in inspect.signature(kind).parameters:
            flag = next(flag for flag, theirs in _OF_OPTIMIZER.items() if theirs == argument)
            raise ValueError(f"--{flag} means nothing to {name}; remove it or choose another --optimizer.")
    optimizer = kind(**({"momentum": 0.9} if name == "sgd" else {}) | given)
    if FLAGS.exclude_from_weight_decay:
        if optimizer.weight_decay is None:
            raise ValueError("--exclude_from_weight_decay needs --weight_decay; add it or leave both out.")
        optimizer.exclude_from_weight_decay(var_names=FLAGS.exclude_from_weight_decay)
    return optimizer


def _average() -> Any:
    """Return what --average says."""
    kind, _, momentum = (FLAGS.average or "").partition(":")
    try:
        return FLAGS.average if FLAGS.average in (None, "swa") else float({"ema": momentum}[kind])
    except (KeyError, ValueError) as error:
        raise ValueError(f"--average is {FLAGS.average}; write ema:0.999 or swa.") from error


def _multipliers() -> dict[str, float]:
    """Return what --rate_multipliers says: regex → factor."""
    try:
        return {regex: float(factor) for regex, _, factor in (text.rpartition("=") for text in FLAGS.rate_multipliers)}
    except ValueError as error:
        raise ValueError(f"--rate_multipliers is {','.join(FLAGS.rate_multipliers)}; write regex=factor.") from error


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
        average=_average(),
        rate_multipliers=_multipliers(),
    )


def settings(dataset: data.AnyDataset) -> dict[str, Any]:
    """Return what the results depend on, for config.json, as far as the loop does not know it."""
    found = {"dataset": dataset.name, "dataset_sha256": dataset.sha256(), "model": FLAGS.model}
    if FLAGS.init_from is not None:
        found["init_from_sha256"] = hashlib.sha256(Path(FLAGS.init_from).read_bytes()).hexdigest()
    if FLAGS.exclude_from_weight_decay:
        found["exclude_from_weight_decay"] = FLAGS.exclude_from_weight_decay
    return found
