"""The loop itself: what `run` returns, which batches it visits, and that it can be cut, repeated and restored."""

import json
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from clr_loop.data.order import epoch_order
from helpers.processes import run_code
from helpers.small import (
    FEATURES,
    LABELS,
    RATES,
    assert_same_metrics,
    assert_same_weights,
    classifier,
    loop_again,
    loop_of,
    loop_that_shows_its_batches,
    with_dropout_and_batch_norm,
)

# What a run may be cut into: 23 steps, over five epochs of five batches, the last of them short.
CUT_RATES = np.linspace(0.001, 0.02, 23)


def loss_and_accuracy(model, features, labels):
    logits = model.predict(features, verbose=0).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean(), (logits.argmax(axis=1) == labels).mean()


def test_metrics_are_those_of_the_batch_before_its_update():
    loop = loop_of(num_examples=50, batch_size=20, shuffle=False)
    for i in range(3):
        batch = slice(20 * i, min(20 * i + 20, 50))
        loss, accuracy = loss_and_accuracy(loop.model, FEATURES[batch], LABELS[batch])
        metrics = loop.run([0.05])
        assert metrics["loss"][0] == pytest.approx(loss, rel=1e-5)
        assert metrics["accuracy"][0] == pytest.approx(accuracy)
        assert {name: (value.dtype, value.shape) for name, value in metrics.items()} == {
            name: (np.float32, (1,)) for name in ("learning_rate", *loop.metric_names)
        }
        np.testing.assert_array_equal(loop.batch_sizes, [min(20, 50 - 20 * i)])


def test_returned_rates_are_the_ones_given_and_the_optimizer_holds_the_last():
    loop = loop_again()
    np.testing.assert_array_equal(loop.run(RATES)["learning_rate"], RATES.astype(np.float32))
    assert float(loop.optimizer.learning_rate.numpy()) == np.float32(RATES[-1])
    assert loop.step == int(loop.optimizer.iterations) == loop.position == 30


def test_a_rate_of_zero_moves_no_weight_and_a_rate_moves_as_far_as_it_says():
    loop = loop_of(classifier(keras.optimizers.SGD()), batch_size=200, shuffle=False)
    start = loop.snapshot()
    loop.run([0.0])
    assert_same_weights(loop.snapshot().model, start.model, rtol=0, atol=0)
    moved = {}
    for rate in (0.001, 0.01):
        loop.restore(start)
        loop.run([rate])
        moved[rate] = loop.snapshot().model[0] - start.model[0]
    np.testing.assert_allclose(moved[0.01], 10 * moved[0.001], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("num_examples", "batch_size"), [(12, 1), (12, 4), (13, 5), (7, 7), (9, 8)])
def test_every_batch_is_the_next_of_the_seeded_order_and_the_last_one_is_short(num_examples, batch_size):
    loop = loop_that_shows_its_batches(num_examples, batch_size, seed=11)
    assert loop.steps_per_epoch == int(np.ceil(num_examples / batch_size))
    losses = loop.run(np.full(3 * loop.steps_per_epoch, 0.01))["loss"]
    starts = range(0, num_examples, batch_size)
    batches = [epoch_order(num_examples, 11, epoch)[i : i + batch_size] for epoch in range(3) for i in starts]
    np.testing.assert_allclose(losses, [batch.mean() for batch in batches], rtol=1e-6)
    np.testing.assert_array_equal(loop.batch_sizes, [len(batch) for batch in batches])


def test_a_seed_that_is_set_between_runs_makes_the_order_from_then_on():
    loop = loop_that_shows_its_batches(12, 4, seed=11)
    loop.run(np.zeros(2))
    loop.seed = 5
    losses = loop.run(np.zeros(4))["loss"]
    second = epoch_order(12, 5, 1).reshape(3, 4).mean(axis=1)
    np.testing.assert_allclose(losses, [epoch_order(12, 5, 0)[8:].mean(), *second], rtol=1e-6)


def test_without_shuffle_examples_come_as_given():
    losses = loop_that_shows_its_batches(6, 1, shuffle=False).run(np.zeros(12))["loss"]
    np.testing.assert_array_equal(losses, [0, 1, 2, 3, 4, 5] * 2)


