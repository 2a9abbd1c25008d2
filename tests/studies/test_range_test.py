import csv
import dataclasses
import json
from functools import partial

import keras
import numpy as np
import pytest

from clr_loop.data import Dataset, Examples, StreamedDataset, build_model, load
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.schedules import Triangular
from clr_loop.studies import range_test
from clr_loop.studies.range_test.curves import first_divergence
from clr_loop.studies.range_test.suggestions import suggest
from helpers.small import FEATURES, LABELS, compiled

SKIPPED = "updates were skipped because they were not finite"


@pytest.fixture(scope="module")
def few():
    """The first 200 examples of MNIST."""
    mnist = load("mnist")
    return dataclasses.replace(mnist, train=Examples(mnist.train.inputs[:200], mnist.train.targets[:200]))


@pytest.fixture(scope="module")
def make_loop(few):
    """Makes a loop over the first 200 examples of MNIST, in batches of 50."""

    def make(model="relu_mlp", seed=0, batch_size=50, shuffle=True, **options):
        model = build_model(model, few, seed) if isinstance(model, str) else model
        options = StepOptions(jit_compile=False, **options)
        return TrainLoop(model, *few.train[:2], batch_size=batch_size, seed=seed, shuffle=shuffle, options=options)

    return make


@pytest.fixture(scope="module")
def loop(make_loop):
    """One compiled loop of relu_mlp, at step 0; a range test leaves no trace on it."""
    return make_loop()


def trained_and_restored(loop, rates):
    """Return what training with these rates gives, on a loop that is then put back."""
    before = loop.snapshot()
    metrics = loop.run(rates)
    loop.restore(before)
    return metrics


def classifier(layers=None, optimizer=None, metrics=("accuracy",), loss=None):
    layers = layers or [keras.layers.Dense(10, kernel_initializer="zeros")]
    pixels = [keras.Input((28, 28)), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    model = keras.Sequential([*pixels, *layers])
    loss = loss or keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(), loss, metrics=list(metrics))
    return model


def model_full_of_state(seed=0):
    """A model and optimizer with all that a step may change: moving statistics, random states, an average."""
    frozen = keras.layers.BatchNormalization(trainable=False)
    layers = [
        keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(seed=seed)),
        keras.layers.BatchNormalization(),
        frozen,
        keras.layers.Dropout(0.5, seed=seed),
        keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 1)),
    ]
    return classifier(layers, keras.optimizers.AdamW(use_ema=True, ema_overwrite_frequency=3))


