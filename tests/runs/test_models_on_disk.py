"""What a run leaves to take away: models that Keras opens, the best of all epochs, and runs that are read back."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import clr_loop
from clr_loop.loop.loop import TrainLoop
from clr_loop.runs import models
from clr_loop.runs.checkpoints import CheckpointError
from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Constant, Triangular
from helpers.runs import CrashError, crash_after
from helpers.small import FEATURES, LABELS, classifier, loop_again, with_dropout_and_batch_norm

VALIDATION, TEST = (FEATURES[120:160], LABELS[120:160]), (FEATURES[160:], LABELS[160:])
SCHEDULE = Triangular(0.001, 0.3, 6)  # So high that the best epoch is not the last.

OPEN = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np
data = np.load("data.npz")
for name in ("final", "best"):
    model = keras.models.load_model(f"run/{name}.keras")
    print(json.dumps([model.evaluate(data["x"], data["y"], verbose=0), type(model.optimizer).__name__]))
assert "clr_loop" not in sys.modules
"""


def train(run_dir, epochs=4, callbacks=(), resume=False, **options):
    loop = loop_again(with_dropout_and_batch_norm, num_examples=120, batch_size=30)
    result = fit(loop, SCHEDULE, VALIDATION, epochs=epochs, test=TEST, run_dir=run_dir, callbacks=callbacks,
                 resume=resume, options=RunOptions(**options))  # fmt: skip
    return loop, result


def best_epoch(result):
    return max(result.epochs, key=lambda record: record.metrics["val_accuracy"])


def test_after_a_kill_and_resuming_the_models_open_in_a_python_without_this_package(tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(9)])
    assert not list((tmp_path / "run").glob("*.keras"))
    _, result = train(tmp_path / "run", resume=True)
    whole_loop, whole = train(tmp_path / "whole")
    assert result.weights_sha256 == whole.weights_sha256 == whole_loop.weights_sha256()
    assert result.test == whole.test
    np.savez(tmp_path / "data.npz", x=VALIDATION[0], y=VALIDATION[1])
    expected = [result.epochs[-1], best_epoch(result)]
    assert expected[0] is not expected[1]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", OPEN], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    for record, line in zip(expected, done.stdout.splitlines(), strict=True):
        (loss, accuracy), optimizer = json.loads(line)
        assert (loss, accuracy) == pytest.approx(
            (record.metrics["val_loss"], record.metrics["val_accuracy"]), rel=1e-6, abs=1e-6
        )
        assert optimizer == "Adam"


def test_the_test_examples_are_looked_at_once_at_the_end_by_both_models(tmp_path):
    loop, result = train(tmp_path / "run")
    assert result.test["final"] == loop.evaluate(*TEST)
    best = clr_loop.load_run(tmp_path / "run").model("best")
    found = best.evaluate(*TEST, verbose=0, return_dict=True)
    assert result.test["best"] == pytest.approx(found, rel=1e-5)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"] == result.test
    assert not any(name.startswith("test") for name in result.final)


def test_the_models_change_nothing_in_the_run(tmp_path):
    _, with_models = train(tmp_path / "with")
    _, without = train(tmp_path / "without", save_models=False)
    assert with_models.weights_sha256 == without.weights_sha256
    assert not list((tmp_path / "without").glob("*.keras"))


def test_more_epochs_replace_the_models(tmp_path):
    train(tmp_path / "run", epochs=2)
    before = (tmp_path / "run" / "final.keras").read_bytes()
    _, result = train(tmp_path / "run", epochs=4, resume=True)
    assert (tmp_path / "run" / "final.keras").read_bytes() != before
    final = clr_loop.load_run(tmp_path / "run").model()
    assert final.evaluate(*VALIDATION, verbose=0)[0] == pytest.approx(result.final["val_loss"], rel=1e-5)


def test_restore_best_ends_with_the_best_epochs_weights(tmp_path):
    loop, result = train(tmp_path / "run", restore_best=True)
    best = best_epoch(result)
    assert loop.evaluate(*VALIDATION)["loss"] == pytest.approx(best.metrics["val_loss"], rel=1e-6)
    assert result.test["final"] == result.test["best"]
    again, _ = train(tmp_path / "run", restore_best=True, resume=True)
    assert again.weights_sha256() == result.weights_sha256


def test_monitor_decides_which_epoch_is_the_best(tmp_path):
    _, result = train(tmp_path / "run", monitor="loss")
    best = clr_loop.load_run(tmp_path / "run").model("best").evaluate(*VALIDATION, verbose=0)[0]
    lowest = min(result.epochs, key=lambda record: record.metrics["loss"])
    assert best == pytest.approx(lowest.metrics["val_loss"], rel=1e-5)


