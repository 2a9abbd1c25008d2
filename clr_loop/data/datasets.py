"""Datasets: training and validation examples, in memory or streamed, and `load`, which finds and checks them."""

import os
import reprlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import optree

from clr_loop.arguments import checked_choice, checked_types
from clr_loop.data.functions import call
from clr_loop.data.nests import Nest, as_arrays, flatten, num_examples
from clr_loop.data.order import sha256_of
from clr_loop.data.readers import NAMES, read_named, read_npz
from clr_loop.data.tables import Task, read_csv
from clr_loop.display import Shown


class Examples(NamedTuple):
    """Inputs, targets and weights as `fit` takes them: nests of arrays, whose first axis counts the examples."""

    inputs: Nest
    targets: Nest = None
    sample_weight: Nest = None


@checked_types
@dataclass(frozen=True, repr=False)
class Dataset(Shown):
    """Training and validation examples in memory.

    num_classes: for targets that are labels, int [n] from 0, or one-hot, [n, num_classes]; else None.
    feature_names, class_names: what the columns of the inputs and the labels are called, if that is known; else ().
    """

    name: str
    train: Examples
    validation: Examples | None
    num_classes: int | None
    feature_names: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    @property
    def num_examples(self) -> int:
        """The number of training examples."""
        return num_examples(self.train, "train")

    @property
    def input_shape(self) -> Nest:
        """The shape of one example's input: a tuple of ints, or a nest of tuples for several inputs."""
        return optree.tree_map(lambda array: array.shape[1:], self.train.inputs)

    def __iter__(self) -> Iterator[Nest]:
        """Yield (inputs, targets) of training and of validation, to be unpacked like what Keras' load_data returns."""
        return iter(None if part is None else part[:2] for part in (self.train, self.validation))

    def _rows(self) -> list[dict[str, object]]:
        return _facts(self)

    def sha256(self) -> str:
        """Return the hex digest of all examples."""
        return sha256_of((self.train, self.validation))


@checked_types
@dataclass(frozen=True, repr=False)
class StreamedDataset(Shown):
    """Training examples that are read during training because they do not fit in memory.

    batches: (batch_size, seed, epoch) → the `tf.data.Dataset` of that epoch's batches (inputs, targets[,
        sample_weight]). The same arguments must give the same batches.
    num_examples: the number of examples in an epoch.
    num_classes, input_shape: as in `Dataset`.
    """

    name: str
    batches: Callable[[int, int, int], Any]
    num_examples: int
    validation: Examples | None
    num_classes: int | None
    input_shape: Nest

    def _rows(self) -> list[dict[str, object]]:
        return _facts(self)

    def sha256(self) -> str:
        """Return the hex digest of the number of training examples and of the validation examples."""
        return sha256_of((np.array(self.num_examples), self.validation))


AnyDataset = Dataset | StreamedDataset


def _facts(dataset: AnyDataset) -> list[dict[str, object]]:
    """Return what a dataset shows of itself."""
    held_out = 0 if dataset.validation is None else num_examples(dataset.validation, "validation")
    return [
        {
            "name": dataset.name,
            "training examples": f"{dataset.num_examples:,}",
            "validation examples": f"{held_out:,}",
            "input shape": dataset.input_shape,
            "classes": dataset.num_classes or "none",
        }
    ]


@overload
def load(
    name: Literal["mnist", "fashion_mnist", "cifar10"],
    data_dir: str | os.PathLike[str] | None = None,
    subtract_mean: bool = False,
) -> Dataset: ...
@overload
def load(name: str, data_dir: str | os.PathLike[str] | None = None, subtract_mean: bool = False) -> AnyDataset: ...
@checked_types
def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    subtract_mean: bool = False,
    *,
    target: str | None = None,
    task: Task = "auto",
    validation_split: float | None = None,
) -> AnyDataset:
    """Load and check a dataset; its validation examples are the test set.

    float64 becomes float32. Integer targets [n] or [n, 1] are class labels and become int32 [n]. All other arrays stay
    as they are. A UserWarning names the classes without a training example.

    Args:
        name: `mnist` (part of this package), `fashion_mnist` (Debian's dataset-fashion-mnist, or Keras' download) or
            `cifar10` (data_dir, or Keras' download); a path that ends in `.npz`, with the arrays x_train, y_train,
            x_test, y_test, and optionally sample_weight_train and sample_weight_test; a path that ends in `.csv`, of a
            table of numbers under a row of names; or `package.module:function`, also as `module.py:function`. The
            function takes no arguments and returns ((x_train, y_train), (x_test, y_test)), where sample weights may
            follow each y, or a `Dataset` or `StreamedDataset`, whose name and num_classes stay. If its num_classes is
            None, it has no labels.
        data_dir: a folder with the four gzipped IDX files of `mnist` or `fashion_mnist`; for `cifar10` the official
            folder cifar-10-batches-py or cifar-10-batches-bin, one that it lies in, or an `.npz` file.
        subtract_mean: whether the mean training input, such as the mean image, is subtracted from all inputs. They
            become float32, so uint8 images keep their scale of 0–255 around it, and nothing divides them any more.
        target: of a CSV file, the name of the column to predict. All other columns are features, float32 [n, features].
        task: of a CSV file, "classification" makes labels of the target's values, and "regression" makes them float32
            [n, 1]. "auto" makes labels of text, and of whole numbers with at most 20 different values.
        validation_split: of a CSV file, the share of its rows that `hold_out` takes for validation, with seed 0; None
            means 0.2, and 0 leaves the dataset without validation.

    Raises:
        ValueError: if the name is unknown, a file is damaged, an argument does not belong to such data, the function
            fails or returns something else, lengths differ, a float is not finite, training and test arrays differ in
            structure, dtype or shape, a label is negative or not among the training classes, a mean is to be
            subtracted from a stream or from strings; as `hold_out`; or if a table has text, or nothing, where a
            number is needed.
        FileNotFoundError: if a file is missing.
    """
    if data_dir is not None and name not in NAMES:
        raise ValueError(f"data_dir is the folder of {' or '.join(NAMES)}, but the dataset is {name}. Leave it out.")
    if not name.endswith(".csv") and (target, task, validation_split) != (None, "auto", None):
        of_csv = "target, task and validation_split are for .csv files"
        raise ValueError(f"{of_csv}, but the dataset is {name}. Leave them out.")
    if name.endswith(".csv"):
        loaded: Any = _from_table(name, target, task, 0.2 if validation_split is None else validation_split)
    else:
        loaded = _read(name, None if data_dir is None else Path(data_dir))
    try:
        dataset = _checked(loaded if isinstance(loaded, AnyDataset) else _from_pairs(name, loaded))
        return _centered(dataset) if subtract_mean else dataset
    except ValueError as error:
        raise ValueError(f"dataset {name}: {error}") from error


