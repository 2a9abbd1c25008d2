import csv
import dataclasses
import json

import keras
import numpy as np
import pytest

from clr_loop import schedules
from clr_loop.data import Split
from clr_loop.runs import fit as training
from clr_loop.runs.fit import NonFiniteLossError, fit
from clr_loop.runs.result import EpochRecord, TrainingResult
from clr_loop.runs.timing import Stopwatch
from clr_loop.schedules import Constant, Triangular

SCHEDULE = Triangular(0.001, 0.01, 5)


@pytest.fixture
def validation(mnist):
    return Split(mnist.validation.images[:150], mnist.validation.labels[:150])


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_fit_is_the_loop_driven_by_the_schedule(make_loop, validation):
    by_hand, fitted = make_loop(batch_size=64), make_loop(batch_size=64)
    metrics = by_hand.run(SCHEDULE(np.arange(12)))
    result = fit(fitted, SCHEDULE, validation, epochs=3)
    assert result.weights_sha256 == by_hand.weights_sha256()
    np.testing.assert_array_equal(result.history["step"], np.arange(12))
    for name, values in metrics.items():
        np.testing.assert_array_equal(result.history[name], values)
    evaluated = by_hand.evaluate(*validation)
    assert (result.val_accuracy, result.epochs[-1].val_loss) == (evaluated["accuracy"], evaluated["loss"])


