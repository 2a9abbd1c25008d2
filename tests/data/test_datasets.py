import gzip
import io
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from clr_loop import data
from clr_loop.data import readers
from helpers.warned import user_warnings

MNIST_DIR = Path(data.__file__).parent / "mnist"


@pytest.fixture
def copy_of_mnist(tmp_path):
    for file in MNIST_DIR.glob("*.gz"):
        shutil.copy(file, tmp_path)
    return tmp_path


def save_npz(path, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.random((20, 5, 5), np.float32),
        "y_train": np.arange(20) % 4,
        "x_test": rng.random((8, 5, 5), np.float32),
        "y_test": np.arange(8) % 4,
        **changes,
    }
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return str(path)


def test_mnist_is_whole_and_has_the_known_mean_and_deviation(mnist):
    assert mnist.train.inputs.shape == (60000, 28, 28)
    assert mnist.validation.inputs.shape == (10000, 28, 28)
    assert mnist.train.inputs.dtype == mnist.validation.inputs.dtype == np.uint8
    assert (mnist.num_classes, mnist.num_examples, mnist.input_shape) == (10, 60000, (28, 28))
    # Published figures of the training set, scaled to 0–1.
    assert mnist.train.inputs.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train.inputs.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert mnist.train.targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(mnist.validation.targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_digest_tells_datasets_apart(mnist):
    fewer = replace(mnist, train=data.Examples(*(array[:10] for array in mnist.train[:2])))
    weighted = replace(mnist, train=mnist.train._replace(sample_weight=np.ones(60000, np.float32)))
    digests = {dataset.sha256() for dataset in (mnist, fewer, weighted, replace(mnist, validation=None))}
    assert len(digests) == 4


def test_files_from_data_dir_equal_the_packaged_ones(mnist, copy_of_mnist):
    assert data.load("mnist", copy_of_mnist).sha256() == mnist.sha256()


def test_missing_file_is_named(copy_of_mnist):
    (copy_of_mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"t10k-labels-idx1-ubyte\.gz is missing"):
        data.load("mnist", copy_of_mnist)


def test_truncated_file_is_named(copy_of_mnist):
    file = copy_of_mnist / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is truncated"):
        data.load("mnist", copy_of_mnist)


def test_file_of_another_digest_is_named(copy_of_mnist):
    file = copy_of_mnist / "train-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(file.read_bytes()))
    content[100] ^= 1
    file.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is not the expected file: its SHA-256"):
        data.load("mnist", copy_of_mnist)


def test_fashion_mnist_from_a_folder_is_checked_against_its_own_digests(copy_of_mnist):
    with pytest.raises(ValueError, match="is not the expected file"):
        data.load("fashion_mnist", copy_of_mnist)


def test_a_download_that_fails_is_one_line_with_the_remedies(monkeypatch, tmp_path):
    def fail():
        raise Exception("URL fetch failure on https://example.org: None -- [Errno -3]\nTry again")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)
    monkeypatch.setattr(readers, "DEBIAN_FASHION_DIR", tmp_path / "none")
    message = (
        r"not on this machine, .* Exception: URL fetch failure on https://example\.org.*\. Install .* with data_dir"
    )
    with pytest.raises(ValueError, match=message) as caught:
        data.load("fashion_mnist")
    assert "\n" not in str(caught.value)


def test_npz_in_keras_layout_is_read(tmp_path):
    dataset = data.load(save_npz(tmp_path / "own.npz", y_train=(np.arange(20) % 4)[:, None]))
    assert dataset.train.inputs.shape == (20, 5, 5)
    assert dataset.train.inputs.dtype == np.float32
    assert dataset.train.targets.dtype == np.int32
    assert dataset.train.targets.tolist() == [0, 1, 2, 3] * 5
    assert (dataset.num_classes, dataset.train.sample_weight) == (4, None)


