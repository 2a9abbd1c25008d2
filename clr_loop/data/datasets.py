"""Named datasets as NumPy arrays, and the order in which an epoch visits them.

MNIST comes with the package. Every file is checked before it is used, so a run never starts on damaged data.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clr_loop.data import named

NAMES = ("mnist", "fashion_mnist")

_MNIST_DIR = Path(__file__).parent / "mnist"
_DEBIAN_FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")

# SHA-256 of the uncompressed IDX files, so that a file compressed anew is still the same file.
_DIGESTS = {
    "mnist": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}


class Split(NamedTuple):
    """Images and their labels.

    images: uint8 or float32 [n, height, width] or [n, height, width, channels]; uint8 means 0–255, float32 as it is.
    labels: int32 [n], classes counted from 0.
    """

    images: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.int32]


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split over the same classes, 0 to num_classes - 1."""

    name: str
    train: Split
    validation: Split
    num_classes: int

    @property
    def num_examples(self) -> int:
        """Examples in the training split."""
        return len(self.train.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.train.images.shape[1:]

    def sha256(self) -> str:
        """Returns the hex digest of both splits: their dtypes, shapes and bytes."""
        return sha256_of([*self.train, *self.validation])


@dataclass(frozen=True)
class StreamedDataset:
    """A training split that is read as it is trained on, because it does not fit in memory; the validation split does.

    batches: (batch_size, seed, epoch), ints → the `tf.data.Dataset` of that epoch's batches, as
        `streaming.StreamingLoop` describes them; the same arguments must give the same batches.
    num_examples: int, examples in an epoch.
    """

    name: str
    batches: Callable[[int, int, int], Any]
    num_examples: int
    validation: Split
    num_classes: int

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return self.validation.images.shape[1:]

    def sha256(self) -> str:
        """Returns the hex digest of the number of training examples and of the validation split."""
        return sha256_of([np.array(self.num_examples), *self.validation])


AnyDataset = Dataset | StreamedDataset


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> AnyDataset:
    """Loads a dataset; its validation split is the test set.

    Args:
        name: `mnist` (from the package), `fashion_mnist` (from `data_dir`, else Debian's package
            dataset-fashion-mnist, else Keras' downloader), a path ending in `.npz` that holds the arrays
            x_train, y_train, x_test and y_test, as Keras' own files do, or `package.module:function`: a function
            without arguments that returns these as ((x_train, y_train), (x_test, y_test)), as Keras' own loaders do,
            or a `Dataset` or `StreamedDataset`.
        data_dir: a folder with the four gzipped IDX files, instead of the place above; not for `.npz` or a function.

    Returns:
        The dataset; images keep their dtype if that is uint8, else they become float32.

    Raises:
        ValueError: if the name is unknown; if a file is truncated, damaged or not the expected one; if images and
            labels differ in number, a float image is not finite, a label is negative, or a label of the test set
            does not occur in the training set's range; if a function cannot be called or returns something else.
        FileNotFoundError: if a file is missing.
    """
    if data_dir is not None and (name.endswith(".npz") or named.is_function_name(name)):
        raise ValueError(f"data_dir is for named datasets, received it with {name}; leave it out")
    if name.endswith(".npz"):
        arrays = _read_npz(Path(name))
    elif named.is_function_name(name):
        loaded = named.call(name, "dataset")
        if isinstance(loaded, StreamedDataset):
            return loaded
        arrays = _arrays(name, loaded)
    elif name in NAMES:
        arrays = _read_named(name, Path(data_dir) if data_dir is not None else None)
    else:
        raise ValueError(
            f"dataset must be one of {', '.join(NAMES)}, a path ending in .npz or package.module:function, received "
            f"{name!r}; choose one"
        )
    x_train, y_train, x_test, y_test = arrays
    train = _checked_split(f"{name} (training)", x_train, y_train)
    validation = _checked_split(f"{name} (test)", x_test, y_test)
    if train.images.shape[1:] != validation.images.shape[1:] or train.images.dtype != validation.images.dtype:
        raise ValueError(
            f"{name}: training and test images must be alike, received {train.images.dtype} {train.images.shape[1:]} "
            f"and {validation.images.dtype} {validation.images.shape[1:]}; save both in one form"
        )
    num_classes = int(train.labels.max()) + 1
    if num_classes > len(train.labels):
        raise ValueError(
            f"{name}: labels must number the classes from 0 without gaps, received up to {num_classes - 1} in "
            f"{len(train.labels)} examples; number them anew"
        )
    if validation.labels.max() >= num_classes:
        raise ValueError(
            f"{name}: test labels must be among the training set's classes 0 to {num_classes - 1}, received "
            f"{validation.labels.max()}; correct the labels"
        )
    return Dataset(name, train, validation, num_classes)


def epoch_order(num_examples: int, seed: int, epoch: int) -> NDArray[np.int32]:
    """Returns the order in which an epoch visits the examples: a permutation made from (seed, epoch) alone.

    The same arguments give the same order on every platform and NumPy version: it is a sort of the raw output of the
    Philox generator, which NumPy promises not to change (NEP 19), unlike `Generator.permutation`.

    Args:
        num_examples: int in [1, 2**31).
        seed, epoch: ints in [0, 2**64).

    Returns:
        int32 [num_examples], each of 0 … num_examples - 1 once.
    """
    draws = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(num_examples)
    # The index in the low half makes every key different and carries the answer through the sort.
    keys = (draws & np.uint64(0xFFFFFFFF00000000)) | np.arange(num_examples, dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int32)


def _read_named(name: str, data_dir: Path | None) -> list[np.ndarray]:
    if data_dir is None and name == "mnist":
        data_dir = _MNIST_DIR
    if data_dir is None and _DEBIAN_FASHION_DIR.is_dir():
        data_dir = _DEBIAN_FASHION_DIR
    if data_dir is None:
        return _download_fashion_mnist()
    return [_read_idx(data_dir / f"{stem}.gz", digest) for stem, digest in _DIGESTS[name].items()]


def _download_fashion_mnist() -> list[np.ndarray]:
    import keras  # Only here: no other dataset needs it.

    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.fashion_mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception when a download fails.
        raise ValueError(
            f"fashion_mnist could not be downloaded ({str(error).splitlines()[0]}); install Debian's "
            "dataset-fashion-mnist or give the folder of its four IDX files with --data_dir"
        ) from error
    return [x_train, y_train, x_test, y_test]


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes whose uncompressed content has this digest."""
    if not path.is_file():
        raise FileNotFoundError(f"data file {path} is missing; put the four gzipped IDX files of the dataset there")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"data file {path} is truncated or not gzip ({error}); replace it by a good copy") from error
    received = hashlib.sha256(content).hexdigest()
    if received != sha256:
        raise ValueError(
            f"data file {path} is not the expected one: SHA-256 {received[:12]}… instead of {sha256[:12]}…; "
            "replace it by a good copy"
        )
    # Header: two zero bytes, the type (8: unsigned byte), the number of axes, then each length as big-endian uint32.
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes, count=math.prod(map(int, shape))).reshape(shape)


def _read_npz(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"dataset file {path} does not exist; give the path of an .npz file")
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise ValueError(f"it has no array {missing[0]}")
            return [archive[name] for name in names]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"dataset file {path} cannot be used: {reason}; save it with numpy.savez as {', '.join(names)}"
        ) from error


def _arrays(name: str, loaded: Any) -> list[np.ndarray]:
    """Takes what a user's function returned apart."""
    if isinstance(loaded, Dataset):
        return [*loaded.train, *loaded.validation]
    try:
        (x_train, y_train), (x_test, y_test) = loaded
        return [np.asarray(array) for array in (x_train, y_train, x_test, y_test)]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset {name} must return a Dataset, a StreamedDataset or ((x_train, y_train), (x_test, y_test)), "
            f"received a {type(loaded).__name__}; return one of these"
        ) from error