def test_training_goes_on_to_the_bit_after_a_range_test_that_ends_fails_or_is_interrupted(make_loop):
    # 200 examples in batches of 30: the test begins within an epoch and goes over short last batches.
    rates = np.linspace(0.001, 0.01, 30)
    loop = make_loop(model_full_of_state(), batch_size=30)
    loop.run(rates[:4])
    before, snapshot, changed = loop.weights_sha256(), loop.snapshot(), []
    loop.run(rates)
    expected = loop.weights_sha256()
    loop.restore(snapshot)

    def on_block(error, steps_done, metrics):
        changed.append(loop.weights_sha256() != before)
        if error is not None and steps_done >= 10:
            raise error

    assert len(range_test.run(loop, num_steps=40, early_stop=None, on_block=partial(on_block, None)).curve.loss) == 40
    for error in (RuntimeError("from the callback"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            range_test.run(loop, num_steps=40, on_block=partial(on_block, error))
    assert all(changed)
    assert (loop.weights_sha256(), loop.step) == (before, 4)
    loop.run(rates)
    assert loop.weights_sha256() == expected


def test_seeds_leave_no_trace_share_one_trace_and_equal_loops_of_their_own(make_loop, few):
    loop, make_model = make_loop(), partial(build_model, "relu_mlp", few)
    before = loop.weights_sha256()

    def interrupt(steps_done, metrics):
        raise KeyboardInterrupt

    tests = range_test.run_seeds(loop, make_model, [0, 5], num_steps=60, early_stop=None)
    with pytest.raises(KeyboardInterrupt):
        range_test.run_seeds(loop, make_model, [5], on_block=interrupt)
    assert (loop.weights_sha256(), loop.seed, loop.num_traces) == (before, 0, 1)
    alone = range_test.run(make_loop(seed=5), num_steps=60, early_stop=None)
    np.testing.assert_array_equal(tests[1].curve.loss, alone.curve.loss)
    assert tests[1].settings == alone.settings
    np.testing.assert_array_equal(tests[0].curve.loss, trained_and_restored(loop, np.geomspace(1e-7, 10, 60))["loss"])
    assert not np.array_equal(tests[0].curve.loss, tests[1].curve.loss)


def test_no_file_is_made(loop, tmp_path, monkeypatch):
    for name in ("TMPDIR", "TEMP", "TMP", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    range_test.run(loop, num_steps=20)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("sweep", "start_lr", "expected"),
    [
        ("exponential", 1e-6, np.geomspace(1e-6, 0.1, 50)),
        ("linear", 1e-6, np.linspace(1e-6, 0.1, 50)),
        ("linear", 0.0, np.linspace(0.0, 0.1, 50)),
    ],
)
def test_the_rates_are_the_requested_ones_and_the_curve_is_what_training_with_them_gives(
    loop, sweep, start_lr, expected
):
    assert loop.steps_per_epoch == 4  # Fewer batches than steps are enough.
    result = range_test.run(loop, start_lr, 0.1, num_steps=50, sweep=sweep, early_stop=None)
    np.testing.assert_array_equal(result.curve.learning_rate, expected.astype(np.float32))
    metrics = trained_and_restored(loop, expected)
    np.testing.assert_array_equal(result.curve.loss, metrics["loss"])
    np.testing.assert_array_equal(result.curve.score, metrics["accuracy"])
    assert result.stop_reason == "finished: all 50 steps, up to learning rate 0.1"


def test_divergence_cuts_at_its_own_step_whatever_the_blocks(loop, monkeypatch):
    arguments = {"start_lr": 1e-4, "end_lr": 100.0, "num_steps": 200}
    whole = range_test.run(loop, early_stop=None, **arguments).curve
    assert len(whole.loss) == 200
    step = first_divergence(whole.loss, whole.time_constant, 4.0)
    assert step is not None
    for block_steps in (loop.block_steps, 1):
        monkeypatch.setattr(loop, "block_steps", block_steps)
        result = range_test.run(loop, **arguments)
        np.testing.assert_array_equal(result.curve.loss, whole.loss[: step + 1])
        assert result.stop_reason == (
            f"divergence: the smoothed loss went above 4 times its best at step {step} with learning rate "
            f"{whole.learning_rate[step]:.3g}"
        )
        assert suggest([result.curve]) == suggest([whole])


def test_a_sweep_of_rates_too_low_says_so_last_and_has_no_bounds(loop):
    for rates, reason in (((1e-9, 1e-8, 50), "the curve is flat"), ((1e-7, 1e-4, 600), "the loss does not rise again")):
        test = range_test.run(loop, *rates)
        assert range_test.text([test], epochs=15).splitlines()[-1].startswith(f"no suggestion: {reason}")
        with pytest.raises(range_test.NoSuggestionError, match="raise end_lr"):
            range_test.suggested_bounds([test], epochs=15)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start_lr": 0.0}, ValueError, "start_lr is 0; no factor leads to or from 0"),
        ({"start_lr": -1.0, "sweep": "linear"}, ValueError, "start_lr is -1.0; a learning rate must be finite, at"),
        ({"start_lr": float("nan")}, ValueError, "start_lr is nan; a learning rate must be finite"),
        ({"start_lr": "low"}, TypeError, "start_lr is 'low'; it must be a number"),
        ({"end_lr": float("inf")}, ValueError, "end_lr is inf; a learning rate must be finite"),
        ({"start_lr": 1.0, "end_lr": 0.1}, ValueError, "end_lr 0.1 is not above start_lr 1; swap the two"),
        ({"num_steps": 1}, ValueError, "num_steps is 1; a sweep takes at least 2"),
        ({"num_steps": 10.0}, TypeError, "num_steps is 10.0; it must be a whole number"),
        ({"sweep": "cubic"}, ValueError, "sweep is 'cubic'; it must be 'exponential' or 'linear'"),
        ({"early_stop": 1.0}, ValueError, "early_stop is 1; it is a multiple of the best loss and must be finite"),
        ({"early_stop": float("nan")}, ValueError, "early_stop is nan; it is a multiple of the best loss"),
        ({"early_stop": True}, TypeError, "early_stop is True; it must be a number or None"),
    ],
)
def test_bad_arguments_are_named_in_one_line_and_no_step_is_taken(loop, arguments, error, message):
    with pytest.raises(error) as caught:
        range_test.run(loop, on_block=lambda num_steps, metrics: pytest.fail("a step was taken"), **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seeds_and_epochs_out_of_range_are_named(loop):
    with pytest.raises(ValueError, match=r"seeds is empty; give at least one, such as range\(3\)"):
        range_test.run_seeds(loop, model_full_of_state, [])
    with pytest.raises(ValueError, match="epochs is 0; it must be at least 1"):
        range_test.suggested_bounds([range_test.run(loop, num_steps=20)], epochs=0)
    before = loop.snapshot()
    loop.run([0.001])
    with pytest.raises(ValueError, match="The loop is at step 1, but each seed starts at step 0"):
        range_test.run_seeds(loop, model_full_of_state, [0])
    loop.restore(before)


def test_the_score_is_the_first_metric_for_which_higher_is_better(make_loop):
    metrics = [
        keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="entropy"),
        keras.metrics.SparseTopKCategoricalAccuracy(5, name="top_5"),
        "accuracy",
    ]
    loop = make_loop(classifier(metrics=metrics))
    test = range_test.run(loop, 1e-5, 1.0, 60)
    assert test.curve.measure == "top_5"
    expected = trained_and_restored(loop, test.curve.learning_rate)["top_5"]
    np.testing.assert_array_equal(test.curve.score, expected)
    assert list(test.columns()) == ["learning_rate", "loss", "smoothed_loss", "top_5", "smoothed_top_5"]