def test_npz_may_hold_sample_weights(tmp_path):
    weight = np.linspace(0, 1, 20)
    dataset = data.load(save_npz(tmp_path / "own.npz", sample_weight_train=weight))
    np.testing.assert_array_equal(dataset.train.sample_weight, weight.astype(np.float32))
    assert dataset.validation.sample_weight is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"bad\.npz cannot be read: it has no array y_test\. Save x_train"),
        ({"y_train": np.arange(19) % 4}, r"bad\.npz: train\.inputs has 20 and train\.targets has 19 examples"),
        ({"sample_weight_train": np.ones(7)}, "train.inputs has 20 and train.sample_weight has 7 examples"),
        ({"y_test": np.full(8, 4)}, "validation.targets has labels from 4 to 4, but the classes can only be 0 to 3"),
        ({"y_train": np.arange(20) - 1}, "train.targets has labels from -1 to 18, .* Number the classes from 0"),
        ({"y_train": np.full(20, -1)}, "train.targets has labels from -1 to -1"),
        ({"y_train": np.array([0, 10**12] * 10)}, "has labels from 0 to 1000000000000, but the classes can only be"),
        ({"y_train": np.array(["cat", "dog"] * 10)}, "train.targets holds strings such as .*cat"),
        ({"x_train": np.full((20, 5, 5), np.nan)}, "train.inputs holds NaN, infinity .*, first in example 0"),
        ({"y_test": np.array([0, 1, np.inf, 0, 0, 0, 0, 0])}, "validation.targets holds NaN, infinity .* in example 2"),
        (
            {"x_test": np.zeros((8, 5, 6), np.float32)},
            r"are \(float32 \(5, 5\), int32 \(\)\) for training and \(float32 \(5, 6\), int32 \(\)\) for validation",
        ),
        ({"x_test": np.zeros((8, 5, 5), np.uint8)}, r"and \(uint8 \(5, 5\), int32 \(\)\) for validation\. Save both"),
        ({"x_train": np.array([{}] * 20)}, "cannot be read: .*allow_pickle"),
        ({"x_train": np.zeros((0, 5, 5)), "y_train": np.zeros(0, int)}, "There are no examples in train"),
    ],
)
def test_bad_npz_is_named_in_one_line(tmp_path, changes, message):
    path = save_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(path)
    assert "\n" not in str(caught.value)


def rewrite(path, change, name="x_train.npy", compression=zipfile.ZIP_STORED):
    """Saves an archive anew with `change` of the bytes of one member."""
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, content in members.items():
            archive.writestr(member, change(content) if member == name else content)


def with_terabytes(content):
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**13,)}
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + bytes(100)


def set_in_headers(path, offset_local, offset_central, value):
    """Writes a byte into every local and central header of a zip file."""
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", offset_local), (b"PK\x01\x02", offset_central)):
        start = content.find(mark)
        while start >= 0:
            content[start + offset] = value
            start = content.find(mark, start + 1)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: rewrite(path, lambda _: b"no array"), "cannot be read: it has no array x_train"),
        (lambda path: rewrite(path, with_terabytes), "cannot be read: (Unable to allocate|EOF)"),
        (lambda path: rewrite(path, lambda content: content[:-8]), "cannot be read: EOF"),
        (lambda path: rewrite(path, lambda content: content[:20] + b"((((" + content[24:]), "cannot be read: "),
        (lambda path: set_in_headers(path, 6, 8, 1), "cannot be read: .*is encrypted, password required"),
        (lambda path: set_in_headers(path, 8, 10, 77), "cannot be read: That compression method is not supported"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be read: File is not a zip file"),
        (lambda path: path.write_text("not an archive"), "cannot be read: it is not an .npz archive"),
        (lambda path: path.write_bytes(b""), "cannot be read: it is not an .npz archive"),
        (lambda path: np.save(path.open("wb"), np.zeros(3)), "cannot be read: it is not an .npz archive"),
    ],
)
def test_damaged_npz_is_named_in_one_line(tmp_path, damage, message):
    path = tmp_path / "damaged.npz"
    save_npz(path)
    damage(path)
    with pytest.raises(ValueError, match=rf"damaged\.npz {message}") as caught:
        data.load(str(path))
    assert "\n" not in str(caught.value)


def test_npz_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        data.load(str(tmp_path / "none.npz"))


def test_unknown_name_is_refused_with_the_choices():
    choices = r"mnist, fashion_mnist, cifar10, a path .* \.npz or \.csv, or a function .* package\.module:function"
    with pytest.raises(ValueError, match=rf"no dataset 'minst'\. Choose {choices}"):
        data.load("minst")


