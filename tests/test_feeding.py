import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.data import Dataset, Split, StreamedDataset, models
from clr_loop.loop import feeding
from clr_loop.loop.streaming import StreamingLoop, from_arrays


@pytest.fixture
def small(mnist):
    train, validation = (Split(*(array[:90] for array in split)) for split in (mnist.train, mnist.validation))
    return Dataset("small", train, validation, 10)


@pytest.fixture
def streamed(small):
    def batches(batch_size, seed, epoch):
        return from_arrays(*small.train, batch_size)(seed, epoch)

    return StreamedDataset("streamed", batches, 90, small.validation, 10)


def test_auto_streams_what_takes_more_than_a_third_of_the_memory(small):
    third = 3 * 90 * 28 * 28
    assert feeding.choose(small, "auto", memory_bytes=third) == (
        "resident",
        "images of 0 MB are at most a third of 0.0 GB",
    )
    assert feeding.choose(small, "auto", memory_bytes=third - 1) == (
        "stream",
        "images of 0 MB are more than a third of 0.0 GB",
    )
    assert feeding.choose(small, "stream", memory_bytes=third) == ("stream", "as asked")
    assert feeding.choose(small, "auto")[0] == "resident"


def test_the_machines_memory_is_what_its_kernel_says():
    with open("/proc/meminfo") as file:
        of_the_machine = int(file.readline().split()[1]) * 1024
    assert feeding.device_memory_bytes() == of_the_machine or tf.config.list_physical_devices("GPU")


def test_a_streamed_dataset_cannot_be_resident(streamed):
    assert feeding.choose(streamed, "auto") == ("stream", "read as it is trained on")
    with pytest.raises(ValueError, match="feed must be auto or stream for streamed, which is read as it is trained on"):
        feeding.choose(streamed, "resident")


def test_every_feed_visits_the_same_batches(small, streamed):
    losses = []
    for dataset, feed in ((small, "resident"), (small, "stream"), (streamed, "auto")):
        model, optimizer = models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.Adam()
        train_loop = feeding.make_loop(model, optimizer, dataset, 20, seed=4, feed=feed, jit_compile=False)
        assert isinstance(train_loop, StreamingLoop) is (feed != "resident")
        losses.append(train_loop.run([0.01] * 12)["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    np.testing.assert_array_equal(losses[2], losses[1])