def regression(loss="mse"):
    """A loop that fits a line with gradient descent: it learns from rates of 0.001 on, and diverges at about 1."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2000, 8)).astype(np.float32)
    targets = inputs @ np.ones((8, 1), np.float32) + rng.normal(0.0, 0.5, (2000, 1)).astype(np.float32)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(), loss, metrics=["mae"])
    return TrainLoop(model, inputs, targets, batch_size=50, options=StepOptions(jit_compile=False))


@pytest.fixture(scope="module")
def regression_test():
    return range_test.run(regression(), 1e-6, 10.0, 1000)


def test_a_regression_gets_its_pair_from_the_loss_alone(regression_test, tmp_path):
    test = regression_test
    assert test.curve.measure == "loss"
    np.testing.assert_array_equal(test.curve.score, -test.curve.loss)
    bounds = range_test.suggested_bounds([test], epochs=2)
    assert 1e-4 < bounds.base_lr < 0.01 < bounds.max_lr < 1.0
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


def test_a_loss_below_zero_is_read_like_any_other(regression_test):
    def shifted(targets, outputs):
        return keras.losses.mean_squared_error(targets, outputs) - 100.0

    test = range_test.run(regression(shifted), 1e-6, 10.0, 1000)
    reason = "divergence: the smoothed loss went above 4 times its best at step "
    assert regression_test.stop_reason.startswith(reason)
    assert test.stop_reason.startswith("divergence: the smoothed loss rose by 3 times what it had fallen at step ")
    assert len(regression_test.curve.loss) <= len(test.curve.loss) < 1000
    bounds, expected = (range_test.suggested_bounds([each], epochs=2) for each in (test, regression_test))
    assert bounds.base_lr == pytest.approx(expected.base_lr, rel=0.3)
    assert bounds.max_lr == pytest.approx(expected.max_lr, rel=0.3)


def crossentropy_that_is_nan(where):
    """A loss that is NaN where `where(labels, values)` holds."""

    def loss(labels, logits):
        values = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return keras.ops.where(where(labels, values), np.nan, values)

    return loss


@pytest.mark.parametrize("skip_non_finite", [False, True])
def test_a_sweep_that_is_not_finite_from_some_rate_on_ends_there_and_says_so(make_loop, skip_non_finite):
    loss = crossentropy_that_is_nan(lambda labels, values: keras.ops.mean(values) < 1.5)
    loop = make_loop(classifier(loss=loss), skip_non_finite=skip_non_finite)
    before = loop.weights_sha256()
    test = range_test.run(loop, 1e-4, 1.0, 100)
    step = len(test.curve.loss) - 1
    assert np.isnan(test.curve.loss).tolist() == [False] * step + [True]
    rates = np.geomspace(1e-4, 1.0, 100).astype(np.float32)
    np.testing.assert_array_equal(test.curve.learning_rate, rates[: step + 1])
    if skip_non_finite:
        reason = f"non-finite updates: none was taken from learning rate {rates[step]:.3g} on; "
        assert test.stop_reason.startswith(reason)
        assert test.stop_reason.endswith(SKIPPED)
    else:
        assert test.stop_reason == f"non-finite loss: nan at step {step} with learning rate {rates[step]:.3g}"
        assert len(range_test.run(loop, 1e-4, 1.0, 100, early_stop=None).curve.loss) == 100
    assert (loop.weights_sha256(), loop.num_skipped) == (before, 0)


def test_updates_that_are_skipped_now_and_then_leave_no_rate_out(make_loop, few):
    # The third batch of each epoch has a NaN in its loss, by the label of its first example.
    loss = crossentropy_that_is_nan(lambda labels, values: keras.ops.equal(labels[0], few.train.targets[80]))
    loop = make_loop(classifier(loss=loss), batch_size=40, shuffle=False, skip_non_finite=True)
    test = range_test.run(loop, 1e-6, 1e-3, 30, early_stop=None)
    used = test.curve.learning_rate.astype(np.float32)
    assert set(used) <= set(np.geomspace(1e-6, 1e-3, 30).astype(np.float32))
    assert used[-1] == np.float32(1e-3)
    assert np.isfinite(test.curve.loss).all()
    assert len(trained_and_restored(loop, np.full(5, 1e-6))["loss"]) < 5
    assert test.stop_reason.startswith("finished: all 30 steps, up to learning rate 0.001; ")
    assert test.stop_reason.endswith(SKIPPED)
    assert loop.num_skipped == 0


def test_a_loss_scale_that_is_too_high_at_first_costs_updates_but_no_rate(make_loop):
    layers = [keras.layers.Dense(10, kernel_initializer="zeros", dtype="mixed_float16")]
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**24)
    loop = make_loop(classifier(layers, optimizer))
    before = loop.weights_sha256()
    test = range_test.run(loop, 1e-6, 1e-3, 40, early_stop=None)
    np.testing.assert_array_equal(test.curve.learning_rate, np.geomspace(1e-6, 1e-3, 40).astype(np.float32))
    finished, _, skipped = test.stop_reason.partition("; ")
    assert finished == "finished: all 40 steps, up to learning rate 0.001"
    number, _, words = skipped.partition(" ")
    assert 5 <= int(number) <= 20
    assert words == SKIPPED
    assert (loop.weights_sha256(), loop.num_skipped) == (before, 0)


def test_a_seed_decides_the_state_of_an_optimizer_that_copies_the_weights():
    def make_model(seed):
        return compiled(optimizer=keras.optimizers.ScheduleFreeAdamW(), seed=seed)

    def loop(seed):
        return TrainLoop(make_model(seed), FEATURES, LABELS, batch_size=50, seed=seed)

    sweep = {"start_lr": 1e-3, "end_lr": 0.1, "num_steps": 20}
    second = range_test.run_seeds(loop(0), make_model, [0, 1], **sweep)[1]
    np.testing.assert_array_equal(second.curve.loss, range_test.run(loop(1), **sweep).curve.loss)


# --- Scores of held-out examples ---


@pytest.fixture(scope="module")
def others():
    """The next 100 examples of MNIST."""
    inputs, targets, _ = load("mnist").train
    return Examples(inputs[200:300], targets[200:300])


def test_a_held_out_score_is_that_of_the_weights_before_each_step_and_leaves_no_trace(make_loop, others):
    loop = make_loop(model_full_of_state())
    before = loop.weights_sha256()
    test = range_test.run(loop, 1e-4, 0.1, num_steps=400, early_stop=None, held_out=others)
    assert (loop.weights_sha256(), loop.step, loop.num_traces) == (before, 0, 1)
    assert (test.curve.measure, test.settings["held_out"]) == ("val_accuracy", 100)
    assert test.settings["steps_per_epoch"] == 6  # Of all 300 examples in batches of 50.
    assert list(test.columns())[3:] == ["val_accuracy", "smoothed_val_accuracy"]
    alone = range_test.run(loop, 1e-4, 0.1, num_steps=400, early_stop=None)
    np.testing.assert_array_equal(test.curve.loss, alone.curve.loss)
    snapshot, by_hand = loop.snapshot(), []
    for start in range(0, 50, 5):  # Once in a time constant of 5 steps.
        by_hand.append(loop.evaluate(others)["accuracy"])
        loop.run(test.curve.learning_rate[start : start + 5])
    loop.restore(snapshot)
    np.testing.assert_array_equal(test.curve.score[:50:5], by_hand)
    between = np.linspace(by_hand[:-1], by_hand[1:], 6)[:-1].T.ravel()
    np.testing.assert_allclose(test.curve.score[:45], between, rtol=1e-12)


def test_a_regression_is_scored_by_the_loss_of_held_out_examples():
    loop = regression()
    inputs = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    test = range_test.run(loop, 1e-6, 10.0, 300, held_out=Examples(inputs, inputs @ np.ones((8, 1), np.float32)))
    assert test.curve.measure == "val_loss"
    np.testing.assert_array_equal(test.columns()["val_loss"], -test.curve.score)
    assert test.columns()["val_loss"][0] == pytest.approx(8.0, rel=0.2)
    assert "where the val_loss begins to fall" in range_test.text([test], 2)
    assert 0.001 < range_test.suggested_bounds([test], epochs=2).max_lr < 1.0


class NothingEvaluated(keras.Model):
    def test_step(self, data):
        return {"nothing": keras.ops.mean(data[0])}


def test_a_model_whose_evaluation_does_not_give_the_metric_is_scored_on_its_batches(make_loop, others):
    inputs = keras.Input((28, 28))
    outputs = keras.layers.Dense(10)(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs)))
    model = NothingEvaluated(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    test = range_test.run(make_loop(model), num_steps=40, held_out=others)
    assert (test.curve.measure, test.settings["held_out"]) == ("accuracy", 0)


def noisy(num_examples=1000):
    """Points on two sides of a line; three in ten training labels are drawn again, none of the validation's."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_examples + 2000, 20)).astype(np.float32)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).astype(np.int32)
    labels[:num_examples] ^= rng.random(num_examples) < 0.3
    of = [Examples(inputs[part], labels[part]) for part in (slice(num_examples), slice(num_examples, None))]
    return Dataset("noisy", *of, 2)


