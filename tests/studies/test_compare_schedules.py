import threading
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import clr_loop
from clr_loop import Constant, Dataset, Examples, StepOptions, Triangular, compare_schedules
from clr_loop.studies import compare_schedules as module
from clr_loop.studies.arms import Arm
from clr_loop.studies.comparison.plan import Plan
from clr_loop.studies.comparison.runner import run_arms
from clr_loop.studies.tasks import Processes
from helpers.shown import cells_of, is_drawing
from helpers.small import FEATURES, LABELS, classifier

EXAMPLES = (FEATURES, LABELS)
DATA = Dataset("small", Examples(*EXAMPLES), Examples(*EXAMPLES), 5)
OPTIONS = StepOptions(jit_compile=False)
SCHEDULES = {"constant": Constant(0.01), "triangular": lambda steps: Triangular(0.001, 0.02, steps("50%"))}


def compared(data=DATA, schedules=SCHEDULES, **arguments):
    arguments = {"batch_sizes": (50, 100), "seeds": 2, "epochs": 2, "options": OPTIONS, **arguments}
    return compare_schedules(lambda seed: classifier(seed=seed), data, schedules, **arguments)


def digests(report):
    return {(run.arm.label, run.seed): run.result.weights_sha256 for run in report.comparison.runs}


@pytest.fixture(scope="module")
def report():
    return compared()


def test_every_arm_runs_with_every_seed_on_a_schedule_of_its_own_length(report, tmp_path):
    arms = [
        Arm(size, name, schedule)
        for size, half in ((50, 4), (100, 2))
        for name, schedule in (("constant", Constant(0.01)), ("triangular", Triangular(0.001, 0.02, half)))
    ]
    runs = run_arms(DATA, lambda seed: classifier(seed=seed), Plan(arms, [0, 1], 2), tmp_path, step_options=OPTIONS)
    assert digests(report) == {(run.arm.label, run.seed): run.result.weights_sha256 for run in runs}


def test_it_shows_the_arms_what_follows_and_the_picture_and_prints_the_whole_report(report):
    assert repr(report) == "Report(Comparison(4 arms, 2 seeds, by val_accuracy))"
    assert len(cells_of(report)) == 5
    assert "<li>Triangular, batch 100, instead of constant, batch 50, " in report._repr_html_()
    assert is_drawing(report)
    assert "## Arms" in str(report)
    assert "small, model, Adam, 2 epochs, 2 seeds an arm" in str(report)


def test_pairs_of_arrays_and_a_measure_by_name_are_taken(report):
    again = compared((EXAMPLES, EXAMPLES), batch_sizes=(50,), seeds=1, measure="val_loss")
    assert digests(again).items() <= digests(report).items()
    assert again.comparison.measure.higher_is_better is False


def test_a_function_that_loads_the_data_is_called_where_the_runs_are(report):
    are_here.clear()
    assert digests(compared(load)) == digests(report)
    assert are_here == [True]
    with ThreadPoolExecutor(1) as executor:
        again = compared(load, executor=Processes(executor, shared_dir=False))
    assert digests(again) == digests(report)
    assert False in are_here


are_here = []


def load():
    are_here.append(threading.current_thread() is threading.main_thread())
    return DATA


def test_an_interrupted_comparison_goes_on_and_ends_as_if_it_had_not_been(report, tmp_path, monkeypatch):
    labels = []

    class Bar(keras.callbacks.Callback):
        def __init__(self, label):
            super().__init__()
            labels.append(label)

        def on_epoch_end(self, epoch, logs=None):
            if len(labels) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "ProgressBar", Bar)
    with pytest.raises(KeyboardInterrupt):
        compared(output_dir=tmp_path / "out", resume=True)
    assert [label.partition(":")[0] for label in labels] == [f"run {k} of 8" for k in (1, 2, 3)]
    with pytest.raises(FileExistsError, match=r"give resume=True to go on with it, or give overwrite=True"):
        compared(output_dir=tmp_path / "out")
    labels.extend([""] * 3)
    again = compared(output_dir=tmp_path / "out", resume=True)
    assert [label.partition(":")[0] for label in labels[6:]] == [f"run {k} of 8" for k in (3, 4, 5, 6, 7, 8)]
    assert digests(again) == digests(report)
    assert (tmp_path / "out" / "report.md").read_text().startswith(str(again))
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000


def test_overwrite_moves_what_is_there_aside(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "write", lambda comparison, directory, context: None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.lock").touch()
    (tmp_path / "out" / "report.md").write_text("earlier")
    one = {"schedules": {"constant": Constant(0.01)}, "batch_sizes": (100,), "seeds": 1}
    compared(**one, output_dir=tmp_path / "out", overwrite=True)
    assert (tmp_path / "out.1" / "report.md").read_text() == "earlier"
    assert [path.name for path in (tmp_path / "out").glob("constant*")] == ["constant_batch_100"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"resume": True}, ValueError, r"^resume=True goes on with what is in output_dir; give it an output_dir"),
        ({"schedules": {"a": 0.1}}, TypeError, r"^schedules is .*; it must be a dict, each key a string"),
        ({"schedules": {"a": lambda steps: 0.1}}, TypeError, r"^schedule is 0.1; .*give Constant\(0.1\)"),
        ({"batch_sizes": (500,)}, ValueError, r"^batch_size is 500; choose one from 1 to the 200 examples"),
        ({"seeds": 0}, ValueError, r"^seeds is 0; it must be at least 1"),
        ({"measure": "val_mae"}, ValueError, r"^These runs have no measure val_mae; choose one of loss, accuracy"),
        ({"epoch": 3}, TypeError, r"^compare_schedules has no argument epoch; did you mean epochs"),
    ],
)
def test_a_mistake_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        compared(**arguments)


def test_it_is_a_public_name_with_find_rate():
    assert {"compare_schedules", "find_rate"} <= set(clr_loop.__all__)
    assert np.isin(["compare_schedules", "find_rate"], dir(clr_loop)).all()
