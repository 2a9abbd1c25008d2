import dataclasses
import gc
import json
import multiprocessing
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.cores import cores
from clr_loop.data import Examples, build_model, load
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.loop.threads import num_threads
from clr_loop.runs.errors import NonFiniteLossError
from clr_loop.runs.fit import StopRun, TrainingInterruptedError, fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import read_result
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies.arms import Arm
from clr_loop.studies.comparison import runner
from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.plan import Plan
from clr_loop.studies.comparison.runner import run_arms
from clr_loop.studies.pool import pool
from clr_loop.studies.tasks import Processes, WorkersLostError
from helpers.processes import fork_for_spawn

SCHEDULES = {"constant": Constant(0.1), "triangular": Triangular(0.001, 0.01, 4)}
PLAIN = StepOptions(jit_compile=False)
ARMS = [Arm(size, name, schedule) for size in (50, 80) for name, schedule in SCHEDULES.items()]
OPTIONS = RunOptions(settings={"model": "mine"}, is_timed=False)


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


@dataclasses.dataclass
class Watched:
    """A comparison of two seeds, and what was seen while it ran."""

    directory: Path
    comparison: Any = None
    loops: list = dataclasses.field(default_factory=list)
    inputs: list = dataclasses.field(default_factory=list)
    num_models: list = dataclasses.field(default_factory=list)  # Alive at the end of each run.
    num_traces: list = dataclasses.field(default_factory=list)  # Of all loops, at the end of each run.


@pytest.fixture(scope="module")
def compared(small, make_model, tmp_path_factory):
    watched, models, real_make_loop = Watched(tmp_path_factory.mktemp("comparison")), [], runner.make_loop

    def seen_loop(model, dataset, batch_size, **named):
        watched.inputs.append(dataset.train.inputs)
        watched.loops.append(real_make_loop(model, dataset, batch_size, **named))
        return watched.loops[-1]

    def seen_model(seed):
        model = make_model(seed)
        models.append(weakref.ref(model))
        return model

    def count(run):
        gc.collect()
        watched.num_models.append(sum(model() is not None for model in models))
        watched.num_traces.append([loop.num_traces for loop in watched.loops])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "make_loop", seen_loop)
        plan = Plan(ARMS, range(2), 2, Measure(target=0.5))
        runs = run_arms(small, seen_model, plan, watched.directory, step_options=PLAIN, on_run=count)
    watched.comparison = compare(runs, Measure(target=0.5))
    return watched


def test_every_run_is_the_one_that_a_fresh_loop_of_its_seed_makes(compared, small, make_model):
    runs = compared.comparison.runs
    assert [(run.arm, run.seed) for run in runs] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    for run in (runs[1], runs[6]):  # Either seed, schedule and batch size.
        loop = TrainLoop(
            make_model(run.seed), *small.train[:2], batch_size=run.arm.batch_size, seed=run.seed, options=PLAIN
        )
        alone = fit(loop, run.arm.schedule, small.validation, epochs=2)
        assert run.result.weights_sha256 == alone.weights_sha256


def test_each_batch_size_is_compiled_once(compared):
    assert [loop.batch_size for loop in compared.loops] == [50, 80]
    assert compared.num_traces[-5:] == [compared.num_traces[-1]] * 5  # From seed 0's last run on, both are there.
    of_size = [run.result.compile_seconds for run in compared.comparison.runs if run.arm.batch_size == 50]
    assert {arm.times.compile_seconds for arm in compared.comparison.arms if arm.arm.batch_size == 50} == {max(of_size)}


def test_each_seed_draws_an_order_of_its_arms_and_the_runs_come_back_in_the_plans(compared):
    plan = Plan(ARMS, range(40), 1)
    orders = [tuple(map(ARMS.index, plan.order(seed))) for seed in plan.seeds]
    assert orders == [tuple(map(ARMS.index, plan.order(seed))) for seed in plan.seeds]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2, 3)}
    for place in range(4):  # Each arm comes early and late: 10 of 40 are expected, and fewer than 3 are one in 2,000.
        assert min(np.bincount([order[place] for order in orders], minlength=4)) >= 3
    assert [run.arm for run in compared.comparison.runs] == 2 * ARMS


def test_no_model_is_kept_alive_but_that_of_each_batch_size_and_the_data_are_on_the_device_once(compared):
    assert set(compared.num_models) == {2}
    assert compared.inputs[0] is compared.inputs[1]
    assert compared.inputs[0].dtype == "uint8"


