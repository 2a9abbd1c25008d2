import numpy as np
import pytest
from matplotlib.ticker import PercentFormatter

from clr_loop.studies.pictures import plots
from helpers.made_up_runs import ARMS, make_run


def labels(figure):
    return [axes.get_ylabel() for axes in figure.axes]


def is_in_percent(axes):
    return isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)


def test_training_curves_have_a_panel_for_each_metric_and_its_validation_where_there_is_one():
    run = make_run(ARMS[1], 0, 0.7, num_epochs=2)
    run.result.history["accuracy"] = np.linspace(0.1, 0.9, 1200)
    run.result.history["momentum"] = np.linspace(0.8, 0.9, 1200)
    figure = plots.training_curves(run.result).together()
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
    assert labels(plots.training_curves(run.result).together()) == ["learning rate", "loss"]
    run.result.history["learning_rate"] = np.geomspace(1e-3, 3.2e-2, 600)
    run.result.history["loss"] -= 1.0
    figure = plots.training_curves(run.result).together()
    assert labels(figure) == ["learning rate", "learning rate", "loss"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]


@pytest.mark.parametrize("measure", ["accuracy", None])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_a_range_test_has_a_panel_for_the_loss_and_one_for_the_measure(measure, shift):
    rates = np.geomspace(1e-5, 1.0, 50)
    loss = np.append(np.linspace(2.0, 1.0, 49), np.nan) + shift
    curves = {"learning_rate": rates, "loss": loss, "smoothed_loss": loss}
    if measure:
        curves |= {measure: loss, f"smoothed_{measure}": loss}
    bands = {"max_lr": (0.01, 0.02, 0.03)}
    tests = plots.Sweeps([curves, curves], bands, {"max_lr": "a middle"})
    figure = plots.range_test({"batch 8": tests}, "a model").together()
    assert labels(figure) == ["loss", *([measure] if measure else [])]
    assert figure.axes[0].get_ylim() == pytest.approx((0.0, 2.4) if not shift else (-4.0, -2.8))
    assert figure.get_suptitle() == "LR range test: a model"
    assert figure.axes[0].get_title() == ""
    explained = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "max_lr 0.02: a middle" in explained
    assert len(explained) == len(set(explained)) == 4
    figure.canvas.draw()


@pytest.mark.parametrize("last", [3.0, 1e6])
def test_a_cross_shows_where_a_sweep_ended_even_if_its_loss_left_the_axis(last):
    rates = np.geomspace(1e-5, 1.0, 50)
    loss = np.append(np.linspace(2.0, 1.0, 48), [last, np.nan])
    tests = plots.Sweeps([{"learning_rate": rates, "loss": loss, "smoothed_loss": loss}], {}, {})
    (axes,) = plots.range_test({"batch 8": tests}, "title").together().axes
    (cross,) = (line for line in axes.lines if line.get_marker() == "X")
    assert cross.get_xdata() == pytest.approx(rates[48:49])
    assert cross.get_ydata() == pytest.approx([min(last, axes.get_ylim()[1])])
    assert axes.get_ylim()[1] == pytest.approx(min(last + 0.4, 4.0))


def test_a_range_test_without_a_value_is_drawn_all_the_same():
    none = np.empty(0)
    tests = plots.Sweeps([{"learning_rate": none, "loss": none, "smoothed_loss": none}], {}, {})
    figure = plots.range_test({"batch 8": tests}, "nothing").together()
    figure.canvas.draw()
    assert labels(figure) == ["loss"]


def test_range_tests_of_several_batch_sizes_stand_beside_each_other_with_what_each_suggests():
    rates = np.geomspace(1e-5, 1.0, 50)
    curves = {"learning_rate": rates, "loss": 2.0 - rates, "smoothed_loss": 2.0 - rates}
    curves |= {"accuracy": rates, "smoothed_accuracy": rates}
    tests = {
        f"batch {size}": plots.Sweeps([curves], {"max_lr": (rate, rate, rate)}, {"max_lr": "a middle"})
        for size, rate in ((8, 0.01), (64, 0.04))
    }
    picture = plots.range_test(tests, "a model")
    figure = picture.together()
    assert labels(figure) == ["loss", "loss", "accuracy", "accuracy"]
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["batch 8: max_lr 0.01", "batch 64: max_lr 0.04"] * 2
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    assert [text.get_text() for text in figure.legends[0].get_texts()].count("max_lr: a middle") == 1
    assert set(picture.alone()) == {
        "loss, batch 8", "loss, batch 64", "accuracy, batch 8", "accuracy, batch 64",
    }  # fmt: skip


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
