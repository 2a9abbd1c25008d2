"""A rate for each layer, against two optimizers by hand: one for each factor."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from helpers.small import FEATURES, LABELS, RATES, assert_same_weights, classifier, loop_again, loop_of

OPTIMIZERS = {
    "sgd_with_decay": lambda: keras.optimizers.SGD(momentum=0.9, weight_decay=0.1),
    "adam": keras.optimizers.Adam,
    "adamw": lambda: keras.optimizers.AdamW(weight_decay=0.05),
    "lion": lambda: keras.optimizers.Lion(weight_decay=0.05),
    "rmsprop": lambda: keras.optimizers.RMSprop(momentum=0.5),
}


def by_hand(make_optimizer, factors, rates):
    """Train eagerly with one optimizer for each variable, whose rate is the factor times the step's."""
    model = classifier()
    optimizers = [make_optimizer() for _ in model.trainable_variables]
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for step, rate in enumerate(rates):
        part = slice(step % 4 * 50, step % 4 * 50 + 50)
        with tf.GradientTape() as tape:
            loss = loss_fn(LABELS[part], model(FEATURES[part], training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        for optimizer, factor, gradient, variable in zip(
            optimizers, factors, gradients, model.trainable_variables, strict=True
        ):
            optimizer.learning_rate = rate * factor
            optimizer.apply([gradient], [variable])
    return model


@pytest.mark.parametrize(
    ("name", "jit_compile"), [("sgd_with_decay", False), ("adamw", True), ("lion", False), ("rmsprop", False)]
)
def test_each_variable_learns_at_its_own_rate(name, jit_compile):
    options = {"rate_multipliers": {"bias": 2.0, r"dense\w*/kernel$": 0.25}, "jit_compile": jit_compile}
    loop = loop_of(classifier(OPTIMIZERS[name]()), batch_size=50, shuffle=False, **options)
    rates = RATES[:12]
    loop.run(rates)
    assert_same_weights(loop.model, by_hand(OPTIMIZERS[name], [0.25, 2.0, 0.25, 2.0], rates), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adam", "sgd_with_decay"])
def test_a_factor_of_0_freezes(name):
    loop = loop_of(classifier(OPTIMIZERS[name]()), rate_multipliers={"kernel": 0.0})
    before = loop.model.get_weights()
    loop.run(RATES)
    after = loop.model.get_weights()
    for i, is_frozen in enumerate([True, False, True, False]):
        assert np.array_equal(before[i], after[i]) == is_frozen


def test_the_first_regex_that_matches_counts():
    loop = loop_of(rate_multipliers={"kernel": 0.0, "dense": 1.0})
    other = loop_of(rate_multipliers={"dense": 1.0, "kernel": 0.0})
    plain = loop_again()
    for each in (loop, other, plain):
        each.run(RATES)
    assert not np.array_equal(loop.model.get_weights()[0], other.model.get_weights()[0])
    assert_same_weights(other.model, plain.model)


@pytest.mark.parametrize(
    ("multipliers", "message"),
    [
        ({"convolution": 2.0}, r"regex 'convolution' matches no variable; they are .*dense\w*/kernel"),
        ({"(": 2.0}, r"regex '\(' cannot be read"),
    ],
)
def test_a_regex_that_is_of_no_use_is_refused(multipliers, message):
    with pytest.raises(ValueError, match=message):
        TrainLoop(classifier(), FEATURES, LABELS, options=StepOptions(rate_multipliers=multipliers))


@pytest.mark.parametrize("factor", [-0.5, float("inf"), float("nan")])
def test_a_factor_that_is_no_share_is_refused(factor):
    with pytest.raises(ValueError, match=r"rate_multipliers\['bias'\] is"):
        StepOptions(rate_multipliers={"bias": factor})
