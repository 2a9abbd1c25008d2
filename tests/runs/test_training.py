import collections
import csv
import dataclasses
import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop import schedules
from clr_loop.data import Examples
from clr_loop.runs import actions
from clr_loop.runs import fit as run_fit
from clr_loop.runs import run as run_module
from clr_loop.runs.fit import NonFiniteError, NonFiniteLossError, fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import Progress, read_result
from clr_loop.runs.result import EpochRecord, TrainingResult, direction_of, higher_is_better
from clr_loop.schedules import Constant, Triangular
from clr_loop.schedules.for_keras import CyclicLR
from helpers.runs import BatchEnd
from helpers.small import FEATURES, LABELS, loop_again, loop_of

SCHEDULE = Triangular(0.001, 0.01, 5)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class Seen(keras.callbacks.Callback):
    """Notes every call of a hook with its first argument and its logs."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def hooks(self):
        return [(name, argument) for name, argument, _ in self.calls]

    def logs(self, hook):
        return [logs for name, _, logs in self.calls if name == hook]


def _note(name):
    def hook(self, *arguments, logs=None):
        *first, logs = arguments if logs is None else (*arguments, logs)
        self.calls.append((name, first[0] if first else None, logs))

    return hook


for _name in ("on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_test_begin",
              "on_test_batch_begin", "on_test_batch_end", "on_test_end", "on_epoch_end", "on_train_end"):  # fmt: skip
    setattr(Seen, _name, _note(_name))


def test_fit_is_the_loop_driven_by_the_schedule(validation):
    result = fit(loop_again(), SCHEDULE, validation, epochs=3)
    by_hand = loop_again()
    metrics = by_hand.run(SCHEDULE(np.arange(12)))
    assert result.weights_sha256 == by_hand.weights_sha256()
    np.testing.assert_array_equal(result.history["step"], np.arange(12))
    for name, values in metrics.items():
        np.testing.assert_array_equal(result.history[name], values)
    evaluated = by_hand.evaluate(*validation)
    assert {name: result.final[f"val_{name}"] for name in evaluated} == evaluated


def test_momentum_of_the_schedule_reaches_the_optimizer_and_the_records(validation, tmp_path):
    schedule = schedules.OneCycle(0.01, total_steps=8, momentum=(0.5, 0.95))
    result = fit(loop_again(), schedule, validation, epochs=2, run_dir=tmp_path / "run")
    by_hand = loop_again()
    by_hand.run(schedule(np.arange(8)), schedule.momentum_at(np.arange(8)))
    assert result.weights_sha256 == by_hand.weights_sha256()
    expected = schedule.momentum_at(np.arange(8)).astype(np.float32)
    np.testing.assert_array_equal(
        np.float32([row["momentum"] for row in read_csv(tmp_path / "run/history.csv")]), expected
    )


def test_the_mean_of_an_epoch_weighs_each_step_by_its_examples(line_loop):
    result = fit(line_loop(batch_size=40), Constant(0.0), epochs=2)  # Batches of 40, 40 and 10.
    for name in ("loss", "mae"):
        for epoch in (0, 1):
            steps = result.history[name][3 * epoch :][:3].astype(np.float64)
            assert result.epochs[epoch].metrics[name] == pytest.approx(np.average(steps, weights=[40, 40, 10]))
    loop = line_loop(batch_size=40)
    # At rate 0 the mean over the epoch's steps is the loss of the data.
    whole = line_loop(batch_size=90).run([0.0])["loss"][0]
    assert fit(loop, Constant(0.0), epochs=1).final["loss"] == pytest.approx(float(whole), rel=1e-6)


def test_an_epochs_mean_has_the_same_bits_however_it_was_cut(fresh_loop, monkeypatch):
    whole = fit(fresh_loop(), SCHEDULE, epochs=2).epochs
    monkeypatch.setattr(fresh_loop(), "block_steps", 2)
    cut = fit(fresh_loop(), SCHEDULE, epochs=2).epochs
    assert [record.metrics for record in cut] == [record.metrics for record in whole]


def test_an_epochs_record_is_of_its_own_steps(validation):
    result = fit(loop_again(), SCHEDULE, validation, epochs=2)
    assert [(record.epoch, record.step) for record in result.epochs] == [(1, 3), (2, 7)]
    assert result.epochs[1].learning_rate == np.float32(SCHEDULE(7))
    for name in ("loss", "accuracy"):
        expected = result.history[name][4:].astype(np.float64).mean()
        assert result.epochs[1].metrics[name] == pytest.approx(expected, rel=1e-6)


def test_any_function_of_steps_is_a_schedule():
    result = fit(loop_again(), lambda steps: 0.01 / (1 + steps), epochs=2)
    np.testing.assert_array_equal(result.history["learning_rate"], (0.01 / np.arange(1, 9)).astype(np.float32))


def test_validation_may_be_a_dataset_or_nothing_and_may_have_weights(line_loop):
    x = {"a": np.ones((7, 2), np.float32), "b": np.zeros((7, 1), np.float32)}
    y = np.arange(7, dtype=np.float32)[:, None]
    arrays = fit(line_loop(), SCHEDULE, (x, y), epochs=1)
    dataset = fit(line_loop(), SCHEDULE, tf.data.Dataset.from_tensor_slices((x, y)).batch(3), epochs=1)
    assert dataset.final == pytest.approx(arrays.final, rel=1e-6)
    weights = np.float32([1, 0, 0, 0, 0, 0, 0])
    weighted = fit(line_loop(), SCHEDULE, Examples(x, y, weights), epochs=1).final["val_loss"]
    first = {name: array[:1] for name, array in x.items()}
    alone = fit(line_loop(), SCHEDULE, (first, y[:1]), epochs=1).final["val_loss"]
    assert weighted * 7 == pytest.approx(alone, rel=1e-5)
    assert list(fit(line_loop(), SCHEDULE, epochs=1).final) == ["loss", "mae"]


def test_callbacks_are_called_as_keras_does_but_once_a_block(line_loop, monkeypatch):
    loop, seen = line_loop(), Seen()
    monkeypatch.setattr(loop, "block_steps", 2)
    x, y = {"a": np.ones((7, 2), np.float32), "b": np.zeros((7, 1), np.float32)}, np.ones((7, 1), np.float32)
    result = fit(loop, SCHEDULE, (x, y), epochs=2, callbacks=[seen])
    epoch = [
        *[("on_train_batch_begin", 0), ("on_train_batch_end", 1), ("on_train_batch_begin", 2)],
        *[("on_train_batch_end", 3), ("on_train_batch_begin", 4), ("on_train_batch_end", 4)],
        *[("on_test_begin", None), ("on_test_batch_begin", 0), ("on_test_batch_end", 0), ("on_test_end", None)],
    ]
    assert seen.hooks() == [
        ("on_train_begin", None),
        *[("on_epoch_begin", 0), *epoch, ("on_epoch_end", 0)],
        *[("on_epoch_begin", 1), *epoch, ("on_epoch_end", 1)],
        ("on_train_end", None),
    ]
    assert (seen.params["epochs"], seen.params["steps"], seen.params["schedule"]) == (2, 5, SCHEDULE)
    for logs, record in zip(seen.logs("on_epoch_end"), result.epochs, strict=True):
        assert logs == {
            **record.metrics, "learning_rate": record.learning_rate, "epoch_seconds": record.epoch_seconds
        }  # fmt: skip
    third = seen.logs("on_train_batch_end")[2]  # The last block of the first epoch has the means of the epoch.
    assert third == {"loss": result.epochs[0].metrics["loss"], "mae": result.epochs[0].metrics["mae"],
                     "learning_rate": result.epochs[0].learning_rate}  # fmt: skip
    second = seen.logs("on_train_batch_end")[1]
    assert second["loss"] == pytest.approx(result.history["loss"][:4].astype(np.float64).mean())


def test_early_stopping_ends_the_run_at_the_same_epoch_as_in_keras_fit(tmp_path):
    def watch():
        return keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)

    # The validation data contradict the training data, so the loss rises from the first epoch on.
    validation = FEATURES[:50], (LABELS[:50] + 1) % 5
    loop = loop_of(batch_size=50, shuffle=False)
    result = fit(loop, Constant(0.05), validation, epochs=9, callbacks=[watch()], run_dir=tmp_path / "run")
    model = loop_of().model
    model.optimizer.learning_rate = 0.05
    history = model.fit(FEATURES, LABELS, batch_size=50, epochs=9, shuffle=False, validation_data=validation,
                        callbacks=[watch()], verbose=0).history  # fmt: skip
    assert len(result.epochs) == len(history["val_loss"]) < 9
    np.testing.assert_allclose([record.metrics["val_loss"] for record in result.epochs], history["val_loss"], rtol=1e-3)
    assert loop.evaluate(*validation)["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-3)
    assert len(read_result(tmp_path / "run").epochs) == len(result.epochs)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())[-1] == f"step_{loop.step:010d}"


def test_keras_own_callbacks_write_what_they_write_in_keras_fit(validation, tmp_path):
    callbacks = [
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True),
        keras.callbacks.TensorBoard(tmp_path / "board", update_freq=1),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.History(),
    ]
    loop = loop_again()
    result = fit(loop, SCHEDULE, validation, epochs=2, callbacks=callbacks)
    rows = read_csv(tmp_path / "log.csv")
    assert [float(row["val_accuracy"]) for row in rows] == [record.metrics["val_accuracy"] for record in result.epochs]
    assert list((tmp_path / "board/train").glob("events*"))
    assert callbacks[-1].history["loss"] == [record.metrics["loss"] for record in result.epochs]
    best = np.argmin([record.metrics["val_loss"] for record in result.epochs])
    loop.model.load_weights(tmp_path / "best.weights.h5")
    assert loop.evaluate(*validation)["loss"] == pytest.approx(result.epochs[best].metrics["val_loss"])


def test_a_single_callback_will_do_and_the_model_has_its_history(fresh_loop):
    loop, seen = fresh_loop(), Seen()
    result = fit(loop, SCHEDULE, epochs=2, callbacks=seen)
    assert [name for name, _ in seen.hooks()][-1] == "on_train_end"
    assert loop.model.history.history["loss"] == [record.metrics["loss"] for record in result.epochs]


def set_rate(self, *arguments, **named):
    self.model.optimizer.learning_rate = 0.5


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_train_batch_end", "on_epoch_end"])
def test_a_callback_of_ones_own_that_sets_the_rate_is_told_once_that_it_changes_nothing(fresh_loop, hook):
    callback = type("Warmup", (keras.callbacks.Callback,), {hook: set_rate})()
    plain = fit(fresh_loop(), SCHEDULE, epochs=2).weights_sha256
    with pytest.warns(UserWarning, match=f"A callback set the learning rate in {hook}, which changes nothing") as seen:
        assert fit(fresh_loop(), SCHEDULE, epochs=2, callbacks=[callback]).weights_sha256 == plain
    assert sum("A callback" in str(warning.message) for warning in seen) == 1


def test_a_lambda_callback_that_sets_the_rate_is_told_too(fresh_loop):
    loop = fresh_loop()
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: loop.optimizer.learning_rate.assign(1))
    with pytest.warns(UserWarning, match="A callback set the learning rate in on_epoch_begin"):
        fit(loop, SCHEDULE, epochs=1, callbacks=[callback])


def test_after_a_loss_that_is_not_finite_callbacks_are_told_before_the_error(fresh_loop):
    seen = Seen()
    with pytest.raises(NonFiniteLossError):
        fit(fresh_loop(), Constant(1e38), epochs=2, callbacks=[seen])
    assert not np.isfinite(seen.logs("on_train_batch_end")[-1]["loss"])
    assert seen.hooks()[-1][0] == "on_train_end"


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin"])
def test_asked_to_stop_before_the_first_epoch_a_run_ends_after_it(fresh_loop, hook):
    loop = fresh_loop()
    stop = keras.callbacks.LambdaCallback(**{hook: lambda *_, **__: setattr(loop.model, "stop_training", True)})
    assert len(fit(loop, SCHEDULE, epochs=3, callbacks=[stop]).epochs) == 1


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("val_accuracy", "max"), ("top_5", "max"), ("val_f1_score", "max"), ("AUC", "max"), ("auc_1", "max"),
        ("sparse_categorical_crossentropy", "min"), ("val_mean_squared_error", "min"), ("accuracy_loss", "min"),
        ("val_accumulated_cost", None), ("val_previous_cost", None), ("val_stop_distance", None),
        ("f10_distance", None),
        ("val_accident_rate", None),
    ],
)  # fmt: skip
def test_the_direction_of_a_metric_follows_from_whole_words_of_its_name(name, direction):
    assert direction_of(name) == direction


def test_a_callback_that_fails_at_the_end_does_not_hide_what_ended_the_run(fresh_loop):
    def fail(logs):
        raise KeyError("of the callback")

    callback = keras.callbacks.LambdaCallback(on_train_end=fail)
    with pytest.raises(NonFiniteLossError):
        fit(fresh_loop(), Constant(1e38), epochs=2, callbacks=[callback])
    with pytest.raises(KeyError, match="of the callback"):
        fit(fresh_loop(), SCHEDULE, epochs=1, callbacks=[callback])


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (keras.callbacks.LearningRateScheduler(lambda epoch: 0.1), "give it the schedule instead"),
        (keras.callbacks.ReduceLROnPlateau(), "so a rate that a callback sets is lost"),
        (keras.callbacks.SwapEMAWeights(swap_on_epoch=True), "it leaves the averages in the model between two"),
        (CyclicLR(), "give it the callback's `schedule` instead"),
        (keras.callbacks.BackupAndRestore("somewhere"), "use run_dir and resume=True"),
    ],
)
def test_callbacks_that_would_be_without_effect_are_refused(fresh_loop, tmp_path, callback, reason):
    with pytest.raises(ValueError, match=f"{type(callback).__name__} cannot be used: .*{reason}"):
        fit(fresh_loop(), SCHEDULE, epochs=1, callbacks=[callback], run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_averaged_weights_take_their_place_after_the_last_checkpoint(line_loop, tmp_path):
    def ema():
        return keras.optimizers.SGD(use_ema=True, ema_momentum=0.5)

    loop = line_loop(optimizer=ema())
    short = fit(loop, Constant(0.1), epochs=1, run_dir=tmp_path / "run")
    kernel = np.array(loop.model.trainable_variables[0])
    raw, average = line_loop(optimizer=keras.optimizers.SGD()), None
    for _ in range(5):
        raw.run([0.1])
        now = np.array(raw.model.trainable_variables[0])
        average = now if average is None else 0.5 * average + 0.5 * now
    np.testing.assert_allclose(kernel, average, rtol=1e-4)
    assert short.weights_sha256 == loop.weights_sha256()
    more = fit(line_loop(optimizer=ema()), Constant(0.1), epochs=2, run_dir=tmp_path / "run", resume=True)
    assert more.weights_sha256 == fit(line_loop(optimizer=ema()), Constant(0.1), epochs=2).weights_sha256


def test_an_epochs_time_is_training_alone_and_compilation_comes_before(validation, monkeypatch):
    now = 0.0

    def taking(seconds, method):
        def timed(*arguments, **named):
            nonlocal now
            now += seconds
            return method(*arguments, **named)

        return timed

    loop = loop_of(batch_size=50)
    loop.block_steps = 2  # Two blocks an epoch.
    compile_only, run = loop.compile, loop.run

    def run_compiled(*arguments):
        loop.compile = compile_only  # `run` sees to it, too, that it is compiled.
        return run(*arguments)

    loop.compile, loop.run = taking(7.0, compile_only), taking(0.0015, run_compiled)
    loop.evaluate = taking(100.0, loop.evaluate)
    clock = types.SimpleNamespace(perf_counter=lambda: now, time=lambda: now)
    for module in (run_module, run_fit):
        monkeypatch.setattr(module, "time", clock)
    result = fit(loop, SCHEDULE, validation, epochs=3, callbacks=[BatchEnd(taking(1000.0, lambda done: None))])
    assert result.compile_seconds == 7.0
    assert result.epoch_seconds == pytest.approx([0.003] * 3)
    assert result.train_seconds == pytest.approx(0.009)
    assert result.examples_per_second == pytest.approx(600 / 0.009)


def test_files_hold_what_the_result_holds(validation, tmp_path):
    options = RunOptions(settings={"dataset": "made up"})
    result = fit(loop_again(seed=5), SCHEDULE, validation, epochs=2, run_dir=tmp_path / "run", options=options)
    history = read_csv(tmp_path / "run" / "history.csv")
    assert list(history[0]) == ["step", "learning_rate", "loss", "accuracy"]
    assert [int(row["step"]) for row in history] == list(range(8))
    for name in ("learning_rate", "loss", "accuracy"):  # To the last bit of a float32.
        np.testing.assert_array_equal(np.float32([row[name] for row in history]), result.history[name])
    rows = read_csv(tmp_path / "run" / "epochs.csv")
    assert list(rows[0]) == [
        "epoch", "step", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds",
        "input_wait_seconds",
    ]  # fmt: skip
    for row, record in zip(rows, result.epochs, strict=True):
        assert {name: float(row[name]) for name in record.metrics} == record.metrics
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["schedule"] == json.loads(json.dumps(SCHEDULE.to_config()))
    assert (config["dataset"], config["optimizer"], config["seed"], config["batch_size"]) == ("made up", "Adam", 5, 50)
    assert config["loss"]["class"] == "SparseCategoricalCrossentropy"
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(saved.pop("records")) == {"history.csv", "epochs.csv"}
    assert saved == json.loads(json.dumps(result.to_json()))
    assert (saved["final"], saved["steps"], saved["epochs"]) == (result.final, 8, 2)
    read = read_result(tmp_path / "run")
    assert (read.epochs, read.settings, read.weights_sha256) == (result.epochs, config, result.weights_sha256)
    for name, values in result.history.items():
        np.testing.assert_array_equal(read.history[name], values)


def test_metrics_of_any_name_are_recorded_and_read_back(line_loop, tmp_path):
    metrics = ("mae", keras.metrics.RootMeanSquaredError(name='root, "mean"'))
    result = fit(line_loop(metrics=metrics), SCHEDULE, epochs=2, run_dir=tmp_path / "run")
    read = read_result(tmp_path / "run")
    assert list(read.final) == ["loss", "mae"]  # A root is no mean.
    assert read.epochs == result.epochs
    np.testing.assert_array_equal(read.history['root, "mean"'], result.history['root, "mean"'])


def test_a_metric_with_a_name_of_the_records_is_refused(line_loop, tmp_path):
    with pytest.raises(ValueError, match="A metric has the name val_mae, which the records use"):
        fit(line_loop(metrics=(keras.metrics.MeanAbsoluteError(name="val_mae"),)), SCHEDULE, epochs=1)


def test_a_seed_repeats_itself_and_another_differs():
    digests = [fit(loop_of(seed=seed), SCHEDULE, epochs=2).weights_sha256 for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def explode_at(step):
    return lambda steps: np.where(np.asarray(steps) < step, 0.01, 1e38)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_written(tmp_path):
    with pytest.raises(NonFiniteLossError) as caught:
        fit(loop_again(num_examples=100, batch_size=20), explode_at(3), epochs=2, run_dir=tmp_path / "run",
            options=RunOptions(checkpoint_every=0))  # fmt: skip
    assert caught.value.step == 4  # The update of step 3 breaks the weights; the next loss shows it.
    assert caught.value.learning_rate == np.float32(1e38)
    assert not np.isfinite(caught.value.loss)
    assert str(caught.value).endswith("at step 4 with learning rate 1e+38; start again with a lower learning rate.")
    history = read_csv(tmp_path / "run" / "history.csv")
    assert [int(row["step"]) for row in history] == [0, 1, 2, 3, 4]
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_validation_loss_that_is_not_finite_ends_the_run_and_the_files_stay_readable(line_loop, tmp_path):
    huge = {"a": np.full((3, 2), 3e38, np.float32), "b": np.zeros((3, 1), np.float32)}, np.zeros((3, 1), np.float32)
    with pytest.raises(NonFiniteError, match="val_loss is inf after epoch 1; lower the learning rate from step"):
        fit(line_loop(), SCHEDULE, huge, epochs=3, run_dir=tmp_path / "run")
    with pytest.raises(NonFiniteError, match="val_loss is inf after epoch 1"):
        fit(line_loop(), SCHEDULE, huge, epochs=3, run_dir=tmp_path / "run", resume=True)
    assert read_csv(tmp_path / "run" / "epochs.csv")[0]["val_loss"] == "inf"


def test_a_variable_that_is_not_finite_ends_the_run_and_is_named(line_loop, tmp_path):
    loop = line_loop(norm=True)

    def spoil(batches_done):
        if batches_done == 5:
            loop.model.non_trainable_variables[0].assign([np.nan] * 3)  # The loss in training does not see it.

    with pytest.raises(NonFiniteError, match=r"The variable .*moving_mean is no longer finite in epoch 1; .*step 0 on"):
        fit(loop, SCHEDULE, epochs=3, run_dir=tmp_path / "run", callbacks=[BatchEnd(spoil)])


def test_metrics_that_are_not_finite_are_read_back(line_loop, tmp_path):
    def odd(y, y_pred):
        return keras.ops.zeros_like(y) / 0.0

    result = fit(line_loop(metrics=(odd,)), SCHEDULE, epochs=2, run_dir=tmp_path / "run")
    read = read_result(tmp_path / "run")
    assert np.isnan([record.metrics["odd"] for record in read.epochs]).all()
    assert np.isnan(read.history["odd"]).all()
    assert np.isnan(json.loads((tmp_path / "run/result.json").read_text())["final"]["odd"])
    assert read.weights_sha256 == result.weights_sha256


def result_with(values, epoch_seconds, measure="val_accuracy"):
    records = [
        EpochRecord(i + 1, 3 * i + 2, 0.1, {measure: value}, seconds)
        for i, (value, seconds) in enumerate(zip(values, epoch_seconds, strict=True))
    ]
    return TrainingResult({"batch_size": 4}, {}, records, 0.0, 10, 0, "", "CPU:0")


def test_a_target_is_reached_at_the_first_validation_that_is_as_good():
    seconds = [1.0, 2.0, 4.0]
    assert result_with([0.5, 0.9, 0.8], seconds).reach("val_accuracy", 0.8) == (6, 20, 3.0)
    assert result_with([0.5, 0.9, 0.8], seconds).reach("val_accuracy", 0.95) is None
    assert result_with([0.5, 0.1, 0.3], seconds, "val_loss").reach("val_loss", 0.4) == (6, 20, 3.0)
    assert result_with([0.5, 0.1, 0.3], seconds, "val_loss").reach("val_loss", 0.4, True) == (3, 10, 1.0)
    with pytest.raises(ValueError, match="no measure 'val_f1'; it has val_accuracy"):
        result_with([0.5], [1.0]).reach("val_f1", 0.5)


def test_a_validation_within_an_epoch_counts_with_the_part_of_the_epoch_before_it():
    result = result_with([0.5, 0.9, 0.8], [1.0, 2.0, 4.0])
    within = [EpochRecord(2, 4, 0.1, {"val_accuracy": 0.7}, 1.25)]
    # Two batches of 4 into the second epoch of 10 examples, whose epochs have 3 steps.
    assert dataclasses.replace(result, validations=within).reach("val_accuracy", 0.7) == (5, 18, 2.25)


def test_losses_and_errors_are_better_when_lower():
    higher = ["accuracy", "val_accuracy", "auc", "f1_score", "mean_io_u", "r2_score", "recall"]
    lower = ["loss", "val_loss", "mae", "val_mse", "mean_absolute_error", "kl_divergence", "false_positives"]
    assert list(map(higher_is_better, higher + lower)) == [True] * len(higher) + [False] * len(lower)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"checkpoint_every": -1}, ValueError, "checkpoint_every is -1; it must be at least 0"),
        ({"checkpoint_every": 1.5}, TypeError, "checkpoint_every is 1.5"),
        ({"keep_checkpoints": 0}, ValueError, "keep_checkpoints is 0; it must be at least 1"),
        ({"on_change": "kep"}, ValueError, "on_change is 'kep'"),
        ({"profile": (3, 3)}, ValueError, r"profile is \(3, 3\); give \(first, last\)"),
        ({"profile": (-1, 2)}, ValueError, r"profile is \(-1, 2\)"),
    ],
)
def test_options_out_of_range_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        RunOptions(**arguments)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda steps: -0.1 * np.ones(len(steps)), "The learning rate at index 0 is -0.1"),
        (lambda steps: np.nan * np.ones(len(steps)), "The learning rate at index 0 is nan"),
        (lambda steps: 0.1, r"rates of shape \(\) for 2 steps"),
        (lambda steps: np.ones(len(steps) + 1), r"rates of shape \(3,\) for 2 steps"),
    ],
)
def test_a_schedule_that_cannot_be_used_writes_nothing(fresh_loop, tmp_path, schedule, message):
    with pytest.raises(ValueError, match=message):
        fit(fresh_loop(), schedule, epochs=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_returns_too_few_rates_later_is_named(fresh_loop):
    with pytest.raises(ValueError, match=r"rates of shape \(2,\) for [45] steps"):
        fit(fresh_loop(), lambda steps: np.full(min(len(steps), 2), 0.1), epochs=2)


def test_momentum_needs_an_optimizer_that_has_it(tmp_path):
    loop = loop_of(_compiled_with(keras.optimizers.RMSprop()))
    with pytest.raises(ValueError, match="RMSprop"):
        fit(loop, schedules.OneCycle(0.1, 20, momentum=(0.8, 0.9)), epochs=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def _compiled_with(optimizer):
    model = loop_of().model
    model.compile(optimizer, model.loss, metrics=["accuracy"])
    return model


def test_validation_that_cannot_be_used_writes_nothing(fresh_loop, tmp_path):
    for bad in ((np.full((4, 6), np.nan, np.float32), np.arange(4)), (np.zeros((4, 7), np.float32), np.arange(4))):
        with pytest.raises(ValueError):
            fit(fresh_loop(), Constant(0.1), bad, epochs=1, run_dir=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_epochs_below_one_are_refused(fresh_loop, tmp_path):
    with pytest.raises(ValueError, match="epochs is 0; it must be at least 1"):
        fit(fresh_loop(), Constant(0.1), epochs=0, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_that_holds_something_is_refused_and_untouched(fresh_loop, tmp_path):
    (tmp_path / "result.json").write_text("precious")
    with pytest.raises(FileExistsError, match="is not empty and holds no run; choose another"):
        fit(fresh_loop(), Constant(0.1), epochs=1, run_dir=tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("result.json", "precious")]


class Counted(collections.UserList):
    """A list that counts how many of its entries are looked at."""

    looks = 0

    def __getitem__(self, i):
        found = super().__getitem__(i)
        Counted.looks += len(found) if isinstance(i, slice) else 1
        return found

    def __contains__(self, item):
        return any(each == item for each in self)


def looks_of_an_epoch(monkeypatch, epochs):
    """Return the most entries of lists that grow with a run which one of its last five epochs looks at."""
    loop, seen = loop_of(num_examples=60, batch_size=30, average="swa"), []
    averaged_steps = actions.averaged_steps
    with monkeypatch.context() as patch:
        patch.setattr(actions, "averaged_steps", lambda run, options: Counted(averaged_steps(run, options)))
        patch.setattr(run_fit, "Progress", lambda **named: Progress(Counted(), Counted(), Counted(), **named))
        patch.setattr(loop, "evaluate", lambda *batch, **named: {"loss": 1.0, "accuracy": 0.5})
        fit(
            loop, Triangular(0.001, 0.01, 1), (FEATURES, LABELS), epochs=epochs,
            callbacks=[BatchEnd(lambda done: seen.append(Counted.looks))],
            options=RunOptions(patience=epochs, average_from=0.0),
        )  # fmt: skip
    return max(np.diff(seen)[-10:])


def test_an_epoch_late_in_a_long_run_looks_at_no_more_of_its_past_than_one_of_a_short_run(monkeypatch):
    short, long = (looks_of_an_epoch(monkeypatch, epochs) for epochs in (8, 64))
    assert 0 < long < 2 * short  # A search in the lows takes a step more where there are twice as many.
