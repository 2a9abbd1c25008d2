"""The readers of CIFAR-10 against small files that are written here, in each format and damaged in many ways."""

import hashlib
import pickle
import shutil
import struct

import keras
import numpy as np
import pytest

from clr_loop import data
from clr_loop.data import readers

ROWS = 4
RNG = np.random.default_rng(0)
# Ten batches of labels 0 to 9 and images [3, 32, 32], in the order of the files.
LABELS = np.arange(6 * ROWS, dtype=np.uint8) % 10
PIXELS = RNG.integers(0, 256, (6 * ROWS, 3, 32, 32), dtype=np.uint8)


class OldPickler(pickle._Pickler):
    """Pickles as Python 2 did, in which the official files were made: bytes are its strings."""

    def save(self, thing, *arguments, **named):
        if isinstance(thing, bytes):
            self.write(pickle.BINSTRING + struct.pack("<i", len(thing)) + thing)
        else:
            super().save(thing, *arguments, **named)


def save_pickle(path, content):
    with path.open("wb") as file:
        OldPickler(file, protocol=2).dump(content)
    # NumPy 1 had the function in a module of this name.
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def batch_of(place):
    rows = slice(place * ROWS, (place + 1) * ROWS)
    return {
        b"batch_label": b"training batch",
        b"labels": LABELS[rows].tolist(),
        b"data": PIXELS[rows].reshape(ROWS, 3072),
        b"filenames": [b"a.png"] * ROWS,
    }


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Let the files be small, and any content have the expected digest."""
    monkeypatch.setattr(readers, "_CIFAR10_ROWS", ROWS)
    monkeypatch.setattr(readers, "_check_digest", lambda *_: None)


@pytest.fixture
def pickled(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for place, name in enumerate(readers._CIFAR10):
        save_pickle(folder / name, batch_of(place))
    return folder


@pytest.fixture
def binary(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for place, name in enumerate(readers._CIFAR10):
        batch = batch_of(place)
        rows = np.column_stack([np.array(batch[b"labels"], np.uint8), batch[b"data"]])
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def arrays(labels=LABELS):
    images, num_train = np.stack([PIXELS[:, channel] for channel in range(3)], axis=-1), 5 * ROWS
    return (images[:num_train], labels[:num_train]), (images[num_train:], labels[num_train:])


def assert_is_cifar10(dataset):
    for examples, (images, labels) in zip((dataset.train, dataset.validation), arrays(), strict=True):
        np.testing.assert_array_equal(examples.inputs, images, strict=True)
        np.testing.assert_array_equal(examples.targets, labels.astype(np.int32), strict=True)
    assert (dataset.name, dataset.num_classes, dataset.input_shape) == ("cifar10", 10, (32, 32, 3))


def test_every_format_gives_the_same_images_and_labels(pickled, binary, tmp_path):
    (x_train, y_train), (x_test, y_test) = arrays()
    np.savez(tmp_path / "all.npz", x_train=x_train, y_train=y_train[:, None], x_test=x_test, y_test=y_test[:, None])
    places = [pickled, binary, tmp_path / "all.npz", tmp_path]  # The last holds both official folders.
    datasets = [data.load("cifar10", place) for place in places]
    for dataset in datasets:
        assert_is_cifar10(dataset)
    assert len({dataset.sha256() for dataset in datasets}) == 1
    shutil.rmtree(pickled)
    assert_is_cifar10(data.load("cifar10", tmp_path))


def test_without_a_folder_keras_downloads_it(monkeypatch):
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: arrays(LABELS[:, None]))
    assert_is_cifar10(data.load("cifar10"))


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: 1 / 0)
    message = (
        r"cifar10 is not on this machine, and its download .* Give the folder cifar-10-batches-py or .* with data_dir"
    )
    with pytest.raises(ValueError, match=message):
        data.load("cifar10")


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def append(path, more):
    path.write_bytes(path.read_bytes() + more)


def rewrite(path, **changes):
    save_pickle(path, batch_of(0) | {name.encode(): value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: cut(path, -1), "pickle data was truncated|Ran out of input"),
        (lambda path: cut(path, 100), "pickle data was truncated"),
        (lambda path: cut(path, 0), "Ran out of input"),
        (lambda path: append(path, b"\0"), "something follows the pickle"),
        (lambda path: append(path, pickle.dumps({})), "something follows the pickle"),
        (lambda path: path.write_bytes(b"no pickle"), "not the expected file"),
        (lambda path: rewrite(path, data=batch_of(0)[b"data"][:3]), "must hold 4 images of 3,072 bytes"),
        (lambda path: rewrite(path, data=batch_of(0)[b"data"].astype(np.int16)), "must hold 4 images"),
        (lambda path: rewrite(path, data=np.array([[{}] * 3072] * 4)), "must hold 4 images"),
        (lambda path: rewrite(path, data=b"text"), "has no attribute 'dtype'"),
        (lambda path: rewrite(path, labels=[0, 1, 2]), "and as many labels"),
        (lambda path: rewrite(path, labels=[0, 1, 2, 10]), "it has the label 10, and the classes are 0 to 9"),
        (lambda path: rewrite(path, labels=[0, 1, 2, -1]), "not the expected file"),
        (lambda path: save_pickle(path, {b"data": np.zeros(3)}), "labels"),
        (lambda path: save_pickle(path, [1, 2]), "not the expected file"),
    ],
)
def test_a_damaged_pickle_is_named_in_one_line(pickled, damage, reason):
    damage(pickled / "data_batch_3")
    with pytest.raises(ValueError, match=rf"data_batch_3 is not the expected file: .*{reason}|{reason}") as caught:
        data.load("cifar10", pickled)
    assert "data_batch_3 is not the expected file: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: cut(path, -1), "it has 12,291 bytes instead of 12,292"),
        (lambda path: cut(path, 3 * 3073), "it has 9,219 bytes instead of 12,292"),
        (lambda path: append(path, b"\0" * 3073), "it has 15,365 bytes instead of 12,292"),
        (lambda path: path.write_bytes(b"\x0a" + path.read_bytes()[1:]), "it has the label 10"),
    ],
)
def test_a_damaged_binary_file_is_named_in_one_line(binary, damage, reason):
    damage(binary / "test_batch.bin")
    with pytest.raises(ValueError, match=rf"test_batch\.bin is not the expected file: {reason}"):
        data.load("cifar10", binary)


def test_the_files_of_the_python_version_are_known_by_their_digests(pickled, monkeypatch):
    monkeypatch.undo()
    digests = {name: hashlib.md5((pickled / name).read_bytes()).hexdigest() for name in readers._CIFAR10}
    with pytest.raises(
        ValueError, match=rf"data_batch_1 .* its MD5 is {digests['data_batch_1'][:12]}… instead of c99c"
    ):
        data.load("cifar10", pickled)
    monkeypatch.setattr(readers, "_CIFAR10_ROWS", ROWS)
    monkeypatch.setattr(readers, "_CIFAR10", digests)
    assert_is_cifar10(data.load("cifar10", pickled))


class Calling:
    """Unpickles by calling a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("where", ["alone", "in the dict", "as a key", "in the array"])
