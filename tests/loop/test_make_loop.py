"""A loop for a dataset: which feed it takes and why, and that every feed visits the same batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.data import Dataset, Examples, StreamedDataset
from clr_loop.loop import make_loop as rooms
from clr_loop.loop.make_loop import choose_feed, make_loop
from clr_loop.loop.options import StepOptions
from clr_loop.loop.stream import dataset_of_arrays
from helpers.small import FEATURES, LABELS, assert_same_metrics, classifier

SMALL = Dataset("small", Examples(FEATURES[:90], LABELS[:90]), Examples(FEATURES[90:], LABELS[90:]), 5)
WEIGHTED = Dataset("weighted", Examples(FEATURES[:90], LABELS[:90], np.linspace(0, 2, 90, dtype=np.float32)), None, 5)
ONE_REPLICA = tf.distribute.get_strategy()


def streamed(dataset, factor=1):
    arrays = rooms.arrays_of(dataset)

    def batches(batch_size, seed, epoch):
        return dataset_of_arrays(arrays, factor * batch_size, True)(seed, epoch)

    return StreamedDataset("streamed", batches, 90, dataset.validation, 5, dataset.input_shape)


def test_auto_streams_what_takes_more_than_a_third_of_the_memory(monkeypatch):
    third = 3 * 90 * (6 * 4 + 4)
    monkeypatch.setattr(rooms, "device_memory_bytes", lambda: third)
    assert choose_feed(SMALL, "auto", ONE_REPLICA) == ("resident", "arrays of 0 MB are at most a third of 0.0 GB")
    monkeypatch.setattr(rooms, "device_memory_bytes", lambda: third - 1)
    assert choose_feed(SMALL, "auto", ONE_REPLICA) == ("stream", "arrays of 0 MB are more than a third of 0.0 GB")
    assert choose_feed(SMALL, "resident", ONE_REPLICA) == ("resident", "as asked")
    assert choose_feed(SMALL, "stream", ONE_REPLICA) == ("stream", "as asked")


def test_the_memory_is_what_the_kernel_says_or_what_the_container_may_take():
    with open("/proc/meminfo") as file:
        of_the_machine = int(file.readline().split()[1]) * 1024
    assert 0 < rooms.device_memory_bytes() <= of_the_machine or tf.config.list_physical_devices("GPU")


@pytest.mark.parametrize(("limit", "counts"), [("1000\n", True), ("max\n", False)])
def test_a_containers_limit_counts_where_it_has_one(limit, counts, tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "_CONTAINER_LIMITS", (tmp_path / "memory.max", tmp_path / "is_not_there"))
    if tf.config.list_physical_devices("GPU"):
        monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    (tmp_path / "memory.max").write_text(limit)
    assert (rooms.device_memory_bytes() == 1000) is counts


def test_a_streamed_dataset_cannot_be_resident_and_there_is_no_other_feed():
    assert choose_feed(streamed(SMALL), "auto", ONE_REPLICA) == ("stream", "read while it is trained on")
    with pytest.raises(ValueError, match="feed is resident, but streamed is read while it is trained on; leave it out"):
        choose_feed(streamed(SMALL), "resident", ONE_REPLICA)
    with pytest.raises(ValueError, match="There is no feed 'x'; choose auto, resident or stream"):
        choose_feed(SMALL, "x", ONE_REPLICA)


def test_every_feed_visits_the_same_batches():
    metrics = []
    for each, feed, said in (
        (WEIGHTED, "resident", "resident (as asked)"),
        (WEIGHTED, "stream", "stream (as asked)"),
        (streamed(WEIGHTED), "auto", "stream (read while it is trained on)"),
    ):
        loop = make_loop(classifier(), each, 20, seed=4, feed=feed, options=StepOptions(jit_compile=False))
        assert loop.chosen["feed"] == said
        assert loop.input_wait_seconds == 0.0
        metrics.append(loop.run([0.01] * 12))
        assert (loop.input_wait_seconds > 0.0) is said.startswith("stream")
    for each in metrics[1:]:
        assert_same_metrics(each, metrics[0])


def test_class_weights_and_options_reach_the_loop():
    losses = []
    for dataset, feed in ((SMALL, "resident"), (streamed(SMALL), "auto")):
        arguments = {"class_weight": {0: 5.0, 3: 0.0}, "options": StepOptions(clip_norm=0.1, jit_compile=False)}
        loop = make_loop(classifier(keras.optimizers.SGD()), dataset, 20, feed=feed, **arguments)
        losses.append(loop.run([0.5] * 12)["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-6)
    plain = make_loop(classifier(keras.optimizers.SGD()), SMALL, 20, options=StepOptions(jit_compile=False))
    assert not np.allclose(plain.run([0.5] * 12)["loss"], losses[0])


@pytest.mark.parametrize("feed", ["auto", "resident", "stream"])
@pytest.mark.parametrize(("batch_size", "error"), [(0, ValueError), (91, ValueError), (5.0, TypeError)])
def test_a_batch_size_that_does_not_fit_is_refused_by_every_feed(feed, batch_size, error):
    for dataset in (SMALL, streamed(SMALL)):
        if feed != "resident" or dataset is SMALL:
            with pytest.raises(error, match="batch_size is"):
                make_loop(classifier(), dataset, batch_size, feed=feed)


def test_a_stream_that_gives_other_batches_than_it_was_asked_for_is_refused():
    with pytest.raises(ValueError, match="streamed was asked for batches of 20 and gives batches of 40"):
        make_loop(classifier(), streamed(SMALL, factor=2), 20)
