import csv
import dataclasses
import json
from functools import partial

import keras
import numpy as np
import pytest

from clr_loop.data import Examples, build_model, load
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.studies.range_test import sweep as range_test
from clr_loop.studies.range_test.smoothing import first_divergence
from clr_loop.studies.range_test.suggestions import NoSuggestionError, suggest


@pytest.fixture(scope="module")
def few():
    """The first 200 examples of MNIST."""
    mnist = load("mnist")
    return dataclasses.replace(mnist, train=Examples(mnist.train.inputs[:200], mnist.train.targets[:200]))


@pytest.fixture
def make_loop(few):
    """Makes a loop over the first 200 examples of MNIST."""

    def make(model="relu_mlp", seed=0, jit_compile="auto", skip_non_finite=False, **arguments):
        model = build_model(model, few, seed) if isinstance(model, str) else model
        options = StepOptions(jit_compile=jit_compile, skip_non_finite=skip_non_finite)
        return TrainLoop(model, few.train.inputs, few.train.targets, seed=seed, options=options, **arguments)

    return make


@pytest.fixture
def rates():
    """A vector of 30 rates, no two of them equal."""
    return np.linspace(0.001, 0.01, 30)


def classifier(layers, optimizer=None, metrics=("accuracy",), loss=None):
    pixels = [keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    model = keras.Sequential([*pixels, *layers])
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(), loss, metrics=list(metrics))
    return model


def noisy_model(seed=0, **arguments):
    """A model with state beside its weights: moving statistics and the seed of a dropout."""
    layers = [
        keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(seed=seed)),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5, seed=seed),
        keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 1)),
    ]
    return classifier(layers, **arguments)


def partly_frozen_model():
    model = noisy_model()
    model.layers[1].trainable = False
    return model


def averaged_model():
    return noisy_model(optimizer=keras.optimizers.AdamW(use_ema=True, ema_overwrite_frequency=3))


def trained(train_loop, rates):
    train_loop.run(rates)
    return train_loop.weights_sha256()


@pytest.mark.parametrize("steps_before", [0, 4])
@pytest.mark.parametrize("make_model", [noisy_model, partly_frozen_model, averaged_model])
def test_training_with_and_without_a_range_test_before_it_gives_one_digest(make_loop, rates, steps_before, make_model):
    digests = []
    for tested in (False, True):
        # 200 examples in batches of 30: the test begins within an epoch and goes over short last batches.
        train_loop = make_loop(model=make_model(), batch_size=30, jit_compile=False)
        train_loop.run(rates[:steps_before])
        if tested:
            before = train_loop.weights_sha256()
            result = range_test.run(train_loop, num_steps=40, early_stop=None)
            assert len(result.curve.loss) == 40
            assert train_loop.weights_sha256() == before
            assert train_loop.step == steps_before
        digests.append(trained(train_loop, rates))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("error", [RuntimeError("from the callback"), KeyboardInterrupt()])
def test_an_exception_and_an_interrupt_leave_no_trace_either(make_loop, rates, error):
    train_loop = make_loop(model=noisy_model(), batch_size=30, jit_compile=False)
    expected = trained(train_loop, rates)
    train_loop = make_loop(model=noisy_model(), batch_size=30, jit_compile=False)
    before = train_loop.weights_sha256()
    changed = []

    def on_block(steps_done, metrics):
        changed.append(train_loop.weights_sha256() != before)
        if steps_done >= 10:
            raise error

    with pytest.raises(type(error)):
        range_test.run(train_loop, num_steps=40, on_block=on_block)
    assert all(changed)
    assert train_loop.weights_sha256() == before
    with pytest.raises(type(error)):
        range_test.run_seeds(train_loop, noisy_model, range(2), num_steps=40, on_block=on_block)
    assert train_loop.seed == 0
    assert trained(train_loop, rates) == expected


def test_seeds_leave_no_trace_share_one_trace_and_equal_loops_of_their_own(make_loop, rates, few):
    make_model = partial(build_model, "relu_mlp", few)
    train_loop = make_loop(batch_size=50)
    before = train_loop.weights_sha256()
    tests = range_test.run_seeds(train_loop, make_model, [0, 5, 2], num_steps=60, early_stop=None)
    assert train_loop.weights_sha256() == before
    train_loop.run(rates)
    assert train_loop.num_traces == 1
    for seed, test in zip([0, 5, 2], tests, strict=True):
        alone = range_test.run(make_loop(batch_size=50, seed=seed), num_steps=60, early_stop=None)
        np.testing.assert_array_equal(test.curve.loss, alone.curve.loss)
        assert test.settings == alone.settings
    assert not np.array_equal(tests[0].curve.loss, tests[1].curve.loss)


