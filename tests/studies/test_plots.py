import numpy as np
import pytest
from matplotlib.ticker import PercentFormatter

from clr_loop.studies import plots
from clr_loop.studies.effects import compare
from clr_loop.studies.measures import Measure
from helpers.made_up_runs import ARMS, make_run


def labels(figure):
    return [axes.get_ylabel() for axes in figure.axes]


def is_in_percent(axes):
    return isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)


def test_training_curves_have_a_panel_for_each_metric_and_its_validation_where_there_is_one():
    run = make_run(ARMS[1], 0, 0.7, num_epochs=2)
    run.result.history["accuracy"] = np.linspace(0.1, 0.9, 1200)
    run.result.history["momentum"] = np.linspace(0.8, 0.9, 1200)
    figure = plots.training_curves(run.result)
    assert labels(figure) == ["learning rate", "loss", "accuracy", "momentum"]
    rates, loss, accuracy, momentum = figure.axes
    np.testing.assert_array_equal(rates.lines[0].get_ydata(), run.result.history["learning_rate"])
    assert loss.lines[1].get_ydata() == pytest.approx([0.9, 0.9])
    assert accuracy.lines[1].get_ydata() == pytest.approx([0.7, 0.7])
    assert len(momentum.lines) == 1
    assert [is_in_percent(axes) for axes in figure.axes] == [False, False, True, False]


@pytest.mark.parametrize(("name", "in_percent"), [("val_accuracy", True), ("val_loss", False)])
def test_a_comparison_is_drawn_by_the_measure(name, in_percent):
    runs = [
        make_run(ARMS[0], seed, value, measure=name, num_epochs=2, epoch_seconds=seconds, is_timed=seed < 2)
        for seed, value, seconds in ((0, 0.5, 1.0), (1, 0.6, 1.5), (2, 0.1, 100.0))
    ]
    figure = plots.comparison(compare(runs, Measure(name)))
    by_seconds, by_examples, last, rates = figure.axes
    assert by_seconds.get_ylabel() == by_examples.get_ylabel() == Measure(name).words
    assert by_seconds.lines[0].get_xdata() == pytest.approx([1.25, 2.5])
    assert by_examples.lines[0].get_xdata() == pytest.approx([60.0, 120.0])
    assert by_seconds.lines[0].get_ydata() == pytest.approx([0.4, 0.4])
    assert last.lines[0].get_ydata() == pytest.approx([0.5, 0.6, 0.1])
    np.testing.assert_array_equal(rates.lines[0].get_ydata(), runs[0].result.history["learning_rate"])
    assert rates.lines[0].get_xdata()[[0, 600]] == pytest.approx([0.0, 1.0])
    assert [is_in_percent(axes) for axes in figure.axes] == [in_percent] * 3 + [False]
    assert rates.get_yscale() == "log"


@pytest.mark.parametrize("measure", ["accuracy", None])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_a_range_test_has_a_panel_for_the_loss_and_one_for_the_measure(measure, shift):
    rates = np.geomspace(1e-5, 1.0, 50)
    loss = np.append(np.linspace(2.0, 1.0, 49), np.nan) + shift
    curves = {"learning_rate": rates, "loss": loss, "smoothed_loss": loss}
    if measure:
        curves |= {measure: loss, f"smoothed_{measure}": loss}
    figure = plots.range_test([curves, curves], {"max_lr": (0.01, 0.02, 0.03)}, "a model")
    assert labels(figure) == ["loss", *([measure] if measure else [])]
    assert figure.axes[0].get_ylim() == pytest.approx((0.0, 4.0) if not shift else (-4.0, -2.0))
    assert figure.axes[0].get_title() == "LR range test: a model"
    assert "max_lr 0.02" in [text.get_text().strip() for text in figure.axes[0].texts]
    figure.canvas.draw()


def test_a_range_test_without_a_value_is_drawn_all_the_same():
    none = np.empty(0)
    figure = plots.range_test([{"learning_rate": none, "loss": none, "smoothed_loss": none}], {}, "nothing")
    figure.canvas.draw()
    assert labels(figure) == ["loss"]
