"""A run of a loop, or of a model, that was trained before."""

import signal
import threading

import keras
import numpy as np
import pytest

from clr_loop.runs.fit import fit
from clr_loop.runs.models import load_run
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Triangular
from helpers.small import FEATURES, LABELS, assert_same_metrics, classifier, loop_of

SCHEDULE = Triangular(0.001, 0.01, 6)  # A cycle is three epochs of four steps.


def rates(begin, end):
    return SCHEDULE(np.arange(begin, end)).astype(np.float32)


def test_a_second_fit_goes_on_where_the_first_one_ended():
    whole, parts = loop_of(), loop_of()
    expected = fit(whole, SCHEDULE, epochs=5)
    first, second = fit(parts, SCHEDULE, epochs=2), fit(parts, SCHEDULE, epochs=3)
    assert second.weights_sha256 == expected.weights_sha256
    for name in ("learning_rate", "loss", "accuracy"):
        joined = np.concatenate([first.history[name], second.history[name]])
        np.testing.assert_array_equal(joined, expected.history[name])
    np.testing.assert_array_equal(second.history["step"], np.arange(12))  # A run counts its own steps.
    assert [record.epoch for record in second.epochs] == [1, 2, 3]
    assert parts.step == 20


def test_the_schedule_begins_anew_if_that_is_asked_for():
    loop = loop_of()
    fit(loop, SCHEDULE, epochs=2)
    result = fit(loop, SCHEDULE, epochs=2, options=RunOptions(first_step=0))
    np.testing.assert_array_equal(result.history["learning_rate"], rates(0, 8))
    assert fit(loop, SCHEDULE, epochs=1).history["learning_rate"][0] == rates(16, 17)[0]
    with pytest.raises(ValueError, match="first_step is -1"):
        RunOptions(first_step=-1)


def test_the_line_before_training_says_where_the_schedule_goes_on(capsys):
    loop = loop_of()
    fit(loop, SCHEDULE, epochs=1, verbose=2)
    assert "goes on at step" not in capsys.readouterr().out
    fit(loop, SCHEDULE, epochs=1, verbose=2)
    assert "the schedule goes on at step 4 (RunOptions(first_step=0) begins it again)" in capsys.readouterr().out


def test_a_model_that_keras_trained_or_saved_is_trained_on_from_step_0_of_the_schedule(tmp_path):
    model = classifier()
    model.fit(FEATURES, LABELS, batch_size=50, epochs=2, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 8
    model.save(tmp_path / "model.keras")
    ends = []
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        result = fit(loop_of(each), SCHEDULE, epochs=2)
        np.testing.assert_array_equal(result.history["learning_rate"], rates(0, 8))
        assert int(each.optimizer.iterations.numpy()) == 16
        ends.append(result)
    assert_same_metrics(ends[0].history, ends[1].history)


def test_training_by_keras_between_two_runs_of_a_loop_is_taken_as_it_is():
    loop = loop_of()
    fit(loop, SCHEDULE, epochs=1)
    loop.model.fit(FEATURES, LABELS, batch_size=50, epochs=1, verbose=0)
    fit(loop, SCHEDULE, epochs=1)
    assert (loop.step, int(loop.optimizer.iterations.numpy())) == (8, 12)


class Interrupting(keras.callbacks.Callback):
    """Is what a notebook does when a cell is interrupted: a KeyboardInterrupt somewhere in the second epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            threading.Timer(0.0, signal.raise_signal, [signal.SIGINT]).start()

    def on_train_batch_begin(self, batch, logs=None):
        if batch:
            raise KeyboardInterrupt


def test_after_an_interrupted_cell_the_loop_goes_on_from_where_it_stands():
    loop, whole = loop_of(), loop_of()
    with pytest.raises(KeyboardInterrupt):
        fit(loop, SCHEDULE, epochs=5000, callbacks=[Interrupting()])  # The signal comes after a few of them.
    done = loop.step
    assert done >= 4
    assert int(loop.optimizer.iterations.numpy()) == done
    result = fit(loop, SCHEDULE, epochs=3)
    whole.run(rates(0, done + 12))
    assert result.weights_sha256 == whole.weights_sha256()


def test_a_later_run_is_resumed_by_a_new_loop_to_the_bit_and_epochs_are_then_those_of_the_run(tmp_path):
    expected = loop_of()
    fit(expected, SCHEDULE, epochs=2)
    result = fit(expected, SCHEDULE, epochs=3, run_dir=tmp_path / "whole")
    loop = loop_of()
    fit(loop, SCHEDULE, epochs=2)
    fit(loop, SCHEDULE, epochs=1, run_dir=tmp_path / "run")
    resumed = loop_of()
    again = fit(resumed, SCHEDULE, epochs=3, run_dir=tmp_path / "run", resume=True)
    assert again.weights_sha256 == result.weights_sha256
    assert_same_metrics(again.history, result.history)
    assert resumed.step == 20
    assert load_run(tmp_path / "run").settings["first_step"] == 8
