"""Transformations of the step that a user hands in, and where in the step they stand."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.loop.strategies import scope
from clr_loop.runs.fit import fit
from clr_loop.schedules import Triangular
from helpers.documented import documented
from helpers.replicas import squared
from helpers.small import RATES, assert_same_metrics, assert_same_weights, classifier, loop_of

centralized = documented("centralized")


def sgd(**arguments):
    return classifier(keras.optimizers.SGD(momentum=0.9, **arguments))


def column_means(model):
    return [weights.mean(axis=0) for weights in model.get_weights() if weights.ndim > 1]


@pytest.fixture(scope="module")
def free():
    """Where the same training ends without a transformation."""
    model = sgd()
    loop_of(model).run(30 * RATES)
    return column_means(model)


@pytest.mark.parametrize("options", [{"jit_compile": True}, {"accumulate": 4}, {"skip_non_finite": True}], ids=str)
def test_centralized_gradients_leave_the_mean_of_each_column_where_it_was(options, free):
    model = sgd()
    before = column_means(model)
    loop_of(model, transforms=[centralized], **options).run(30 * RATES)
    moved, freely = (
        max(np.abs(b - a).max() for a, b in zip(ends, before, strict=True)) for ends in (column_means(model), free)
    )
    assert moved < 1e-6 < 1e-3 < freely


def test_parts_of_a_batch_are_summed_before_a_transformation():
    whole, split = (sgd() for _ in range(2))
    loop_of(whole, transforms=[squared]).run(100 * RATES)
    loop_of(split, transforms=[squared], accumulate=5).run(100 * RATES)
    assert_same_weights(whole, split, rtol=1e-4, atol=1e-6)


def tenfold(gradients):
    def of_batch(batch, total=None):
        result = gradients(batch, total)
        return result._replace(gradients=[10.0 * g for g in result.gradients])

    return of_batch


def test_a_transformation_comes_before_the_clip():
    plain, scaled = (sgd() for _ in range(2))
    loop_of(plain, clip_norm=0.01).run(RATES)  # Far below every norm, so each gradient has it.
    loop_of(scaled, clip_norm=0.01, transforms=[tenfold]).run(RATES)
    assert_same_weights(plain, scaled)


def test_several_are_used_in_their_order():
    def plus_one(gradients):
        def of_batch(batch, total=None):
            result = gradients(batch, total)
            return result._replace(gradients=[g + 1.0 for g in result.gradients])

        return of_batch

    def moved(*transforms):
        model = classifier(keras.optimizers.SGD())
        before = model.get_weights()
        loop_of(model, transforms=list(transforms)).run([0.0625])
        return [b - a for a, b in zip(model.get_weights(), before, strict=True)]

    for first, then, alone in zip(moved(plus_one, tenfold), moved(tenfold, plus_one), moved(tenfold), strict=True):
        np.testing.assert_allclose(first, alone + 0.625, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(then, alone + 0.0625, rtol=1e-3, atol=1e-5)


def test_a_loss_scale_is_out_of_sight_of_a_transformation():
    seen = []

    def watched(gradients):
        def of_batch(batch, total=None):
            result = gradients(batch, total)
            norm = tf.linalg.global_norm(result.gradients)
            tf.numpy_function(lambda value: seen.append(float(value)) or value, [norm], norm.dtype)
            return result._replace(gradients=[g + 0.0 * norm for g in result.gradients])

        return of_batch

    with scope(None, "mixed_float16"):
        scaled, plain = classifier(keras.optimizers.SGD()), classifier(keras.optimizers.SGD())
    assert isinstance(scaled.optimizer, keras.optimizers.LossScaleOptimizer)
    loop_of(scaled, transforms=[watched]).run(RATES)
    assert 0.01 < max(seen) < 100  # With the scale of 2**15 it would be thousands.
    loop_of(plain).run(RATES)
    assert_same_weights(plain, scaled)


@functools.cache
def made_once(transform):
    loop = loop_of(sgd(), transforms=[transform])
    return loop, loop.snapshot()


def made(transform):
    """Return a loop with this transformation, put back to its start."""
    loop, start = made_once(transform)
    loop.restore(start)
    return loop


def test_a_resumed_run_with_a_transformation_ends_to_the_bit_and_another_one_is_refused(tmp_path):
    schedule = Triangular(0.01, 0.1, 5)

    def run(directory, epochs, transform, **options):
        loop = made(transform)
        return fit(loop, schedule, epochs=epochs, run_dir=tmp_path / directory, **options)

    whole = run("whole", 4, centralized)
    run("parts", 2, centralized)
    with pytest.raises(ValueError, match=r"transforms .*centralized, now .*tenfold"):
        run("parts", 4, tenfold, resume=True)
    parts = run("parts", 4, centralized, resume=True)
    assert parts.weights_sha256 == whole.weights_sha256
    assert_same_metrics(parts.history, whole.history)
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert config["transforms"] == ["docs_extending.centralized"]
