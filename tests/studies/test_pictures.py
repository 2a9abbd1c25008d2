import dataclasses

import numpy as np
import pytest
from matplotlib.ticker import PercentFormatter

from clr_loop.runs.result import Monitor
from clr_loop.studies.pictures.runs import training_picture
from clr_loop.studies.range_test.curves import Curve
from clr_loop.studies.range_test.picture import range_test_picture
from clr_loop.studies.range_test.sweep import RangeTest
from contenders.figure import benchmark_figure
from helpers.made_up_runs import ARMS, make_run


def labels(figure):
    return [axes.get_ylabel() for axes in figure.axes]


def is_in_percent(axes):
    return isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)


def test_training_curves_have_a_panel_for_each_metric_and_its_validation_where_there_is_one():
    run = make_run(ARMS[1], 0, 0.7, num_epochs=2)
    run.result.history["accuracy"] = np.linspace(0.1, 0.9, 1200)
    run.result.history["momentum"] = np.linspace(0.8, 0.9, 1200)
    figure = training_picture(run.result).together()
    assert labels(figure) == ["learning rate", "loss", "accuracy", "momentum"]
    rates, loss, accuracy, momentum = figure.axes
    np.testing.assert_array_equal(rates.lines[0].get_ydata(), run.result.history["learning_rate"])
    assert loss.lines[1].get_ydata() == pytest.approx([0.9, 0.9])
    assert accuracy.lines[1].get_ydata() == pytest.approx([0.7, 0.7])
    assert len(momentum.lines) == 1
    assert [is_in_percent(axes) for axes in figure.axes] == [False, False, True, False]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear", "linear"]
    figure.canvas.draw()
    assert rates.child_axes[0].get_xlim() == pytest.approx(np.array(rates.get_xlim()) / 600)


def test_the_best_epoch_by_the_monitor_and_the_averaged_weights_are_marked():
    run = make_run(ARMS[1], 0, 0.7, num_epochs=3)
    values = {"val_accuracy": (0.5, 0.8, 0.8), "val_loss": (0.3, 0.9, 0.2), "averaged_val_loss": (np.nan, 0.4, 0.1)}
    for i, record in enumerate(run.result.epochs):
        metrics = {**record.metrics, **{name: of_epochs[i] for name, of_epochs in values.items()}}
        run.result.epochs[i] = dataclasses.replace(record, metrics=metrics, step=600 * (i + 1) - 1)
    for monitor, best in ((Monitor(), 2), (Monitor("val_loss"), 3)):
        rates, loss = training_picture(run.result, monitor).together().axes
        _, validation, averaged, mark = loss.lines
        assert validation.get_ydata() == pytest.approx(values["val_loss"])
        assert averaged.get_ydata() == pytest.approx(values["averaged_val_loss"], nan_ok=True)
        assert averaged.get_linestyle() != validation.get_linestyle()
        assert (mark.get_label(), mark.get_xdata()[0]) == (f"best epoch: {best}", 600 * best - 1)
        assert len(rates.lines) == 1


def test_rates_over_more_than_a_decade_and_a_half_have_a_log_panel_beside_the_linear_one():
    run = make_run(ARMS[1], 0, 0.7, num_epochs=1)
    run.result.history["learning_rate"] = np.geomspace(1e-3, 3.1e-2, 600)
    assert labels(training_picture(run.result).together()) == ["learning rate", "loss"]
    run.result.history["learning_rate"] = np.geomspace(1e-3, 3.2e-2, 600)
    run.result.history["loss"] -= 1.0
    figure = training_picture(run.result).together()
    assert labels(figure) == ["learning rate", "learning rate", "loss"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]


def range_test(loss, score=None, batch_size=8, measure="accuracy"):
    """A test whose time constant is so short that its curves are hardly smoothed, but for single spikes."""
    rates = np.geomspace(1e-5, 1.0, len(loss))
    measure = "loss" if score is None else measure
    curve = Curve(rates, loss, -loss if score is None else score, 1e-3, measure=measure)
    return RangeTest({"batch_size": batch_size, "seed": 0}, curve, "")


def test_a_range_test_says_which_points_are_of_held_out_examples_and_cuts_a_spike_of_their_loss():
    loss = np.append(np.linspace(2.0, 1.0, 99), np.nan)
    spiked = np.where(np.arange(100) < 90, loss, 1e6)
    figure = range_test_picture({8: [range_test(loss, -spiked, measure="val_loss")]}, {"model": "a model"}).together()
    assert labels(figure) == ["loss", "val loss"]
    assert figure.axes[1].get_ylim()[1] < 5.0
    assert figure.axes[1].lines[0].get_ydata()[0] == 2.0
    explained = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"thin: each batch", "thin: held-out examples"} < set(explained)