@pytest.mark.parametrize(
    ("labels", "named"),
    [(np.arange(100) % 10 + 1, "0"), (np.array([0, 5, 50] * 20), "1–4, 6–49"), (np.array([0, 2, 4, 5] * 3), "1, 3")],
)
def test_classes_without_an_example_are_named_in_one_warning(tmp_path, labels, named):
    x = np.zeros((len(labels), 2), np.float32)
    path = save_npz(tmp_path / "gaps.npz", x_train=x, y_train=labels, x_test=x[:2], y_test=labels[:2])
    with pytest.warns(UserWarning, match=rf"gaps\.npz has no training example of the classes {named}\. If") as caught:
        dataset = data.load(path)
    assert len(user_warnings(caught)) == 1
    assert dataset.num_classes == labels.max() + 1


@pytest.mark.parametrize(
    ("targets", "num_classes"),
    [
        (np.linspace(-1, 1, 20, dtype=np.float32), None),
        (np.arange(40, dtype=np.float32).reshape(20, 2), None),
        (np.full((20, 4), 0.25, np.float32), None),
        (np.eye(4, dtype=np.uint8)[np.arange(20) % 4], 4),
        (np.eye(4, dtype=np.float32)[np.arange(20) % 4], 4),
        (np.eye(4, dtype=bool)[np.arange(20) % 4], 4),
        (np.ones((20, 4), np.int64), None),
        (np.ones((20, 1), np.float32), None),
        (np.arange(20) % 2 == 0, None),
        (np.arange(60).reshape(20, 3), None),
        (np.zeros((20, 5, 5, 1), np.uint8), None),
    ],
)
def test_targets_that_are_not_labels_stay_as_they_are(tmp_path, targets, num_classes):
    dataset = data.load(save_npz(tmp_path / "own.npz", y_train=targets, y_test=targets[:8]))
    np.testing.assert_array_equal(dataset.train.targets, targets, strict=True)
    assert dataset.num_classes == num_classes


USERS_DATA = """
import numpy as np
from clr_loop import data
x, y = np.arange(5 * 16).reshape(5, 4, 4).astype(np.float32), np.arange(5) % 3
nest = {"b": [x, np.arange(10, dtype=np.uint8).reshape(5, 2)], "a": (y,)}
def arrays():
    return (x, y), (x[:3], y[:3])
def lists():
    return [[x, y], [x[:3], y[:3]]]
def whole():
    return data.Dataset("own", data.Examples(x, y), data.Examples(x[:3], y[:3]), 3)
def nests():
    return (nest, {"u": y * 0.5, "v": y}, y), (nest, {"u": y * 0.5, "v": y})
def unsupervised():
    return (x, None), (x, None)
def renamed():
    return data.Dataset("my digits", data.Examples(x, y), None, 7)
def years():
    return data.Dataset("years", data.Examples(x, y - 2000), None, None)
def streamed():
    batches = lambda batch_size, seed, epoch: None
    return data.StreamedDataset("own", batches, 1000, data.Examples(x.astype(float), y), 3, (4, 4))
def three():
    return x, y, x
def two_arrays():
    return x[:3], x[:3]
def nothing():
    return None
def bad_labels():
    return (x, y - 1), (x, y)
def bad_nest():
    return (nest, y), ({**nest, "c": x}, y)
def bad_lengths():
    return ({"left": x, "right": [x, x[:4]]}, y), (x, y)
def bad_stream():
    return data.StreamedDataset("own", print, 1000, data.Examples(x, y[:4]), 3, (4, 4))
def bad_part():
    return data.Dataset("own", 5, None, 3)
def bad_validation():
    return data.Dataset("own", data.Examples(x, y), x, 3)
def no_train():
    return data.Dataset("own", None, None, 3)
def numbers():
    return ([1, 2, 3], y), (x, y)
def failing():
    return x / 0 @ None
def leaving():
    raise SystemExit(0)
"""


def line_of(text):
    return next(number for number, line in enumerate(USERS_DATA.splitlines(), 1) if text in line)


