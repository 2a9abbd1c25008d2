"""Makes an .npz of CIFAR-10 from JPEG files, for measuring where its original pixels cannot be had.

python tests/helpers/cifar10_from_jpeg.py FROM.npz TO.npz

FROM holds, for `train` and `test`, `<split>_jpeg` (uint8, all files one after another), `<split>_offsets` (file i lies
between offsets i and i + 1) and `<split>_labels`.
"""

import io
import itertools
import sys

import numpy as np
from PIL import Image


def convert(source, target):
    """Decode all files of one archive into the arrays of another."""
    packed, arrays = np.load(source), {}
    for split in ("train", "test"):
        jpeg, offsets = packed[f"{split}_jpeg"].tobytes(), packed[f"{split}_offsets"]
        files = (io.BytesIO(jpeg[start:end]) for start, end in itertools.pairwise(offsets))
        arrays[f"x_{split}"] = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        arrays[f"y_{split}"] = packed[f"{split}_labels"]
    np.savez(target, **arrays)


if __name__ == "__main__":
    convert(*sys.argv[1:])
