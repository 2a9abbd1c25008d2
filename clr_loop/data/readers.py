"""Files of arrays: those in which MNIST, Fashion-MNIST and CIFAR-10 come, and `.npz` archives in Keras' layout."""

import gzip
import hashlib
import io
import math
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from clr_loop.arguments import spelled
from clr_loop.data.functions import call

_MNIST_DIR = Path(__file__).parent / "mnist"
DEBIAN_FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")

# SHA-256 of the uncompressed IDX files: a file that was compressed again is still the same file.
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
NAMES = (*_DIGESTS, "cifar10")

# The files of CIFAR-10's Python version, each with its MD5, as torchvision checks them, too; the binary version has the
# same files with the suffix `.bin`.
_CIFAR10 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
_CIFAR10_ROWS = 10_000  # Images in each file.
_REMEDIES = {
    "fashion_mnist": "Install Debian's dataset-fashion-mnist, or give the folder of its IDX files with {data_dir}.",
    "cifar10": "Give the folder cifar-10-batches-py or cifar-10-batches-bin, or an .npz file, with {data_dir}.",
}


def read_named(name: str, data_dir: Path | None = None) -> tuple[Any, Any]:
    """Return ((x_train, y_train), (x_test, y_test)) of a dataset in `NAMES`.

    All are uint8: x [n, 28, 28], or [n, 32, 32, 3] of CIFAR-10, and y [n], or [n, 1] as CIFAR-10 comes from Keras.
    """
    if data_dir is None and name == "mnist":
        data_dir = _MNIST_DIR
    if data_dir is None and name == "fashion_mnist" and DEBIAN_FASHION_DIR.is_dir():
        data_dir = DEBIAN_FASHION_DIR
    if data_dir is not None and name == "cifar10":
        return _read_cifar10(data_dir)
    if data_dir is not None:
        x_train, y_train, x_test, y_test = (_read_idx(data_dir / f"{s}.gz", d) for s, d in _DIGESTS[name].items())
        return (x_train, y_train), (x_test, y_test)
    try:
        return call(f"keras.datasets.{name}:load_data", "download")
    except ValueError as error:
        remedy = _REMEDIES[name].format(data_dir=spelled("data_dir"))
        raise ValueError(f"{name} is not on this machine, and its {error}. {remedy}") from error


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    """Return the array of a gzipped IDX file of unsigned bytes whose uncompressed content has this digest."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Put the four gzipped IDX files of the dataset there.")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}). Replace it with a good copy.") from error
    _check_digest(path, content, "SHA-256", sha256)
    # Header: two zero bytes, the type (8: unsigned byte), the number of axes, then each length as big-endian uint32.
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes, count=math.prod(map(int, shape))).reshape(shape)


def _check_digest(path: Path, content: bytes, kind: str, expected: str) -> None:
    digest = hashlib.new(kind.replace("-", ""), content, usedforsecurity=False).hexdigest()
    if digest != expected:
        is_not = f"its {kind} is {digest[:12]}… instead of {expected[:12]}…"
        raise ValueError(f"{path} is not the expected file: {is_not}. Replace it with a good copy.")


# --- CIFAR-10 ---


def _read_cifar10(place: Path) -> tuple[Any, Any]:
    """Read an `.npz` archive, or a folder of either official version, which may lie in this one."""
    if place.suffix == ".npz":
        train, test = read_npz(place)
        if any(x.shape[1:] != (32, 32, 3) or x.dtype != np.uint8 for x, *_ in (train, test)):
            raise ValueError(f"{place} does not hold CIFAR-10: its images must be uint8 [n, 32, 32, 3].")
        return train, test
    for folder in (place, place / "cifar-10-batches-py", place / "cifar-10-batches-bin"):
        for suffix in ("", ".bin"):
            if (folder / f"data_batch_1{suffix}").is_file():
                *train, test = (_read_batch(folder / f"{stem}{suffix}", md5) for stem, md5 in _CIFAR10.items())
                return tuple(np.concatenate(parts) for parts in zip(*train, strict=True)), test
    raise FileNotFoundError(f"{place} holds no data_batch_1 or data_batch_1.bin. {_REMEDIES['cifar10']}")


def _read_batch(path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 [10000, 32, 32, 3], and labels, uint8 [10000], of one file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Put all six files of CIFAR-10 there.")
    content = path.read_bytes()
    if not path.suffix:
        _check_digest(path, content, "MD5", md5)
    try:
        pixels, labels = _from_rows(content) if path.suffix else _unpickled(content)
        if (pixels.dtype, pixels.shape, labels.shape) != (np.uint8, (_CIFAR10_ROWS, 3072), (_CIFAR10_ROWS,)):
            raise ValueError(f"it must hold {_CIFAR10_ROWS:,} images of 3,072 bytes, and as many labels")
        if labels.max() > 9:
            raise ValueError(f"it has the label {labels.max()}, and the classes are 0 to 9")
    except Exception as error:  # A pickle can be damaged in many ways, and each raises an error of its own.
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"{path} is not the expected file: {reason}. Replace it with a good copy.") from error
    # The three channels come one after another, each in rows.
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def _from_rows(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the binary version: a byte for the label and 3,072 for the pixels, image after image."""
    if len(content) != _CIFAR10_ROWS * 3073:
        raise ValueError(f"it has {len(content):,} bytes instead of {_CIFAR10_ROWS * 3073:,}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return rows[:, 1:], rows[:, 0]


def _unpickled(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read the Python version: a pickled dict with `data`, uint8 [n, 3072], and `labels`, a list of ints."""
    stream = io.BytesIO(content)
    batch = _ArraysOnly(stream, encoding="bytes").load()
    if stream.read(1):
        raise ValueError("something follows the pickle")
    return batch[b"data"], np.array(batch[b"labels"], np.uint8)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that builds nothing but arrays and Python's plain values: an MD5 can be forged."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what an array is made of; the old files name the module as NumPy 1 did."""
        known = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module not in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") or name not in known:
            raise pickle.UnpicklingError(f"it would call {module}.{name}, which no array needs; nothing was run")
        return known[name]


# --- Archives ---


def read_npz(path: Path) -> tuple[Any, Any]:
    """Return ((x_train, y_train, sample_weight_train), (x_test, y_test, sample_weight_test)) of an `.npz` archive.

    The archive may lack the weights, which are then None. Whatever is wrong with it becomes a ValueError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist. Give the path of an .npz file.")
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"PK":
                raise ValueError("it is not an .npz archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                parts = [f"{part}_{split}" for split in ("train", "test") for part in ("x", "y", "sample_weight")]
                arrays = [archive.get(part) for part in parts]
        for part, array in zip(parts, arrays, strict=True):
            if not isinstance(array, np.ndarray) and not (array is None and part.startswith("sample_weight")):
                raise ValueError(f"it has no array {part}")
    except Exception as error:  # A zip file can be damaged in many ways, and each raises an error of its own.
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        remedy = "Save x_train, y_train, x_test and y_test with numpy.savez."
        raise ValueError(f"{path} cannot be read: {reason}. {remedy}") from error
    return tuple(arrays[:3]), tuple(arrays[3:])
