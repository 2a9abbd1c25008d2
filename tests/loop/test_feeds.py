"""The two feeds: resident arrays and streams visit the same batches, and neither does more than it must."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from helpers.small import (
    FEATURES,
    LABELS,
    RATES,
    assert_same_metrics,
    classifier,
    loop_again,
    loop_of,
    loop_that_shows_its_batches,
    with_dropout_and_batch_norm,
)

PLAIN = StepOptions(jit_compile=False)


@pytest.mark.parametrize(
    ("jit_compile", "momentums"),
    [(True, None), (False, np.linspace(0.95, 0.8, 30))],
    ids=["xla", "with_momentums"],
)
def test_resident_and_streamed_the_same_batches_give_the_same_weights_to_the_bit(jit_compile, momentums):
    resident, stream = (
        loop_of(with_dropout_and_batch_norm(), feed, batch_size=64, jit_compile=jit_compile)
        for feed in ("resident", "stream")
    )
    assert (stream.steps_per_epoch, stream.batch_size, stream.num_examples) == (4, 64, 200)
    expected = resident.run(RATES, momentums)  # Seven epochs with a short batch each.
    assert_same_metrics(stream.run(RATES, momentums), expected)
    assert stream.weights_sha256() == resident.weights_sha256()
    assert stream.num_traces == 2  # One for the short last batch.


def test_no_pipeline_is_tuned_while_it_is_read_because_its_end_would_wait_for_the_tuning(monkeypatch):
    tuned, read = [], tf.data.Dataset.__iter__

    def noting(dataset):
        tuned.append(dataset.options().autotune.enabled)
        return read(dataset)

    monkeypatch.setattr(tf.data.Dataset, "__iter__", noting)
    loop = loop_of(feed="stream")
    loop.run(RATES)
    examples = tf.data.Dataset.from_tensor_slices((FEATURES, LABELS))
    loop.evaluate(examples.map(lambda *x: x, tf.data.AUTOTUNE).batch(50))
    with pytest.raises(ValueError, match="NaN"):  # A bad batch is looked for by reading once more.
        loop.evaluate(examples.map(lambda x, y: (tf.where(y == LABELS[-1], np.nan, x), y)).batch(199))
    assert len(tuned) > 5
    assert set(tuned) == {False}


@pytest.fixture
def gathers(monkeypatch):
    """Counts how often examples are gathered from resident data: calls outside of any graph."""
    counted, gather = [], tf.gather

    def counting(params, *arguments, **keywords):
        if tf.executing_eagerly():
            counted.append(params.shape)
        return gather(params, *arguments, **keywords)

    monkeypatch.setattr(tf, "gather", counting)
    return counted


def test_calls_of_few_steps_do_not_gather_their_block_again(gathers):
    loop = loop_that_shows_its_batches(2500, 1)
    assert loop.block_steps == 1000  # An epoch is three windows: 1000, 1000 and 500 batches.
    loop.compile()
    gathers.clear()
    losses = np.concatenate([loop.run(np.zeros(50))["loss"] for _ in range(100)])  # Two epochs.
    arrays = 2  # Inputs and targets.
    assert len(gathers) <= 6 * arrays  # The first window may be the one that compiling left.
    np.testing.assert_array_equal(np.sort(losses[:2500]), np.arange(2500))
    np.testing.assert_array_equal(np.sort(losses[2500:]), np.arange(2500))
    np.testing.assert_array_equal(losses, loop_that_shows_its_batches(2500, 1).run(np.zeros(5000))["loss"])


def test_a_run_of_one_step_at_a_time_reads_each_batch_of_a_stream_once():
    drawn = []

    def numbered(index):
        drawn.append(int(index))
        return np.int64(index)

    def dataset_of(seed, epoch):
        def batch(index):
            index = tf.numpy_function(numbered, [index], tf.int64)
            return tf.fill([4, 6], tf.cast(index, tf.float32)), tf.zeros([4], tf.int32)

        return tf.data.Dataset.range(10).map(batch)

    loop = TrainLoop.from_dataset(classifier(), dataset_of, 40, options=PLAIN)
    loop.compile()
    drawn.clear()
    for _ in range(10):
        loop.run([0.01])
    assert drawn == list(range(10))


def test_changed_arrays_of_the_caller_do_not_change_what_is_trained_on():
    features, labels = FEATURES.copy(), LABELS.copy()
    loop = TrainLoop(classifier(), features, labels, batch_size=50, options=PLAIN)
    features[:], labels[:] = 0, 0
    assert loop.data_sha256() == loop_of().data_sha256()


def batches_of(*arrays, batch_size=50):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)


def test_a_plain_dataset_is_counted_and_gives_every_epoch_its_batches():
    stream = TrainLoop.from_dataset(classifier(), batches_of(FEATURES, LABELS), options=PLAIN)
    assert (stream.num_examples, stream.steps_per_epoch) == (200, 4)
    assert_same_metrics(stream.run(RATES), loop_again(shuffle=False).run(RATES))


def test_the_wait_for_a_slow_input_is_most_of_the_time_and_for_resident_data_there_is_none():
    def slow(features, labels):
        matrix = tf.random.stateless_uniform((200, 200), seed=(0, labels[0]))
        for _ in range(30):  # Far longer than the step takes.
            matrix = tf.linalg.l2_normalize(matrix @ matrix)
        return features, tf.where(tf.reduce_sum(matrix) > 1e9, 0, labels)

    fast = batches_of(FEATURES, LABELS, batch_size=10)
    waits = []
    for dataset in (fast.cache(), fast.map(slow)):
        loop = TrainLoop.from_dataset(classifier(), dataset, options=PLAIN)
        loop.run([0.01] * 20)
        waits.append(loop.input_wait_seconds)
    assert 0.0 < waits[0] < waits[1]
    resident = loop_again()
    resident.run(RATES)
    assert resident.input_wait_seconds == 0.0


def generated(num_batches, spoil=lambda index, features, labels: (features, labels), shape=(None, 6)):
    """Return a dataset of batches of 8, of which some can be spoiled."""

    def generate():
        for index in range(num_batches):
            yield spoil(index, np.full((8, 6), index / 100, np.float32), np.arange(8) % 5)

    signature = tf.TensorSpec(shape, tf.float32), tf.TensorSpec(None, tf.int64)
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def nan_at(bad):
    return lambda index, x, y: (np.where(index == bad, np.nan, x).astype(np.float32), y)


def loop_over(dataset, num_examples=80):
    return TrainLoop.from_dataset(classifier(keras.optimizers.SGD()), dataset, num_examples, options=PLAIN)


# Epochs of ten batches, in each of which something else is wrong, and what is said of it.
SPOILED = [
    (generated(7), "ended after 7 of 10 batches in epoch 1; repair it, or correct num_examples"),
    (generated(10, nan_at(6)), "Batch 6 of epoch 2: inputs holds NaN or infinity, first in example 0"),
    (
        generated(10, lambda i, x, y: (x, y + 5 * (i == 3))),
        "Batch 3 of epoch 3: targets holds numbers from 5 to 9, but the model's output has classes 0 to 4",
    ),
    (
        generated(10, lambda i, x, y: (x, y - (i == 3))),
        "Batch 3 of epoch 4: targets holds numbers from -1 to 3, but the model's output has classes 0 to 4",
    ),
    (
        generated(10, lambda i, x, y: (x[: 8 - 2 * (i == 5)], y[: 8 - 2 * (i == 5)])),
        "Batch 5 of epoch 5: inputs has 6 examples instead of 8. Only an epoch's last batch may be short",
    ),
    (
        generated(10, lambda i, x, y: (x, y[: 8 - 2 * (i == 5)])),
        "Batch 5 of epoch 6: targets has 6 examples instead of 8",
    ),
    (
        generated(10, lambda i, x, y: (np.repeat(x, 1 + (i == 9), axis=0), np.repeat(y, 1 + (i == 9)))),
        "Batch 9 of epoch 7: inputs has 16 examples instead of 8",
    ),
    (generated(10, lambda i, x, y: (x, y) if i < 2 else 1 / 0), r"Batch 2 of epoch 8: the dataset failed \(.*Zero"),
]


@pytest.fixture(scope="module")
def spoiled():
    """A loop over these epochs, of which those that follow are good; and its start."""
    good = generated(10)
    loop = loop_over(lambda seed, epoch: SPOILED[epoch][0] if epoch < len(SPOILED) else good)
    return loop, loop.snapshot()


@pytest.mark.parametrize(
    "epoch",
    range(len(SPOILED)),
    ids=["ends_early", "nan", "class", "negative_class", "short_in_mid_epoch", "lengths_differ", "long_at_the_end",
         "reading_fails"],
)  # fmt: skip
def test_a_bad_batch_is_named_in_one_line_and_the_loop_can_go_back(spoiled, epoch):
    loop, start = spoiled
    loop.restore(replace(start, step=10 * epoch))
    with pytest.raises(ValueError, match=SPOILED[epoch][1]) as caught:
        loop.run([0.1] * 10)
    assert "\n" not in str(caught.value)
    good = []
    for _ in range(2):
        loop.restore(replace(start, step=10 * len(SPOILED)))
        good.append(loop.run([0.1] * 3))
    assert_same_metrics(*good)


def test_a_batch_whose_shape_the_model_does_not_take_is_named():
    narrow = generated(10, lambda i, x, y: (x[:, : 6 - (i == 4)], y), shape=(None, None))
    with pytest.raises(
        ValueError, match=r"Batch 4 of epoch 1, of shape \(\[n, 5\], \[n\]\): the step failed"
    ) as caught:
        loop_over(narrow).run([0.1] * 10)
    assert "\n" not in str(caught.value)


def test_a_bad_batch_in_an_evaluated_dataset_is_named(spoiled):
    loop, _ = spoiled
    for spoil, message in (
        (nan_at(4), "Batch 4: inputs holds NaN"),
        (lambda i, x, y: (x, y + 5 * (i == 4)), "Batch 4: targets holds numbers from 5 to 9"),
    ):
        with pytest.raises(ValueError, match=message):
            loop.evaluate(generated(10, spoil))


@pytest.mark.parametrize(
    ("dataset", "num_examples", "error", "message"),
    [
        (generated(0), 80, ValueError, "gives no batch at all"),
        (generated(10, nan_at(0)), 80, ValueError, "The first batch: inputs holds NaN or infinity"),
        (generated(10), 4, ValueError, "num_examples is 4, but the dataset has at least one batch of 8"),
        (tf.data.Dataset.range(10).batch(5), 10, ValueError, r"fails on inputs of shape \[n\]"),
        (batches_of(FEATURES).map(lambda x: x), 200, ValueError, "inputs alone, and the model's loss or a"),
        (batches_of(FEATURES, LABELS, LABELS, LABELS), 200, ValueError, r"map it to \(inputs, targets\)"),
        (batches_of(FEATURES, LABELS), 80, ValueError, "num_examples is 80, but the dataset has 4 batches of 50"),
        (batches_of(FEATURES, LABELS).repeat(), None, ValueError, "has no end.*; give num_examples"),
        (generated(10**9), None, ValueError, "has no end after [0-9]+ s and [0-9,]+ batches; give num_examples"),
        (
            tf.data.Dataset.from_tensors((np.float32(1), 1)), 1, ValueError,
            r"gives single examples; batch it with dataset\.batch",
        ),
        (
            tf.data.Dataset.from_tensor_slices((tf.ragged.constant([[1.0], [2.0, 3.0]]), [0, 1])).batch(2), 2,
            ValueError, r"gives a RaggedTensor; map it to a tensor, as with tensor\.to_tensor\(\)",
        ),
        (lambda seed, epoch: [], 80, TypeError, r"is a list; give a tf\.data\.Dataset, or a function of \(seed, epoch"),
    ],
    ids=["empty", "nan_at_once", "less_than_a_batch", "no_pair", "no_targets", "four_parts", "other_length", "endless",
         "very_long", "not_batched", "ragged", "no_dataset"],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused_at_once(dataset, num_examples, error, message, monkeypatch):
    monkeypatch.setattr("clr_loop.loop.stream._MOST_SECONDS", 0.1)
    with pytest.raises(error, match=message) as caught:
        loop_over(dataset, num_examples)
    assert "\n" not in str(caught.value)


def test_a_dataset_without_an_end_trains_with_num_examples():
    arrays = FEATURES[:150], LABELS[:150]
    endless = TrainLoop.from_dataset(classifier(), batches_of(*arrays).repeat(), 150, options=PLAIN)
    assert_same_metrics(endless.run(RATES), loop_again(num_examples=150, shuffle=False).run(RATES))


def test_a_dataset_that_is_shuffled_the_same_way_each_time_is_taken():
    dataset = batches_of(FEATURES, LABELS).unbatch().shuffle(200, seed=1, reshuffle_each_iteration=False).batch(50)
    assert TrainLoop.from_dataset(classifier(), dataset, options=PLAIN).num_examples == 200