def test_no_file_is_made(make_loop, tmp_path, monkeypatch):
    for name in ("TMPDIR", "TEMP", "TMP", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    range_test.run(make_loop(batch_size=50), num_steps=20)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("sweep", "start_lr", "expected"),
    [
        ("exponential", 1e-6, np.geomspace(1e-6, 0.1, 50)),
        ("linear", 1e-6, np.linspace(1e-6, 0.1, 50)),
        ("linear", 0.0, np.linspace(0.0, 0.1, 50)),
    ],
)
def test_fewer_batches_than_points_are_enough_and_the_rates_are_those_asked_for(make_loop, sweep, start_lr, expected):
    train_loop = make_loop(batch_size=60)
    assert train_loop.steps_per_epoch == 4
    result = range_test.run(train_loop, start_lr, 0.1, num_steps=50, sweep=sweep, early_stop=None)
    np.testing.assert_array_equal(result.curve.learning_rate, expected.astype(np.float32))
    assert result.stop_reason == "finished: all 50 steps, up to learning rate 0.1"
    assert np.isfinite(result.curve.smoothed_loss[: result.curve.num_usable]).all()


def test_the_curve_is_what_training_with_these_rates_gives(make_loop):
    metrics = make_loop(batch_size=50).run(np.geomspace(1e-5, 1.0, 40))
    curve = range_test.run(make_loop(batch_size=50), 1e-5, 1.0, 40, early_stop=None).curve
    np.testing.assert_array_equal(curve.loss, metrics["loss"])
    np.testing.assert_array_equal(curve.score, metrics["accuracy"])


def test_divergence_cuts_at_its_own_step_whatever_the_blocks(make_loop):
    arguments = {"start_lr": 1e-4, "end_lr": 100.0, "num_steps": 200}
    whole = range_test.run(make_loop(batch_size=50), early_stop=None, **arguments).curve
    assert len(whole.loss) == 200
    step = first_divergence(whole.loss, whole.time_constant, 4.0)
    assert step is not None
    for block_steps in (None, 1):
        train_loop = make_loop(batch_size=50)
        train_loop.block_steps = block_steps or train_loop.block_steps
        result = range_test.run(train_loop, **arguments)
        assert len(result.curve.loss) == step + 1
        np.testing.assert_array_equal(result.curve.loss, whole.loss[: step + 1])
        assert result.stop_reason == (
            f"divergence: the smoothed loss went above 4 times its best at step {step} with learning rate "
            f"{whole.learning_rate[step]:.3g}"
        )
        assert suggest([result.curve]) == suggest([whole])


def test_a_loss_that_is_not_finite_stops_and_says_where(make_loop):
    def fragile(labels, logits):
        values = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return keras.ops.where(keras.ops.mean(values) < 1.5, np.nan, values)

    model = classifier([keras.layers.Dense(10, kernel_initializer="zeros")], loss=fragile)
    train_loop = make_loop(model, batch_size=50)
    before = train_loop.weights_sha256()
    result = range_test.run(train_loop, 1e-4, 1.0, 100)
    step = len(result.curve.loss) - 1
    assert np.isnan(result.curve.loss).tolist() == [False] * step + [True]
    rate = np.geomspace(1e-4, 1.0, 100)[step]
    assert result.stop_reason == f"non-finite loss: nan at step {step} with learning rate {rate:.3g}"
    assert train_loop.weights_sha256() == before
    assert len(range_test.run(train_loop, 1e-4, 1.0, 100, early_stop=None).curve.loss) == 100


