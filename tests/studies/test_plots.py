import dataclasses

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
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear", "linear"]
    figure.canvas.draw()
    assert rates.child_axes[0].get_xlim() == pytest.approx(np.array(rates.get_xlim()) / 600)


def test_rates_over_more_than_a_decade_and_a_half_have_a_log_panel_beside_the_linear_one():
    run = make_run(ARMS[1], 0, 0.7, num_epochs=1)
    run.result.history["learning_rate"] = np.geomspace(1e-3, 3.1e-2, 600)
    assert labels(plots.training_curves(run.result)) == ["learning rate", "loss"]
    run.result.history["learning_rate"] = np.geomspace(1e-3, 3.2e-2, 600)
    run.result.history["loss"] -= 1.0
    figure = plots.training_curves(run.result)
    assert labels(figure) == ["learning rate", "learning rate", "loss"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]


def comparison_of(values, measure="val_accuracy", arm=ARMS[0], **arguments):
    """A picture of one arm whose seeds end with these values; the last seed was not timed."""
    runs = [
        make_run(arm, seed, value, measure=measure, epoch_seconds=1.0 + seed / 2, is_timed=seed < 2, **arguments)
        for seed, value in enumerate(values)
    ]
    return plots.comparison(compare(runs, Measure(measure)))


@pytest.mark.parametrize(("name", "in_percent"), [("val_accuracy", True), ("val_loss", False)])
def test_a_comparison_is_drawn_by_the_measure(name, in_percent):
    figure = comparison_of([0.5, 0.6, 0.1], name, num_epochs=2)
    by_seconds, by_examples, last, rates = figure.axes
    assert by_seconds.get_ylabel() == by_examples.get_ylabel() == Measure(name).words
    assert by_seconds.lines[0].get_xdata() == pytest.approx([1.25, 2.5])
    assert by_examples.lines[0].get_xdata() == pytest.approx([60.0, 120.0])
    assert by_seconds.lines[0].get_ydata() == pytest.approx([0.4, 0.4])
    assert last.lines[0].get_xdata() == pytest.approx([0.5, 0.6, 0.1])
    np.testing.assert_array_equal(rates.lines[0].get_ydata(), np.full(1200, 0.1, np.float32))
    assert rates.lines[0].get_xdata()[[0, 600]] == pytest.approx([0.0, 1.0])
    assert [is_in_percent(axes) for axes in figure.axes] == [in_percent] * 2 + [False] * 2
    assert isinstance(last.xaxis.get_major_formatter(), PercentFormatter) == in_percent


def test_bands_and_bars_are_the_standard_deviation_and_the_legend_says_so():
    figure = comparison_of([0.5, 0.6, 0.1], num_epochs=2)
    by_seconds, _, last, _ = figure.axes
    sd = np.sqrt((0.1**2 + 0.2**2 + 0.3**2) / 2)
    heights = by_seconds.collections[0].get_paths()[0].vertices[:, 1]
    assert [heights.min(), heights.max()] == pytest.approx([0.4 - sd, 0.4 + sd])
    (bar,) = last.collections[0].get_segments()
    assert bar[:, 0] == pytest.approx([0.4 - sd, 0.4 + sd])
    assert "± standard deviation" in figure.legends[0].get_title().get_text()


def test_a_comparison_of_one_epoch_and_one_seed_shows_each_arm_by_name_and_value():
    figure = comparison_of([0.5], num_epochs=1)
    last, by_seconds, _ = figure.axes
    assert [text.get_text() for text in last.get_yticklabels()] == ["constant, batch 100"]
    assert [text.get_text() for text in last.texts] == ["50.00%"]
    assert by_seconds.lines[0].get_marker() == "o"


def test_constants_of_one_rate_show_beside_each_other_and_cycles_fill_a_linear_panel():
    runs = [make_run(arm, 0, 0.5, num_epochs=15) for arm in ARMS]
    *_, linear, log = plots.comparison(compare(runs, Measure())).axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    assert linear.get_ylim() == pytest.approx((0.0, 1.05 * 0.006))
    first, first_cycle, second, second_cycle = (line.get_linewidth() for line in log.lines)
    assert first > second == first_cycle == second_cycle
    assert len({line.get_color() for line in log.lines}) == 4


