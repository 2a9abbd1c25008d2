import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_loop import dropout_and_batch_norm

from clr_loop.data import Split, models
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.streaming import from_arrays
from clr_loop.runs.fit import TrainingInterruptedError, fit
from clr_loop.schedules import Triangular
from clr_loop.studies import range_test
from clr_loop.studies.identity import differences

SCHEDULE = Triangular(0.001, 0.01, 5)


@pytest.fixture
def stream_loop(mnist):
    """Makes a loop over a stream of the first `num_examples` of MNIST, in a resident loop's order."""

    def make(num_examples=200, batch_size=64, model=None, optimizer=None, **arguments):
        images, labels = (array[:num_examples] for array in mnist.train)
        return TrainLoop.from_dataset(
            model or models.build("relu_mlp", (28, 28), 10, 0),
            optimizer or keras.optimizers.Adam(),
            from_arrays(images, labels, batch_size),
            num_examples,
            **arguments,
        )

    return make


def assert_same_weights(train_loop, other, rtol=1e-5):
    for ours, theirs in zip(train_loop.model.weights, other.model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=rtol, atol=1e-7, err_msg=ours.path)


@pytest.mark.parametrize("jit_compile", [True, False], ids=["xla", "plain"])
@pytest.mark.parametrize("make_model", [lambda: None, dropout_and_batch_norm], ids=["mlp", "dropout_and_batch_norm"])
def test_a_stream_of_the_same_batches_ends_with_the_resident_loops_weights(
    make_loop, stream_loop, rates, jit_compile, make_model
):
    resident = make_loop(model=make_model() or "relu_mlp", batch_size=64, jit_compile=jit_compile)
    stream = stream_loop(model=make_model(), jit_compile=jit_compile)
    assert (stream.steps_per_epoch, stream.batch_size, stream.num_examples) == (4, 64, 200)
    expected, metrics = resident.run(rates), stream.run(rates)  # 30 steps: seven epochs with a short batch each.
    assert_same_weights(stream, resident)
    for name, values in expected.items():
        np.testing.assert_allclose(metrics[name], values, rtol=1e-5)
    assert stream.num_traces == 1


def test_momentums_are_those_of_the_resident_loop(make_loop, stream_loop, rates):
    resident, stream = make_loop(batch_size=64), stream_loop()
    momentums = np.linspace(0.95, 0.8, 30)
    for train_loop in (resident, stream):
        train_loop.compile(with_momentums=True)
    assert_allclose = np.testing.assert_allclose
    assert_allclose(stream.run(rates, momentums)["loss"], resident.run(rates, momentums)["loss"], rtol=1e-5)
    assert_same_weights(stream, resident)
    assert stream.num_traces == 1


def test_compiling_changes_nothing_and_leaves_nothing_to_trace(stream_loop):
    train_loop = stream_loop(model=dropout_and_batch_norm())
    digest = train_loop.weights_sha256()
    train_loop.compile()
    assert (train_loop.weights_sha256(), train_loop.step, train_loop.num_traces) == (digest, 0, 1)
    assert train_loop.input_wait_seconds == 0.0
    train_loop.run([0.01] * 5)
    assert train_loop.num_traces == 1


@pytest.mark.parametrize("cuts", [[1, 2, 3], [4, 8], [5, 13, 14], [0, 9, 9, 21]])
def test_cut_anywhere_the_weights_are_the_same_to_the_bit(stream_loop, cuts):
    rates = np.linspace(0.001, 0.02, 23)
    whole, cut = (stream_loop(model=dropout_and_batch_norm(), jit_compile=False) for _ in range(2))
    losses = whole.run(rates)["loss"]
    parts = [cut.run(part)["loss"] for part in np.split(rates, cuts)]
    assert cut.weights_sha256() == whole.weights_sha256()
    np.testing.assert_array_equal(np.concatenate(parts), losses)


def test_a_restored_snapshot_goes_on_in_mid_epoch(stream_loop):
    train_loop = stream_loop()
    train_loop.run([0.01] * 6)  # Two batches into the second epoch.
    middle = train_loop.snapshot()
    losses = train_loop.run([0.01] * 7)["loss"]
    train_loop.restore(middle)
    np.testing.assert_array_equal(train_loop.run([0.01] * 7)["loss"], losses)


