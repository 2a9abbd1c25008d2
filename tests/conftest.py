import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# TensorFlow's C++ logs before it can be asked not to, and pytest would print that after its own summary.
kept = os.dup(2)
with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
try:
    import keras
    import tensorflow as tf

    tf.config.list_logical_devices()
finally:
    os.dup2(kept, 2)
    os.close(kept)

import numpy as np
import pytest

from clr_loop import data
from clr_loop.data import models
from clr_loop.loop.loop import TrainLoop


@pytest.fixture(scope="session")
def mnist():
    return data.load("mnist")


@pytest.fixture
def make_loop(mnist):
    """Makes a loop over the first `num_examples` of MNIST."""

    def make(num_examples=200, model="relu_mlp", optimizer=None, seed=0, **arguments):
        return TrainLoop(
            models.build(model, (28, 28), 10, seed) if isinstance(model, str) else model,
            optimizer or keras.optimizers.Adam(),
            mnist.train.images[:num_examples],
            mnist.train.labels[:num_examples],
            seed=seed,
            **arguments,
        )

    return make


@pytest.fixture
def rates():
    """A vector of 30 rates, no two of them equal."""
    return np.linspace(0.001, 0.01, 30)
