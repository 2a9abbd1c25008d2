import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from clr_loop import data
from clr_loop.data import models
from clr_loop.loop import loop
from clr_loop.loop.loop import TrainLoop


class AssignRates(keras.callbacks.Callback):
    """What a user of Keras does: assigns the rate before each batch."""

    def __init__(self, rates):
        super().__init__()
        self.rates = iter(rates)

    def on_train_batch_begin(self, batch, logs=None):
        self.model.optimizer.learning_rate = next(self.rates)


def dropout_and_batch_norm(seed=0):
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(20, kernel_initializer=keras.initializers.GlorotUniform(seed=seed)),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.5, seed=seed),
            keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 1)),
        ]
    )


def loop_that_shows_its_batches(num_examples, batch_size, **arguments):
    """A loop whose loss is the mean label, and the label an example's own number: the losses tell the batches."""
    images = np.zeros((num_examples, 2), np.float32)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(num_examples)])
    return TrainLoop(
        model,
        keras.optimizers.SGD(),
        images,
        np.arange(num_examples),
        batch_size=batch_size,
        loss=lambda labels, logits: tf.cast(labels, tf.float32) + 0.0 * logits[:, 0],
        **arguments,
    )


# With like: in Keras itself the weights with XLA differ from those without by 5e-4, where Adam divides one rounding
# error by another (pixels that hardly any image lights).
@pytest.mark.parametrize("jit_compile", [True, False], ids=["xla", "plain"])
@pytest.mark.parametrize(
    "make_optimizer",
    [
        keras.optimizers.Adam,
        lambda: keras.optimizers.SGD(momentum=0.9),
        lambda: keras.optimizers.AdamW(weight_decay=0.1, clipnorm=0.5),
    ],
    ids=["adam", "sgd_momentum", "adamw_clipped"],
)
def test_weights_after_30_steps_equal_those_of_keras_fit(make_loop, mnist, rates, make_optimizer, jit_compile):
    batch_size = 64  # Three whole batches and a short one of 8 in an epoch of 200.
    train_loop = make_loop(optimizer=make_optimizer(), batch_size=batch_size, shuffle=False, jit_compile=jit_compile)
    train_loop.run(rates)

    model = models.build("relu_mlp", (28, 28), 10, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make_optimizer(), loss, jit_compile=jit_compile)
    images, labels = mnist.train.images[:200].astype(np.float32) / 255, mnist.train.labels[:200]
    arguments = {"batch_size": batch_size, "shuffle": False, "verbose": 0, "callbacks": [AssignRates(rates)]}
    model.fit(images, labels, epochs=7, **arguments)
    model.fit(images[: 2 * batch_size], labels[: 2 * batch_size], **arguments)
    for ours, theirs in zip(train_loop.model.weights, model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-6, err_msg=ours.path)


def test_metrics_are_those_of_the_batch_before_its_update(make_loop, mnist):
    train_loop = make_loop(num_examples=60, batch_size=20, shuffle=False)
    for i in range(3):
        batch = slice(20 * i, 20 * i + 20)
        logits = train_loop.model(mnist.train.images[batch].astype(np.float32) / 255).numpy().astype(np.float64)
        labels = mnist.train.labels[batch]
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        metrics = train_loop.run([0.01])
        assert metrics["loss"][0] == pytest.approx(-log_p[np.arange(20), labels].mean(), rel=1e-5)
        assert metrics["accuracy"][0] == pytest.approx((logits.argmax(axis=1) == labels).mean())
        assert {name: (value.dtype, value.shape) for name, value in metrics.items()} == {
            name: (np.float32, (1,)) for name in ("learning_rate", "loss", "accuracy")
        }


def test_returned_rates_are_the_ones_given_and_the_optimizer_holds_the_last(make_loop, rates):
    train_loop = make_loop(batch_size=64)
    np.testing.assert_array_equal(train_loop.run(rates)["learning_rate"], rates.astype(np.float32))
    assert float(train_loop.optimizer.learning_rate.numpy()) == np.float32(rates[-1])
    assert train_loop.step == int(train_loop.optimizer.iterations) == 30