def test_a_sweep_of_rates_too_low_says_so_last_and_has_no_bounds(make_loop):
    result = range_test.run(make_loop(batch_size=50), 1e-9, 1e-8, 50)
    assert range_test.text([result], epochs=15).splitlines()[-1].startswith("no suggestion: the curve is flat")
    with pytest.raises(NoSuggestionError, match="raise --end_lr"):
        range_test.suggested_bounds([result], epochs=15)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start_lr": 0.0}, ValueError, "start_lr is 0; no factor leads to or from 0"),
        (
            {"start_lr": -1.0, "sweep": "linear"},
            ValueError,
            "start_lr is -1.0; a learning rate must be finite, at least 0",
        ),
        ({"start_lr": float("nan")}, ValueError, "start_lr is nan; a learning rate must be finite"),
        ({"start_lr": "low"}, TypeError, "start_lr is 'low'; it must be a number"),
        ({"end_lr": float("inf")}, ValueError, "end_lr is inf; a learning rate must be finite"),
        ({"start_lr": 1.0, "end_lr": 0.1}, ValueError, "end_lr 0.1 is not above start_lr 1; swap the two"),
        ({"num_steps": 1}, ValueError, "num_steps is 1; a sweep takes at least 2"),
        ({"num_steps": 10.0}, TypeError, "num_steps is 10.0; it must be a whole number"),
        ({"sweep": "cubic"}, ValueError, "sweep is 'cubic'; it must be 'exponential' or 'linear'"),
        (
            {"early_stop": 1.0},
            ValueError,
            "early_stop is 1; it is a multiple of the best loss and must be finite and above 1",
        ),
        ({"early_stop": float("nan")}, ValueError, "early_stop is nan; it is a multiple of the best loss"),
        ({"early_stop": True}, TypeError, "early_stop is True; it must be a number or None"),
    ],
)
def test_bad_arguments_are_named_in_one_line_and_no_step_is_taken(make_loop, arguments, error, message):
    train_loop = make_loop(batch_size=50)
    with pytest.raises(error) as caught:
        range_test.run(train_loop, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert train_loop.num_traces == 0


def test_seeds_and_epochs_out_of_range_are_named(make_loop, rates):
    train_loop = make_loop(batch_size=50)
    with pytest.raises(ValueError, match=r"seeds is empty; give at least one, such as range\(3\)"):
        range_test.run_seeds(train_loop, noisy_model, [])
    result = range_test.run(train_loop, num_steps=20)
    with pytest.raises(ValueError, match="epochs is 0; it must be at least 1"):
        range_test.suggested_bounds([result], epochs=0)
    train_loop.run(rates)
    with pytest.raises(ValueError, match="The loop is at step 30, but each seed starts at step 0"):
        range_test.run_seeds(train_loop, noisy_model, [0])


def test_the_score_is_the_first_metric_of_which_more_is_better(make_loop):
    layers = [keras.layers.Dense(10, kernel_initializer="zeros")]
    metrics = [
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="entropy"),
        keras.metrics.SparseTopKCategoricalAccuracy(5, name="top_5"),
        "accuracy",
    ]
    test = range_test.run(make_loop(classifier(layers, metrics=metrics), batch_size=50), 1e-5, 1.0, 60)
    assert test.curve.measure == "top_5"
    expected = make_loop(classifier(layers, metrics=metrics), batch_size=50).run(test.curve.learning_rate)
    np.testing.assert_array_equal(test.curve.score, expected["top_5"])
    assert list(test.columns()) == ["learning_rate", "loss", "smoothed_loss", "top_5", "smoothed_top_5"]
    assert "where the top_5 begins to rise" in str(suggest([test.curve])[0])