@pytest.mark.parametrize(("name", "limits"), [("val_accuracy", (0.4, 0.9)), ("val_loss", (0.1, 0.6))])
def test_epochs_near_chance_leave_half_of_the_axis_to_the_later_ones(name, limits):
    run = make_run(ARMS[0], 0, 0.0, measure=name, num_epochs=6)
    is_loss = name == "val_loss"
    for i, value in enumerate([0.1, 0.2, 0.65, 0.7, 0.8, 0.9]):
        metrics = {name: 1.0 - value if is_loss else value}
        run.result.epochs[i] = dataclasses.replace(run.result.epochs[i], metrics=metrics)
    low, high = plots.comparison(compare([run], Measure(name))).axes[0].get_ylim()
    assert (low, high) == pytest.approx((limits[0] - 0.025, limits[1] + 0.025))


@pytest.mark.parametrize("measure", ["accuracy", None])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_a_range_test_has_a_panel_for_the_loss_and_one_for_the_measure(measure, shift):
    rates = np.geomspace(1e-5, 1.0, 50)
    loss = np.append(np.linspace(2.0, 1.0, 49), np.nan) + shift
    curves = {"learning_rate": rates, "loss": loss, "smoothed_loss": loss}
    if measure:
        curves |= {measure: loss, f"smoothed_{measure}": loss}
    bands = {"max_lr": (0.01, 0.02, 0.03)}
    figure = plots.range_test([curves, curves], bands, "a model", {"max_lr": "a middle"})
    assert labels(figure) == ["loss", *([measure] if measure else [])]
    assert figure.axes[0].get_ylim() == pytest.approx((0.0, 2.4) if not shift else (-4.0, -2.8))
    assert figure.axes[0].get_title() == "LR range test: a model"
    explained = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "max_lr 0.02: a middle" in explained
    assert len(explained) == len(set(explained)) == 4
    figure.canvas.draw()


@pytest.mark.parametrize("last", [3.0, 1e6])
def test_a_cross_shows_where_a_sweep_ended_even_if_its_loss_left_the_axis(last):
    rates = np.geomspace(1e-5, 1.0, 50)
    loss = np.append(np.linspace(2.0, 1.0, 48), [last, np.nan])
    (axes,) = plots.range_test([{"learning_rate": rates, "loss": loss, "smoothed_loss": loss}], {}, "title").axes
    (cross,) = (line for line in axes.lines if line.get_marker() == "X")
    assert cross.get_xdata() == pytest.approx(rates[48:49])
    assert cross.get_ydata() == pytest.approx([min(last, axes.get_ylim()[1])])
    assert axes.get_ylim()[1] == pytest.approx(min(last + 0.4, 4.0))


def test_a_range_test_without_a_value_is_drawn_all_the_same():
    none = np.empty(0)
    figure = plots.range_test([{"learning_rate": none, "loss": none, "smoothed_loss": none}], {}, "nothing")
    figure.canvas.draw()
    assert labels(figure) == ["loss"]


def test_the_cases_of_a_model_share_a_row_and_a_scale_and_no_cell_is_empty():
    cases = {
        f"{model}, batch {size}": {"clr_loop": [seconds, 2 * seconds]}
        for model, sizes in (("one", {100: 1.0, 2000: 4.0}), ("other", {100: 0.5, 2000: 0.1}))
        for size, seconds in sizes.items()
    }
    figure = plots.benchmark(cases, {"clr_loop": {32: 2.0, 128: 1.0}}, "a machine")
    *bars, growth = figure.axes
    assert [axes.get_xlim()[1] for axes in bars] == pytest.approx([1.12 * 8.0] * 2 + [1.12 * 1.0] * 2)
    assert [axes.patches[0].get_width() for axes in bars] == pytest.approx([1.5, 6.0, 0.75, 0.15])
    figure.canvas.draw()
    widths = [axes.get_position().width for axes in figure.axes]
    assert growth.get_position().width > widths[0] + widths[1]
    assert figure.get_suptitle() == "a machine"
    assert len(plots.benchmark(cases, {}).axes) == 4
