import csv
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from clr_loop.data import models
from clr_loop.loop import loop
from clr_loop.studies import range_test
from clr_loop.studies.suggestions import NoSuggestionError, first_divergence

SCRIPTS = Path(__file__).parent.parent / "scripts"


def noisy_model(seed=0):
    """A model with state beside its weights: moving statistics and the seed of a dropout."""
    return keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(seed=seed)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=seed),
            keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=seed + 1)),
        ]
    )


def trained(train_loop, rates):
    train_loop.run(rates)
    return train_loop.weights_sha256()


@pytest.mark.parametrize("steps_before", [0, 4])
def test_training_with_and_without_a_range_test_before_it_gives_one_digest(make_loop, rates, steps_before):
    digests = []
    for tested in (False, True):
        # 200 examples in batches of 30: the test begins within an epoch and goes over short last batches.
        train_loop = make_loop(model=noisy_model(), batch_size=30, jit_compile=False)
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
        range_test.run_seeds(train_loop, noisy_model, 2, num_steps=40, on_block=on_block)
    assert train_loop.seed == 0
    assert trained(train_loop, rates) == expected


def test_seeds_leave_no_trace_share_one_trace_and_equal_loops_of_their_own(make_loop, rates):
    make_model = partial(models.build, "relu_mlp", (28, 28), 10)
    train_loop = make_loop(batch_size=50)
    before = train_loop.weights_sha256()
    tests = range_test.run_seeds(train_loop, make_model, 3, num_steps=60, early_stop=None)
    assert train_loop.weights_sha256() == before
    train_loop.run(rates)
    assert train_loop.num_traces == 1
    for seed, test in enumerate(tests):
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
    assert np.isfinite(result.curve.smoothed_loss).all()


def test_the_curve_is_what_training_with_these_rates_gives(make_loop):
    metrics = make_loop(batch_size=50).run(np.geomspace(1e-5, 1.0, 40))
    curve = range_test.run(make_loop(batch_size=50), 1e-5, 1.0, 40, early_stop=None).curve
    np.testing.assert_array_equal(curve.loss, metrics["loss"])
    np.testing.assert_array_equal(curve.accuracy, metrics["accuracy"])


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
        assert result.suggestions == range_test.RangeTest({}, whole, "").suggestions


def test_a_loss_that_is_not_finite_stops_and_says_where(make_loop):
    def fragile(labels, logits):
        values = loop.cross_entropy(labels, logits)
        return keras.ops.where(keras.ops.mean(values) < 1.5, np.nan, values)

    train_loop = make_loop(batch_size=50, loss=fragile)
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
        ({"start_lr": 0.0}, ValueError, "start_lr must be above 0 for an exponential sweep, received 0.0"),
        ({"start_lr": -1.0, "sweep": "linear"}, ValueError, "start_lr must be at least 0, received -1.0"),
        ({"start_lr": float("nan")}, ValueError, "start_lr must be finite, received nan"),
        ({"start_lr": "low"}, TypeError, "start_lr must be a number, received 'low'"),
        ({"end_lr": float("inf")}, ValueError, "end_lr must be finite, received inf"),
        ({"start_lr": 1.0, "end_lr": 0.1}, ValueError, "end_lr must be above start_lr, received start_lr 1 and"),
        ({"num_steps": 1}, ValueError, "num_steps must be at least 2, received 1"),
        ({"num_steps": 10.0}, TypeError, "num_steps must be a whole number of steps, received 10.0"),
        ({"sweep": "cubic"}, ValueError, "sweep must be one of exponential, linear, received 'cubic'"),
        ({"early_stop": 1.0}, ValueError, "early_stop must be above 1 times the best loss, received 1"),
        ({"early_stop": True}, TypeError, "early_stop must be a number, received True"),
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
    with pytest.raises(ValueError, match="seeds must be at least 1, received 0"):
        range_test.run_seeds(train_loop, noisy_model, 0)
    result = range_test.run(train_loop, num_steps=20)
    with pytest.raises(ValueError, match="epochs must be at least 1, received 0"):
        range_test.suggested_bounds([result], epochs=0)
    train_loop.run(rates)
    with pytest.raises(ValueError, match="must not have taken a step yet, received one at step 30"):
        range_test.run_seeds(train_loop, noisy_model, 1)