@pytest.fixture
def users_data(tmp_path, monkeypatch):
    (tmp_path / "users_data.py").write_text(USERS_DATA)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("users_data", None)


@pytest.mark.parametrize("function", ["arrays", "lists", "whole"])
def test_a_users_function_gives_arrays_or_a_dataset(users_data, function):
    dataset = data.load(f"users_data:{function}")
    np.testing.assert_array_equal(dataset.train.inputs, np.arange(80).reshape(5, 4, 4))
    assert dataset.validation.targets.tolist() == [0, 1, 2]
    assert (dataset.num_classes, dataset.num_examples, dataset.input_shape) == (3, 5, (4, 4))


def test_the_mean_is_subtracted_from_each_array_of_a_nest_and_only_where_there_is_one(users_data, tmp_path):
    plain, centered = (data.load("users_data:nests", subtract_mean=wish) for wish in (False, True))
    for path in (("a", 0), ("b", 0), ("b", 1)):
        whole, shifted = (dataset.train.inputs[path[0]][path[1]] for dataset in (plain, centered))
        assert shifted.dtype == np.float32
        np.testing.assert_allclose(shifted, whole - whole.mean(axis=0), atol=1e-5)
    assert data.load("users_data:years", subtract_mean=True).validation is None
    with pytest.raises(ValueError, match="users_data:streamed: subtract_mean needs all training examples at once"):
        data.load("users_data:streamed", subtract_mean=True)
    words = save_npz(tmp_path / "words.npz", x_train=np.full((20, 1), "a"), x_test=np.full((8, 1), "b"))
    with pytest.raises(ValueError, match=r"train\.inputs has dtype <U1 and no mean; leave subtract_mean out"):
        data.load(words, subtract_mean=True)


def test_a_users_function_gives_nests_of_arrays(users_data):
    dataset = data.load("users_data:nests")
    assert (dataset.name, dataset.num_classes, dataset.num_examples) == ("users_data:nests", None, 5)
    assert dataset.input_shape == {"a": ((),), "b": [(4, 4), (2,)]}
    assert dataset.train.inputs["b"][1].dtype == np.uint8
    assert dataset.train.targets["u"].dtype == np.float32
    assert dataset.train.targets["v"].dtype == np.int64
    assert dataset.train.sample_weight.tolist() == [0, 1, 2, 0, 1]
    assert dataset.validation.sample_weight is None
    assert data.load("users_data:unsupervised").train.targets is None


def test_a_returned_dataset_keeps_its_name_and_classes(users_data):
    with pytest.warns(UserWarning, match="my digits has no training example of the classes 3–6"):
        renamed = data.load("users_data:renamed")
    assert (renamed.name, renamed.num_classes, renamed.validation) == ("my digits", 7, None)
    years = data.load("users_data:years")
    assert years.num_classes is None
    assert years.train.targets.tolist() == [-2000, -1999, -1998, -2000, -1999]


