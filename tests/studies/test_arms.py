import dataclasses
import gc
import json
import shutil
import weakref

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.data import Examples, build_model, load
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.runs.fit import StopRun, TrainingInterruptedError, fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies.comparison import arms as arms_module
from clr_loop.studies.comparison.arms import Plan, run_arms
from clr_loop.studies.comparison.effects import Arm, compare
from clr_loop.studies.comparison.measures import Measure

SCHEDULES = {"constant": Constant(0.1), "triangular": Triangular(0.001, 0.01, 4)}
PLAIN = StepOptions(jit_compile=False)
ARMS = [Arm(size, name, schedule) for size in (50, 80) for name, schedule in SCHEDULES.items()]
FINISHED = Plan(ARMS[:1], [0], 1)


@pytest.fixture(scope="module")
def small():
    mnist = load("mnist")
    return dataclasses.replace(
        mnist,
        train=Examples(mnist.train.inputs[:200], mnist.train.targets[:200]),
        validation=Examples(mnist.validation.inputs[:100], mnist.validation.targets[:100]),
    )


@pytest.fixture(scope="module")
def make_model(small):
    return lambda seed: build_model("relu_mlp", small, seed)


@pytest.fixture(scope="module")
def compared(small, make_model, tmp_path_factory):
    """A comparison of two seeds, its directory, its loops, and how many models were alive at the end of each run."""
    directory = tmp_path_factory.mktemp("comparison")
    loops, models, alive = [], [], []
    real_make_loop = arms_module.make_loop

    def seen_loop(*arguments, **named):
        loops.append(real_make_loop(*arguments, **named))
        return loops[-1]

    def seen_model(seed):
        model = make_model(seed)
        models.append(weakref.ref(model))
        return model

    def count(run):
        gc.collect()
        alive.append(sum(model() is not None for model in models))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms_module, "make_loop", seen_loop)
        plan = Plan(ARMS, range(2), 2, Measure(target=0.5))
        runs = run_arms(small, seen_model, plan, directory, step_options=PLAIN, on_run=count)
    return compare(runs, Measure(target=0.5)), directory, loops, alive


def test_every_run_is_the_one_that_a_fresh_loop_of_its_seed_makes(compared, small, make_model):
    result, *_ = compared
    assert [(run.arm, run.seed) for run in result.runs] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    for run in (result.runs[1], result.runs[4], result.runs[7]):  # Either seed, schedule and batch size.
        loop = TrainLoop(
            make_model(run.seed), *small.train[:2], batch_size=run.arm.batch_size, seed=run.seed, options=PLAIN
        )
        alone = fit(loop, run.arm.schedule, small.validation, epochs=2)
        assert run.result.weights_sha256 == alone.weights_sha256


def test_each_batch_size_is_compiled_once(compared):
    result, _, loops, _ = compared
    assert [loop.batch_size for loop in loops] == [50, 80]
    for loop in loops:
        arrays = np.zeros((200, 28, 28)), np.zeros(200, np.int32)
        alone = TrainLoop(loop.model, *arrays, batch_size=loop.batch_size, options=PLAIN)
        alone.compile()
        assert loop.num_traces == alone.num_traces
    assert {arm.compile_seconds for arm in result.arms if arm.arm.batch_size == 50} == {
        result.runs[0].result.compile_seconds
    }


def test_no_model_is_kept_alive_but_that_of_each_batch_size(compared):
    *_, alive = compared
    assert set(alive) == {2}


def test_the_data_are_on_the_device_once(small, make_model, tmp_path, monkeypatch):
    inputs = []
    real_make_loop = arms_module.make_loop

    def seen_loop(model, dataset, batch_size, **named):
        inputs.append(dataset.train.inputs)
        return real_make_loop(model, dataset, batch_size, **named)

    monkeypatch.setattr(arms_module, "make_loop", seen_loop)
    run_arms(small, make_model, Plan([ARMS[0], ARMS[2]], [0], 1), tmp_path, step_options=PLAIN)
    assert inputs[0] is inputs[1]
    assert inputs[0].dtype == "uint8"