def test_a_run_stopped_in_mid_epoch_is_resumed_to_the_same_bit(stream_loop, mnist, tmp_path):
    validation = Split(*(array[:50] for array in mnist.validation))
    arguments = {"epochs": 3, "checkpoint_every": 3}

    def make():
        keras.utils.clear_session()  # Layers without a name are numbered in a process, as in a new one.
        train_loop = stream_loop(330, 30, model=dropout_and_batch_norm(), jit_compile=False)
        train_loop.block_steps = 2
        return train_loop

    fit(make(), SCHEDULE, validation, run_dir=tmp_path / "whole", **arguments)
    blocks = iter(range(1000))
    with pytest.raises(TrainingInterruptedError):  # After 5 steps of 11, 3 of them in a checkpoint of its own.
        fit(make(), SCHEDULE, validation, run_dir=tmp_path / "cut", should_stop=lambda: next(blocks) == 4, **arguments)
    resumed = fit(make(), SCHEDULE, validation, run_dir=tmp_path / "cut", resume=True, **arguments)
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    assert [0.0 < record.input_wait_share < 1.0 for record in resumed.epochs] == [True] * 3


def test_the_range_test_runs_on_a_stream_and_leaves_no_trace(make_loop, stream_loop):
    resident, stream = (make(batch_size=64, jit_compile=False) for make in (make_loop, stream_loop))
    digest = stream.weights_sha256()
    arguments = {"start_lr": 1e-4, "end_lr": 0.1, "num_steps": 20}
    expected, found = (range_test.run(train_loop, **arguments) for train_loop in (resident, stream))
    np.testing.assert_allclose(found.curve.loss, expected.curve.loss, rtol=1e-5)
    assert (stream.weights_sha256(), stream.step) == (digest, 0)


def batches_of(images, labels, batch_size, *more):
    return tf.data.Dataset.from_tensor_slices((images, labels, *more)).batch(batch_size)


def test_a_plain_dataset_is_counted_and_gives_every_epoch_its_batches(make_loop, mnist, rates):
    dataset = batches_of(*(array[:200] for array in mnist.train), 64)
    stream = TrainLoop.from_dataset(
        models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.Adam(), dataset, jit_compile=False
    )
    resident = make_loop(batch_size=64, shuffle=False, jit_compile=False)
    assert stream.num_examples == 200
    np.testing.assert_allclose(stream.run(rates)["loss"], resident.run(rates)["loss"], rtol=1e-5)


def test_sample_weights_are_those_of_keras_fit(mnist, rates):
    images, labels = mnist.train.images[:200].astype(np.float32) / 255, mnist.train.labels[:200]
    weights = np.random.default_rng(0).random(200).astype(np.float32) * 2
    train_loop = TrainLoop.from_dataset(
        models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.SGD(momentum=0.9),
        batches_of(images, labels, 64, weights), jit_compile=False,
    )  # fmt: skip
    train_loop.run(np.full(8, 0.05))
    model = models.build("relu_mlp", (28, 28), 10, 0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    model.fit(images, labels, 64, epochs=2, shuffle=False, verbose=0, sample_weight=weights)
    for ours, theirs in zip(train_loop.model.weights, model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-6, err_msg=ours.path)


def test_a_mean_loss_cannot_be_weighted_and_says_so(mnist):
    dataset = batches_of(*(array[:20] for array in mnist.train), 10, np.ones(20, np.float32))
    train_loop = TrainLoop.from_dataset(
        models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.SGD(), dataset,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )  # fmt: skip
    with pytest.raises(ValueError, match="loss must return one value for each example where there are sample weights"):
        train_loop.run([0.1])


def test_the_wait_for_a_slow_input_is_most_of_the_time_and_for_a_fast_one_is_not(mnist):
    def slow(images, labels):
        matrix = tf.random.stateless_uniform((500, 500), seed=(0, tf.cast(labels[0], tf.int32)))
        for _ in range(60):  # Far longer than the step takes.
            matrix = tf.linalg.l2_normalize(matrix @ matrix)
        return images, tf.where(tf.reduce_sum(matrix) > 1e9, 0, labels)

    fast = batches_of(*(array[:200] for array in mnist.train), 10).cache()
    shares = []
    for dataset in (fast, fast.map(slow)):
        train_loop = TrainLoop.from_dataset(models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.SGD(), dataset)
        result = fit(train_loop, SCHEDULE, mnist.validation, epochs=2)
        shares.append(result.epochs[1].input_wait_share)
    assert 0.0 < shares[0] < shares[1] < 1.0
    assert shares[1] > 0.5


def generated(num_batches, spoil=lambda index, images, labels: (images, labels), **spec):
    """A dataset of batches of 8, of which some can be spoilt."""

    def generate():
        for index in range(num_batches):
            images, labels = np.full((8, 4, 4), index / 100, np.float32), np.arange(8) % 5
            yield spoil(index, images, labels)

    signature = (tf.TensorSpec(spec.get("shape", (None, 4, 4)), tf.float32), tf.TensorSpec(None, tf.int64))
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


def nan_at(bad):
    return lambda index, images, labels: (np.where(index == bad, np.nan, images).astype(np.float32), labels)


def loop_over(dataset, num_examples=80):
    return TrainLoop.from_dataset(models.build("relu_mlp", (4, 4), 5, 0), keras.optimizers.SGD(), dataset, num_examples)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (generated(7), r"must have 10 batches in an epoch, received 7 in epoch 1; give num_examples as they are"),
        (generated(10, nan_at(6)), "batch 6 of epoch 1: images must be finite, received NaN or inf among them"),
        (
            generated(10, lambda i, x, y: (x, y + 5 * (i == 3))),
            "batch 3 of epoch 1: labels must be from 0 to 4, the model's classes, received 5 to 9",
        ),
        (
            generated(10, lambda i, x, y: (x[:, : 4 - (i == 4)], y), shape=(None, None, 4)),
            r"batch 4 of epoch 1: a batch must have 8 images of shape \(4, 4\), received \(8, 3, 4\)",
        ),
        (
            generated(10, lambda i, x, y: (x[: 8 - 2 * (i == 5)], y[: 8 - 2 * (i == 5)])),
            r"batch 5 of epoch 1: a batch must have 8 images .* received \(6, 4, 4\) and labels \(6,\); only",
        ),
        (generated(10, lambda i, x, y: (x, y) if i < 2 else 1 / 0), "dataset failed at batch 2 of epoch 1"),
    ],
    ids=["ends_early", "nan", "labels", "image_shape", "short_in_mid_epoch", "reading_fails"],
)
def test_a_bad_batch_in_mid_epoch_is_named_in_one_line(dataset, message):
    with pytest.raises(ValueError, match=message) as caught:
        loop_over(dataset).run([0.1] * 10)
    assert "\n" not in str(caught.value)


