"""A feed of the user's own, as the documentation shows it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from clr_loop import Feed
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.runs.fit import fit
from clr_loop.schedules import Triangular
from helpers.documented import documented
from helpers.small import assert_same_metrics

NOISE = documented("Noise")


def model():
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="tanh"), layers.Dense(1)])
    made.compile(keras.optimizers.Adam(), "mse")
    return made


def loop_of(feed, **options):
    return TrainLoop(model(), feed, options=StepOptions(jit_compile=False, **options))


def test_it_is_a_feed_and_trains_as_the_same_batches_from_a_dataset():
    feed = NOISE(20, 60)
    assert isinstance(feed, Feed)

    def dataset_of(seed, epoch):
        windows = feed.windows(seed, epoch * 60)
        inputs, targets = (np.concatenate(parts) for parts in zip(next(windows), next(windows), strict=True))
        return tf.data.Dataset.from_tensor_slices((inputs, targets))

    own, stream = (
        loop_of(feed),
        TrainLoop.from_dataset(model(), dataset_of, 1200, options=StepOptions(jit_compile=False)),
    )
    assert (own.batch_size, own.steps_per_epoch, own.block_steps) == (20, 60, 50)
    rates = np.linspace(0.001, 0.01, 130)
    assert_same_metrics(own.run(rates), stream.run(rates))
    assert own.weights_sha256() == stream.weights_sha256()
    assert own.num_traces == 1


def test_a_run_that_is_broken_off_inside_of_a_window_ends_to_the_bit(tmp_path):
    loop, schedule = loop_of(NOISE(20, 60)), Triangular(0.001, 0.01, 20)
    start = loop.snapshot()

    def run(directory, epochs, **options):
        loop.restore(start)
        return fit(loop, schedule, epochs=epochs, run_dir=tmp_path / directory, **options).weights_sha256

    whole = run("whole", 2)
    loop.restore(start)
    loop.run(schedule(np.arange(33)))
    middle = loop.snapshot()
    loop.run(schedule(np.arange(40)))
    loop.restore(middle)
    loop.run(schedule(np.arange(33, 120)))
    assert loop.weights_sha256() == whole
    run("parts", 1)
    assert run("parts", 2, resume=True) == whole


def test_targets_beside_a_feed_are_refused():
    with pytest.raises(ValueError, match="A feed gives targets and weights itself"):
        TrainLoop(model(), NOISE(20, 60), np.zeros((1200, 1)))


class OfAnotherWidth(NOISE):
    def _window(self, seed, position, n):
        inputs, targets = super()._window(seed, position, n)
        return inputs[..., :5], targets


def test_a_model_that_does_not_take_its_batches_is_told_so_at_once():
    with pytest.raises(ValueError, match=r"fails on inputs of shape \[n, 5\]"):
        loop_of(OfAnotherWidth(20, 60))