def test_every_run_has_its_files_and_a_tensorboard_run(compared):
    result, directory, *_ = compared
    for run in result.runs:
        place = directory / run.arm.directory / f"seed_{run.seed}"
        assert {file.name for file in place.iterdir()} >= {"config.json", "history.csv", "epochs.csv", "result.json"}
        assert not list(place.glob("checkpoints/step_*"))
        events = EventAccumulator(str(place / "train"), size_guidance={"scalars": 0}).Reload()
        rates = [event.value for event in events.Scalars("learning_rate")]
        np.testing.assert_array_equal(np.float32(rates), run.arm.schedule(np.arange(len(rates))).astype(np.float32))


def test_a_regression_is_compared_by_its_own_measure(tmp_path):
    def make_model(seed):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(), "mse", metrics=["mae"])
        return model

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 4)).astype(np.float32)
    examples = Examples(inputs, inputs.sum(axis=1, keepdims=True))
    dataset = dataclasses.replace(load("mnist"), name="line", train=examples, validation=examples, num_classes=None)
    slow_and_fast = [Arm(50, "slow", Constant(0.001)), Arm(50, "fast", Constant(0.1))]
    plan = Plan(slow_and_fast, range(3), 3, Measure("val_mae"))
    (effect, _) = compare(run_arms(dataset, make_model, plan, tmp_path), plan.measure).effects
    assert effect.measure == "val_mae"
    assert effect.sample.mean < 0.0


