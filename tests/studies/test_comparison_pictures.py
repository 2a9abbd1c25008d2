import dataclasses
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.ticker import PercentFormatter

from clr_loop.studies.arms import Arm
from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.tuning import Search, Trials
from clr_loop.studies.pictures.canvas import arm_looks
from clr_loop.studies.pictures.comparison import arms_picture, comparison_pictures
from clr_loop.studies.pictures.tuning import tuning_picture
from helpers.made_up_runs import ARMS, make_run


def is_in_percent(axes):
    return isinstance(axes.yaxis.get_major_formatter(), PercentFormatter)


def legend_of(axes):
    return axes.get_legend_handles_labels()[1]


def comparison_of(values, measure="val_accuracy", arm=ARMS[0], **arguments):
    """A picture of one arm whose seeds end with these values; the last seed was not timed."""
    runs = [
        make_run(arm, seed, value, measure=measure, epoch_seconds=1.0 + seed / 2, is_timed=seed < 2, **arguments)
        for seed, value in enumerate(values)
    ]
    return arms_picture(compare(runs, Measure(measure))).together()


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
    assert "± standard deviation" in by_seconds.get_title()
    (row,) = last.get_yticklabels()
    assert row.get_text() == f"constant, batch 100\n40.00 ± {100 * sd:.2f}%"


def test_a_comparison_of_one_epoch_and_one_seed_shows_each_arm_by_name_and_value():
    figure = comparison_of([0.5], num_epochs=1)
    last, by_seconds, _ = figure.axes
    assert [text.get_text() for text in last.get_yticklabels()] == ["constant, batch 100\n50.00%"]
    assert by_seconds.lines[0].get_marker() == "o"
    assert [text.get_text().strip() for text in by_seconds.texts] == ["constant, batch 100"]
    assert by_seconds.get_xlim()[0] == 0.0


def test_constants_of_one_rate_show_beside_each_other_and_cycles_fill_a_linear_panel():
    runs = [make_run(arm, 0, 0.5, num_epochs=15) for arm in ARMS]
    *_, linear, log = arms_picture(compare(runs, Measure())).together().axes
    assert (linear.get_yscale(), log.get_yscale()) == ("linear", "log")
    assert legend_of(linear) == ["triangular", "batch 100", "batch 2000"]
    assert linear.get_title() == "the arms whose rate changes"
    assert linear.get_ylim()[0] == 0.0
    assert 0.006 < linear.get_ylim()[1] < 0.007
    first, first_cycle, second, second_cycle = (line.get_linewidth() for line in log.lines if len(line.get_xdata()))
    assert first > second == first_cycle == second_cycle


@pytest.mark.parametrize(("name", "limits"), [("val_accuracy", (0.4, 0.9)), ("val_loss", (0.1, 0.6))])
def test_epochs_near_chance_leave_half_of_the_axis_to_the_later_ones(name, limits):
    run = make_run(ARMS[0], 0, 0.0, measure=name, num_epochs=6)
    is_loss = name == "val_loss"
    for i, value in enumerate([0.1, 0.2, 0.65, 0.7, 0.8, 0.9]):
        metrics = {name: 1.0 - value if is_loss else value}
        run.result.epochs[i] = dataclasses.replace(run.result.epochs[i], metrics=metrics)
    low, high = arms_picture(compare([run], Measure(name))).together().axes[0].get_ylim()
    assert (low, high) == pytest.approx((limits[0] - 0.025, limits[1] + 0.025))


def test_each_panel_stands_alone_with_the_title_and_the_arms_that_are_in_it():
    picture = arms_picture(compare([make_run(arm, 0, 0.5, num_epochs=2) for arm in ARMS]))
    figures = picture.alone()
    assert set(figures) == {"seconds", "examples", "last", "rate", "rate_log"}
    assert {figure.get_suptitle() for figure in figures.values()} == {"Adam, 1 seed"}
    named = {name: [text.get_text() for text in f.legends[0].get_texts()] for name, f in figures.items() if f.legends}
    assert named["examples"] == named["rate_log"] == ["constant", "triangular", "batch 100", "batch 2000"]
    assert named["rate"] == ["triangular", "batch 100", "batch 2000"]
    assert "last" not in named  # Its rows have the arms' names.