def test_a_pickle_that_would_run_something_is_refused_and_nothing_is_run(pickled, tmp_path, where):
    made = tmp_path / "made"
    evil = Calling(open, str(made), "w")
    content = {
        "alone": evil,
        "in the dict": batch_of(0) | {b"more": evil},
        "as a key": {evil: 1, **batch_of(0)},
        "in the array": batch_of(0) | {b"data": np.array([evil])},
    }[where]
    save_pickle(pickled / "data_batch_1", content)
    with pytest.raises(
        ValueError, match=r"data_batch_1 .*: it would call .*open, which no array needs; nothing was run"
    ):
        data.load("cifar10", pickled)
    assert not made.exists()
    pickle.loads((pickled / "data_batch_1").read_bytes(), encoding="bytes")  # Anybody else would have run it.
    assert made.exists()


@pytest.mark.parametrize("function", [np.fromfile, np.memmap, np.load, eval, pickle.loads])
def test_no_other_function_of_numpy_or_python_can_be_called(pickled, function):
    save_pickle(pickled / "data_batch_1", Calling(function, str(pickled)))
    with pytest.raises(ValueError, match=r"it would call .*, which no array needs"):
        data.load("cifar10", pickled)


def test_what_is_missing_is_named(pickled, binary, tmp_path):
    (pickled / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4 is missing\. Put all six files"):
        data.load("cifar10", pickled)
    (binary / "test_batch.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin is missing"):
        data.load("cifar10", binary)
    with pytest.raises(
        FileNotFoundError, match=r"nowhere holds no data_batch_1 or data_batch_1\.bin\. Give the folder"
    ):
        data.load("cifar10", tmp_path / "nowhere")


def test_an_archive_of_something_else_is_not_cifar10(tmp_path):
    x, y = np.zeros((4, 28, 28), np.uint8), np.arange(4)
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    with pytest.raises(
        ValueError, match=r"other\.npz does not hold CIFAR-10: its images must be uint8 \[n, 32, 32, 3\]"
    ):
        data.load("cifar10", tmp_path / "other.npz")


def test_the_mean_training_image_is_subtracted_from_all_images(binary):
    plain, centered = (data.load("cifar10", binary, subtract_mean=wish) for wish in (False, True))
    mean = sum(image.astype(np.float64) for image in plain.train.inputs) / (5 * ROWS)
    for whole, shifted in ((plain.train, centered.train), (plain.validation, centered.validation)):
        assert shifted.inputs.dtype == np.float32
        np.testing.assert_allclose(shifted.inputs, whole.inputs - mean, atol=1e-4)
        np.testing.assert_array_equal(shifted.targets, whole.targets)
    assert plain.sha256() != centered.sha256()