@pytest.mark.parametrize("has_score", [True, False])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_a_range_test_has_a_panel_for_the_loss_and_one_for_the_measure(has_score, shift):
    loss = np.append(np.linspace(2.0, 1.0, 99), np.nan) + shift
    test = range_test(loss, -loss if has_score else None)
    figure = range_test_picture({8: [test, test]}, {"model": "a model"}).together()
    assert labels(figure) == ["loss", *(["accuracy"] if has_score else [])]
    assert figure.axes[0].get_ylim() == pytest.approx((0.0, 2.4) if not shift else (-4.0, -2.8), rel=0.02)
    assert figure.get_suptitle() == "LR range test: a model, batch 8, 2 seeds"
    assert figure.axes[0].get_title() == ""
    explained = [text.get_text() for text in figure.legends[0].get_texts()]
    assert explained[:3] == ["thin: each batch", "bold: smoothed", "cross: end of sweep"]
    assert any(label.startswith("steepest") or label.startswith("max_lr") for label in explained[3:])
    assert len(explained) == len(set(explained))
    figure.canvas.draw()


@pytest.mark.parametrize("last", [3.0, 1e6])
def test_a_cross_shows_where_a_sweep_ended_even_if_its_loss_left_the_axis(last):
    loss = np.concatenate([np.full(5, 2.0), np.linspace(2.0, 1.0, 43), [last, np.nan]])
    (axes,) = range_test_picture({8: [range_test(loss)]}, {}).together().axes
    (cross,) = (line for line in axes.lines if line.get_marker() == "X")
    smoothed = axes.lines[1].get_ydata()
    assert cross.get_xdata() == pytest.approx(axes.lines[1].get_xdata()[np.isfinite(smoothed)][-1:])
    top = axes.get_ylim()[1]
    assert top == pytest.approx(min(np.nanmax(smoothed) + 0.4, 4.0))
    assert cross.get_ydata() == pytest.approx([min(smoothed[np.isfinite(smoothed)][-1], top)])


def test_a_range_test_without_a_value_is_drawn_all_the_same():
    figure = range_test_picture({8: [range_test(np.empty(0))]}, {}).together()
    figure.canvas.draw()
    assert labels(figure) == ["loss"]


def test_range_tests_of_several_batch_sizes_stand_beside_each_other_with_what_each_suggests():
    x = np.linspace(-5, 1, 400)
    loss, score = 2.3 - 2.0 * np.exp(-0.5 * ((x + 2) / 0.6) ** 2), np.exp(-0.5 * ((x + 2) / 0.6) ** 2)
    tests = {size: [range_test(loss, score, batch_size=size)] for size in (8, 64)}
    picture = range_test_picture(tests, {"model": "a model"})
    figure = picture.together()
    assert labels(figure) == ["loss", "loss", "accuracy", "accuracy"]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == titles[:2] * 2
    for size, title in zip((8, 64), titles, strict=False):
        assert title.startswith(f"batch {size}: base_lr ")
        assert ", max_lr " in title
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    explained = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len([label for label in explained if label.startswith("max_lr: ")]) == 1
    assert set(picture.alone()) == {
        "loss, batch 8", "loss, batch 64", "accuracy, batch 8", "accuracy, batch 64",
    }  # fmt: skip


def test_a_batch_size_that_is_scored_on_held_out_examples_stands_beside_one_that_is_not():
    x = np.linspace(-5, 1, 400)
    score = np.exp(-0.5 * ((x + 2) / 0.6) ** 2)
    loss = 2.3 - 2.0 * score
    tests = {8: [range_test(loss, score)], 64: [range_test(loss, score, batch_size=64, measure="val_accuracy")]}
    assert labels(range_test_picture(tests, {}).together()) == ["loss", "loss", "accuracy", "val accuracy"]
    tests = {8: [range_test(loss)], 64: [range_test(loss, -loss, batch_size=64, measure="val_loss")]}
    assert labels(range_test_picture(tests, {}).together()) == ["loss", "loss", "val loss"]


def test_the_cases_of_a_model_share_a_row_and_a_scale_and_no_cell_is_empty():
    cases = {
        f"{model}, batch {size}": {"clr_loop": [seconds, 2 * seconds]}
        for model, sizes in (("one", {100: 1.0, 2000: 4.0}), ("other", {100: 0.5, 2000: 0.1}))
        for size, seconds in sizes.items()
    }
    figure = benchmark_figure(cases, {"clr_loop": {32: 2.0, 128: 1.0}}, "a machine")
    *bars, growth = figure.axes
    assert [axes.get_xlim()[1] for axes in bars] == pytest.approx([1.12 * 8.0] * 2 + [1.12 * 1.0] * 2)
    assert [axes.patches[0].get_width() for axes in bars] == pytest.approx([1.5, 6.0, 0.75, 0.15])
    figure.canvas.draw()
    widths = [axes.get_position().width for axes in figure.axes]
    assert growth.get_position().width > widths[0] + widths[1]
    assert figure.get_suptitle() == "a machine"
    assert len(benchmark_figure(cases, {}).axes) == 4