@pytest.mark.parametrize(("name", "place"), [("val_accuracy", 0), ("val_loss", 1)])
def test_trials_that_failed_or_diverged_are_at_the_worse_end_of_an_axis_that_shows_those_near_the_best(name, place):
    sign = 1 if name == "val_accuracy" else -1
    values = {0.1: (0.8, 0.82), 0.2: (0.9, 0.92), 0.4: (0.7, 0.72), 0.8: (0.66, 0.1), 1.6: (0.5, None)}
    trials = [
        Trials(rate, tuple(None if value is None else sign * value for value in of_rate), 1.0)
        for rate, of_rate in values.items()
    ]
    search = Search(ARMS[0], tuple(trials), Measure(name))
    (axes,) = tuning_picture([search], {}).together().axes
    curve, dots, interval, pick, below, cross = axes.lines
    assert curve.get_ydata()[:4] == pytest.approx([sign * value for value in (0.81, 0.91, 0.71, 0.38)])
    assert dots.get_ydata()[:4] == pytest.approx([sign * value for value in (0.8, 0.82, 0.9, 0.92)])
    assert (pick.get_marker(), *pick.get_data()) == ("*", [search.learning_rate], [search.peak.score])
    assert interval.get_xdata() == pytest.approx(search.peak.interval)
    worst = axes.get_ylim()[place]
    assert 0.66 < sign * worst < 0.7
    assert (below.get_marker(), *map(list, below.get_data())) == ("v" if sign > 0 else "^", [0.8, 1.6], [worst] * 2)
    assert (cross.get_marker(), *cross.get_data()) == ("X", [1.6], [worst])


NAMES = ("constant", "triangular", "linear_decay", "cosine_decay", "one_triangle", "triangular2")
SIZES = (32, 8192, 512, 128, 2048)
MANY = [Arm(size, name, ARMS[0].schedule) for size in SIZES for name in NAMES]


def lightness(color):
    """The luminance of a color as eyes see it (CIE L*, 0 to 100), which is what a gray print keeps of it."""
    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)])
    return 116.0 * np.cbrt(linear @ (0.2126, 0.7152, 0.0722)) - 16.0 if linear.any() else 0.0


@pytest.mark.parametrize("arms", [MANY, ARMS], ids=["five batch sizes", "two"])
def test_in_gray_a_line_tells_the_schedule_and_a_shade_the_batch_size_darker_for_smaller_ones(arms):
    looks = arm_looks(arms)
    for of_line in ("linestyle", "marker"):
        of_schedules = {arm.schedule_name: look[of_line] for arm, look in looks.items()}
        assert len(set(of_schedules.values())) == len(of_schedules)
        assert all(look[of_line] == of_schedules[arm.schedule_name] for arm, look in looks.items())
    shades = {arm.batch_size: lightness(look["color"]) for arm, look in looks.items()}
    assert all(lightness(look["color"]) == shades[arm.batch_size] for arm, look in looks.items())
    rising = [shades[size] for size in sorted(shades)]
    assert min(np.diff(rising)) > 10.0
    assert rising[-1] < 80.0  # White is 100.
    by_seconds, *_ = arms_picture(compare([make_run(arm, 0, 0.5, num_epochs=2) for arm in arms])).together().axes
    drawn = [(line.get_color(), line.get_marker()) for line in by_seconds.lines[: len(arms)]]
    assert drawn == [(looks[arm]["color"], looks[arm]["marker"]) for arm in arms]


def test_thirty_arms_have_a_row_each_and_a_legend_of_their_schedules_and_sizes():
    figure = arms_picture(compare([make_run(arm, 0, 0.5, num_epochs=2) for arm in MANY])).together()
    sizes = [f"batch {size}" for size in sorted(SIZES)]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*NAMES, *sizes]
    figure.canvas.draw()
    last = figure.axes[2]
    boxes = [label.get_window_extent() for label in last.get_yticklabels()]
    assert len(boxes) == 30
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(boxes))


def test_the_picture_of_a_target_names_the_schedules_first_and_writes_its_axes_in_plain_numbers():
    arms = [Arm(size, name, ARMS[0].schedule) for size in (50, 100, 400) for name in NAMES[:3]]
    seconds = {50: 0.98, 100: 0.91, 400: 0.87}
    runs = [make_run(arm, 0, 0.95, num_epochs=2, epoch_seconds=seconds[arm.batch_size]) for arm in arms]
    noise = NoiseScale((0, 600), (50.0, 90.0), (0.5, 0.3), ((1.0, 0.0, 1e-3),) * 2, 1000, 20)
    picture = comparison_pictures(compare(runs, Measure(target=0.9)), noise_scale=noise)["comparison.scaling"]
    figure = picture.together()
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [*NAMES[:3], "thin: perfect scaling", "gradient noise scale, median"]
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_ylim()
        ticks = [float(t.get_text().replace(",", "")) for t in axes.get_yticklabels(which="both") if t.get_text()]
        assert sum(low <= tick <= high for tick in ticks) >= 2


def test_loss_against_rate_has_two_logarithmic_axes_and_a_marker_at_each_end():
    comparison = compare([make_run(arm, 0, 0.5, num_epochs=15) for arm in ARMS])
    (axes,) = comparison_pictures(comparison)["comparison.loss_against_rate"].together().axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert legend_of(axes) == ["triangular", "batch 100", "batch 2000"]
    ends = [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1]
    rates = [comparison.results(arm)[0].history["learning_rate"][-1] for arm in (ARMS[1], ARMS[3])]
    np.testing.assert_array_equal(ends, rates)
