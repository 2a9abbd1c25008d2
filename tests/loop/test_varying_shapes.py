"""Batches that vary in shape, and in size: one program for all of them, outside of XLA; and epochs that are counted."""

import functools
import itertools
import logging
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from helpers.keras_fit import GivenRates
from helpers.small import FEATURES, LABELS, assert_same_metrics, assert_same_weights, classifier

LENGTHS = np.random.default_rng(0).integers(3, 40, 600)
SENTENCES = [np.random.default_rng([1, i]).integers(1, 20, n) for i, n in enumerate(LENGTHS)]
TARGETS = np.array([sentence.mean() > 10 for sentence in SENTENCES], np.float32)[:, None]


def sentences():
    signature = tf.TensorSpec([None], tf.int32), tf.TensorSpec([1], tf.float32)
    return tf.data.Dataset.from_generator(lambda: zip(SENTENCES, TARGETS, strict=True), output_signature=signature)


def padded():
    return sentences().padded_batch(10)


def buckets():
    """Give short sentences in large batches and long ones in small ones."""
    return sentences().bucket_by_sequence_length(
        lambda words, target: tf.shape(words)[0], bucket_boundaries=[10, 20, 30], bucket_batch_sizes=[16, 8, 6, 4]
    )


def text_model():
    keras.utils.set_random_seed(0)
    stack = layers.Embedding(20, 4, mask_zero=True), layers.GlobalAveragePooling1D(), layers.Dense(1)
    model = keras.Sequential([keras.Input((None,), dtype="int32"), *stack])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    return model


@functools.cache
def made(dataset):
    """Return a loop over a dataset, and its start."""
    loop = TrainLoop.from_dataset(text_model(), dataset())
    return loop, loop.snapshot()


@pytest.mark.parametrize("dataset", [padded, buckets])
def test_one_program_serves_all_shapes_and_ends_as_fit_does(dataset):
    shapes = {tuple(words.shape) for words, _ in dataset()}
    assert len(shapes) >= 10
    loop, start = made(dataset)
    loop.restore(start)
    assert loop.jit_compile is False
    assert "batches vary in shape" in loop.chosen["xla"]
    assert "declared in the dataset's element_spec" in loop.chosen["xla"]
    num_batches = sum(1 for _ in dataset())
    assert (loop.num_examples, loop.steps_per_epoch) == (600, num_batches)
    rates = np.linspace(0.001, 0.02, 2 * num_batches)
    metrics = loop.run(rates)
    assert loop.num_traces == 1
    sizes = [len(words) for words, _ in dataset()]
    np.testing.assert_array_equal(loop.batch_sizes, sizes * 2)

    twin = text_model()
    twin.jit_compile = False
    repeated = dataset().repeat()  # Keras calls a callback once more at the end of a dataset.
    history = twin.fit(
        repeated, steps_per_epoch=num_batches, epochs=2, verbose=0, callbacks=[GivenRates(rates)]
    ).history
    assert_same_weights(loop.model, twin, rtol=1e-4, atol=1e-6)
    means = (metrics["loss"] * loop.batch_sizes).reshape(2, -1).sum(axis=1) / 600
    np.testing.assert_allclose(means, history["loss"], rtol=1e-5)


def test_a_run_over_buckets_is_resumed_inside_of_an_epoch_to_the_bit():
    rates = np.full(100, 0.01)
    loop, start = made(buckets)
    loop.restore(start)
    loop.run(rates)
    whole = loop.weights_sha256()
    loop.restore(start)
    loop.run(rates[:37])
    middle = loop.snapshot()
    loop.run(rates)
    loop.restore(middle)
    loop.run(rates[37:])
    assert loop.weights_sha256() == whole


def test_num_examples_alone_does_not_say_how_many_batches_of_several_sizes_there_are():
    loop = TrainLoop.from_dataset(text_model(), buckets(), 600)
    with pytest.raises(ValueError, match="leave num_examples out to have them counted"):
        list(itertools.islice(loop.feed.windows(0, 0), 60))


def test_shapes_that_are_declared_are_compiled_with_xla():
    fixed = sentences().padded_batch(10, padded_shapes=([40], [1]), drop_remainder=True)
    model = keras.Sequential(
        [keras.Input((40,), dtype="int32"), layers.Embedding(20, 4), layers.Flatten(), layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    loop = TrainLoop.from_dataset(model, fixed)
    loop.run(np.full(60, 0.01))
    assert (loop.jit_compile, loop.num_traces) == (True, 1)


@pytest.mark.parametrize("batch_size", [20, 64], ids=["even", "with_a_short_last_batch"])
def test_an_epoch_is_read_once(batch_size):
    read = []

    def example(i):
        read.append(int(i))
        return FEATURES[i], LABELS[i]

    def load(i):
        x, y = tf.numpy_function(example, [i], [tf.float32, tf.int32])
        return tf.ensure_shape(x, [6]), tf.ensure_shape(y, [])

    dataset = tf.data.Dataset.range(200).map(load).batch(batch_size)
    loop = TrainLoop.from_dataset(classifier(), dataset, 200, options=StepOptions(jit_compile=False))
    read.clear()
    loop.run(np.full(loop.steps_per_epoch, 0.01))
    assert sorted(read) == list(range(200))


def test_few_windows_are_read_ahead():
    read = []

    def load(i):
        read.append(int(i))
        return np.zeros((500, 1000), np.float32)

    def batch(i):
        x = tf.ensure_shape(tf.numpy_function(load, [i], tf.float32), [500, 1000])  # 2 MB each.
        return x, tf.zeros([500, 1])

    model = keras.Sequential([keras.Input((1000,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    dataset = tf.data.Dataset.range(200).map(batch)
    loop = TrainLoop.from_dataset(model, dataset, 100_000, options=StepOptions(jit_compile=False))
    assert loop.block_steps == 8  # Of 16 MiB.
    read.clear()
    loop.run([0.0])
    time.sleep(0.5)
    assert len(set(read)) <= 4 * loop.block_steps


def test_counting_a_long_dataset_is_announced_with_what_saves_it(monkeypatch, caplog):
    monkeypatch.setattr("clr_loop.loop.stream._ANNOUNCED_SECONDS", 0.05)
    slow = tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).batch(20)
    slow = slow.map(lambda x, y: (tf.numpy_function(lambda x: time.sleep(0.02) or x, [x], tf.float32), y))
    slow = slow.map(lambda x, y: (tf.ensure_shape(x, [None, 6]), y))
    with caplog.at_level(logging.WARNING, logger="absl"):
        loop = TrainLoop.from_dataset(classifier(), slow, options=StepOptions(jit_compile=False))
    assert loop.num_examples == 200
    assert "read once to count its examples; give num_examples" in caplog.text


def test_inputs_alone_are_taken_where_the_model_needs_no_targets():
    class Bottleneck(keras.Model):
        def __init__(self):
            super().__init__()
            self.code, self.last = layers.Dense(2), layers.Dense(6)

        def call(self, x):
            y = self.last(self.code(x))
            self.add_loss(keras.ops.mean(keras.ops.square(x - y)))
            return y

    def ends(dataset):
        keras.utils.set_random_seed(0)
        model = Bottleneck()
        model.compile("sgd")
        return TrainLoop.from_dataset(model, dataset, options=StepOptions(jit_compile=False)).run(np.full(8, 0.1))

    bare = tf.data.Dataset.from_tensor_slices(FEATURES).batch(50)
    assert_same_metrics(ends(bare), ends(bare.map(lambda x: (x,))))