def test_a_users_function_gives_a_stream_and_its_validation_is_checked(users_data):
    dataset = data.load("users_data:streamed")
    assert isinstance(dataset, data.StreamedDataset)
    assert (dataset.num_examples, dataset.input_shape, len(dataset.sha256())) == (1000, (4, 4), 64)
    assert dataset.validation.inputs.dtype == np.float32
    assert dataset.sha256() != replace(dataset, num_examples=1001).sha256()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "three",
            r"^dataset users_data:three: the function must return \(\(x_train, y_train\), .*, but it returned \(array",
        ),
        ("two_arrays", "it returned "),
        ("nothing", r"it returned None\.$"),
        ("bad_labels", r"^dataset users_data:bad_labels: train\.targets has labels from -1 to 1"),
        ("bad_nest", r"\(\{.*a: \(int64 \(\),\)\}, int32 \(\)\) for training and \(\{.*, c: float32 \(4, 4\)\}, int32"),
        ("bad_lengths", r"train\.inputs\['left'\] has 5 and train\.inputs\['right'\]\[1\] has 4 examples"),
        ("bad_stream", r"validation\.inputs has 5 and validation\.targets has 4 examples"),
        (
            "bad_part",
            rf"bad_part failed: TypeError: train is 5; it must be an Examples \(\S*, line {line_of(', 5, None')}\)$",
        ),
        ("bad_validation", r"validation is array\(.*; it must be an Examples or None"),
        ("no_train", "train is None; it must be an Examples"),
        ("numbers", r"train\.inputs\[0\] is a single value"),
        ("failing", rf"users_data:failing failed: \w+Error: .* \(\S*users_data\.py, line {line_of('x / 0')}\)$"),
        ("leaving", rf"it called sys\.exit\(0\) \(\S*users_data\.py, line {line_of('SystemExit')}\)"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_a_function_that_returns_something_else_is_named(users_data, function, message):
    with pytest.raises(ValueError, match=message) as caught:
        data.load(f"users_data:{function}")
    assert "\n" not in str(caught.value)


def test_data_dir_is_not_for_a_function():
    with pytest.raises(
        ValueError, match="data_dir is the folder of mnist or fashion_mnist or cifar10, but the dataset is"
    ):
        data.load("users_data:arrays", data_dir="somewhere")


def test_a_held_out_part_has_the_same_share_of_every_class_and_shares_no_example():
    labels = np.repeat([0, 1, 2], [100, 55, 45]).astype(np.int32)
    inputs = {"number": np.arange(200), "image": np.arange(800).reshape(200, 2, 2)}
    dataset = data.Dataset("made", data.Examples(inputs, labels, np.ones(200)), data.Examples(inputs, labels), 3)
    part = data.hold_out(dataset, 0.1, seed=1)
    assert (part.num_examples, len(part.validation.targets)) == (180, 20)
    numbers = [part.train.inputs["number"], part.validation.inputs["number"]]
    assert sorted(np.concatenate(numbers)) == list(range(200))
    for examples in (part.train, part.validation):
        np.testing.assert_array_equal(examples.inputs["image"][:, 0, 0], 4 * examples.inputs["number"])
        np.testing.assert_array_equal(examples.targets, labels[examples.inputs["number"]])
        assert len(examples.sample_weight) == len(examples.targets)
    np.testing.assert_allclose(np.bincount(part.validation.targets), [10, 5.5, 4.5], atol=0.5)
    again, other = (data.hold_out(dataset, 0.1, seed).validation.inputs["number"] for seed in (1, 2))
    np.testing.assert_array_equal(again, numbers[1])
    assert not np.array_equal(other, numbers[1])


def test_a_regression_is_held_out_at_random():
    targets = np.linspace(0, 1, 100, dtype=np.float32)
    part = data.hold_out(data.Dataset("made", data.Examples(np.zeros((100, 2)), targets), None, None), 0.2)
    assert len(part.validation.targets) == 20
    assert 0.3 < part.validation.targets.mean() < 0.7


@pytest.mark.parametrize(
    ("labels", "share", "message"),
    [
        (np.arange(12) % 4, 0.1, "With a share of 0.1 of 12 examples no example of class 0 is held out"),
        (np.array([0, 0, 0, 1]), 0.5, "no example of class 1 is"),
        (np.arange(12) % 4, 1.0, "The share to hold out is 1.0; choose one above 0 and below 1"),
    ],
)
def test_a_part_that_cannot_be_held_out_is_refused(labels, share, message):
    dataset = data.Dataset("made", data.Examples(np.zeros((len(labels), 2)), labels.astype(np.int32)), None, 4)
    with pytest.raises(ValueError, match=message):
        data.hold_out(dataset, share)


def test_one_hot_rows_are_those_of_the_labels_and_hold_out_keeps_their_shares():
    labels = np.repeat(np.arange(3, dtype=np.int32), (40, 20, 10))
    dataset = data.Dataset("mine", data.Examples(np.zeros((70, 2), np.float32), labels), None, 3)
    rows = data.one_hot(dataset)
    np.testing.assert_array_equal(rows.train.targets.argmax(axis=1), labels)
    assert (rows.train.targets.shape, rows.train.targets.dtype, rows.validation) == ((70, 3), np.float32, None)
    assert data.hold_out(rows, 0.1).validation.targets.sum(axis=0).tolist() == [4, 2, 1]
    assert data.one_hot(rows).train.targets is rows.train.targets