def test_a_bad_batch_of_a_later_epoch_is_named_and_the_loop_can_go_back(mnist):
    spoilt = loop_over(lambda seed, epoch: generated(10, nan_at(2 if epoch == 1 else None)))
    spoilt.run([0.1] * 9)
    before = spoilt.snapshot()
    with pytest.raises(ValueError, match="batch 2 of epoch 2: images must be finite"):
        spoilt.run([0.1] * 9)
    spoilt.restore(before)
    good = loop_over(generated(10))
    good.run([0.1] * 9)
    np.testing.assert_array_equal(spoilt.run([0.1] * 3)["loss"], good.run([0.1] * 3)["loss"])


@pytest.mark.parametrize(
    ("dataset", "num_examples", "error", "message"),
    [
        (generated(0), 80, ValueError, "dataset must yield at least one batch, received none"),
        (generated(10, nan_at(0)), 80, ValueError, "images must be finite"),
        (generated(10), 4, ValueError, "num_examples must fit the dataset, received 4 with at least one batch of 8"),
        (tf.data.Dataset.range(10).batch(5), 10, ValueError, r"must yield \(images, labels\) or \(images, labels, sam"),
        (
            batches_of(np.zeros((30, 4, 4), np.float32), np.zeros(30, int), 8), 80, ValueError,
            "num_examples must fit the dataset, received 80 with 4 batches of 8",
        ),
        (
            tf.data.Dataset.from_tensors((np.float32(1), 1)), 1, ValueError,
            "dataset must yield batches, received .*; batch it with dataset.batch",
        ),
        (
            batches_of(np.zeros((30, 4, 4), np.int64), np.zeros(30, int), 8), 30, TypeError,
            "images must be uint8 or float32, received int64",
        ),
        (lambda seed, epoch: [], 80, TypeError, r"a function of \(seed, epoch\) that returns one, received list"),
    ],
)  # fmt: skip
def test_what_cannot_be_streamed_is_refused_at_once(dataset, num_examples, error, message):
    with pytest.raises(error, match=message):
        loop_over(dataset, num_examples)


def test_data_larger_than_memory_trains_in_a_fraction_of_it(tmp_path):
    # Half a gigabyte, made on the fly; the process, TensorFlow included, must not grow by a tenth of it.
    code = """
import json, resource, sys
import keras, numpy as np, tensorflow as tf
from clr_loop.data import models
from clr_loop.loop.loop import TrainLoop
def batch(i):
    images = tf.random.stateless_uniform((1000, 28, 28), seed=(0, i), maxval=256, dtype=tf.int32)
    return tf.cast(images, tf.uint8), tf.cast(images[:, 0, 0] % 10, tf.int32)
dataset = tf.data.Dataset.range(600).map(batch)
model = models.build("relu_mlp", (28, 28), 10, 0)
train_loop = TrainLoop.from_dataset(model, keras.optimizers.Adam(), dataset, 600_000)
train_loop.compile()
peaks = []
for n in (30, 570):
    train_loop.run(np.full(n, 0.001))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
json.dump([train_loop.step, *peaks], sys.stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    step, early, late = json.loads(done.stdout)
    assert step == 600
    assert late - early < 50e6
