"""The flags of what is trained, and of how one update is made."""

from __future__ import annotations

import hashlib
import inspect
import reprlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data
from clr_loop.commands import option_flags, terminal
from clr_loop.data import functions
from clr_loop.loop.options import StepOptions

if TYPE_CHECKING:
    import keras

FLAGS = flags.FLAGS

# Columns or classes; more than a reader wants.
_MOST_NAMED = 8

_OPTIMIZERS = ("adam", "adamw", "lion", "nadam", "rmsprop", "sgd")
# Numbers that are arguments of optimizers.
_OPTIMIZER_NUMBERS = {
    "beta_1": "Decay of the mean of gradients (adam, adamw, nadam, lion).",
    "beta_2": "Decay of the mean of squared gradients (adam, adamw, nadam), or of gradients (lion).",
    "epsilon": "What is added to a divisor (adam, adamw, nadam, rmsprop).",
    "weight_decay": "Decoupled weight decay, times the learning rate at each step.",
}

flags.DEFINE_string(
    "dataset",
    "mnist",
    "mnist, fashion_mnist, cifar10, the path of an .npz file with x_train, y_train, x_test and y_test, that of a .csv "
    "file, or package.module:function, a function that returns a dataset: any nests of arrays.",
)
flags.DEFINE_string("target", None, "Of a .csv file: the column to predict; all others are features.")
flags.DEFINE_enum(
    "task",
    "auto",
    ("auto", "classification", "regression"),
    "Of a .csv file: whether the target's values are classes or numbers; auto makes classes of text, and of whole "
    "numbers with at most 20 different values.",
)
flags.DEFINE_float(
    "validation_split",
    None,
    "Of a .csv file: the share of the rows that validate, each class alike, the same rows whatever the seed is; not "
    "given: 0.2. 0 takes none.",
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
    "a model of your own, compiled or a classifier that ends in logits or softmax: the path of a .keras file, which is "
    "trained further, or package.module:name, a Keras model or a function that returns one.",
)
flags.DEFINE_string("init_from", None, "Begin with the weights of this file: .keras or .weights.h5.")
flags.DEFINE_string(
    "optimizer",
    None,
    f"{', '.join(_OPTIMIZERS)}, with Keras' own defaults, and momentum 0.9 for sgd; or package.module:function, a "
    "function that returns a Keras optimizer and gets those of the optimizer's flags, such as --momentum, that it has "
    "parameters for. If it is not given: adam, or that of a compiled model.",
)
flags.DEFINE_list(
    "momentum",
    None,
    "0.9: the optimizer's momentum (sgd, rmsprop) or beta_1 (adam, adamw, nadam, lion). low,high, such as 0.85,0.95: "
    "it is cycled against the rate.",
    module_name="clr_loop.commands.schedule_flags",  # Where --help lists it.
)
flags.declare_key_flag("momentum")
flags.DEFINE_bool("nesterov", None, "Nesterov's momentum (sgd).")
for name, text in _OPTIMIZER_NUMBERS.items():
    flags.DEFINE_float(name, None, text)
flags.DEFINE_list(
    "exclude_from_weight_decay", [], "Variables without weight decay: those whose name holds one of these."
)
flags.DEFINE_float(
    "label_smoothing",
    0.0,
    "Share of each label that goes to all classes alike, in the losses of training and validation.",
    lower_bound=0.0,
    upper_bound=1.0,
)
option_flags.define(StepOptions)


@flags.validator("optimizer", message=f"must be {', '.join(_OPTIMIZERS)}, or package.module:function")
def _is_optimizer(name: str | None) -> bool:
    return name is None or name in _OPTIMIZERS or ":" in name


@flags.validator("momentum", message="must be one number, such as 0.9, or two, low,high, such as 0.85,0.95")
def _are_momentums(values: list[str] | None) -> bool:
    try:
        return values is None or len([float(value) for value in values]) in (1, 2)
    except ValueError:
        return False


def momentums() -> list[float]:
    """Return what --momentum says: nothing, the optimizer's one momentum, or the two ends of its cycle."""
    return [float(value) for value in FLAGS.momentum or ()]


def load_dataset(is_told: bool = True) -> data.AnyDataset:
    """Load what --dataset names; if asked to, say what a table holds, and which weights a model begins with.

    A user's function may import TensorFlow, so that is imported quietly before.
    """
    if ":" in FLAGS.dataset:
        terminal.import_tensorflow()
    table = {"target": FLAGS.target, "task": FLAGS.task, "validation_split": FLAGS.validation_split}
    dataset = data.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.subtract_mean, **table)
    weights = FLAGS.init_from or (FLAGS.model if FLAGS.model.endswith(".keras") else None)
    if weights and not Path(weights).expanduser().is_file():
        raise ValueError(f"There is no file {weights} to begin from.")
    if is_told and isinstance(dataset, data.Dataset) and dataset.feature_names:
        terminal.note(_in_words(dataset))
    if is_told and weights:
        terminal.note(f"weights: from {weights} with every seed; seeds decide on the order of the data and on dropout")
    return data.one_hot(dataset) if FLAGS.label_smoothing else dataset