def regression(loss="mse"):
    """A loop that fits a line with gradient descent: it learns from rates of 0.001 on, and diverges at about 1."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2000, 8)).astype(np.float32)
    targets = inputs @ np.ones((8, 1), np.float32) + rng.normal(0.0, 0.5, (2000, 1)).astype(np.float32)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(), loss, metrics=["mae"])
    return TrainLoop(model, inputs, targets, batch_size=50)


def test_a_regression_gets_its_pair_from_the_loss_alone(tmp_path):
    loop = regression()
    before = loop.weights_sha256()
    test = range_test.run(loop, 1e-6, 10.0, 1000)
    assert loop.weights_sha256() == before
    assert test.curve.measure == "loss"
    np.testing.assert_array_equal(test.curve.score, -test.curve.loss)
    found = range_test.suggested_bounds([test], epochs=2)
    assert 1e-4 < found.base_lr < 0.01 < found.max_lr < 1.0
    assert "where the loss begins to fall" in range_test.text([test], 2)
    read_back = range_test.RangeTest.from_json(json.loads(json.dumps(test.to_json())))
    assert (read_back.settings, read_back.stop_reason) == (test.settings, test.stop_reason)
    assert range_test.text([read_back], 2) == range_test.text([test], 2)
    for name, values in test.columns().items():
        np.testing.assert_array_equal(read_back.columns()[name], values, err_msg=name)

    range_test.write([test], 2, tmp_path, {"model": "a line"}, "svg")
    assert (tmp_path / "range_test.svg").is_file()
    content = json.loads((tmp_path / "range_test.json").read_text())
    assert content["measure"] == "loss"
    with open(tmp_path / "range_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["seed", "step", "learning_rate", "loss", "smoothed_loss"]
    assert [float(row["loss"]) for row in rows] == pytest.approx(test.curve.loss.tolist(), rel=1e-6)


def test_a_loss_below_zero_is_read_like_any_other():
    def shifted(targets, outputs):
        return keras.losses.mean_squared_error(targets, outputs) - 100.0

    plain, test = (range_test.run(regression(loss), 1e-6, 10.0, 1000) for loss in ("mse", shifted))
    assert plain.stop_reason.startswith("divergence: the smoothed loss went above 4 times its best at step ")
    assert test.stop_reason.startswith("divergence: the smoothed loss rose by 3 times what it had fallen at step ")
    assert len(plain.curve.loss) <= len(test.curve.loss) < 1000
    found, expected = (range_test.suggested_bounds([each], epochs=2) for each in (test, plain))
    assert found.base_lr == pytest.approx(expected.base_lr, rel=0.3)
    assert found.max_lr == pytest.approx(expected.max_lr, rel=0.3)


def finite_until(limit):
    """A loss whose gradient is not finite for rates that have moved the weights beyond a limit."""

    def loss(labels, logits):
        values = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return keras.ops.where(keras.ops.mean(values) < limit, np.nan, values)

    return loss


def test_updates_that_are_skipped_now_and_then_leave_no_rate_out(make_loop, few):
    # The third batch of each epoch has a NaN in its loss, by the label of its first example.
    def loss(labels, logits):
        values = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return keras.ops.where(keras.ops.equal(labels[0], few.train.targets[80]), np.nan, values)

    model = classifier([keras.layers.Dense(10, kernel_initializer="zeros")], loss=loss)
    loop = make_loop(model, batch_size=40, shuffle=False, skip_non_finite=True)
    test = range_test.run(loop, 1e-6, 1e-3, 30, early_stop=None)
    used = test.curve.learning_rate.astype(np.float32)
    assert set(used) <= set(np.geomspace(1e-6, 1e-3, 30).astype(np.float32))
    assert used[-1] == np.float32(1e-3)
    assert np.isfinite(test.curve.loss).all()
    expected = make_loop(
        classifier([keras.layers.Dense(10, kernel_initializer="zeros")], loss=loss),
        batch_size=40, shuffle=False, skip_non_finite=True,
    )  # fmt: skip
    assert len(expected.run(np.full(5, 1e-6))["loss"]) < 5
    words = "updates were skipped because they were not finite"
    assert test.stop_reason.startswith("finished: all 30 steps, up to learning rate 0.001; ")
    assert test.stop_reason.endswith(words)
    assert loop.num_skipped == 0


def test_a_loss_scale_that_is_too_high_at_first_costs_updates_but_no_rate(make_loop):
    layers = [keras.layers.Dense(10, kernel_initializer="zeros", dtype="mixed_float16")]
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**24)
    loop = make_loop(classifier(layers, optimizer=optimizer), batch_size=50)
    before = loop.weights_sha256()
    test = range_test.run(loop, 1e-6, 1e-3, 40, early_stop=None)
    np.testing.assert_array_equal(test.curve.learning_rate, np.geomspace(1e-6, 1e-3, 40).astype(np.float32))
    start, _, end = test.stop_reason.partition("; ")
    assert start == "finished: all 40 steps, up to learning rate 0.001"
    number, _, words = end.partition(" ")
    assert 5 <= int(number) <= 20
    assert words == "updates were skipped because they were not finite"
    assert (loop.weights_sha256(), loop.num_skipped) == (before, 0)


def test_a_sweep_whose_updates_are_all_skipped_from_some_rate_on_ends_there_and_says_so(make_loop):
    def make():
        layers = [keras.layers.Dense(10, kernel_initializer="zeros")]
        return make_loop(classifier(layers, loss=finite_until(1.5)), batch_size=50, skip_non_finite=True)

    loop = make()
    before = loop.weights_sha256()
    test = range_test.run(loop, 1e-4, 1.0, 100)
    step = len(test.curve.loss) - 1
    assert np.isnan(test.curve.loss).tolist() == [False] * step + [True]
    rates = np.geomspace(1e-4, 1.0, 100).astype(np.float32)
    np.testing.assert_array_equal(test.curve.learning_rate, rates[: step + 1])
    assert test.stop_reason.startswith(f"non-finite updates: none was taken from learning rate {rates[step]:.3g} on; ")
    assert test.stop_reason.endswith(" updates were skipped because they were not finite")
    assert (loop.weights_sha256(), loop.num_skipped) == (before, 0)


def test_a_sweep_that_ended_before_the_loss_turned_has_no_bounds(make_loop):
    test = range_test.run(make_loop(batch_size=50), 1e-7, 1e-4, 600)
    named = {suggestion.name: suggestion for suggestion in suggest([test.curve])}
    assert named["max_lr"].learning_rate is None
    assert "raise --end_lr" in named["max_lr"].reasons[0]
    assert range_test.text([test], epochs=15).splitlines()[-1].startswith("no suggestion: ")