@pytest.fixture(scope="module", params=[("resident", True), ("stream", False)], ids=["resident_xla", "stream_plain"])
def whole(request):
    """A loop with a short last batch, dropout and batch-norm; its start; and where 23 steps in one call end."""
    feed, jit_compile = request.param
    model = with_dropout_and_batch_norm()
    loop = loop_of(model, feed, num_examples=70, batch_size=16, jit_compile=jit_compile)
    start = loop.snapshot()
    metrics = loop.run(CUT_RATES)
    return loop, start, metrics, loop.weights_sha256()


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 23), max_size=8))
def test_cut_into_blocks_in_any_way_the_weights_are_the_same_to_the_bit(whole, cuts):
    loop, start, metrics, digest = whole
    loop.restore(start)
    parts, sizes = [], []
    for part in np.split(CUT_RATES, sorted(cuts)):
        parts.append(loop.run(part))
        sizes.append(loop.batch_sizes)
    assert loop.weights_sha256() == digest
    assert_same_metrics({name: np.concatenate([part[name] for part in parts]) for name in metrics}, metrics)
    np.testing.assert_array_equal(np.concatenate(sizes), ([16] * 4 + [6]) * 4 + [16] * 3)


def test_restoring_a_snapshot_repeats_the_run_with_dropout_and_batch_norm(whole):
    loop, start, metrics, digest = whole
    loop.restore(start)
    assert (loop.step, loop.position, loop.seed) == (0, 0, 0)
    assert loop.weights_sha256() != digest
    assert_same_metrics(loop.run(CUT_RATES), metrics)
    assert loop.weights_sha256() == digest


def test_what_is_run_between_a_snapshot_and_its_restoring_leaves_no_trace(whole):
    loop, start, metrics, digest = whole
    loop.restore(start)
    first = loop.run(CUT_RATES[:7])
    middle = loop.snapshot()
    loop.seed = 9
    loop.run(np.full(11, 0.5))
    loop.restore(middle)
    assert_same_metrics(first, {name: values[:7] for name, values in metrics.items()})
    assert_same_metrics(loop.run(CUT_RATES[7:]), {name: values[7:] for name, values in metrics.items()})
    assert loop.weights_sha256() == digest


def test_compiling_changes_nothing_and_leaves_nothing_to_trace():
    loop = loop_of(with_dropout_and_batch_norm(), "stream", batch_size=64)
    digest = loop.weights_sha256()
    loop.compile()
    traced = loop.num_traces
    assert (loop.weights_sha256(), loop.step, loop.input_wait_seconds) == (digest, 0, 0.0)
    loop.run([0.01] * 5)
    assert loop.num_traces == traced > 0


# A second process, so that XLA can be told to write down each program that it compiles: compiling anew without a trace
# leaves more files. The last lines show that it would.
PROGRAMS = """
import json, sys
from pathlib import Path
import numpy as np, tensorflow as tf
from helpers.small import loop_of

dumps = Path(sys.argv[1])
count = lambda: len(list(dumps.iterdir()))
for feed in ("resident", "stream"):
    loop = loop_of(feed=feed, batch_size=64, jit_compile=True)
    loop.compile()
    counts, traces = [count()], [loop.num_traces]
    for n in (1, 2, 3, 5, 8, 13, 21, 0, 1, 1):
        loop.run(np.random.default_rng(n).random(n) * 0.01)
    counts.append(count())
    traces.append(loop.num_traces)
    tf.function(lambda x: x + 1, jit_compile=True)(tf.zeros(()))
    counts.append(count())
    print(json.dumps([counts, traces, loop.step]))
"""


def test_nothing_is_compiled_again_whatever_the_rates_their_number_and_the_place_in_the_epoch(tmp_path):
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    for said in run_code(PROGRAMS, tmp_path, XLA_FLAGS=flags).splitlines():
        (begun, ended, more), traces, step = json.loads(said)
        assert 0 < begun == ended < more
        assert traces == [2, 2]  # The short last batch has a program of its own.
        assert step == 55


@pytest.fixture(scope="module")
def trained():
    """A loop with moving averages after some steps, its loss and accuracy by Keras, and its digest."""
    loop = loop_of(with_dropout_and_batch_norm())
    loop.run(RATES)
    loss, accuracy = loss_and_accuracy(loop.model, FEATURES, LABELS)  # In inference mode.
    return loop, {"loss": pytest.approx(loss, rel=1e-5), "accuracy": pytest.approx(accuracy)}, loop.weights_sha256()