def test_resuming_takes_what_is_finished_runs_anew_what_is_not_and_refuses_other_settings(small, make_model, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise StopRun

    plan = Plan(ARMS[:2], [0], 2)
    with pytest.raises(TrainingInterruptedError):
        run_arms(small, make_model, plan, tmp_path, make_callbacks=lambda arm, _: [Stop()] if arm == ARMS[1] else [])
    finished, broken_off = (tmp_path / arm.directory / "seed_0" for arm in ARMS[:2])
    before = (finished / "history.csv").stat()
    assert not (broken_off / "result.json").exists()
    begun = []

    def note(arm, seed):
        begun.append(arm)
        return []

    runs = run_arms(small, make_model, plan, tmp_path, resume=True, make_callbacks=note)
    assert begun == [ARMS[1]]
    assert (finished / "history.csv").stat().st_mtime_ns == before.st_mtime_ns
    assert [len(run.result.epochs) for run in runs] == [2, 2]
    whole = fit(TrainLoop(make_model(0), *small.train[:2], batch_size=50), ARMS[1].schedule, epochs=2)
    assert runs[1].result.weights_sha256 == whole.weights_sha256

    faster = Plan([Arm(50, "constant", Constant(0.2))], [0], 2)
    others = {
        "epochs 2, now 3": dataclasses.replace(plan, epochs=3),
        "schedule {'learning_rate': 0.1}, now {'learning_rate': 0.2}": faster,
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match="has other settings: ") as caught:
            run_arms(small, make_model, other, tmp_path, resume=True)
        assert message in str(caught.value)
        assert str(finished) in str(caught.value)
    half = dataclasses.replace(small, validation=Examples(*(array[:50] for array in small.validation[:2])))
    with pytest.raises(ValueError, match="dataset_sha256"):
        run_arms(half, make_model, plan, tmp_path, resume=True)


def test_arms_may_differ_in_length_and_a_broken_off_run_goes_on_from_its_checkpoint(small, make_model, tmp_path):
    class Watch(keras.callbacks.Callback):
        begun, is_stopped = (), False

        def on_epoch_begin(self, epoch, logs=None):
            Watch.begun += (epoch,)

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1 and not Watch.is_stopped:
                Watch.is_stopped = True
                raise StopRun

    plan = Plan(ARMS[:2], [0], {"constant": 1, "triangular": 3})
    watched = {"run_options": RunOptions(checkpoint_every=4), "make_callbacks": lambda arm, seed: [Watch()]}
    with pytest.raises(TrainingInterruptedError):
        run_arms(small, make_model, plan, tmp_path, **watched)
    runs = run_arms(small, make_model, plan, tmp_path, resume=True, **watched)
    assert Watch.begun == (0, 0, 1, 2)
    assert [len(run.result.epochs) for run in runs] == [1, 3]
    whole = fit(TrainLoop(make_model(0), *small.train[:2], batch_size=50), ARMS[1].schedule, epochs=3)
    assert runs[1].result.weights_sha256 == whole.weights_sha256


@pytest.fixture(scope="module")
def finished(small, make_model, tmp_path_factory):
    """A comparison of one run; its directory."""
    directory = tmp_path_factory.mktemp("finished")
    run_arms(small, make_model, FINISHED, directory, step_options=PLAIN)
    return directory


@pytest.mark.parametrize("name", ["history.csv", "epochs.csv", "result.json", "config.json"])
def test_a_finished_run_whose_files_are_gone_or_changed_is_refused(finished, small, make_model, tmp_path, name):
    plan = FINISHED
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / ARMS[0].directory / "seed_0" / name
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    cut = {
        "a digit": whole[:-3] + "\n",
        "a line": "".join(lines[:-1]),
        "a column": "".join(f"{line.rpartition(',')[0]}\n" for line in lines),
        "the order": "".join([lines[0], *lines[:0:-1], ""]) if len(lines) > 2 else "",
        "all": "",
        "all but braces": "{}",
    }
    if name.endswith("json"):
        cut = {"all but braces": "{}", "half": whole[: len(whole) // 2], "the kind": "[NaN]"}
    for what, content in cut.items():
        path.write_text(content)
        with pytest.raises(ValueError, match=r"seed_0.* restore (it|them) or ") as caught:
            run_arms(small, make_model, plan, tmp_path, step_options=PLAIN, resume=True)
        assert "\n" not in str(caught.value), what
        assert path.read_text() == content
    if name != "result.json":  # Without that a run is not finished.
        path.unlink()
        with pytest.raises(ValueError, match=rf"seed_0/{name} .* restore it or "):
            run_arms(small, make_model, plan, tmp_path, step_options=PLAIN, resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "mnist"}, "dataset is 'mnist'; it must be a Dataset or a StreamedDataset."),
        ({"plan": None}, "plan is None; it must be a Plan."),
        ({"output_dir": "here"}, "output_dir is 'here'; it must be a Path."),
        ({"step_options": 3}, "step_options is 3; it must be a StepOptions or None."),
        ({"make_callbacks": 3}, "make_callbacks is 3; it must be a function."),
        ({"resume": "no"}, "resume is 'no'; it must be True or False."),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(small, make_model, tmp_path, changes, message):
    arguments = {"dataset": small, "make_model": make_model, "plan": Plan(ARMS, [0], 1), "output_dir": tmp_path}
    with pytest.raises(TypeError) as caught:
        run_arms(**{**arguments, **changes})
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


def test_settings_and_timing_reach_the_runs(small, make_model, tmp_path):
    options = RunOptions(settings={"model": "mine"}, is_timed=False)
    (run,) = run_arms(small, make_model, Plan(ARMS[:1], [0], 1), tmp_path, run_options=options)
    assert run.result.is_timed is False
    config = json.loads((tmp_path / ARMS[0].directory / "seed_0" / "config.json").read_text())
    assert (config["model"], config["dataset"], config["dataset_sha256"]) == ("mine", "mnist", small.sha256())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": []}, "not a whole grid; give every batch size with every schedule"),
        ({"arms": ARMS[:3]}, "not a whole grid; give every batch size with every schedule"),
        ({"arms": [*ARMS, ARMS[0]]}, "each once"),
        ({"seeds": []}, r"The seeds are \[\]; give at least one"),
        ({"seeds": [-1]}, r"The seeds are \[-1\]; choose them from 0 to"),
        ({"seeds": [1, 1]}, r"The seeds are \[1, 1\]; give at least one, and each once"),
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"arms": [Arm(201, "constant", Constant(0.1))]}, "batch_size is 201; choose one from 1 to the 200 examples"),
        ({"measure": Measure("val_auc")}, "no measure val_auc; choose one of loss, accuracy, val_loss, val_accuracy"),
    ],
)
def test_bad_plans_are_named_before_anything_is_written(small, make_model, tmp_path, changes, message):
    arguments = {"arms": ARMS, "epochs": 1, "seeds": [0], **changes}
    with pytest.raises(ValueError, match=message):
        run_arms(small, make_model, Plan(**arguments), tmp_path)
    assert list(tmp_path.iterdir()) == []