def test_a_rate_of_zero_moves_no_weight_and_a_rate_moves_as_far_as_it_says(make_loop):
    train_loop = make_loop(optimizer=keras.optimizers.SGD(), batch_size=200, shuffle=False)
    start = train_loop.snapshot().model
    train_loop.run([0.0])
    for before, after in zip(start, train_loop.snapshot().model, strict=True):
        np.testing.assert_array_equal(before, after)
    moved = {}
    for rate in (0.001, 0.01):
        train_loop.restore(type(train_loop.snapshot())(start, [np.array(0), np.float32(0)], 0))
        train_loop.run([rate])
        moved[rate] = train_loop.snapshot().model[0] - start[0]
    np.testing.assert_allclose(moved[0.01], 10 * moved[0.001], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(12, 1), (12, 4), (13, 5), (7, 7), (9, 8)])
def test_every_batch_is_the_next_of_the_seeded_order_and_the_last_one_is_short(num_examples, batch_size):
    train_loop = loop_that_shows_its_batches(num_examples, batch_size, seed=11)
    assert train_loop.steps_per_epoch == int(np.ceil(num_examples / batch_size))
    losses = train_loop.run(np.full(3 * train_loop.steps_per_epoch, 0.01))["loss"]
    expected = []
    for epoch in range(3):
        order = data.epoch_order(num_examples, 11, epoch)
        expected += [order[i : i + batch_size].mean() for i in range(0, num_examples, batch_size)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_without_shuffle_examples_come_as_given():
    losses = loop_that_shows_its_batches(6, 1, shuffle=False).run(np.zeros(12))["loss"]
    np.testing.assert_array_equal(losses, [0, 1, 2, 3, 4, 5] * 2)


@pytest.fixture(scope="module")
def cut_loop(mnist):
    """A loop with a short last batch, dropout and batch-norm; its start; and where 23 steps in one call end."""
    train_loop = TrainLoop(
        dropout_and_batch_norm(),
        keras.optimizers.Adam(),
        mnist.train.images[:70],
        mnist.train.labels[:70],
        batch_size=16,
    )
    start = train_loop.snapshot()
    metrics = train_loop.run(np.linspace(0.001, 0.02, 23))
    return train_loop, start, metrics, train_loop.weights_sha256()


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 23), max_size=8))
def test_cut_into_blocks_in_any_way_the_weights_are_the_same_to_the_bit(cut_loop, cuts):
    train_loop, start, whole, digest = cut_loop
    train_loop.restore(start)
    parts = [train_loop.run(part) for part in np.split(np.linspace(0.001, 0.02, 23), sorted(cuts))]
    assert train_loop.weights_sha256() == digest
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), values)


def test_restoring_a_snapshot_repeats_the_run_with_dropout_and_batch_norm(cut_loop):
    train_loop, start, whole, digest = cut_loop
    train_loop.restore(start)
    assert train_loop.step == 0
    assert train_loop.weights_sha256() != digest
    np.testing.assert_array_equal(train_loop.run(np.linspace(0.001, 0.02, 23))["loss"], whole["loss"])
    assert train_loop.weights_sha256() == digest


@pytest.mark.parametrize(("batch_size", "num_programs"), [(50, 1), (64, 2)])
def test_one_program_serves_every_length_place_and_rate_and_another_a_short_last_batch(
    tmp_path, batch_size, num_programs
):
    # A second process, so that XLA can be told to write down each program that it compiles: a silent recompilation
    # is no trace, but it is a dump.
    code = f"""
import json, sys
import keras, numpy as np
from clr_loop.data import models
from clr_loop.loop.loop import TrainLoop
images = np.zeros((400, 8, 8), np.uint8)
train_loop = TrainLoop(models.build("relu_mlp", (8, 8), 10, 0), keras.optimizers.Adam(), images,
                       np.arange(400) % 10, batch_size={batch_size})
train_loop.compile()
traced = train_loop.num_traces
for n in (1, 2, 3, 5, 8, 13, 21, 0, 1, 1):
    train_loop.run(np.random.default_rng(n).random(n) * 0.01)
json.dump([traced, train_loop.num_traces, train_loop.step], sys.stdout)
"""
    flags = {"XLA_FLAGS": f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | flags,
    )
    assert json.loads(done.stdout) == [num_programs, num_programs, 55]
    compiled = {file.name.split(".")[0] for file in tmp_path.iterdir() if "train_block" in file.name}
    assert len(compiled) == num_programs


