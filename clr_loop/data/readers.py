"""Files of arrays: the gzipped IDX files of MNIST and Fashion-MNIST, and `.npz` archives in the layout of Keras."""

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

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
NAMES = (*_DIGESTS,)


def read_named(name: str, data_dir: Path | None = None) -> tuple[Any, Any]:
    """Return ((x_train, y_train), (x_test, y_test)) of a dataset in `NAMES`: uint8 [n, 28, 28] and uint8 [n]."""
    if data_dir is None and name == "mnist":
        data_dir = _MNIST_DIR
    if data_dir is None and DEBIAN_FASHION_DIR.is_dir():
        data_dir = DEBIAN_FASHION_DIR
    if data_dir is not None:
        x_train, y_train, x_test, y_test = (_read_idx(data_dir / f"{s}.gz", d) for s, d in _DIGESTS[name].items())
        return (x_train, y_train), (x_test, y_test)
    try:
        return call(f"keras.datasets.{name}:load_data", "download")
    except ValueError as error:
        remedy = "Install Debian's dataset-fashion-mnist, or give the folder of the four IDX files with --data_dir."
        raise ValueError(f"{name} is not on this machine, and its {error}. {remedy}") from error


def _read_idx(path: Path, sha256: str) -> np.ndarray:
    """Return the array of a gzipped IDX file of unsigned bytes whose uncompressed content has this digest."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Put the four gzipped IDX files of the dataset there.")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or not gzip ({error}). Replace it with a good copy.") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        is_not = f"its SHA-256 is {found[:12]}… instead of {sha256[:12]}…"
        raise ValueError(f"{path} is not the expected file: {is_not}. Replace it with a good copy.")
    # Header: two zero bytes, the type (8: unsigned byte), the number of axes, then each length as big-endian uint32.
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes, count=math.prod(map(int, shape))).reshape(shape)


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
