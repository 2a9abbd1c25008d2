"""How things show themselves: one line in a shell, a table or a picture in a notebook."""

import dataclasses
import html

import numpy as np
import pytest

from clr_loop import Constant, CosineRestarts, Dataset, Examples, LinearRamp, OneCycle, Triangular, fit, join, load_run
from clr_loop.display import Shown, picture_of
from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.range_test import run
from helpers.made_up_runs import ARMS, make_run, make_runs
from helpers.shown import cells_of, is_drawing
from helpers.small import FEATURES, LABELS, loop_again


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "run"
    fit(loop_again(), Constant(0.01), (FEATURES, LABELS), epochs=2, run_dir=directory)
    return load_run(directory)


def test_a_saved_run_and_a_checkpoint_are_a_line_and_a_table(saved):
    line = repr(saved)
    assert "\n" not in line
    assert line.startswith(f"SavedRun(run {saved.directory}, state finished, epochs 2, steps 8, loss ")
    cells = dict(cells_of(saved))
    assert cells["val_accuracy"] == f"{saved.result.final['val_accuracy']:.4g}"
    newest = saved.checkpoints[-1]
    assert repr(newest).startswith("Checkpoint(step 8, loss ")
    assert dict(cells_of(newest))["directory"] == str(newest.directory)


def test_a_run_without_an_epoch_shows_itself_too(saved):
    unfinished = dataclasses.replace(saved, epochs=[], result=None)
    assert "state not finished, epochs 0, steps 8, checkpoints" in repr(unfinished)


def test_a_loop_and_a_dataset_are_a_line_and_a_table():
    loop = loop_again()
    assert repr(loop) == (
        "TrainLoop(model sequential, optimizer Adam, examples 200, batch size 50, steps per epoch 4, step 0, "
        "device CPU:0)"
    ).replace("sequential", loop.model.name)
    examples = Examples(FEATURES, LABELS)
    dataset = Dataset("<mine>", examples, None, 5)
    assert repr(dataset) == (
        "Dataset(name <mine>, training examples 200, validation examples 0, input shape (6,), classes 5)"
    )
    assert cells_of(dataset)[0] == ["name", "<mine>"]
    assert html.escape("<mine>") in dataset._repr_html_()


def test_a_comparison_is_a_line_a_table_of_its_arms_and_their_picture():
    comparison = compare(make_runs([[0.1, 0.3], [0.5, 0.5], [0.2, 0.2], [0.4, 0.4]]))
    assert repr(comparison) == "Comparison(4 arms, 2 seeds, by val_accuracy)"
    header, first, *_ = cells_of(comparison)
    assert header == ["arm", "validation accuracy", "failed", "training seconds"]
    assert first[:2] == ["constant, batch 100", "0.2000 ± 0.1414"]
    assert is_drawing(comparison)


def test_a_range_test_is_a_line_a_table_and_its_picture():
    test = run(loop_again(), num_steps=40, early_stop=None)
    assert repr(test).startswith("RangeTest(batch size 50, seed 0, learning rates 1e-07 to 10, steps 40, stopped by ")
    assert dict(cells_of(test))["steps"] == "40"
    assert is_drawing(test)
    assert not test.plot().title.startswith("LR range test: ,")


SCHEDULES = [
    (Constant(0.1), 1000),
    (OneCycle(0.1, 90, momentum=(0.85, 0.95)), 90),
    (Triangular(0.001, 0.006, 30, 10), 80),
    (CosineRestarts(0.001, 0.006, 10, 2), 30),
    (join([LinearRamp(0.0, 0.006, 20), Triangular(0.001, 0.006, 30)], [20]), 140),
]


@pytest.mark.parametrize(("schedule", "length"), SCHEDULES, ids=lambda value: type(value).__name__)
def test_a_schedule_shows_its_whole_length_or_two_cycles(schedule, length):
    assert is_drawing(schedule)
    steps, rates = schedule.plot().together().axes[0].lines[0].get_data()
    np.testing.assert_array_equal(steps, np.arange(length))
    np.testing.assert_array_equal(rates, schedule(np.arange(length)))


def test_a_schedule_is_drawn_for_a_run_with_its_epochs_and_warnings():
    figure = Triangular(0.001, 0.006, 2000).plot(450, steps_per_epoch=30).together()
    assert "for two whole cycles use step_size=112" in " ".join(figure.get_supxlabel().split())
    axes = figure.axes[0]
    assert len(axes.lines[0].get_xdata()) == 450
    assert axes.child_axes[0].get_xlabel() == "epoch"
    assert not Triangular(0.001, 0.006, 2000).plot(450).together().axes[0].child_axes
    with pytest.raises(ValueError, match=r"^steps is 0; it must be at least 1"):
        Constant(0.1).plot(0)


def test_a_picture_and_its_figure_are_lines_that_a_notebook_shows():
    picture = make_run(ARMS[0], 0, 0.5).result.plot()
    assert repr(picture) == "Picture('Adam, batch 100, seed 0')"
    assert is_drawing(picture)
    assert is_drawing(picture.together())


def test_what_has_no_picture_says_so():
    class Thing(Shown):
        def _rows(self):
            return [{"a": 1}]

    assert repr(Thing()) == "Thing(a 1)"
    with pytest.raises(TypeError, match=r"^Thing\(a 1\) has no picture"):
        picture_of(Thing())