def noisy_loop(dataset):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    return TrainLoop(model, dataset.train, batch_size=50, options=StepOptions(jit_compile=False))


def test_where_labels_are_noisy_training_scores_overstep_and_held_out_scores_do_not():
    dataset = noisy()
    swept, held_out = range_test.split(dataset, batch_size=50)
    tests = {
        "training": range_test.run(noisy_loop(dataset), 1e-5, 1.0),
        "held out": range_test.run(noisy_loop(swept), 1e-5, 1.0, held_out=held_out),
    }
    found = {name: range_test.suggested_bounds([test], epochs=15) for name, test in tests.items()}
    assert found["held out"].max_lr < found["training"].max_lr / 2
    loop, accuracy = noisy_loop(dataset), {}
    for name, pair in found.items():
        before = loop.snapshot()
        loop.run(Triangular(pair.base_lr, pair.max_lr, pair.step_size)(np.arange(300)))
        accuracy[name] = loop.evaluate(dataset.validation)["accuracy"]
        loop.restore(before)
    assert accuracy["held out"] > accuracy["training"] + 0.03
    (note,) = range_test.notes([tests["training"]])
    assert note.startswith("the accuracy is that of training examples, which the sweep visited ")
    assert f"note: {note}" in range_test.text([tests["training"]], 15)
    assert range_test.notes([tests["held out"]]) == []