def test_a_run_is_read_back_finished_or_not(tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(9)])
    broken = clr_loop.load_run(tmp_path / "run")
    assert broken.result is None
    assert len(broken.epochs) == 2
    with pytest.raises(ValueError, match=r"final\.keras; the models there are: none"):
        broken.model()
    _, result = train(tmp_path / "run", resume=True)
    saved = clr_loop.load_run(tmp_path / "run")
    assert saved.result.weights_sha256 == result.weights_sha256
    assert saved.settings["batch_size"] == 30
    np.testing.assert_array_equal(saved.history["loss"], result.history["loss"])
    with pytest.raises(ValueError, match=r"holds no run; it has no config\.json"):
        clr_loop.load_run(tmp_path)


def test_a_checkpoint_is_read_for_inference_without_the_data(tmp_path):
    _, result = train(tmp_path / "run")
    saved = clr_loop.load_run(tmp_path / "run")
    model = with_dropout_and_batch_norm(seed=9)
    for checkpoint in saved.checkpoints:
        saved.load_weights(model, checkpoint.step)
        loss = model.evaluate(*VALIDATION, verbose=0)[0]
        record = next(record for record in result.epochs if record.step + 1 == checkpoint.step)
        assert loss == pytest.approx(record.metrics["val_loss"], rel=1e-5)
    with pytest.raises(CheckpointError, match="holds no checkpoint of step 3; choose one of: "):
        saved.load_weights(model, 3)
    with pytest.raises(CheckpointError, match="variables of the model in place of"):
        saved.load_weights(classifier())


