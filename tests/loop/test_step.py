"""How one update is made: clipping, parts, skipped batches, momentum, loss scale and precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.loop.strategies import scope
from helpers.small import (
    FEATURES,
    LABELS,
    RATES,
    assert_same_metrics,
    assert_same_weights,
    classifier,
    loop_of,
    with_dropout_and_batch_norm,
)


def test_parts_of_a_batch_make_one_update_and_rates_count_updates():
    whole = loop_of(classifier(keras.optimizers.SGD()), batch_size=64)
    split = loop_of(classifier(keras.optimizers.SGD()), "stream", batch_size=64, accumulate=5)  # Divides not 64, nor 8.
    assert_same_metrics(split.run(50 * RATES), whole.run(50 * RATES), rtol=1e-4)
    assert split.step == 30
    assert_same_weights(split.model, whole.model, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accumulate": 0}, ValueError, "accumulate"),
        ({"accumulate": 1.5}, TypeError, "accumulate"),
        ({"accumulate": float("nan")}, TypeError, "accumulate"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm is 0.0; it must be above 0 and finite"),
        ({"clip_norm": float("nan")}, ValueError, "clip_norm is nan"),
        ({"jit_compile": "yes"}, ValueError, "jit_compile is 'yes'; it must be 'auto' or True or False"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        StepOptions(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("num_examples", "parts"), [(200, 9), (193, 2)], ids=["last_of_8", "last_of_1"])
def test_a_last_batch_that_is_too_short_for_its_parts_is_refused(num_examples, parts):
    with pytest.raises(ValueError, match=f"cannot be split among 1 replicas and {parts} parts"):
        loop_of(num_examples=num_examples, batch_size=64, accumulate=parts)


def nan_for_class_3(labels, logits):
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return tf.where(tf.reshape(labels, [-1]) == 3, np.nan, losses)


@pytest.mark.parametrize(("feed", "jit_compile"), [("resident", True), ("stream", False)], ids=["xla", "plain"])
def test_skipped_updates_are_as_if_their_batches_had_not_been(feed, jit_compile):
    features, labels = FEATURES[:60], LABELS[:60]
    good = labels != 3
    assert 3 < good.sum() < 57
    rates = np.linspace(0.001, 0.02, 60)
    options = StepOptions(jit_compile=jit_compile, skip_non_finite=True)

    def over(features, labels, loss=None):
        model = with_dropout_and_batch_norm(loss=loss)
        if feed == "stream":
            dataset = tf.data.Dataset.from_tensor_slices((features, labels)).batch(1)
            return TrainLoop.from_dataset(model, dataset, options=options)
        return TrainLoop(model, features, labels, batch_size=1, shuffle=False, options=options)

    skipping, without = over(features, labels, nan_for_class_3), over(features[good], labels[good])
    metrics = skipping.run(rates)
    assert (skipping.num_skipped, skipping.step, skipping.position) == ((~good).sum(), good.sum(), 60)
    assert_same_metrics(metrics, without.run(rates[: good.sum()]))
    assert skipping.weights_sha256() == without.weights_sha256()


def test_an_infinite_gradient_of_a_finite_loss_is_skipped():
    def root(labels, logits):  # At a target of 0 its value is 0 and its slope infinite.
        return tf.sqrt(tf.abs(logits - tf.stop_gradient(logits) + tf.cast(labels, tf.float32)))

    inputs, targets = np.ones((4, 6), np.float32), np.float32([[1], [0], [1], [0]])
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(), root)
    options = StepOptions(skip_non_finite=True)
    loop = TrainLoop(model, inputs, targets, batch_size=1, shuffle=False, options=options)
    metrics = loop.run([0.1] * 4)
    np.testing.assert_array_equal(metrics["loss"], [1, 1])
    assert (loop.step, loop.num_skipped) == (2, 2)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_snapshot_remembers_how_many_updates_were_skipped():
    loop = loop_of(classifier(loss=nan_for_class_3), batch_size=1, num_examples=60, skip_non_finite=True)
    loop.run(np.full(30, 0.01))
    middle = loop.snapshot()
    assert middle.num_skipped > 0
    after = loop.run(np.full(20, 0.01))
    loop.restore(middle)
    assert_same_metrics(loop.run(np.full(20, 0.01)), after)


def eagerly(model, features, labels, batch_size, rates, momentums, name):
    """Train one Keras call at a time: Python reads the momentum anew at every step."""
    for i, (rate, momentum) in enumerate(zip(rates, momentums, strict=True)):
        batch = slice(i * batch_size, (i + 1) * batch_size)
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=labels[batch], y_pred=model(features[batch], training=True))
        model.optimizer.learning_rate = rate
        setattr(model.optimizer, name, float(np.float32(momentum)))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))


@pytest.mark.parametrize(
    ("make_optimizer", "name", "jit_compile"),
    [
        (keras.optimizers.Adam, "beta_1", True),
        (keras.optimizers.Nadam, "beta_1", False),
        (lambda: keras.optimizers.SGD(momentum=0.5, nesterov=True), "momentum", True),
        (lambda: keras.optimizers.RMSprop(momentum=0.5), "momentum", False),
    ],
    ids=["adam", "nadam", "nesterov", "rmsprop"],
)
def test_a_momentum_given_for_each_step_moves_the_weights_as_keras_does_eagerly(make_optimizer, name, jit_compile):
    rates, momentums = np.linspace(0.01, 0.05, 10), np.linspace(0.95, 0.6, 10)
    loop = loop_of(classifier(make_optimizer()), batch_size=20, shuffle=False, jit_compile=jit_compile)
    own = getattr(loop.optimizer, name)
    metrics = loop.run(rates, momentums)
    np.testing.assert_array_equal(metrics["momentum"], momentums.astype(np.float32))
    assert getattr(loop.optimizer, name) == own
    expected = classifier(make_optimizer())
    eagerly(expected, FEATURES, LABELS, 20, rates, momentums, name)
    assert_same_weights(loop.model, expected, rtol=1e-3, atol=1e-5)


def test_momentums_have_one_more_program_and_no_other():
    loop = loop_of(batch_size=50)
    loop.compile(with_momentums=True)
    for momentum in (0.9, 0.8, 0.7):
        loop.run([0.01] * 3, [momentum] * 3)
    assert loop.num_traces == 1
    loop.run([0.01])
    assert loop.num_traces == 2


@pytest.mark.parametrize(
    ("momentums", "message"),
    [
        ([0.9], r"have shape \(1,\); give one for each of the 2 rates"),
        ([0.9, 1.0], "at index 1 is 1.0"),
        ([float("nan"), 0.9], "at index 0 is nan"),
        ([0.9, 1 - 1e-12], "at index 1 is 0.99"),  # Rounds to 1 in float32.
        ([-0.1, 0.9], "at index 0 is -0.1"),
    ],
)
def test_bad_momentums_are_refused(momentums, message):
    loop = loop_of()
    with pytest.raises(ValueError, match=message):
        loop.run([0.1, 0.1], momentums)
    assert loop.step == 0


def test_an_optimizer_without_momentum_is_told_so():
    with pytest.raises(ValueError, match="SGD"):
        loop_of(classifier(keras.optimizers.SGD())).run([0.1], [0.9])


def loss_scaled(inner, **arguments):
    return classifier(keras.optimizers.LossScaleOptimizer(inner, **arguments))


# The whole of the data in each batch, so that a batch that is passed over is not missed.
WHOLE = {"num_examples": 50, "batch_size": 50, "shuffle": False}


@pytest.mark.parametrize(
    ("feed", "skip_non_finite", "jit_compile"),
    [("resident", True, True), ("stream", True, False), ("resident", False, False)],
)
def test_a_loss_scale_that_is_too_large_is_halved_until_updates_are_taken(feed, skip_non_finite, jit_compile):
    options = {"clip_norm": 0.5, "jit_compile": jit_compile, "skip_non_finite": skip_non_finite, **WHOLE}
    plain = loop_of(classifier(keras.optimizers.SGD()), feed, **options)
    # So large that the square of the gradients' norm overflows.
    scaled = loop_of(loss_scaled(keras.optimizers.SGD(), initial_scale=2.0**70), feed, **options)
    metrics = scaled.run(20 * RATES)
    skipped = scaled.num_skipped
    assert 2 <= skipped <= 15
    assert float(scaled.optimizer.dynamic_scale) == 2.0 ** (70 - skipped)
    assert (scaled.step, scaled.position, len(metrics["loss"])) == (30 - skipped, 30, 30 - skipped)
    expected = plain.run(20 * RATES[: 30 - skipped])
    np.testing.assert_array_equal(metrics["learning_rate"], expected["learning_rate"])
    assert_same_metrics(metrics, expected, rtol=1e-4)  # The loss is the unscaled one.
    assert_same_weights(scaled.model, plain.model, rtol=1e-4, atol=1e-6)


def test_a_bad_batch_under_a_loss_scale_leaves_moving_averages_as_they_were():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=8.0)
    model = with_dropout_and_batch_norm(optimizer, loss=nan_for_class_3)  # The gradients alone are finite.
    options = StepOptions(jit_compile=True, skip_non_finite=True)
    only_bad = LABELS == 3
    loop = TrainLoop(model, FEATURES[only_bad], LABELS[only_bad], batch_size=4, options=options)
    weights = [variable.numpy() for variable in model.variables if "seed" not in variable.path]
    metrics = loop.run([0.1] * 3)
    assert (loop.step, loop.num_skipped, len(metrics["loss"])) == (0, 3, 0)
    assert_same_weights([v.numpy() for v in model.variables if "seed" not in v.path], weights, rtol=0, atol=0)
    assert float(loop.optimizer.dynamic_scale) == 1.0


def test_a_loss_scale_takes_momentums_and_goes_into_a_snapshot():
    loop = loop_of(loss_scaled(keras.optimizers.Adam(), initial_scale=8.0, dynamic_growth_steps=10), batch_size=50)
    momentums = np.linspace(0.95, 0.8, 30)
    start = loop.snapshot()
    first, scale = loop.run(RATES, momentums), float(loop.optimizer.dynamic_scale)
    loop.restore(start)
    assert float(loop.optimizer.dynamic_scale) == 8.0
    assert_same_metrics(loop.run(RATES, momentums), first)
    assert float(loop.optimizer.dynamic_scale) == scale == 64.0
    loop.restore(start)
    assert not np.array_equal(loop.run(RATES)["loss"], first["loss"])


def test_bfloat16_trains_nearly_as_float32_with_variables_in_float32():
    losses = {}
    for each in ("float32", "mixed_bfloat16"):
        with scope(None, each):
            model = classifier(keras.optimizers.SGD())
        loop = loop_of(model, batch_size=100)
        losses[each] = loop.run([0.1] * 10)["loss"]
        assert loop.step == 10
        assert loop.chosen["precision"] == each
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    np.testing.assert_allclose(losses["mixed_bfloat16"], losses["float32"], rtol=0.02)
    assert not np.array_equal(losses["mixed_bfloat16"], losses["float32"])


@pytest.mark.parametrize("reduction", ["sum", "mean_with_sample_weight"])
def test_a_loss_that_is_no_mean_over_the_batch_is_not_split(reduction):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(), keras.losses.MeanSquaredError(reduction=reduction))
    x, y = np.ones((8, 2), np.float32), np.ones((8, 1), np.float32)
    TrainLoop(model, x, y, batch_size=4)
    with pytest.raises(ValueError, match=reduction):
        TrainLoop(model, x, y, batch_size=4, options=StepOptions(accumulate=2))


class RateOfTheStep(keras.metrics.Metric):
    """Reads the optimizer's learning rate, as a model's own metric may."""

    def __init__(self, optimizer):
        super().__init__(name="rate_seen")
        self.optimizer, self.seen = optimizer, self.add_variable((), "zeros", name="seen")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.seen.assign(self.optimizer.learning_rate)

    def result(self):
        return self.seen


def test_a_metric_that_reads_the_learning_rate_sees_that_of_its_own_step():
    model = classifier()
    model.compile(model.optimizer, model.loss, metrics=[RateOfTheStep(model.optimizer)])
    metrics = loop_of(model, jit_compile=True).run(RATES)
    np.testing.assert_array_equal(metrics["rate_seen"], metrics["learning_rate"])