def test_every_run_has_its_files_and_a_tensorboard_run(compared):
    for run in compared.comparison.runs:
        place = compared.directory / run.arm.directory / f"seed_{run.seed}"
        assert {file.name for file in place.iterdir()} >= {"config.json", "history.csv", "epochs.csv", "result.json"}
        assert not list(place.glob("checkpoints/step_*"))
        events = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        rates = [event.value for event in events.Scalars("train/learning_rate")]
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
    plan = Plan(slow_and_fast, range(2), 2, Measure("val_mae"))
    runs = run_arms(dataset, make_model, plan, tmp_path, step_options=PLAIN)
    (effect, _) = compare(runs, plan.measure).effects
    assert effect.measure.name == "val_mae"
    assert effect.mean < 0.0


def test_resuming_takes_what_is_finished_runs_anew_what_is_not_and_refuses_other_settings(small, make_model, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise StopRun

    plan = Plan(ARMS[:2], [0], 2)
    run = partial(run_arms, small, make_model, step_options=PLAIN)
    with pytest.raises(TrainingInterruptedError):
        run(plan, tmp_path, make_callbacks=lambda arm, _: [Stop()] if arm == ARMS[1] else [])
    finished, interrupted = (tmp_path / arm.directory / "seed_0" for arm in ARMS[:2])
    before = (finished / "history.csv").stat()
    assert not (interrupted / "result.json").exists()
    started = []

    def note(arm, seed):
        started.append(arm)
        return []

    runs = run_arms(small, make_model, plan, tmp_path, step_options=PLAIN, resume=True, make_callbacks=note)
    assert started == [ARMS[1]]
    assert (finished / "history.csv").stat().st_mtime_ns == before.st_mtime_ns
    assert [len(run.result.epochs) for run in runs] == [2, 2]
    whole = fit(TrainLoop(make_model(0), *small.train[:2], batch_size=50, options=PLAIN), ARMS[1].schedule, epochs=2)
    assert runs[1].result.weights_sha256 == whole.weights_sha256

    faster = Plan([Arm(50, "constant", Constant(0.2))], [0], 2)
    others = {
        "epochs 2, now 3": dataclasses.replace(plan, epochs=3),
        "schedule {'learning_rate': 0.1}, now {'learning_rate': 0.2}": faster,
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match="has other settings: ") as caught:
            run_arms(small, make_model, other, tmp_path, step_options=PLAIN, resume=True)
        assert message in str(caught.value)
        assert str(finished) in str(caught.value)
    both = Plan([ARMS[0], dataclasses.replace(ARMS[1], schedule=Constant(0.3))], [1, 0], 2)
    with pytest.raises(ValueError, match="has other settings: "):  # Before those without a run there are trained.
        run_arms(small, make_model, both, tmp_path, step_options=PLAIN, resume=True, make_callbacks=note)
    assert started == [ARMS[1]]
    half = dataclasses.replace(small, validation=Examples(*(array[:50] for array in small.validation[:2])))
    with pytest.raises(ValueError, match="dataset_sha256"):
        run_arms(half, make_model, plan, tmp_path, step_options=PLAIN, resume=True)


def test_arms_may_differ_in_length_and_an_interrupted_run_continues_from_its_checkpoint(small, make_model, tmp_path):
    class Watch(keras.callbacks.Callback):
        started, is_stopped = (), False

        def on_epoch_begin(self, epoch, logs=None):
            Watch.started += (epoch,)

        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1 and not Watch.is_stopped:
                Watch.is_stopped = True
                raise StopRun

    plan = Plan(ARMS[:2], [0], {"constant": 1, "triangular": 3})
    watched = {"run_options": RunOptions(checkpoint_every=4), "make_callbacks": lambda arm, seed: [Watch()]}
    with pytest.raises(TrainingInterruptedError):
        run_arms(small, make_model, plan, tmp_path, step_options=PLAIN, **watched)
    runs = run_arms(small, make_model, plan, tmp_path, step_options=PLAIN, resume=True, **watched)
    assert Watch.started == (0, 0, 1, 2)
    assert [len(run.result.epochs) for run in runs] == [1, 3]
    whole = fit(TrainLoop(make_model(0), *small.train[:2], batch_size=50, options=PLAIN), ARMS[1].schedule, epochs=3)
    assert runs[1].result.weights_sha256 == whole.weights_sha256


def test_settings_and_timing_reach_the_runs_and_a_finished_run_with_a_changed_file_is_refused(
    small, make_model, tmp_path
):
    plan = Plan(ARMS[:1], [0], 1)
    again = partial(run_arms, small, make_model, plan, tmp_path, run_options=OPTIONS, step_options=PLAIN, resume=True)
    (run,) = again()
    assert run.result.is_timed is False
    place = tmp_path / ARMS[0].directory / "seed_0"
    config = json.loads((place / "config.json").read_text())
    assert (config["model"], config["dataset"], config["dataset_sha256"]) == ("mine", "mnist", small.sha256())
    for path in (place / name for name in ("history.csv", "epochs.csv", "result.json", "config.json")):
        whole = path.read_text()
        for content in damaged(path.suffix, whole):
            path.write_text(content)
            with pytest.raises(ValueError, match=r"seed_0.* restore (it|them) or ") as caught:
                read_result(place)
            assert "\n" not in str(caught.value)
        if path.name != "result.json":  # Without that a run is not finished.
            path.unlink()
            with pytest.raises(ValueError, match=rf"seed_0/{path.name} .* restore it or "):
                read_result(place)
        path.write_text(whole)
    whole = (place / "history.csv").read_text()
    (place / "history.csv").write_text("")
    with pytest.raises(ValueError, match=r"seed_0/history.csv .* restore it or "):
        again()
    assert (place / "history.csv").read_text() == ""
    (place / "history.csv").write_text(whole)
    assert again()[0].result.weights_sha256 == run.result.weights_sha256


def damaged(suffix, whole):
    """What a file may hold after a mishap."""
    if suffix == ".json":
        return "{}", whole[: len(whole) // 2], "[NaN]"
    lines = whole.splitlines(keepends=True)
    without_a_column = "".join(f"{line.rpartition(',')[0]}\n" for line in lines)
    in_other_order = "".join([lines[0], *lines[:0:-1]]) if len(lines) > 2 else ""
    return whole[:-3] + "\n", "".join(lines[:-1]), without_a_column, in_other_order, "", "{}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "mnist"}, "dataset is 'mnist'; it must be a Dataset or a StreamedDataset or a function."),
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


# --- In the processes of an executor ---


def digests(runs):
    return {(run.arm.label, run.seed): run.result.weights_sha256 for run in runs}


def test_runs_in_a_pool_are_those_that_are_made_here_to_the_bit_and_their_files_too(
    compared, small, make_model, tmp_path, monkeypatch
):
    fork_for_spawn(monkeypatch)
    told = []
    with pool(2, num_threads()) as executor:
        plan = Plan(ARMS, range(2), 2, Measure(target=0.5))
        runs = run_arms(small, make_model, plan, tmp_path, step_options=PLAIN, executor=executor, on_run=told.append)
    here = compared.comparison.runs
    assert [(run.arm, run.seed) for run in runs] == [(run.arm, run.seed) for run in here]
    assert sorted(map(id, told)) == sorted(map(id, runs))
    assert digests(runs) == digests(here)
    for mine, other in zip(runs, here, strict=True):
        assert mine.result.settings == other.result.settings
        for name in ("config.json", "history.csv"):
            files = [
                place / mine.arm.directory / f"seed_{mine.seed}" / name for place in (tmp_path, compared.directory)
            ]
            assert files[0].read_bytes() == files[1].read_bytes()
    assert {run.result.is_timed for run in runs} == {len(cores()) >= 2 * num_threads()}
    assert {path.name for path in tmp_path.iterdir()} == {arm.directory for arm in ARMS}


def test_another_number_of_threads_is_a_setting_of_the_run_and_refused_on_resuming(
    small, make_model, tmp_path, monkeypatch
):
    fork_for_spawn(monkeypatch)
    others = num_threads() + 1
    run = partial(run_arms, small, make_model, Plan(ARMS[:1], [0], 1), tmp_path, step_options=PLAIN)
    with pool(1, others) as executor:
        (first,) = run(executor=executor)
    assert first.result.settings["threads"] == others
    with pytest.raises(ValueError, match=f"has other settings: threads {others}, now {num_threads()}"):
        run(resume=True)


def test_results_and_tables_are_sent_back_where_the_directory_is_not_seen(compared, small, make_model, tmp_path):
    run = partial(run_arms, step_options=PLAIN)
    plan = Plan(ARMS[:2], [0], 2)
    big = dataclasses.replace(small, train=Examples(*(np.repeat(array, 50, 0) for array in small.train[:2])))
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(ValueError, match="give a function that loads the data where they are needed"):
            run(big, make_model, plan, tmp_path / "big", executor=Processes(executor, shared_dir=False))
        runs = run(small_mnist, small_model, plan, tmp_path, executor=Processes(executor, shared_dir=False))
    assert digests(runs) == digests([run for run in compared.comparison.runs if run.arm in ARMS[:2] and run.seed == 0])
    for run in runs:
        files = tmp_path / run.arm.directory / "seed_0"
        assert {path.name for path in files.iterdir()} == {
            "config.json", "result.json", "history.csv", "epochs.csv", "run.lock",
        }  # fmt: skip
        assert read_result(files).weights_sha256 == run.result.weights_sha256


def small_mnist():
    mnist = load("mnist")
    train, validation = (
        Examples(*(x[:200] for x in mnist.train[:2])),
        Examples(*(x[:100] for x in mnist.validation[:2])),
    )
    return dataclasses.replace(mnist, train=train, validation=validation)


def small_model(seed):
    return build_model("relu_mlp", load("mnist"), seed)


def test_what_a_lost_process_left_is_resumed_from_its_checkpoint(small, make_model, tmp_path, monkeypatch):
    fork_for_spawn(monkeypatch)
    plan, options = Plan(ARMS[:1], [0], 300), RunOptions(checkpoint_every=4, keep_checkpoints=10_000)
    run = partial(run_arms, small, make_model, plan, tmp_path, step_options=PLAIN, run_options=options)
    run_dir = tmp_path / ARMS[0].directory / "seed_0"
    others = set(multiprocessing.active_children())  # Of other tests.

    def kill():
        while not (run_dir / "checkpoints" / "step_0000000008" / "manifest.json").exists():
            time.sleep(0.01)
        for process in set(multiprocessing.active_children()) - others:
            process.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pool(1, num_threads()) as executor, pytest.raises(WorkersLostError):
        run(executor=executor)
    killer.join()
    first = run_dir / "checkpoints" / "step_0000000004" / "manifest.json"
    before = first.stat().st_mtime_ns
    assert not (run_dir / "result.json").exists()
    with pool(1, num_threads()) as executor:
        (resumed,) = run(executor=executor, resume=True)
    assert first.stat().st_mtime_ns == before  # It was not begun again.
    loop = TrainLoop(make_model(0), *small.train[:2], batch_size=50, options=PLAIN)
    assert resumed.result.weights_sha256 == fit(loop, ARMS[0].schedule, epochs=300).weights_sha256


def test_runs_that_are_there_are_refused_without_resume_and_diverged_ones_are_told(small, make_model, tmp_path):
    arms = [ARMS[0], Arm(50, "wild", Constant(1e30))]
    diverged, run = [], partial(run_arms, small, make_model, Plan(arms, [0], 1), tmp_path, step_options=PLAIN)
    with ThreadPoolExecutor(1) as executor:
        runs = run(executor=executor, on_diverged=lambda arm, seed: diverged.append((arm, seed)))
        assert [run.arm for run in runs] == [ARMS[0]]
        assert diverged == [(arms[1], 0)]
        with pytest.raises(FileExistsError, match="already holds a run"):
            run(executor=executor)
        with pytest.raises(NonFiniteLossError, match="start again with a lower learning rate"):
            run(executor=executor, resume=True)


def test_workers_that_load_other_data_are_refused(small, make_model, tmp_path):
    loaded = []

    def load_others_each_time():
        loaded.append(len(loaded))
        part = slice(len(loaded), 150 + len(loaded))
        return dataclasses.replace(small, train=Examples(*(array[part] for array in small.train[:2])))

    run = partial(run_arms, load_others_each_time, make_model, Plan(ARMS[:1], [0], 1), tmp_path, step_options=PLAIN)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="A worker loads other data than the"):
        run(executor=executor)


def test_callbacks_are_made_and_called_where_the_run_is(small, make_model, tmp_path, monkeypatch):
    fork_for_spawn(monkeypatch)
    note = tmp_path / "note"
    note.mkdir()

    class Notes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            (note / f"{os.getpid()} {epoch}").touch()

    run = partial(run_arms, small, make_model, Plan(ARMS[:1], [0], 2), tmp_path, step_options=PLAIN)
    with pool(1, num_threads()) as executor:
        run(executor=executor, make_callbacks=lambda arm, seed: [Notes()])
    written = [path.name.split() for path in sorted(note.iterdir())]
    assert [epoch for _, epoch in written] == ["0", "1"]
    assert {pid for pid, _ in written} != {str(os.getpid())}
