"""Snapshot ensembles, against predictions that are averaged by hand in models that Keras has loaded."""

import csv

import keras
import numpy as np
import pytest
from absl import logging

import clr_loop
from clr_loop.loop.loop import TrainLoop
from clr_loop.runs import snapshots
from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Constant, CosineRestarts
from clr_loop.studies.pictures.runs import snapshots_picture
from helpers.runs import CrashError, crash_after
from helpers.small import FEATURES, LABELS, compiled, loop_again

VALIDATION = FEATURES[120:], LABELS[120:]
SCHEDULE = CosineRestarts(0.0001, 0.05, 4)


def train(run_dir, **arguments):
    """Fifteen steps: cycles end after 4, 8 and 12."""
    loop = loop_again(num_examples=100, batch_size=20)
    options = RunOptions(snapshots=True, checkpoint_every=3)
    result = fit(loop, SCHEDULE, VALIDATION, epochs=3, run_dir=run_dir, options=options, **arguments)
    return loop.weights_sha256(), result


def rows_of(run_dir):
    with open(run_dir / "snapshots.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("snapshots") / "run"
    return directory, *train(directory)


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_each_snapshot_is_the_model_at_the_end_of_its_cycle(run):
    directory, _, _ = run
    other = loop_again(num_examples=100, batch_size=20)
    assert [path.name for path in sorted((directory / "snapshots").iterdir())] == [
        "cycle_01.keras", "cycle_02.keras", "cycle_03.keras",
    ]  # fmt: skip
    for cycle, row in enumerate(rows_of(directory), start=1):
        other.run(SCHEDULE(np.arange(other.step, 4 * cycle)))
        model = keras.models.load_model(directory / "snapshots" / f"cycle_{cycle:02d}.keras")
        for ours, theirs in zip(model.get_weights(), other.model.get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert (row["cycle"], row["loss"]) == (cycle, pytest.approx(other.evaluate(*VALIDATION)["loss"], rel=1e-6))


def test_an_ensemble_is_the_mean_of_the_last_ones_probabilities(run):
    directory, _, _ = run
    paths = sorted((directory / "snapshots").iterdir())
    shares = [softmax(keras.models.load_model(path).predict(VALIDATION[0], verbose=0)) for path in paths]
    for i, row in enumerate(rows_of(directory)):
        mean = np.mean(shares[i:], axis=0)
        assert row["ensemble_of"] == len(shares) - i
        assert row["ensemble_accuracy"] == pytest.approx((mean.argmax(axis=1) == VALIDATION[1]).mean())
        likelihoods = mean[np.arange(len(mean)), VALIDATION[1]]
        assert row["ensemble_loss"] == pytest.approx(-np.log(likelihoods).mean(), rel=1e-5)
        np.testing.assert_allclose(clr_loop.ensemble(paths[i:]).predict(VALIDATION[0]), mean, rtol=1e-5, atol=1e-6)


def test_the_run_is_the_same_without_and_the_loop_ends_where_it_did(run):
    _, digest, result = run
    assert digest == result.weights_sha256
    plain = fit(loop_again(num_examples=100, batch_size=20), SCHEDULE, VALIDATION, epochs=3)
    assert result.weights_sha256 == plain.weights_sha256


def test_after_a_kill_they_are_the_same(run, tmp_path):
    for position in (5, 9):
        with pytest.raises(CrashError):
            train(tmp_path / "run", callbacks=[crash_after(position)], resume=position > 5)
    train(tmp_path / "run", resume=True)
    assert rows_of(tmp_path / "run") == rows_of(run[0])


def test_one_logit_is_averaged_as_a_probability(tmp_path):
    keras.utils.set_random_seed(0)
    models = []
    for i in range(2):
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
        model.save(tmp_path / f"{i}.keras")
        models.append(model)
    expected = np.mean([1 / (1 + np.exp(-model.predict(FEATURES, verbose=0))) for model in models], axis=0)
    found = clr_loop.ensemble([tmp_path / "0.keras", tmp_path / "1.keras"]).predict(FEATURES)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "units", "probabilities"),
    [
        (keras.losses.BinaryFocalCrossentropy(from_logits=True), 1, lambda logits: 1 / (1 + np.exp(-logits))),
        (keras.losses.CategoricalFocalCrossentropy(from_logits=True), 5, lambda logits: softmax(logits)),
    ],
)
def test_logits_of_any_of_keras_losses_are_averaged_as_probabilities(tmp_path, loss, units, probabilities):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(units)])
    model.compile("adam", loss)
    model.save(tmp_path / "0.keras")
    averaged = clr_loop.ensemble([tmp_path / "0.keras"] * 2).predict(FEATURES)
    np.testing.assert_allclose(averaged, probabilities(model.predict(FEATURES, verbose=0)), rtol=1e-5)