@pytest.mark.parametrize(
    "schedule",
    [
        Triangular(0.001, 0.01, 3, 5),
        schedules.Triangular2(0.001, 0.01, 3),
        schedules.ExpRange(0.001, 0.01, 3, gamma=0.9),
        schedules.OneCycle(0.01, total_steps=20),
        schedules.CosineRestarts(0.001, 0.01, first_cycle_steps=4, t_mul=2),
        schedules.ExponentialRamp(1e-6, 0.01, total_steps=20),
        schedules.join([Constant(0.01), Triangular(0.001, 0.01, 3)], boundaries=[7]),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_the_rates_used_are_those_of_the_schedule_and_of_its_keras_form(make_loop, schedule):
    steps = np.arange(20)
    used = make_loop(batch_size=100, jit_compile=False).run(schedule(steps))["learning_rate"]
    np.testing.assert_array_equal(used, schedule(steps).astype(np.float32))
    np.testing.assert_array_max_ulp(used, np.array(schedule.as_keras()(steps)), maxulp=1)


def test_momentum_of_the_schedule_reaches_the_optimizer_and_the_records(make_loop, validation, tmp_path):
    schedule = schedules.OneCycle(0.01, total_steps=8, momentum=(0.5, 0.95))
    by_hand, fitted = make_loop(batch_size=64), make_loop(batch_size=64)
    by_hand.run(schedule(np.arange(8)), schedule.momentum_at(np.arange(8)))
    result = fit(fitted, schedule, validation, epochs=2, run_dir=tmp_path / "run")
    assert result.weights_sha256 == by_hand.weights_sha256()
    expected = schedule.momentum_at(np.arange(8)).astype(np.float32)
    np.testing.assert_array_equal(
        np.float32([row["momentum"] for row in read_csv(tmp_path / "run/history.csv")]), expected
    )


def test_an_epochs_record_is_of_its_own_steps(make_loop, validation):
    seen = []
    result = fit(make_loop(batch_size=50), SCHEDULE, validation, epochs=2, on_epoch=seen.append)
    assert result.epochs == seen
    assert [(record.epoch, record.step) for record in seen] == [(1, 3), (2, 7)]
    assert seen[1].learning_rate == np.float32(SCHEDULE(7))
    assert seen[1].loss == pytest.approx(result.history["loss"][4:].astype(np.float64).mean(), rel=1e-6)
    assert seen[1].accuracy == pytest.approx(result.history["accuracy"][4:].astype(np.float64).mean(), rel=1e-6)


def test_any_function_of_steps_is_a_schedule(make_loop, validation):
    result = fit(make_loop(batch_size=100), lambda steps: 0.01 / (1 + steps), validation, epochs=2)
    np.testing.assert_array_equal(result.history["learning_rate"], (0.01 / np.arange(1, 5)).astype(np.float32))


def test_blocks_are_reported_as_they_end(make_loop, validation):
    steps_done = []
    train_loop = make_loop(batch_size=10)
    train_loop.block_steps = 8
    fit(train_loop, SCHEDULE, validation, epochs=1, on_block=lambda step, metrics: steps_done.append(step))
    assert steps_done == [8, 16, 20]


def test_an_epochs_time_is_training_alone_and_compilation_comes_before(make_loop, validation, monkeypatch):
    now = 0.0

    def taking(seconds, method):
        def timed(*arguments, **named):
            nonlocal now
            now += seconds
            return method(*arguments, **named)

        return timed

    train_loop = make_loop(batch_size=50)
    train_loop.block_steps = 2  # Two blocks an epoch.
    train_loop.compile = taking(7.0, train_loop.compile)
    train_loop.run = taking(0.0015, train_loop.run)
    train_loop.evaluate = taking(100.0, train_loop.evaluate)
    monkeypatch.setattr(training, "Stopwatch", lambda: Stopwatch(clock=lambda: now))
    result = fit(train_loop, SCHEDULE, validation, epochs=3, on_epoch=taking(1000.0, lambda record: None))
    assert result.compile_seconds == 7.0
    assert result.epoch_seconds == pytest.approx([0.003] * 3)
    assert result.train_seconds == pytest.approx(0.009)
    assert result.examples_per_second == pytest.approx(600 / 0.009)


def test_compiling_takes_no_step_and_leaves_nothing_to_compile(make_loop):
    train_loop = make_loop(batch_size=64)
    digest = train_loop.weights_sha256()
    train_loop.compile()
    assert (train_loop.weights_sha256(), train_loop.step, train_loop.num_traces) == (digest, 0, 2)
    train_loop.run([0.1] * 4)
    assert train_loop.num_traces == 2


def test_files_hold_what_the_result_holds(make_loop, validation, tmp_path):
    result = fit(make_loop(batch_size=64, seed=5), SCHEDULE, validation, epochs=2, run_dir=tmp_path / "run",
                 settings={"dataset": "mnist"}, target_accuracy=0.0)  # fmt: skip
    history = read_csv(tmp_path / "run" / "history.csv")
    assert list(history[0]) == ["step", "learning_rate", "loss", "accuracy"]
    assert [int(row["step"]) for row in history] == list(range(8))
    for name in ("learning_rate", "loss", "accuracy"):  # To the last bit of a float32.
        np.testing.assert_array_equal(np.float32([row[name] for row in history]), result.history[name])
    epochs = read_csv(tmp_path / "run" / "epochs.csv")
    for row, record in zip(epochs, result.epochs, strict=True):
        assert {name: float(text) for name, text in row.items()} == dataclasses.asdict(record)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["schedule"] == {
        "name": "Triangular", "base_lr": 0.001, "max_lr": 0.01, "step_size": 5, "step_size_down": None,
        "momentum": None,
    }  # fmt: skip
    assert (config["dataset"], config["optimizer"], config["seed"], config["batch_size"]) == ("mnist", "Adam", 5, 64)
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved == json.loads(json.dumps(result.to_json()))
    assert set(saved) >= {
        "val_accuracy", "val_loss", "steps", "batch_size", "epoch_seconds", "compile_seconds", "train_seconds",
        "examples_per_second", "schedule", "seed", "device", "versions", "weights_sha256",
    }  # fmt: skip
    assert saved["weights_sha256"] == result.weights_sha256
    assert saved["steps"] == 8
    assert saved["seconds_to_target"] == saved["epoch_seconds"][0]


def test_a_seed_repeats_itself_and_another_differs(make_loop, validation):
    digests = [
        fit(make_loop(batch_size=64, seed=seed), SCHEDULE, validation, epochs=2).weights_sha256 for seed in (1, 1, 2)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_written(make_loop, validation, tmp_path):
    def explode(steps):
        return np.where(np.asarray(steps) < 3, 0.01, 1e38)

    with pytest.raises(NonFiniteLossError) as caught:
        fit(make_loop(batch_size=20), explode, validation, epochs=2, run_dir=tmp_path / "run")
    assert caught.value.step == 4  # The update of step 3 breaks the weights; the next loss shows it.
    assert caught.value.learning_rate == np.float32(1e38)
    assert not np.isfinite(caught.value.loss)
    assert "at step 4 with learning rate 1e+38; lower the learning rate" in str(caught.value)
    history = read_csv(tmp_path / "run" / "history.csv")
    assert [int(row["step"]) for row in history] == [0, 1, 2, 3, 4]
    assert not (tmp_path / "run" / "result.json").exists()


def result_with(val_accuracies, epoch_seconds, target):
    records = [
        EpochRecord(i + 1, i, 0.1, 1.0, 0.5, 1.0, accuracy, seconds)
        for i, (accuracy, seconds) in enumerate(zip(val_accuracies, epoch_seconds, strict=True))
    ]
    return TrainingResult({}, {}, records, 0.0, 10, target, 0, "", "CPU:0")


def test_time_to_target_is_that_of_the_first_epoch_which_reaches_it():
    assert result_with([0.5, 0.9, 0.8], [1.0, 2.0, 4.0], 0.8).seconds_to_target == 3.0
    assert result_with([0.5, 0.9, 0.8], [1.0, 2.0, 4.0], 0.95).seconds_to_target is None
    assert result_with([0.5, 0.9, 0.8], [1.0, 2.0, 4.0], None).seconds_to_target is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, received 0"),
        ({"epochs": 1, "checkpoint_every": 0}, "checkpoint_every must be at least 1, received 0"),
        ({"epochs": 1, "target_accuracy": 90.0}, "target_accuracy must be from 0 to 1, received 90.0; 0.9 means 90 %"),
    ],
)
def test_bad_arguments_write_nothing(make_loop, validation, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(make_loop(), Constant(0.1), validation, run_dir=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("schedule", "optimizer", "message"),
    [
        (lambda steps: -0.1 * np.ones(len(steps)), None, "received -0.1 at index 0"),
        (lambda steps: np.nan * np.ones(len(steps)), None, "received nan at index 0"),
        (schedules.OneCycle(0.1, 20, momentum=(0.8, 0.9)), keras.optimizers.RMSprop(), "received RMSprop without"),
    ],
)
def test_a_schedule_that_cannot_be_used_writes_nothing(make_loop, validation, tmp_path, schedule, optimizer, message):
    with pytest.raises(ValueError, match=message):
        fit(make_loop(optimizer=optimizer), schedule, validation, epochs=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_validation_that_cannot_be_used_writes_nothing(make_loop, validation, tmp_path):
    bad = Split(np.full((4, 28, 28), np.nan, np.float32), np.arange(4))
    with pytest.raises(ValueError, match="images must be finite"):
        fit(make_loop(), Constant(0.1), bad, epochs=1, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loop_that_has_taken_steps_is_refused(make_loop, validation):
    train_loop = make_loop()
    train_loop.run([0.1])
    with pytest.raises(ValueError, match="must not have taken a step yet, received one at step 1"):
        fit(train_loop, Constant(0.1), validation, epochs=1)


def test_a_directory_that_holds_something_is_refused_and_untouched(make_loop, validation, tmp_path):
    (tmp_path / "result.json").write_text("precious")
    with pytest.raises(FileExistsError, match="is not empty and holds no run; choose another"):
        fit(make_loop(), Constant(0.1), validation, epochs=1, run_dir=tmp_path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("result.json", "precious")]