@pytest.mark.parametrize("batch_size", [1, 64, 1000])
def test_evaluation_is_the_mean_over_all_examples_uses_moving_averages_and_changes_nothing(trained, batch_size):
    loop, expected, digest = trained
    result = loop.evaluate(FEATURES, LABELS, batch_size=batch_size)
    assert result == expected
    assert loop.evaluate(tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).batch(batch_size)) == result
    assert loop.weights_sha256() == digest


def test_a_loop_that_has_not_trained_scores_outputs_as_it_evaluates_them():
    loop = loop_of()
    outputs = loop.model.predict(FEATURES, verbose=0)
    assert loop_of().score(outputs, LABELS) == pytest.approx(loop.evaluate(FEATURES, LABELS), rel=1e-6)


def test_evaluation_between_two_runs_does_not_touch_the_metrics_of_the_steps():
    expected = loop_again().run(RATES)
    evaluated = loop_again()
    first = evaluated.run(RATES[:10])
    evaluated.evaluate(FEATURES, LABELS)
    second = evaluated.run(RATES[10:])
    assert_same_metrics({name: np.concatenate([first[name], second[name]]) for name in first}, expected)


@pytest.mark.parametrize("name", ["Adamax", "Adagrad", "Adadelta", "Ftrl"])
def test_optimizers_that_no_other_test_has_train_as_keras_does_eagerly(name):
    loop, model = loop_of(classifier(getattr(keras.optimizers, name)()), shuffle=False), classifier()
    model.compile(getattr(keras.optimizers, name)(), model.loss)
    loop.run([0.01, 0.02, 0.03])
    for i, rate in enumerate([0.01, 0.02, 0.03]):
        part = slice(50 * i, 50 * i + 50)
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=LABELS[part], y_pred=model(FEATURES[part], training=True))
        model.optimizer.learning_rate = rate
        model.optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    assert_same_weights(loop.model, model, rtol=1e-4, atol=1e-6)


def test_a_step_that_is_not_counted_is_noticed():
    class Forgetful(keras.optimizers.SGD):
        def apply_gradients(self, grads_and_vars, **arguments):
            super().apply_gradients(grads_and_vars, **arguments)
            self.iterations.assign_sub(1)

    loop = loop_of(classifier(Forgetful()))
    with pytest.raises(RuntimeError, match="counted 0 iterations for 2 steps"):
        loop.run([0.1, 0.1])


def test_a_second_thread_in_the_same_loop_is_refused_before_it_changes_anything():
    entered, may_go_on = threading.Event(), threading.Event()

    def slow(labels, logits):
        def wait(x):
            entered.set()
            assert may_go_on.wait(60)
            return x

        with tf.control_dependencies([tf.numpy_function(wait, [tf.zeros(())], tf.float32)]):
            return keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)

    may_go_on.set()
    loop = loop_of(classifier(loss=slow), jit_compile=False)
    loop.compile()
    may_go_on.clear()
    entered.clear()
    thread = threading.Thread(target=loop.run, args=([0.1],))
    thread.start()
    assert entered.wait(60)
    with pytest.raises(RuntimeError, match="Another thread is in this loop's run"):
        loop.run([0.1])
    may_go_on.set()
    thread.join()
    assert loop.step == 1
    loop.run([0.1])
    assert loop.step == 2


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([0.1, -0.1], "at index 1 is -0.1"),
        ([float("nan")], "at index 0 is nan"),
        ([float("inf")], "at index 0 is inf"),
        ([0.1, 1e39], r"at index 1 is 1e\+39"),  # Infinite in float32.
        (0.1, r"have shape \(\)"),
        ([[0.1]], r"have shape \(1, 1\)"),
    ],
)
def test_bad_rates_are_refused_before_a_step_is_taken(rates, message):
    loop = loop_again(seed=3)
    with pytest.raises(ValueError, match=message):
        loop.run(rates)
    assert (loop.step, loop.num_traces) == (0, 0)


def test_no_rates_is_no_step():
    loop = loop_again()
    digest = loop.weights_sha256()
    assert [values.shape for values in loop.run([]).values()] == [(0,)] * 3
    assert (loop.weights_sha256(), loop.batch_sizes.shape) == (digest, (0,))


def test_the_digest_of_the_data_tells_other_data_and_not_the_order_or_the_batch_size():
    digests = [loop_of(**changes).data_sha256() for changes in ({}, {"batch_size": 7}, {"seed": 3})]
    assert len(set(digests)) == 1
    assert loop_of(num_examples=199).data_sha256() not in digests