def test_evaluate_is_the_mean_over_all_examples_also_with_a_short_last_batch(make_loop, mnist):
    train_loop = make_loop()
    images, labels = mnist.validation.images[:2345], mnist.validation.labels[:2345]
    logits = train_loop.model.predict(images.astype(np.float32) / 255, verbose=0).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    result = train_loop.evaluate(images, labels)
    assert result["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    assert result["loss"] == pytest.approx(-log_p[np.arange(2345), labels].mean(), rel=1e-5)


def test_evaluation_changes_nothing_and_uses_moving_averages(cut_loop, mnist):
    train_loop, _, _, _ = cut_loop
    digest = train_loop.weights_sha256()
    first = train_loop.evaluate(mnist.validation.images[:100], mnist.validation.labels[:100])
    assert first == train_loop.evaluate(mnist.validation.images[:100], mnist.validation.labels[:100])
    assert train_loop.weights_sha256() == digest


def test_float_images_are_taken_as_they_are(mnist, rates):
    digests = []
    for images in (mnist.train.images[:100], mnist.train.images[:100].astype(np.float32) / np.float32(255)):
        train_loop = TrainLoop(
            models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.SGD(), images, mnist.train.labels[:100], 20
        )
        digests.append(train_loop.run(rates)["loss"])
    np.testing.assert_allclose(*digests, rtol=1e-5)


def test_losses_of_layers_are_added(mnist):
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(10, kernel_regularizer=keras.regularizers.L2(0.5)),
        ]
    )
    train_loop = TrainLoop(model, keras.optimizers.SGD(), *(a[:50] for a in mnist.train), batch_size=50, shuffle=False)
    penalty = 0.5 * float((model.layers[-1].kernel.numpy().astype(np.float64) ** 2).sum())
    logits = model(mnist.train.images[:50].astype(np.float32) / 255)
    plain = float(keras.losses.SparseCategoricalCrossentropy(from_logits=True)(mnist.train.labels[:50], logits))
    assert train_loop.run([0.1])["loss"][0] == pytest.approx(plain + penalty, rel=1e-5)


def test_xla_and_plain_graph_agree(make_loop, rates):
    plain, compiled = (make_loop(batch_size=64, jit_compile=choice) for choice in (False, True))
    np.testing.assert_allclose(plain.run(rates)["loss"], compiled.run(rates)["loss"], rtol=1e-4)
    assert (plain.jit_compile, compiled.jit_compile) == (False, True)


# 65 has halves of 32 and 33, and of the 200 it leaves a short last batch of 5, halved too.
@pytest.mark.parametrize("model", ["relu_mlp", "article_mlp"])
def test_a_batch_in_halves_is_a_batch(make_loop, rates, monkeypatch, model):
    halved = make_loop(model=model, batch_size=65)
    monkeypatch.setattr(loop, "_SMALLEST_TO_HALVE", 66)
    whole = make_loop(model=model, batch_size=65)
    metrics, expected = halved.run(rates), whole.run(rates)
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4)
    for ours, theirs in zip(halved.model.weights, whole.model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)
    assert halved.weights_sha256() != whole.weights_sha256()  # Rounding tells that they were computed differently.


def test_a_last_batch_of_one_leaves_all_batches_whole(make_loop, rates):
    assert np.isfinite(make_loop(batch_size=199).run(rates)["loss"]).all()


def test_batch_norm_takes_its_averages_from_whole_batches(make_loop):
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.BatchNormalization(momentum=0.0),
            keras.layers.Dense(10),
        ]
    )
    train_loop = make_loop(model=model, batch_size=100, shuffle=False, jit_compile=True)
    train_loop.run([0.1])
    images = train_loop._images.numpy()[:100].reshape(100, -1) / 255.0
    np.testing.assert_allclose(model.layers[1].moving_variance.numpy(), images.var(axis=0), rtol=1e-4, atol=1e-6)


def test_auto_leaves_convolutions_and_dropout_on_a_cpu_to_the_plain_graph(make_loop):
    inner = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.SeparableConv2D(2, 3), keras.layers.Flatten()])
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Reshape((28, 28, 1)), inner, keras.layers.Dense(10)])
    assert make_loop(model=model).jit_compile is not make_loop().device.startswith("CPU")
    assert make_loop(model=dropout_and_batch_norm()).jit_compile is not make_loop().device.startswith("CPU")
    assert make_loop().jit_compile is True


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "AdamW", "Adamax", "Nadam", "RMSprop", "Adagrad", "Adadelta", "Lion", "Ftrl"]
)
def test_any_keras_optimizer_with_a_plain_rate_trains(make_loop, name):
    train_loop = make_loop(
        num_examples=100, optimizer=getattr(keras.optimizers, name)(), batch_size=50, jit_compile=False
    )
    before = train_loop.snapshot().model[0]
    metrics = train_loop.run([0.01, 0.02, 0.03])
    np.testing.assert_array_equal(metrics["learning_rate"], np.float32([0.01, 0.02, 0.03]))
    assert not np.array_equal(train_loop.snapshot().model[0], before)


