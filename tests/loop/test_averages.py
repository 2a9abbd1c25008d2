"""Averages of the weights: against Keras, against means worked out in NumPy, and without a trace in the training."""

import keras
import numpy as np
import pytest

from clr_loop.loop.options import StepOptions
from helpers.small import (
    FEATURES,
    RATES,
    assert_same_weights,
    classifier,
    loop_again,
    loop_of,
    with_dropout_and_batch_norm,
)


@pytest.mark.parametrize(("feed", "jit_compile"), [("resident", True), ("stream", False)], ids=["xla", "plain"])
def test_the_exponential_average_is_that_of_keras(feed, jit_compile):
    loop = loop_of(classifier(), feed, average=0.97, jit_compile=jit_compile)
    loop.run(RATES)
    kerass = loop_of(classifier(keras.optimizers.Adam(use_ema=True, ema_momentum=0.97)), feed, jit_compile=jit_compile)
    kerass.run(RATES)
    kerass.finalize()
    with loop.averaged():
        assert_same_weights(loop.model, kerass.model, rtol=1e-5, atol=1e-6)


def test_a_mean_over_chosen_moments_is_their_mean():
    loop = loop_of(average="swa")
    moments = []
    for n in (3, 20, 7):
        loop.run(RATES[:n])
        loop.add_to_average()
        moments.append(loop.model.get_weights())
    with loop.averaged():
        assert_same_weights(loop.model, [np.mean(each, axis=0) for each in zip(*moments, strict=True)], rtol=1e-5)


def test_batch_norms_statistics_are_those_of_one_pass():
    loop = loop_of(with_dropout_and_batch_norm(), "stream", batch_size=64, average="swa", shuffle=False)
    loop.run(RATES)
    loop.add_to_average()
    with loop.averaged():
        dense, norm = loop.model.layers[:2]
        kernel, bias = dense.get_weights()
        batches = [FEATURES[start : start + 64] @ kernel + bias for start in range(0, 200, 64)]
        mean = np.mean([batch.mean(axis=0) for batch in batches], axis=0)
        variance = np.mean([batch.var(axis=0) for batch in batches], axis=0)
        np.testing.assert_allclose(norm.moving_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance.numpy(), variance, rtol=1e-4)
        assert norm.momentum == 0.99


@pytest.mark.parametrize("average", [0.9, "swa"])
def test_it_changes_nothing_in_the_training(average):
    plain = loop_again(with_dropout_and_batch_norm)
    averaging = loop_of(with_dropout_and_batch_norm(), average=average)
    for loop in (plain, averaging):
        loop.run(RATES[:10])
    if average == "swa":
        averaging.add_to_average()
    with averaging.averaged():
        inside = averaging.weights_sha256()
    for loop in (plain, averaging):
        loop.run(RATES[10:])
    assert averaging.weights_sha256() == plain.weights_sha256() != inside


def test_a_snapshot_holds_the_average_too():
    loop = loop_again(average=0.9)
    loop.run(RATES[:10])
    before = loop.snapshot()
    with loop.averaged():
        expected = loop.model.get_weights()
    loop.run(RATES[10:])
    loop.restore(before)
    with loop.averaged():
        assert_same_weights(loop.model, expected, rtol=0, atol=0)


def test_updates_that_are_skipped_leave_the_average_alone():
    loop = loop_of(average=0.9, skip_non_finite=True, jit_compile=False)
    loop.run(RATES[:5])
    before = loop.snapshot().averages
    loop.model.layers[0].kernel.assign(np.full((6, 8), np.nan))
    loop.run(RATES[:3])
    assert loop.num_skipped == 3
    assert_same_weights(loop.snapshot().averages, before, rtol=0, atol=0)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(ValueError, match=r"average is 1\.0; it must be above 0 and below 1"):
        StepOptions(average=1.0)
    with pytest.raises(ValueError, match="There is no average of the weights yet"), loop_of(average="swa").averaged():
        pass
    with pytest.raises(ValueError, match="There is no average of the weights yet"), loop_of().averaged():
        pass
    with pytest.raises(ValueError, match=r"average is 0\.9; only that of 'swa' is added to from outside"):
        loop_again(average=0.9).add_to_average()