def sha256_of(arrays: Sequence[np.ndarray]) -> str:
    """Returns the hex digest of arrays: their dtypes, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _checked_split(name: str, images: np.ndarray, labels: np.ndarray) -> Split:
    if labels.ndim == 2 and labels.shape[1] == 1:  # Keras' CIFAR files have one column.
        labels = labels[:, 0]
    if images.ndim < 2 or labels.ndim != 1 or len(images) != len(labels) or not len(images):
        raise ValueError(
            f"{name}: images must be [n, …] and labels [n] with n at least 1, received shapes {images.shape} and "
            f"{labels.shape}; pair each image with one label"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= 2**31:
        raise ValueError(
            f"{name}: labels must be integers from 0, received {_summary(labels)}; number the classes from 0"
        )
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"{name}: images must be uint8 or float, received {images.dtype}; convert them")
        images = images.astype(np.float32, copy=False)
        if not np.isfinite(images).all():
            bad = int(np.argmin(np.isfinite(images).reshape(len(images), -1).all(axis=1)))
            raise ValueError(
                f"{name}: float images must be finite, received NaN or inf in image {bad}; remove or repair it"
            )
    return Split(images, labels.astype(np.int32))


def _summary(array: np.ndarray) -> str:
    return f"{array.dtype} with values from {array.min()} to {array.max()}"
