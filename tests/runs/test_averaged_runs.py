"""Averages in a run: at the cycles' lows, validated beside the weights, saved, and the same after a kill."""

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import clr_loop
from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import read_result
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies.comparison.identity import differences
from helpers.runs import CrashError, crash_after
from helpers.small import (
    FEATURES,
    LABELS,
    assert_same_weights,
    classifier,
    loop_again,
    loop_of,
    nan_at_two,
    with_dropout_and_batch_norm,
)

VALIDATION = FEATURES[120:160], LABELS[120:160]
SCHEDULE = Triangular(0.001, 0.1, 3)


def train(run_dir, average, epochs=4, **arguments):
    """Sixteen steps: cycles end after 6 and 12."""
    options = {name: arguments.pop(name) for name in ("average_from", "checkpoint_every") if name in arguments}
    loop = loop_again(with_dropout_and_batch_norm, num_examples=120, batch_size=30, average=average)
    return loop, fit(
        loop, SCHEDULE, VALIDATION, epochs=epochs, run_dir=run_dir, options=RunOptions(**options), **arguments
    )


@pytest.mark.parametrize(("average_from", "lows"), [(0.0, [6, 12]), (0.5, [12])])
def test_the_mean_is_that_of_the_lows(average_from, lows):
    loop, _ = train(None, "swa", average_from=average_from)
    other = loop_again(with_dropout_and_batch_norm, num_examples=120, batch_size=30)
    moments = []
    for low in lows:
        other.run(SCHEDULE(np.arange(other.step, low)))
        moments.append([variable.numpy() for variable in other.model.trainable_variables])
    expected = [np.mean(each, axis=0) for each in zip(*moments, strict=True)]
    with loop.averaged():
        assert_same_weights([variable.numpy() for variable in loop.model.trainable_variables], expected)


def test_a_low_counts_once_where_the_next_updates_are_skipped(monkeypatch):
    model = classifier(loss=nan_at_two)
    loop = loop_of(model, num_examples=60, batch_size=1, average="swa", skip_non_finite=True)
    monkeypatch.setattr(loop, "block_steps", 1)  # So that blocks are skipped whole.
    result = fit(loop, Triangular(0.001, 0.01, 1), epochs=1, options=RunOptions(average_from=0.0))
    num_steps = int((LABELS[:60] != 2).sum())
    assert len(result.history["step"]) == num_steps < 60
    assert loop.averages.count == num_steps // 2


def test_it_is_validated_beside_the_weights_and_saved(tmp_path):
    loop, result = train(tmp_path / "run", "swa", average_from=0.0)
    values = [record.metrics["averaged_val_accuracy"] for record in result.epochs]
    assert np.isnan(values[0])
    assert np.isfinite(values[1:]).all()
    with loop.averaged():
        expected = loop.evaluate(*VALIDATION)
    assert result.final["averaged_val_loss"] == pytest.approx(expected["loss"], rel=1e-6)
    saved = clr_loop.load_run(tmp_path / "run").model("averaged")
    assert saved.evaluate(*VALIDATION, verbose=0)[0] == pytest.approx(expected["loss"], rel=1e-5)
    assert np.isnan(read_result(tmp_path / "run").epochs[0].metrics["averaged_val_loss"])
    tags = EventAccumulator(str(tmp_path / "run")).Reload().Tags()["scalars"]
    names = ("loss", "accuracy", "averaged_loss", "averaged_accuracy")
    assert {f"validation/{name}" for name in names} <= set(tags)


@pytest.mark.parametrize("average", [0.9, "swa"])
def test_broken_off_and_resumed_it_is_the_same(tmp_path, average):
    options = {"checkpoint_every": 2, "average_from": 0.0}
    loop, _ = train(tmp_path / "whole", average, **options)
    expected = loop.snapshot().averages
    for position in (5, 7, 13):
        with pytest.raises(CrashError):
            train(tmp_path / "run", average, callbacks=[crash_after(position)], resume=position > 5, **options)
    train(tmp_path / "run", average, resume=True, **options)
    assert differences(tmp_path / "whole", tmp_path / "run") == []
    assert_same_weights(loop.snapshot().averages, expected, rtol=0, atol=0)


def test_the_run_itself_is_the_same_with_and_without():
    digests = {train(None, average)[1].weights_sha256 for average in (None, 0.9, "swa")}
    assert len(digests) == 1


def test_the_averages_can_rate_an_epoch(tmp_path):
    loop = loop_again(num_examples=120, batch_size=30, average=0.9)
    options = RunOptions(monitor="averaged_val_accuracy")
    result = fit(loop, SCHEDULE, VALIDATION, epochs=3, run_dir=tmp_path / "run", options=options)
    best = max(result.epochs, key=lambda record: record.metrics["averaged_val_accuracy"])
    model = keras.models.load_model(tmp_path / "run" / "best.keras")
    assert model.evaluate(*VALIDATION, verbose=0)[0] == pytest.approx(best.metrics["val_loss"], rel=1e-5)


def test_the_lows_are_those_of_the_schedule_that_is_kept(tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", "swa", average_from=0.0, callbacks=[crash_after(5)])
    loop = loop_again(with_dropout_and_batch_norm, num_examples=120, batch_size=30, average="swa")
    options = RunOptions(average_from=0.0, on_change="keep")
    fit(loop, Triangular(0.001, 0.1, 2), VALIDATION, epochs=4, run_dir=tmp_path / "run", resume=True, options=options)
    assert loop.averages.count == 2  # After 6 and 12 steps, not after each fourth.


@pytest.mark.parametrize("schedule", [Constant(0.1), Triangular(0.001, 0.1, 100)])
def test_a_run_without_a_low_has_no_mean_of_lows(schedule):
    with pytest.raises(ValueError, match="no cycle of the schedule ends in the run from 50% of its 12 steps on"):
        fit(loop_again(num_examples=120, batch_size=30, average="swa"), schedule, VALIDATION, epochs=3)