def _in_words(table: data.Dataset) -> str:
    """Return what was read of a table, and how it is split."""
    validated = 0 if table.validation is None else len(table.validation.inputs)
    values = table.train.targets
    kind = f"{len(table.class_names)} classes ({_listed(table.class_names)})"
    if not table.class_names:
        kind = f"numbers from {values.min():g} to {values.max():g}"
    split = "no row validates" if not validated else f"{table.num_examples} train and {validated} validate"
    return (
        f"read:    {table.num_examples + validated} rows, of which {split}; target {FLAGS.target}: {kind}; "
        f"{len(table.feature_names)} features: {_listed(table.feature_names)}"
    )


def _listed(names: Sequence[str]) -> str:
    shown = names if len(names) <= _MOST_NAMED else [*names[: _MOST_NAMED - 2], "…", names[-1]]
    return ", ".join(shown)


def make_model(dataset: data.AnyDataset, seed: int) -> keras.Model:
    """Make the compiled model; its learning rate is overwritten at every step."""
    from clr_loop.data.models import build_model
    from clr_loop.runs.models import load_weights

    model = build_model(FLAGS.model, dataset, seed, _make_optimizer(), FLAGS.label_smoothing)
    if FLAGS.init_from is not None:
        load_weights(model, FLAGS.init_from)
    return model


def _make_optimizer() -> keras.optimizers.Optimizer | None:
    """Make the optimizer, with those of its arguments that were given; None if no flag says anything of it."""
    given = {
        name: FLAGS[name].value
        for name in ("momentum", "nesterov", *_OPTIMIZER_NUMBERS)
        if FLAGS[name].value is not None
    }
    if given.pop("momentum", None) and len(momentums()) == 1:
        (given["momentum"],) = momentums()
    if FLAGS.optimizer is None and not given and not FLAGS.exclude_from_weight_decay:
        return None
    optimizer = _own_optimizer(given) if ":" in (FLAGS.optimizer or "") else _named_optimizer(given)
    if FLAGS.exclude_from_weight_decay:
        if optimizer.weight_decay is None:
            raise ValueError("--exclude_from_weight_decay needs --weight_decay; add it or leave both out.")
        optimizer.exclude_from_weight_decay(var_names=FLAGS.exclude_from_weight_decay)
    return optimizer


def _named_optimizer(given: dict[str, Any]) -> keras.optimizers.Optimizer:
    import keras

    name = FLAGS.optimizer or "adam"
    kind = type(keras.optimizers.get(name))
    taken = inspect.signature(kind).parameters
    if "momentum" in given and "momentum" not in taken:  # As for a momentum that is cycled.
        if "beta_1" in given:
            raise ValueError(f"--momentum and --beta_1 are the same to {name}; leave one of them out.")
        given = {"beta_1" if argument == "momentum" else argument: value for argument, value in given.items()}
    _refuse_unknown(given, taken, name)
    return kind(**({"momentum": 0.9} if name == "sgd" else {}) | given)


def _own_optimizer(given: dict[str, Any]) -> keras.optimizers.Optimizer:
    import keras

    what, name = "optimizer", FLAGS.optimizer
    _refuse_unknown(given, functions.parameters_of(name, what), name)
    optimizer = functions.call(name, what, **given)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(f"{what} {name} must return a Keras optimizer, but it returned {reprlib.repr(optimizer)}.")
    return optimizer


def _refuse_unknown(given: Collection[str], taken: Collection[str], name: str) -> None:
    for argument in given:
        if argument not in taken:
            raise ValueError(f"--{argument} means nothing to {name}; remove it or choose another --optimizer.")


def step_options() -> StepOptions:
    """Return how an update is made, as the flags say."""
    return StepOptions(**option_flags.values(StepOptions))


def settings(dataset: data.AnyDataset) -> dict[str, Any]:
    """Return what the results depend on, for config.json, as far as the loop does not know it."""
    settings = {"dataset": dataset.name, "dataset_sha256": dataset.sha256(), "model": FLAGS.model}
    if isinstance(dataset, data.Dataset) and dataset.feature_names:
        settings |= {"target": FLAGS.target, "features": dataset.feature_names, "classes": dataset.class_names}
    if FLAGS.model.endswith(".keras"):
        settings["model_sha256"] = _digest(FLAGS.model)
    if FLAGS.init_from is not None:
        settings["init_from_sha256"] = _digest(FLAGS.init_from)
    if FLAGS.exclude_from_weight_decay:
        settings["exclude_from_weight_decay"] = FLAGS.exclude_from_weight_decay
    return settings


def _digest(path: str) -> str:
    return hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