def test_optimizer_made_with_a_schedule_is_refused(make_loop):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    with pytest.raises(ValueError, match="must have a plain learning rate, received Adam made with a schedule"):
        make_loop(optimizer=keras.optimizers.Adam(schedule))


def test_a_step_that_is_not_counted_is_noticed(make_loop):
    class Forgetful(keras.optimizers.SGD):
        def apply_gradients(self, grads_and_vars, **arguments):
            super().apply_gradients(grads_and_vars, **arguments)
            self.iterations.assign_sub(1)

    train_loop = make_loop(optimizer=Forgetful())
    with pytest.raises(RuntimeError, match="one iteration per step, received 0 for 2"):
        train_loop.run([0.1, 0.1])


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([0.1, -0.1], "received -0.1 at index 1"),
        ([float("nan")], "received nan at index 0"),
        ([float("inf")], "received inf"),
        (0.1, r"must be a vector, received shape \(\)"),
        ([[0.1]], r"received shape \(1, 1\)"),
    ],
)
def test_bad_rates_are_refused_before_a_step_is_taken(make_loop, rates, message):
    train_loop = make_loop()
    with pytest.raises(ValueError, match=message):
        train_loop.run(rates)
    assert train_loop.step == 0


def test_no_rates_is_no_step(make_loop):
    train_loop = make_loop()
    digest = train_loop.weights_sha256()
    assert [values.shape for values in train_loop.run([]).values()] == [(0,)] * 3
    assert train_loop.weights_sha256() == digest


IMAGES, LABELS = np.zeros((10, 28, 28), np.uint8), np.arange(10)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be from 1 to the 10 training examples, received 0"),
        ({"batch_size": 11}, ValueError, "received 11"),
        ({"batch_size": 5.0}, TypeError, "batch_size must be a whole number, received 5.0"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number, received 1.5"),
        ({"seed": -1}, ValueError, "seed must be from 0"),
        ({"jit_compile": "yes"}, ValueError, "jit_compile must be True, False or"),
        ({"labels": LABELS + 1}, ValueError, "labels must be from 0 to 9, the model's classes, received 1 to 10"),
        ({"labels": LABELS[:9]}, ValueError, "must pair up, received 10 images"),
        ({"labels": LABELS * 1.0}, TypeError, "labels must be integers, received float64"),
        ({"images": IMAGES.astype(np.int32)}, TypeError, "images must be uint8 or float32, received int32"),
        ({"images": np.full((10, 28, 28), np.nan, np.float32)}, ValueError, "images must be finite"),
        ({"images": np.zeros((10, 27, 28), np.uint8)}, ValueError, r"must take images of shape \(27, 28\)"),
    ],
)
def test_bad_arguments_are_named_in_one_line(changes, error, message):
    arguments = {"images": IMAGES, "labels": LABELS, "batch_size": 5, **changes}
    with pytest.raises(error, match=message) as caught:
        TrainLoop(models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.Adam(), **arguments)
    assert "\n" not in str(caught.value)


def test_model_without_logits_is_refused():
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Dense(10)])
    with pytest.raises(ValueError, match=r"must return logits \[batch, num_classes\], received shape \(1, 28, 10\)"):
        TrainLoop(model, keras.optimizers.Adam(), IMAGES, LABELS, batch_size=5)


def eagerly(model, optimizer, images, labels, batch_size, rates, momentums, name):
    """The same training, one Keras call at a time: Python reads the momentum anew at every step."""
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for i, (rate, momentum) in enumerate(zip(rates, momentums, strict=True)):
        batch = slice(i * batch_size, (i + 1) * batch_size)
        with tf.GradientTape() as tape:
            loss = loss_of(labels[batch], model(images[batch].astype(np.float32) / 255, training=True))
        optimizer.learning_rate = rate
        setattr(optimizer, name, float(np.float32(momentum)))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )
    return [weight.numpy() for weight in model.weights]


