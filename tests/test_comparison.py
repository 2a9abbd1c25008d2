import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.data import Dataset, Split, models
from clr_loop.loop.feeding import make_loop
from clr_loop.loop.loop import TrainLoop
from clr_loop.runs.fit import fit
from clr_loop.runs.result import EpochRecord, TrainingResult
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies import comparison
from clr_loop.studies.comparison import Arm, Run, Sample, compare, effects, run_arms

SCHEDULES = {"constant": Constant(0.1), "triangular": Triangular(0.001, 0.01, 4)}
ARMS = [Arm(size, name, schedule) for size in (50, 80) for name, schedule in SCHEDULES.items()]


def make_model(seed):
    return models.build("relu_mlp", (28, 28), 10, seed)


def run_with(arm, seed, val_accuracy, epoch_seconds=1.0):
    record = EpochRecord(1, 0, 0.1, 1.0, 0.5, 1.0, val_accuracy, epoch_seconds)
    return Run(arm, seed, TrainingResult({}, {}, [record], 0.0, 10, 0.9, 0, "", "CPU:0"))


@pytest.fixture(scope="module")
def small(mnist):
    return Dataset("mnist", Split(*(a[:200] for a in mnist.train)), Split(*(a[:100] for a in mnist.validation)), 10)


@pytest.fixture(scope="module")
def compared(small, tmp_path_factory):
    directory = tmp_path_factory.mktemp("comparison")
    loops = []

    def seen_loop(*arguments, **named):
        loops.append(make_loop(*arguments, **named))
        return loops[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "make_loop", seen_loop)
        runs = run_arms(
            small, make_model, keras.optimizers.Adam, ARMS, epochs=2, seeds=range(2), target_accuracy=0.9,
            output_dir=directory,
        )  # fmt: skip
    return compare(runs), directory, loops


def test_every_run_is_the_one_that_a_fresh_loop_of_its_seed_makes(compared, small):
    result, _, _ = compared
    assert [(run.arm, run.seed) for run in result.runs] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    for run in result.runs:
        train_loop = TrainLoop(
            make_model(run.seed), keras.optimizers.Adam(), *small.train, batch_size=run.arm.batch_size, seed=run.seed
        )
        alone = fit(train_loop, run.arm.schedule, small.validation, epochs=2)
        assert run.result.weights_sha256 == alone.weights_sha256


def test_each_batch_size_is_compiled_once(compared):
    result, _, loops = compared
    assert [train_loop.num_traces for train_loop in loops] == [1, 2]  # 80 leaves a short last batch of 40.
    assert {arm.compile_seconds for arm in result.arms if arm.arm.batch_size == 50} == {
        result.runs[0].result.compile_seconds
    }


def test_the_images_are_on_the_device_once_as_bytes(compared):
    _, _, loops = compared
    assert len(loops) == 2
    assert loops[0]._images is loops[1]._images
    assert loops[0]._images.dtype == tf.uint8


def test_every_run_has_its_files_and_a_tensorboard_run(compared):
    result, directory, _ = compared
    for run in result.runs:
        place = directory / run.arm.directory / f"seed_{run.seed}"
        assert {file.name for file in place.iterdir()} >= {"config.json", "history.csv", "epochs.csv", "result.json"}
        events = EventAccumulator(str(place / "train"), size_guidance={"scalars": 0}).Reload()
        rates = [event.value for event in events.Scalars("learning_rate")]
        np.testing.assert_array_equal(np.float32(rates), run.arm.schedule(np.arange(len(rates))).astype(np.float32))


def test_effects_recover_what_was_put_in():
    # y = 0.5 + size + schedule + interaction + a seed's own level, which differences seed by seed must cancel.
    size, schedule, interaction = {50: 0.0, 80: 0.03}, {"constant": 0.0, "triangular": 0.2}, 0.01
    runs = [
        run_with(
            arm,
            seed,
            0.5
            + size[arm.batch_size]
            + schedule[arm.schedule_name]
            + interaction * (arm.batch_size == 80) * (arm.schedule_name == "triangular")
            + 0.05 * seed,
            epoch_seconds=2.0 if arm.batch_size == 50 else 0.5,
        )
        for arm in ARMS
        for seed in range(3)
    ]
    found = {(effect.measure, effect.factor): effect.sample for effect in effects(runs)}
    expected = {
        "batch_size": 0.03 + 0.01 / 2, "schedule": 0.2 + 0.01 / 2, "interaction": 0.01, "both": 0.03 + 0.2 + 0.01,
    }  # fmt: skip
    for factor, value in expected.items():
        assert found["val_accuracy", factor].values == pytest.approx([value] * 3)
    assert found["epoch_seconds", "batch_size"].mean == -1.5
    assert found["epoch_seconds", "schedule"].mean == 0.0


def test_a_factor_with_one_level_has_no_effect():
    runs = [run_with(arm, 0, 0.5) for arm in ARMS if arm.batch_size == 50]
    assert {effect.factor for effect in effects(runs)} == {"schedule"}


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_interval_covers_the_true_mean_19_times_in_20(n):
    # 4,000 samples of n normal values: coverage 0.95 with a standard error of 0.0035.
    draws = np.random.default_rng(n).normal(0.3, 2.0, (4000, n))
    covered = 0
    for values in draws:
        low, high = Sample(tuple(values)).to_json()["interval_95"]
        covered += low <= 0.3 <= high
    assert covered / 4000 == pytest.approx(0.95, abs=0.0125)


def test_a_sample_of_one_has_no_spread():
    sample = Sample((0.5,))
    assert (sample.mean, sample.sd, sample.half_width, sample.to_json()["interval_95"]) == (0.5, None, None, None)


def test_standard_deviation_is_that_of_a_sample():
    assert Sample((1.0, 2.0, 6.0)).sd == pytest.approx(math.sqrt((4 + 1 + 9) / 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": []}, "arms must be every batch size with every schedule"),
        ({"arms": ARMS[:3]}, "arms must be every batch size with every schedule"),
        ({"arms": [*ARMS, ARMS[0]]}, "each once"),
        ({"seeds": []}, r"seeds must be at least 1, none twice, received \[\]"),
        ({"seeds": [1, 1]}, r"none twice, received \[1, 1\]"),
        ({"epochs": 0}, "epochs must be at least 1, received 0"),
        ({"arms": [Arm(201, "constant", Constant(0.1))]}, "from 1 to the 200 training examples, received 201"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(small, tmp_path, changes, message):
    arguments = {"arms": ARMS, "epochs": 1, "seeds": [0], "target_accuracy": 0.9, **changes}
    with pytest.raises(ValueError, match=message):
        run_arms(small, make_model, keras.optimizers.Adam, output_dir=tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []
