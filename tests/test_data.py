import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from clr_loop import data

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
    assert mnist.train.images.shape == (60000, 28, 28)
    assert mnist.validation.images.shape == (10000, 28, 28)
    assert mnist.train.images.dtype == mnist.validation.images.dtype == np.uint8
    assert mnist.num_classes == 10
    # Published figures of the training set, scaled to 0–1.
    assert mnist.train.images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert mnist.train.images.std() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert mnist.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(mnist.validation.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_digest_tells_datasets_apart(mnist):
    fewer = data.Dataset("mnist", data.Split(*(a[:10] for a in mnist.train)), mnist.validation, 10)
    assert mnist.sha256() == data.load("mnist").sha256() != fewer.sha256()


def test_files_from_data_dir_equal_the_packaged_ones(copy_of_mnist, mnist):
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
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz is not the expected one: SHA-256"):
        data.load("mnist", copy_of_mnist)


def test_fashion_mnist_from_a_folder_is_checked_against_its_own_digests(copy_of_mnist):
    with pytest.raises(ValueError, match="not the expected one"):
        data.load("fashion_mnist", copy_of_mnist)


def test_npz_in_keras_layout_is_read(tmp_path):
    dataset = data.load(save_npz(tmp_path / "own.npz", y_train=(np.arange(20) % 4)[:, None]))
    assert dataset.train.images.shape == (20, 5, 5)
    assert dataset.train.images.dtype == np.float32
    assert dataset.train.labels.tolist() == [0, 1, 2, 3] * 5
    assert dataset.num_classes == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "it has no array y_test"),
        ({"y_train": np.arange(19)}, r"shapes \(20, 5, 5\) and \(19,\)"),
        ({"y_test": np.full(8, 4)}, "among the training set's classes 0 to 3, received 4"),
        ({"y_train": np.arange(20) - 1}, "labels must be integers from 0"),
        ({"y_train": np.arange(20) / 4}, "labels must be integers from 0"),
        ({"x_train": np.full((20, 5, 5), np.nan)}, "received NaN or inf in image 0"),
        ({"x_train": np.zeros((20, 5, 5), np.int64)}, "must be uint8 or float, received int64"),
        ({"x_test": np.zeros((8, 5, 6), np.float32)}, "training and test images must be alike"),
        ({"x_train": np.array([{}] * 20)}, "cannot be used: .*allow_pickle"),
    ],
)
def test_bad_npz_is_named_in_one_line(tmp_path, changes, message):
    path = save_npz(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(path)
    assert "\n" not in str(caught.value)


def test_file_that_is_no_npz_is_named(tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz cannot be used"):
        data.load(str(path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.load(str(tmp_path / "none.npz"))


def test_unknown_name_is_refused_with_the_choices():
    with pytest.raises(
        ValueError, match=r"one of mnist, fashion_mnist, a path ending in \.npz or package\.module:function"
    ):
        data.load("minst")


USERS_DATA = """
import numpy as np
from clr_loop import data
x, y = np.arange(5 * 16).reshape(5, 4, 4).astype(np.float32), np.arange(5) % 3
def arrays():
    return (x, y), (x[:3], y[:3])
def whole():
    return data.Dataset("own", data.Split(x, y), data.Split(x[:3], y[:3]), 3)
def streamed():
    return data.StreamedDataset("own", lambda batch_size, seed, epoch: None, 1000, data.Split(x, y), 3)
def three():
    return x, y, x
def bad_labels():
    return (x, y - 1), (x, y)
"""


@pytest.fixture
def users_data(tmp_path, monkeypatch):
    (tmp_path / "users_data.py").write_text(USERS_DATA)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("function", ["arrays", "whole"])
def test_a_users_function_gives_arrays_or_a_dataset(users_data, function):
    dataset = data.load(f"users_data:{function}")
    np.testing.assert_array_equal(dataset.train.images, np.arange(80).reshape(5, 4, 4))
    assert dataset.validation.labels.tolist() == [0, 1, 2]
    assert (dataset.num_classes, dataset.num_examples, dataset.image_shape) == (3, 5, (4, 4))


def test_a_users_function_gives_a_stream_as_it_is(users_data):
    dataset = data.load("users_data:streamed")
    assert isinstance(dataset, data.StreamedDataset)
    assert (dataset.num_examples, dataset.image_shape, len(dataset.sha256())) == (1000, (4, 4), 64)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("three", r"must return a Dataset, a StreamedDataset or \(\(x_train, y_train\), .* received a tuple"),
        ("bad_labels", "labels must be integers from 0"),
    ],
)
def test_a_function_that_returns_something_else_is_named(users_data, function, message):
    with pytest.raises(ValueError, match=message):
        data.load(f"users_data:{function}")


def test_data_dir_is_not_for_a_function():
    with pytest.raises(ValueError, match="data_dir is for named datasets, received it with users_data:arrays"):
        data.load("users_data:arrays", data_dir="somewhere")


@pytest.mark.parametrize("num_examples", [1, 2, 100, 60000])
def test_an_epoch_visits_every_example_once(num_examples):
    order = data.epoch_order(num_examples, seed=3, epoch=5)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(num_examples))


def test_order_depends_on_seed_and_epoch_and_on_nothing_else():
    orders = {(s, e): data.epoch_order(1000, s, e).tobytes() for s in range(4) for e in range(4)}
    assert len(set(orders.values())) == 16
    assert orders[2, 3] == data.epoch_order(1000, 2, 3).tobytes()


def test_order_is_the_one_of_every_version():
    # Written down once: a run resumed years later must see its batches in this order.
    assert data.epoch_order(10, seed=0, epoch=0).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert data.epoch_order(10, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 9, 8, 7, 3]


def test_order_is_uniform():
    # First place of 3,000 orders of ten: chi-squared with 9 degrees of freedom, 0.1 % point 27.9.
    counts = np.bincount([data.epoch_order(10, 7, epoch)[0] for epoch in range(3000)], minlength=10)
    assert ((counts - 300) ** 2 / 300).sum() < 27.9