def test_a_sweep_of_more_than_two_epochs_holds_out_a_tenth_or_more_of_few_examples():
    dataset = noisy(4000)
    assert range_test.split(dataset, batch_size=8, num_steps=1000) == (dataset, None)
    swept, held_out = range_test.split(dataset, batch_size=8, num_steps=1001)
    assert (swept.num_examples, len(held_out.targets)) == (3600, 400)
    together = np.concatenate([swept.train.inputs, held_out.inputs])
    np.testing.assert_array_equal(np.unique(together, axis=0), np.unique(dataset.train.inputs, axis=0))
    few = noisy(300)
    swept, held_out = range_test.split(few, batch_size=50)
    assert (swept.num_examples, len(held_out.targets)) == (150, 150)


def test_what_is_too_little_to_hold_any_out_or_is_streamed_is_swept_as_it_is():
    few = noisy(60)
    assert range_test.split(few, batch_size=60) == (few, None)
    rare = dataclasses.replace(few, train=Examples(few.train.inputs, (np.arange(60) == 7).astype(np.int32)))
    assert range_test.split(rare, batch_size=10) == (rare, None)
    stream = StreamedDataset("a stream", lambda size, seed, epoch: None, 60, None, 2, (20,))
    assert range_test.split(stream, batch_size=10) == (stream, None)


@pytest.mark.parametrize(("targets", "which"), [(np.ones(60, np.int32), r" \(1\)"), (np.ones((60, 3)), "")])
def test_data_whose_targets_are_all_equal_is_refused(targets, which):
    equal = Dataset("equal", Examples(np.ones((60, 20)), targets), None, None)
    with pytest.raises(ValueError, match=f"All training targets are equal{which}, so a model learns them at any rate"):
        range_test.split(equal, batch_size=10)