class Doubling(keras.layers.Layer):
    """A layer that Keras cannot describe."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def call(self, inputs):
        return self.how(inputs)


def test_a_model_that_cannot_be_saved_whole_leaves_its_weights_and_says_so(tmp_path):
    model = keras.Sequential([keras.Input((6,)), Doubling(lambda x: 2 * x), keras.layers.Dense(5)])
    with pytest.warns(UserWarning, match=r"the model cannot be saved whole .* so final\.weights\.h5 has its weights"):
        assert models.save_model(model, tmp_path / "final").name == "final.weights.h5"
    assert [path.name for path in tmp_path.iterdir()] == ["final.weights.h5"]
    other = keras.Sequential([keras.Input((6,)), Doubling(lambda x: 2 * x), keras.layers.Dense(5)])
    models.load_weights(other, tmp_path / "final.weights.h5")
    for ours, theirs in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("optimizer", ["adam", "lion", "mixed"])
def test_a_model_with_a_frozen_layer_opens_with_the_state_of_its_optimizer(tmp_path, optimizer, recwarn):
    model = with_dropout_and_batch_norm()
    model.layers[0].trainable = False
    made = keras.optimizers.get("adam" if optimizer == "mixed" else optimizer)
    model.compile(keras.optimizers.LossScaleOptimizer(made) if optimizer == "mixed" else made, model.loss)
    loop = TrainLoop(model, FEATURES, LABELS, batch_size=50)
    fit(loop, SCHEDULE, epochs=2, run_dir=tmp_path / "run")
    opened = keras.models.load_model(tmp_path / "run" / "final.keras")
    assert int(opened.optimizer.iterations) == 8
    frozen = tuple(variable.path.replace("/", "_") for variable in model.layers[0].variables)
    state = [variable for variable in model.optimizer.variables if not variable.path.split("/")[-1].startswith(frozen)]
    assert len(state) < len(model.optimizer.variables)
    for ours, theirs in zip(opened.optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not any("Skipping variable loading" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
def test_weights_of_a_file_begin_a_model(tmp_path, suffix):
    model, other = classifier(seed=1), classifier(seed=2)
    path = tmp_path / f"start{suffix}"
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    models.load_weights(other, path)
    np.testing.assert_array_equal(model.predict(FEATURES, verbose=0), other.predict(FEATURES, verbose=0))
    with pytest.raises(ValueError, match=r"are not those of sequential"):
        models.load_weights(with_dropout_and_batch_norm(), path)


def test_a_file_that_holds_no_weights_is_named(tmp_path):
    (tmp_path / "a.keras").write_text("nothing")
    for name, message in (("a.keras", "are not those of"), ("b.keras", "There is no file"), ("c.txt", "no file of w")):
        with pytest.raises(ValueError, match=message):
            models.load_weights(classifier(), tmp_path / name)


def stopped_after(monkeypatch, schedule, values, patience, epochs=12, **arguments):
    """Return after how many epochs a run stops whose validation accuracies are given."""
    loop = loop_again(num_examples=60, batch_size=30)
    remaining = iter(values)
    monkeypatch.setattr(loop, "evaluate", lambda *batch, **named: {"loss": 1.0, "accuracy": next(remaining)})
    monkeypatch.setattr(loop, "evaluate", _after_the_first(loop.evaluate))
    options = RunOptions(patience=patience)
    return len(fit(loop, schedule, VALIDATION, epochs=epochs, options=options, **arguments).epochs)


def _after_the_first(evaluate):
    """The first evaluation tries the validation data out."""
    calls = []

    def evaluated(*batch, **named):
        calls.append(batch)
        return {"loss": 1.0, "accuracy": 0.0} if len(calls) == 1 else evaluate(*batch, **named)

    return evaluated


def test_patience_counts_epochs_without_a_better_one(monkeypatch):
    values = [0.1, 0.3, 0.2, 0.3, 0.1, 0.9] + [0.0] * 10
    assert stopped_after(monkeypatch, Constant(0.01), values, patience=3) == 5
    assert stopped_after(monkeypatch, Constant(0.01), values, patience=4) == 10
    assert stopped_after(monkeypatch, Constant(0.01), [0.1] * 20, patience=20) == 12


def test_with_cycles_only_their_ends_count(monkeypatch):
    # Epochs of two steps; a cycle of six steps ends with every third epoch: 0.5, 0.6, 0.6, 0.55.
    values = [0.9, 0.1, 0.5, 0.1, 0.1, 0.6, 0.1, 0.1, 0.6, 0.1, 0.1, 0.55]
    assert stopped_after(monkeypatch, Triangular(0.001, 0.01, 3), values, patience=1) == 9
    assert stopped_after(monkeypatch, Triangular(0.001, 0.01, 3), values, patience=2) == 12


def test_patience_goes_on_after_a_kill(tmp_path, monkeypatch):
    values = [0.1, 0.3, 0.2, 0.2, 0.2, 0.2]
    with pytest.raises(CrashError):
        stopped_after(monkeypatch, Constant(0.01), values, 3, run_dir=tmp_path / "r", callbacks=[crash_after(7)])
    assert stopped_after(monkeypatch, Constant(0.01), values[3:], 3, run_dir=tmp_path / "r", resume=True) == 5


def test_patience_that_was_lost_is_not_found_again_by_a_kill_before_the_result(tmp_path, monkeypatch):
    values = [0.3, 0.2, 0.1, 0.4]
    assert stopped_after(monkeypatch, Constant(0.01), values, 1, run_dir=tmp_path / "r") == 2
    (tmp_path / "r" / "result.json").unlink()
    assert stopped_after(monkeypatch, Constant(0.01), values[2:], 1, run_dir=tmp_path / "r", resume=True) == 2


@pytest.mark.parametrize(
    ("options", "validation", "message"),
    [
        (
            {"monitor": "val_f1"},
            VALIDATION,
            "monitor is val_f1, which no epoch has; choose one of loss, accuracy, val_",
        ),
        ({"patience": 2}, None, "patience needs a measure of each epoch; give validation data, or a monitor"),
        ({"restore_best": True}, VALIDATION, "restore_best takes the weights from a checkpoint; give run_dir"),
    ],
)
def test_what_cannot_be_chosen_by_is_told_before_training(options, validation, message):
    with pytest.raises(ValueError, match=message):
        fit(loop_again(), SCHEDULE, validation, epochs=1, options=RunOptions(**options))


class LogsItsOwn(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(5)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        return {"own_loss": super().train_step(data)["loss"]}


def test_an_epoch_of_a_model_with_a_train_step_is_rated_by_what_its_evaluation_gives(tmp_path):
    model = LogsItsOwn()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    loop = TrainLoop(model, FEATURES, LABELS, batch_size=50)
    with pytest.raises(
        ValueError, match="monitor is val_own_loss, which no epoch has; choose one of own_loss, val_loss"
    ):
        fit(loop, SCHEDULE, VALIDATION, epochs=1, options=RunOptions(monitor="val_own_loss"))
    result = fit(loop, SCHEDULE, VALIDATION, epochs=2, options=RunOptions(monitor="val_loss", patience=1))
    assert "val_loss" in result.final


def test_test_examples_that_do_not_fit_are_told_before_training(tmp_path):
    with pytest.raises(ValueError, match="inputs"):
        fit(loop_again(), SCHEDULE, VALIDATION, epochs=1, test=(TEST[0][:, :3], TEST[1]), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_patience_is_a_whole_number_of_at_least_1():
    with pytest.raises(ValueError, match="patience is 0; it must be at least 1"):
        RunOptions(patience=0)