def run_script(name, *arguments):
    command = [sys.executable, SCRIPTS / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_script_writes_what_it_found_and_ends_with_the_flags_to_train_with(tmp_path):
    done = run_script(
        "range_test.py", "--model=relu_mlp", "--batch_size=200", "--num_steps=200", "--seeds=2", "--epochs=4",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "range_test.json").read_text())
    bounds = found["bounds"]
    assert bounds["step_size"] == 4 * 300 // 4
    assert done.stdout.splitlines()[-1] == (
        f"--base_lr={bounds['base_lr']:g} --max_lr={bounds['max_lr']:g} --step_size={bounds['step_size']}"
    )
    assert [test["stop_reason"].split(":")[0] for test in found["tests"]] == ["divergence"] * 2
    with open(tmp_path / "out" / "range_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(test["steps"] for test in found["tests"])
    assert (tmp_path / "out" / "range_test.png").read_bytes().startswith(b"\x89PNG")
    for seed in (0, 1):
        (file,) = (tmp_path / "out" / f"seed_{seed}").glob("events.out.tfevents.*")
        events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
        expected = [row for row in rows if row["seed"] == str(seed)]
        assert [event.step for event in events] == [int(row["step"]) for row in expected]
        for event, row in zip(events, expected, strict=True):
            values = {value.tag: value.tensor.float_val[0] for value in event.summary.value}
            assert set(values) == {"learning_rate", "loss", "accuracy", "smoothed_loss", "smoothed_accuracy"}
            for tag, value in values.items():
                assert value == pytest.approx(float(row[tag]), rel=1e-6, nan_ok=True)
    (file,) = (tmp_path / "out").glob("events.out.tfevents.*")
    (picture,) = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    assert picture.tag == "range_test"
    assert picture.metadata.plugin_data.plugin_name == "images"
    assert picture.tensor.string_val[2] == (tmp_path / "out" / "range_test.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start_lr=1", "--end_lr=0.1"], "error: end_lr must be above start_lr, received start_lr 1 and end_lr 0.1"),
        (["--early_stop=maybe"], "early_stop=maybe: must be a number such as 4, or none"),
    ],
)
def test_script_tells_a_mistake_in_one_line(tmp_path, arguments, message):
    done = run_script("range_test.py", f"--output_dir={tmp_path}/out", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_comparison_takes_the_bounds_of_each_batch_size_from_its_range_test(tmp_path):
    arguments = ["--model=relu_mlp", "--batch_sizes=100,400", "--epochs=1", "--seeds=1", "--bounds=range_test"]
    done = run_script("compare_batch_sizes.py", *arguments, "--step_size=7", f"--output_dir={tmp_path}/out")
    assert done.returncode == 0, done.stderr
    report = (tmp_path / "out" / "report.md").read_text()
    schedules = []
    for size in (100, 400):
        run_dir = tmp_path / "out" / f"triangular_batch_{size}" / "seed_0"
        config = json.loads((run_dir / "config.json").read_text())
        schedule = config["schedule"]
        flags = f"--base_lr={schedule['base_lr']} --max_lr={schedule['max_lr']}"
        assert f"range test, batch {size}: {flags}" in done.stdout
        assert f"{size} `{flags}`" in report
        assert config[f"range_test_batch_{size}"] == flags
        assert schedule["step_size"] == 7
        schedules.append((schedule["base_lr"], schedule["max_lr"]))
    assert schedules[0] != schedules[1]
    assert (0.001, 0.006) not in schedules
    contradiction = run_script("compare_batch_sizes.py", "--bounds=range_test", "--max_lr=0.1")
    assert contradiction.returncode == 2
    assert "--base_lr and --max_lr must be left to --bounds=range_test" in contradiction.stderr