@pytest.mark.parametrize(
    ("make_optimizer", "name"),
    [
        (keras.optimizers.Adam, "beta_1"),
        (keras.optimizers.Nadam, "beta_1"),
        (lambda: keras.optimizers.SGD(momentum=0.5), "momentum"),
        (lambda: keras.optimizers.SGD(momentum=0.5, nesterov=True), "momentum"),
        (lambda: keras.optimizers.RMSprop(momentum=0.5), "momentum"),
    ],
    ids=["adam", "nadam", "sgd", "nesterov", "rmsprop"],
)
def test_a_momentum_given_for_each_step_moves_the_weights_as_keras_does_eagerly(make_loop, mnist, make_optimizer, name):
    rates, momentums = np.linspace(0.001, 0.01, 10), np.linspace(0.95, 0.6, 10)
    train_loop = make_loop(optimizer=make_optimizer(), batch_size=20, shuffle=False, jit_compile=False)
    start = train_loop.snapshot()
    own = getattr(train_loop.optimizer, name)
    metrics = train_loop.run(rates, momentums)
    np.testing.assert_array_equal(metrics["momentum"], momentums.astype(np.float32))
    assert getattr(train_loop.optimizer, name) == own
    cycled = [weight.numpy() for weight in train_loop.model.weights]
    expected = eagerly(
        models.build("relu_mlp", (28, 28), 10, 0), make_optimizer(), *mnist.train, 20, rates, momentums, name
    )
    for ours, theirs in zip(cycled, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    train_loop.restore(start)
    train_loop.run(rates)
    assert np.abs(train_loop.model.weights[0].numpy() - cycled[0]).max() > 1e-3


def test_momentums_have_one_more_program_and_no_other(make_loop):
    train_loop = make_loop(batch_size=50)
    train_loop.compile(with_momentums=True)
    for momentum in (0.9, 0.8, 0.7):
        train_loop.run([0.01] * 3, [momentum] * 3)
    assert train_loop.num_traces == 1
    train_loop.run([0.01])
    assert train_loop.num_traces == 2


@pytest.mark.parametrize(
    ("momentums", "message"),
    [([0.9], r"one for each of 2 rates, received shape \(1,\)"), ([0.9, 1.0], "received 1.0 at index 1"),
     ([float("nan"), 0.9], "received nan at index 0")],
)  # fmt: skip
def test_bad_momentums_are_refused(make_loop, momentums, message):
    with pytest.raises(ValueError, match=message):
        make_loop().run([0.1, 0.1], momentums)


def test_an_optimizer_without_momentum_is_told_so(make_loop):
    with pytest.raises(ValueError, match="momentums need an optimizer with momentum, received SGD without"):
        make_loop(optimizer=keras.optimizers.SGD()).run([0.1], [0.9])


def nan_at_sevens(labels, logits):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.where(labels == 7, np.nan, losses)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_skipped_updates_are_as_if_their_batches_had_not_been(mnist, jit_compile):
    images, labels = (a[:60] for a in mnist.train)
    rates = np.linspace(0.001, 0.02, 60)
    skipping = TrainLoop(
        dropout_and_batch_norm(), keras.optimizers.Adam(), images, labels, batch_size=1, shuffle=False,
        jit_compile=jit_compile, loss=nan_at_sevens, skip_non_finite=True,
    )  # fmt: skip
    num_sevens = int((labels == 7).sum())
    assert num_sevens > 3
    metrics = skipping.run(rates)
    assert (skipping.num_skipped, skipping.step, skipping.position) == (num_sevens, 60 - num_sevens, 60)
    without = TrainLoop(
        dropout_and_batch_norm(), keras.optimizers.Adam(), images[labels != 7], labels[labels != 7], batch_size=1,
        shuffle=False, jit_compile=jit_compile, skip_non_finite=True,
    )  # fmt: skip
    for name, values in without.run(rates[: 60 - num_sevens]).items():
        np.testing.assert_array_equal(metrics[name], values)
    assert skipping.weights_sha256() == without.weights_sha256()


def test_a_snapshot_remembers_how_many_updates_were_skipped(mnist):
    train_loop = TrainLoop(
        models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.Adam(), *(a[:60] for a in mnist.train),
        batch_size=1, shuffle=False, loss=nan_at_sevens, skip_non_finite=True,
    )  # fmt: skip
    train_loop.run(np.full(30, 0.01))
    middle = train_loop.snapshot()
    after = train_loop.run(np.full(20, 0.01))
    train_loop.restore(middle)
    np.testing.assert_array_equal(train_loop.run(np.full(20, 0.01))["loss"], after["loss"])