def _read(name: str, data_dir: Path | None) -> Any:
    """Return what a name stands for that is not a table's: a dataset, or its pairs."""
    if name.endswith(".npz"):
        return read_npz(Path(name))
    if ":" in name:
        return call(name, "dataset")
    if name in NAMES:
        return read_named(name, data_dir)
    choices = (
        f"{', '.join(NAMES)}, a path that ends in .npz or .csv, or a function of your own as package.module:function"
    )
    raise ValueError(f"There is no dataset {name!r}. Choose {choices}.")


@checked_types
def hold_out(dataset: Dataset, share: float = 0.1, seed: int = 0) -> Dataset:
    """Return a dataset with a part of the training examples for validation, instead of its own validation examples.

    What is chosen on these examples can then be measured on the others fairly. Of class labels, each class gives the
    same share to within one example.

    Args:
        share: float, above 0 and below 1.
        seed: int, at least 0: which examples are held out.

    Raises:
        ValueError: if share is out of range, or so few examples are held out or left that a class, or everything, is
            missing there.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"The share to hold out is {share}; choose one above 0 and below 1, such as 0.1.")
    order = np.random.default_rng(seed).permutation(dataset.num_examples)
    targets = dataset.train.targets
    labels = np.zeros(len(order), np.int32)
    if dataset.num_classes is not None:
        labels = targets if _are_labels(targets) else targets.argmax(axis=1)
    by_class = order[np.argsort(labels[order], kind="stable")]
    is_held = np.diff(np.floor(np.arange(len(order) + 1) * share)) > 0
    kept, held = np.sort(by_class[~is_held]), np.sort(by_class[is_held])
    for name, part in (("held out", held), ("left to train on", kept)):
        missing = np.setdiff1d(labels, labels[part])
        if len(missing):
            classes = dataset.class_names or range(dataset.num_classes or 1)
            what = f"no example of class {classes[missing[0]]}" if dataset.num_classes else "no example"
            raise ValueError(
                f"With a share of {share:g} of {len(order)} examples {what} is {name}; choose another share, or give "
                "more examples."
            )
    examples: Any = dataset.train
    train, validation = (optree.tree_map(lambda array, part=part: array[part], examples) for part in (kept, held))
    return replace(dataset, train=Examples(*train), validation=Examples(*validation))


def one_hot(dataset: AnyDataset) -> Dataset:
    """Return a dataset whose labels, int [n], have become rows, float32 [n, num_classes], as label smoothing needs.

    Raises:
        ValueError: if the dataset is streamed, or its targets are no classes.
    """
    if not isinstance(dataset, Dataset) or dataset.num_classes is None:
        kind = "has no classes" if isinstance(dataset, Dataset) else "is streamed"
        raise ValueError(f"Labels are smoothed as rows of an array, and {dataset.name} {kind}; use its model's loss.")
    rows = np.eye(dataset.num_classes, dtype=np.float32)

    def smoothable(examples: Examples) -> Examples:
        return examples._replace(targets=rows[examples.targets]) if _are_labels(examples.targets) else examples

    validation = dataset.validation and smoothable(dataset.validation)
    return replace(dataset, train=smoothable(dataset.train), validation=validation)


def _from_table(name: str, target: str | None, task: Task, validation_split: float) -> Dataset:
    checked_choice("task", task, "auto", "classification", "regression")
    table = read_csv(Path(name), target, task)
    num_classes = len(table.class_names) or None
    whole = Examples(table.inputs, table.targets)
    dataset = Dataset(name, whole, None, num_classes, table.feature_names, table.class_names)
    return hold_out(dataset, validation_split) if validation_split else dataset


def _from_pairs(name: str, loaded: Any) -> Dataset:
    pairs = loaded if isinstance(loaded, (tuple, list)) else ()
    if len(pairs) != 2 or not all(isinstance(pair, (tuple, list)) and len(pair) in (2, 3) for pair in pairs):
        form = "((x_train, y_train), (x_test, y_test)), a Dataset or a StreamedDataset"
        raise ValueError(f"the function must return {form}, but it returned {reprlib.repr(loaded)}.")
    train, validation = (Examples(*pair) for pair in pairs)
    return Dataset(name, train, validation, _num_classes(as_arrays(train.targets, "train.targets")))


def _num_classes(targets: Nest) -> int | None:
    """Return the number of classes of labels or one-hot rows, and None for other targets."""
    if _are_labels(targets) and targets.size:
        # A model has an output for each class, so that one stray label of a million would need all the memory.
        return min(max(int(targets.max()), 0) + 1, max(1000, targets.size))
    if not isinstance(targets, np.ndarray) or targets.dtype.kind not in "biuf" or targets.ndim != 2:
        return None
    is_one_hot = ((targets == 0) | (targets == 1)).all() and (targets.sum(axis=1) == 1).all()
    return targets.shape[1] if is_one_hot and targets.shape[1] > 1 else None


def _checked(dataset: AnyDataset) -> AnyDataset:
    """Return the dataset with checked arrays: each part by itself, then validation against training."""
    num_classes = dataset.num_classes
    if isinstance(dataset, StreamedDataset):
        return replace(dataset, validation=_checked_examples(dataset.validation, "validation", num_classes))
    train = _checked_examples(dataset.train, "train", num_classes)
    validation = _checked_examples(dataset.validation, "validation", num_classes)
    if validation:
        ours, theirs = (_form(examples[:2]) for examples in (train, validation))
        if ours != theirs:
            differ = f"the inputs and targets are {ours} for training and {theirs} for validation"
            raise ValueError(f"{differ}. Save both in one form.".replace("'", ""))
    if num_classes is not None and _are_labels(train.targets):
        empty = np.flatnonzero(np.bincount(train.targets, minlength=num_classes) == 0)
        runs = np.split(empty, np.flatnonzero(np.diff(empty) > 1) + 1)
        words = ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs if len(run))
        if words:
            remedy = "If the labels have gaps, number the classes from 0."
            warnings.warn(f"{dataset.name} has no training example of the classes {words}. {remedy}", stacklevel=3)
    return replace(dataset, train=train, validation=validation)


def _centered(dataset: AnyDataset) -> Dataset:
    """Return the dataset with inputs, float32, from which the mean training input is subtracted."""
    if isinstance(dataset, StreamedDataset):
        raise ValueError("subtract_mean needs all training examples at once, but they are streamed; leave it out.")
    for path, array in flatten(dataset.train.inputs, "train.inputs").items():
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path} has dtype {array.dtype} and no mean; leave subtract_mean out.")
    means = optree.tree_map(lambda x: x.mean(axis=0, dtype=np.float64).astype(np.float32), dataset.train.inputs)

    def centered(examples: Examples) -> Examples:
        subtract = partial(np.subtract, dtype=np.float32, casting="unsafe")
        return examples._replace(inputs=optree.tree_map(subtract, examples.inputs, means))

    validation = None if dataset.validation is None else centered(dataset.validation)
    return replace(dataset, train=centered(dataset.train), validation=validation)


def _checked_examples(examples: Any, path: str, num_classes: int | None) -> Any:
    if examples is None:
        return None
    examples = as_arrays(examples, path)
    for name, array in flatten(examples.targets, f"{path}.targets").items():
        if array.dtype.kind in "SU":
            raise ValueError(f"{name} holds strings such as {array.ravel()[0]!r}. Number the classes from 0.")
    if num_classes is not None and _are_labels(examples.targets):
        labels = examples.targets.reshape(-1)
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            remedy = "Number the classes from 0 without gaps; for a regression, make the targets float32."
            span = f"{path}.targets has labels from {labels.min()} to {labels.max()}"
            raise ValueError(f"{span}, but the classes can only be 0 to {num_classes - 1}. {remedy}")
        examples = examples._replace(targets=labels.astype(np.int32))
    num_examples(examples, path)
    return examples


def _are_labels(targets: Nest) -> bool:
    """Return whether targets are class labels: integers [n], or [n, 1] as in the CIFAR files of Keras."""
    is_integer = isinstance(targets, np.ndarray) and targets.dtype.kind in "iu"
    return is_integer and (targets.ndim == 1 or targets.shape[1:] == (1,))


def _form(nest: Nest) -> Nest:
    return optree.tree_map(lambda array: f"{array.dtype} {array.shape[1:]}", nest)
