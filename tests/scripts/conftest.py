import numpy as np
import pytest

from helpers.scripts import OneProcess


@pytest.fixture(scope="session")
def commands():
    """Processes that run one command after another; see `OneProcess.run`."""
    process = OneProcess()
    yield process
    process.close()


@pytest.fixture(scope="session")
def npz(tmp_path_factory, mnist):
    """300 + 100 images of MNIST as a user's own file, so that a run takes no time."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    (x_train, y_train, _), (x_test, y_test, _) = mnist.train, mnist.validation
    np.savez(path, x_train=x_train[:300], y_train=y_train[:300], x_test=x_test[:100], y_test=y_test[:100])
    return path


@pytest.fixture(scope="session")
def separable(tmp_path_factory):
    """900 + 300 images whose class is easy to see, so that a range test finds bounds in little time."""
    rng = np.random.default_rng(0)
    centers = 0.5 * rng.standard_normal((3, 4, 4))

    def examples(number):
        labels = np.arange(number) % 3
        return (centers[labels] + 0.5 * rng.standard_normal((number, 4, 4))).astype(np.float32), labels

    path = tmp_path_factory.mktemp("separable") / "separable.npz"
    (x_train, y_train), (x_test, y_test) = examples(900), examples(300)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def cifar_like(tmp_path_factory):
    """100 + 40 images of noise, of the shape of CIFAR-10."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("images") / "images.npz"
    arrays = {}
    for split, number in (("train", 100), ("test", 40)):
        arrays[f"y_{split}"] = np.arange(number) % 10
        arrays[f"x_{split}"] = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    np.savez(path, **arrays)
    return path