def test_logits_of_an_unknown_loss_or_of_several_are_not_averaged(tmp_path):
    model = compiled()
    model.compile("sgd", [keras.losses.BinaryCrossentropy(from_logits=True), keras.losses.MeanSquaredError()])
    with pytest.raises(ValueError, match="takes logits, and how they become probabilities is not known here"):
        snapshots.Ensemble([model]).predict(FEATURES)


def masked():
    hidden = [keras.Input((7,), dtype="int32"), keras.layers.Embedding(20, 4, mask_zero=True)]
    return keras.Sequential([*hidden, keras.layers.Dense(3)])


def with_a_loss_of_its_own():
    return keras.Sequential(
        [keras.Input((7,)), keras.layers.Dense(3, activity_regularizer="l2"), keras.layers.Dense(3)]
    )


@pytest.mark.parametrize("build", [masked, with_a_loss_of_its_own])
def test_a_loss_of_more_than_outputs_and_targets_is_refused_before_training(build, tmp_path):
    keras.utils.set_random_seed(0)
    ids = np.random.default_rng(0).integers(0, 20, (40, 7)).astype("int32")
    targets = ids % 3 if build is masked else ids[:, 0] % 3
    model = build()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    loop = TrainLoop(model, ids, targets, batch_size=10)
    with pytest.raises(ValueError, match="such as a mask or a loss that a layer adds; leave snapshots out"):
        fit(loop, SCHEDULE, (ids, targets), epochs=3, run_dir=tmp_path / "run", options=RunOptions(snapshots=True))
    assert not (tmp_path / "run").exists()


def test_several_outputs_have_no_ensemble_and_that_is_told_before_training(tmp_path):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)])
    model.compile("sgd", "mse")
    targets = (FEATURES[:, :1], FEATURES[:, 1:2])
    loop = TrainLoop(model, FEATURES, targets, batch_size=20)
    with pytest.raises(ValueError, match="several outputs, and ensembles of snapshots average one"):
        fit(loop, SCHEDULE, (FEATURES, targets), epochs=3, run_dir=tmp_path / "r", options=RunOptions(snapshots=True))


def test_a_run_that_is_stopped_in_its_first_cycle_has_no_table_of_snapshots(tmp_path):
    loop = loop_again(num_examples=100, batch_size=50)
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: setattr(loop.model, "stop_training", True))
    options = RunOptions(snapshots=True)
    fit(loop, SCHEDULE, VALIDATION, epochs=4, run_dir=tmp_path / "run", options=options, callbacks=[stop])
    assert not (tmp_path / "run" / "snapshots.csv").exists()


def test_a_snapshot_that_is_gone_is_left_out_with_a_warning(tmp_path, caplog):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(12)])
    (tmp_path / "run" / "snapshots" / "cycle_01.keras").unlink()
    with caplog.at_level(logging.WARNING, logger="absl"):
        train(tmp_path / "run", resume=True)
    assert "cycle_01.keras is gone; the ensembles leave it and those before it out" in caplog.text
    assert next(row["cycle"] for row in rows_of(tmp_path / "run")) == 2


def test_a_regression_is_averaged_as_it_is(tmp_path):
    model = compiled(loss="mse")
    model.save(tmp_path / "0.keras")
    found = clr_loop.ensemble([tmp_path / "0.keras"] * 2).predict(FEATURES)
    np.testing.assert_allclose(found, model.predict(FEATURES, verbose=0), rtol=1e-6)


def test_the_picture_has_a_panel_for_each_metric(run):
    settings = {"dataset": "made up", "batch_size": 10, "seed": 3}
    figure = snapshots_picture(rows_of(run[0]), settings).together()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]


def test_what_cannot_be_kept_is_told_before_training(tmp_path):
    options = RunOptions(snapshots=True)
    with pytest.raises(ValueError, match="No cycle of the schedule ends in the 12 steps"):
        fit(loop_again(), Constant(0.1), VALIDATION, epochs=3, run_dir=tmp_path / "a", options=options)
    with pytest.raises(ValueError, match="snapshots need a run_dir to be kept in"):
        fit(loop_again(), SCHEDULE, VALIDATION, epochs=3, options=options)
    with pytest.raises(ValueError, match="There is no file nowhere; give paths"):
        clr_loop.ensemble(["nowhere"])
    with pytest.raises(ValueError, match="An ensemble needs at least one model"):
        clr_loop.ensemble([])
