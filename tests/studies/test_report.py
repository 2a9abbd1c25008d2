import csv
import dataclasses
import itertools
import json
import math
import re

import numpy as np
import pytest
from rich.console import Console
from rich.markdown import Markdown
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.runs.result import EpochRecord
from clr_loop.schedules import Constant
from clr_loop.studies.arms import Arm
from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.scaling import fitted_power, scaling
from clr_loop.studies.comparison.tuning import Search, Trials
from clr_loop.studies.pictures.comparison import comparison_pictures
from clr_loop.studies.report.files import write
from clr_loop.studies.report.sections import Context, latex, markdown, target_section
from clr_loop.studies.report.terminal import in_terminal
from clr_loop.studies.report.tuning import tuning_section
from clr_loop.studies.report.words import answer, conclusions, verdict
from helpers.made_up_runs import ARMS, make_run, make_runs

ARTICLE = Context("mnist", "article_mlp")

CLEAR = [[0.75, 0.76, 0.77, 0.76], [0.95, 0.955, 0.95, 0.952], [0.80, 0.81, 0.80, 0.805], [0.92, 0.93, 0.93, 0.925]]
NOISY = [[0.60, 0.76, 0.90, 0.80], [0.90, 0.60, 0.76, 0.81], [0.76, 0.90, 0.60, 0.79], [0.61, 0.75, 0.90, 0.81]]
ERRORS = [[0.30, 0.31, 0.32, 0.31], [0.20, 0.21, 0.20, 0.21], [0.28, 0.28, 0.29, 0.28], [0.21, 0.22, 0.22, 0.21]]
FINE = [0.940, 0.941, 0.942, 0.943, 0.944, 0.945, 0.946, 0.947]


def make_comparison(values, measure="val_accuracy", target=0.9, **arguments):
    return compare(make_runs(values, measure=measure, **arguments), Measure(measure, target=target))


def cells_of(text, begin):
    """The cells of each row of the tables that begins with these words."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {begin} ")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_the_report_begins_with_its_answer_and_says_that_settings_are_compared_and_not_schedules():
    comparison = make_comparison(CLEAR)
    lines = markdown(comparison, ARTICLE).splitlines()
    assert lines[0].startswith("# ")
    assert lines[2] == f"**{answer(comparison)}**"
    assert lines[6].startswith("This report compares settings, not schedules")
    assert "`python scripts/compare_batch_sizes.py --tune=8`" in " ".join(lines[6:9])


def test_the_answer_is_one_sentence_about_the_last_arm_and_the_first():
    pair = "Triangular, batch 2000", "constant, batch 100"
    differences = 100 * (np.array(CLEAR[3]) - np.array(CLEAR[0]))
    half = 3.182446 * differences.std(ddof=1) / 2
    ends = f"{differences.mean() - half:+.2f} to {differences.mean() + half:+.2f}"
    assert answer(make_comparison(CLEAR, num_timed=4)) == (
        f"{pair[0]} is better than {pair[1]}, by {differences.mean():.2f} points of validation accuracy "
        f"(95% interval {ends}); an epoch of triangular, batch 2000 takes 0.50 of the time, 95% interval 0.50 to 0.50, "
        "a difference that is not shown."
    )
    said = answer(make_comparison(NOISY, num_timed=4))
    assert said.startswith(f"4 seeds cannot tell triangular, batch 2000 and {pair[1]} apart: the difference in ")
    assert answer(make_comparison([values[:3] for values in CLEAR])) == (
        f"These runs cannot tell triangular, batch 2000 and {pair[1]} apart by validation accuracy, because a verdict "
        "needs at least 4 seeds; an epoch of triangular, batch 2000 takes 0.50 of the time in these runs, which allow "
        "no verdict."
    )


@pytest.mark.parametrize(
    ("shift", "margin", "expected"),
    [
        (0.0, 0.0045, "Triangular, batch 100 and constant, batch 100 differ by less than 0.45 points of validation"),
        (0.001, 0.004, "Triangular, batch 100 is not worse than constant, batch 100 by 0.40 points of validation"),
    ],
)
def test_with_a_margin_the_answer_says_how_much_the_arms_may_differ(shift, margin, expected):
    values = [FINE, [value + shift for value in reversed(FINE)]]
    comparison = compare(make_runs(values, arms=ARMS[:2], num_timed=8), Measure(margin=margin))
    assert answer(comparison).startswith(expected)
    assert verdict(comparison.effects[0]) in markdown(comparison, ARTICLE)


def test_failures_are_counted_beside_the_arm_and_in_the_sentences():
    values = [FINE, [*(value + 0.02 for value in reversed(FINE[:7])), 0.76]]
    comparison = compare(make_runs(values, arms=ARMS[:2], num_timed=8))
    rows = [cells_of(markdown(comparison, ARTICLE), arm.label)[0] for arm in ARMS[:2]]
    assert [row[3] for row in rows] == ["0 of 8 (at most 37%)", "1 of 8 (at most 53%)"]
    said = conclusions(comparison)[0]
    expected = ", better where neither fails (corrected p < 0.001). 1 of 8 against 0 of 8 runs failed, which may be"
    assert expected in said
    assert "), without 1 of 8 seeds, with which a run failed; an epoch of " in answer(comparison)


def test_an_arm_that_is_better_but_fails_more_often_is_not_just_called_better():
    constant = 0.94 + 0.001 * np.random.default_rng(0).uniform(size=40)
    triangular = np.where(np.arange(40) < 9, 0.76, constant + 0.01)
    comparison = compare(make_runs([constant, triangular], arms=ARMS[:2], num_timed=40))
    assert "is better where neither fails than constant, batch 100" in answer(comparison)
    assert ", and it fails more often (9 of 40 against 0 of 40)" in answer(comparison)


def test_the_articles_figures_stand_beside_its_own_two_cells_and_no_other():
    text = markdown(make_comparison(CLEAR, target=None), ARTICLE)
    by_arm = {arm.label: cells_of(text, arm.label)[0] for arm in ARMS}
    assert "30.21 s, 0.7598" in by_arm["constant, batch 100"]
    assert "5.47 s, 0.8352" in by_arm["triangular, batch 2000"]
    assert [text.count(accuracy) for accuracy in ("0.7598", "0.8352")] == [1, 1]
    assert "target" not in text


@pytest.mark.parametrize(
    ("dataset", "model", "num_epochs", "optimizer"),
    [
        ("fashion_mnist", "article_mlp", 15, "Adam"),
        ("mnist", "relu_mlp", 15, "Adam"),
        ("mnist", "article_mlp", 5, "Adam"),
        ("mnist", "article_mlp", 15, "SGD"),
    ],
)
def test_other_settings_are_not_set_beside_the_article(dataset, model, num_epochs, optimizer):
    comparison = make_comparison(CLEAR, num_epochs=num_epochs)
    for run in comparison.runs:
        run.result.settings["optimizer"] = optimizer
    assert "the article" not in markdown(comparison, Context(dataset, model))


@pytest.fixture(scope="module")
def clear():
    """A comparison whose last two seeds ran beside others."""
    return make_comparison(CLEAR, num_timed=2)


@pytest.fixture(scope="module")
def written(clear, tmp_path_factory):
    directory = tmp_path_factory.mktemp("written")
    write(clear, directory, ARTICLE)
    return directory


def test_a_row_has_the_figures_of_its_runs_and_times_are_of_the_seeds_that_ran_alone(clear):
    text = markdown(clear, ARTICLE)
    row, times, reached = cells_of(text, "triangular, batch 2000")
    assert row[1:] == ["0.9263 ± 0.0048 (n=4)", "0.9275 [0.9200, 0.9300]", "0 of 4 (at most 60%)", "5.47 s, 0.8352"]
    assert times[1:] == ["450", "0.100", "1.50 ± 0.00", "1.0", "600,000"]
    # Steps to the target are those of all seeds, seconds those of the timed ones.
    assert reached[1:] == ["4 of 4", "1", "2,000", "0.10"]
    assert "Times are of seeds 0, 1 alone: the runs of seeds 2, 3 are not known to have had their cores" in text
    both = {effect.measure.name: effect.differences for effect in clear.effects if effect.factor == "both"}
    assert len(both["val_accuracy"]) == 4
    assert both["epoch_seconds"] == pytest.approx([-0.1, -0.1])


def test_the_files_hold_the_comparison(clear, written):
    assert sorted(file.name for file in written.iterdir()) == [
        "arms.csv", "comparison.csv", "comparison.json", "comparison.loss_against_rate.png", "comparison.png",
        "comparison.scaling.png", "comparison.tex", "report", "report.md",
    ]  # fmt: skip
    content = json.loads((written / "comparison.json").read_text())
    assert [run["arm"] for run in content["runs"]] == [run.arm.label for run in clear.runs]
    assert [run["final"]["val_accuracy"] for run in content["runs"]] == list(itertools.chain(*CLEAR))
    assert content["measure"] == vars(Measure(target=0.9))
    assert [arm["final"]["mean"] for arm in content["arms"]] == pytest.approx([np.mean(v) for v in CLEAR])
    assert len(content["effects"]) == 8
    schedule = next(effect for effect in content["effects"] if effect["factor"] == "schedule")
    judged = ("p", "p_corrected", "verdict", "detectable_difference", "silence")
    assert [schedule[name] for name in judged] == [getattr(clear.effects[1], name) for name in judged]
    assert schedule["verdict"] == "shown"
    with open(written / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == list(itertools.chain(*CLEAR))
    for name in ("train_seconds", "median_epoch_seconds", "seconds_to_target"):
        assert {row["seed"] for row in rows if not row[name]} >= {"2", "3"}
    assert {row["seed"] for row in rows if row["train_seconds"]} == {"0", "1"}
    assert [row["steps_to_target"] != "" for row in rows] == [value >= 0.9 for value in itertools.chain(*CLEAR)]
    with open(written / "arms.csv", newline="") as file:
        of_arm = list(csv.DictReader(file))
    assert [float(row["median"]) for row in of_arm] == pytest.approx([np.median(values) for values in CLEAR])
    assert {(row["n"], row["failures"]) for row in of_arm} == {("4", "0")}
    text = (written / "report.md").read_text()
    report, _, shown = text.partition("\n## Pictures\n")
    assert report == markdown(clear, ARTICLE)
    embedded = re.findall(r"^!\[.+\]\((.+)\)$", shown, re.MULTILINE)
    assert embedded == [f"{name}.png" for name in comparison_pictures(clear)]
    assert all((written / name).is_file() for name in embedded)
    assert (written / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    events = EventAccumulator(str(written / "report"), size_guidance={"tensors": 0, "images": 0}).Reload()
    panels = {f"{name.removeprefix('comparison.')}/{panel}" for name, picture in comparison_pictures(clear).items()
              for panel in picture.panels}  # fmt: skip
    assert set(events.Tags()["images"]) == panels
    texts = [tag for tag in events.Tags()["tensors"] if not tag.startswith("_hparams_")]
    assert report.encode() in [events.Tensors(tag)[0].tensor_proto.string_val[0] for tag in texts]


@pytest.mark.parametrize("values", [CLEAR, NOISY])
def test_on_a_terminal_the_arms_and_what_follows_take_at_most_forty_lines(values):
    comparison = make_comparison([of_arm * 4 for of_arm in values], num_timed=12)
    text = in_terminal(comparison)
    for summary in comparison.arms:
        ((_, seconds, final, failures),) = cells_of(text, summary.arm.label)
        assert float(seconds) == summary.times.epoch_seconds
        assert failures == "0 of 16"
        assert final.startswith(f"{summary.final.mean:.4f} ± {summary.final.sd:.4f} [")
    assert [line.removeprefix("- ") for line in text.splitlines() if line.startswith("- ")] == conclusions(comparison)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(Markdown(text))
    assert len(captured.get().splitlines()) <= 40


def test_a_seed_that_ran_beside_others_in_one_arm_is_timed_in_none():
    runs = make_runs(CLEAR)
    runs[1] = dataclasses.replace(runs[1], result=dataclasses.replace(runs[1].result, is_timed=False))
    comparison = compare(runs)
    assert comparison.timed_seeds == [0, 2]
    assert {len(arm.times.train_seconds.values) for arm in comparison.arms} == {2}
    assert {len(e.differences) for e in comparison.effects if e.measure.name == "epoch_seconds"} == {2}


def test_without_a_timed_seed_the_report_says_so_and_has_no_seconds(tmp_path):
    comparison = make_comparison(CLEAR, num_timed=0)
    assert answer(comparison).endswith("; no run is timed.")
    write(comparison, tmp_path, ARTICLE)
    text = (tmp_path / "report.md").read_text()
    assert "No run is timed, because none is known to have had its cores to itself." in text
    _, times, reached = cells_of(text, "triangular, batch 2000")
    assert (times[1:], reached[1:]) == (["450"], ["4 of 4", "1", "2,000"])
    assert "seconds" not in text.partition("## What follows")[2].partition("## Pictures")[0]
    with open(tmp_path / "arms.csv", newline="") as file:
        assert {(row["epoch_seconds"], row["train_seconds"]) for row in csv.DictReader(file)} == {("", "")}
    assert not [panel for picture in comparison_pictures(comparison).values() for panel in picture.panels if
                panel == "seconds"]  # fmt: skip
    assert in_terminal(comparison).count(" – ") == 4


@pytest.mark.parametrize("place", range(4))
def test_an_arm_of_which_every_run_diverged_has_failed_and_the_others_are_compared(place, tmp_path):
    values = [FINE, [value + 0.01 for value in reversed(FINE)], FINE, FINE]
    runs = [run for run in make_runs(values, num_timed=8) if run.arm != ARMS[place]]
    diverged = [(ARMS[place], seed) for seed in range(8)]
    comparison = compare(runs, Measure(target=0.9), arms=ARMS, diverged=diverged)
    text = markdown(comparison, ARTICLE)
    of_arms, of_times, of_target = cells_of(text, ARMS[place].label)
    assert of_arms[1:4] == ["– (n=0)", "–", "8 of 8 (at most 100%)"]
    assert set(of_times[1:]) <= {"–", ""}
    assert (of_target[1], set(of_target[2:]) - {""}) == ("0 of 8", {"not reached"})
    silence = f"because {ARMS[place].label} failed in 8 of 8 runs, so it has no typical run"
    assert (silence in answer(comparison)) == (place in (0, 3))
    assert ("; no run of both is timed." in answer(comparison)) == (place in (0, 3))
    alone = {effect.arms: effect.verdict for effect in comparison.effects if len(effect.arms[0]) == 1}
    assert {verdict for arms, verdict in alone.items() if ARMS[place].label in (arms[0][0], arms[1][0])} <= {"none"}
    write(comparison, tmp_path, ARTICLE)
    assert json.loads((tmp_path / "comparison.json").read_text())["arms"][place]["final"]["mean"] is None
    assert "| – " in in_terminal(comparison)


def test_runs_side_by_side_on_cores_of_their_own_are_timed_and_the_report_says_how_many():
    text = markdown(make_comparison(CLEAR, num_timed=4), dataclasses.replace(ARTICLE, num_beside=3))
    assert "Up to 3 runs went side by side, each on cores of its own." in text


def test_what_is_shown_is_called_better_or_worse():
    said = conclusions(make_comparison(CLEAR, num_timed=4))
    assert said[0].startswith("Triangular, batch 2000, instead of constant, batch 100, validation accuracy: +16.63 ±")
    assert said[0].endswith(" points, better (corrected p < 0.001).")
    seconds = {ARMS[0]: (2.0, 2.1, 2.0, 2.2), ARMS[3]: (1.0, 1.0, 1.1, 1.0)}
    runs = [make_run(arm, seed, 0.9, epoch_seconds=s) for arm, times in seconds.items() for seed, s in enumerate(times)]
    same_size = [dataclasses.replace(run, arm=dataclasses.replace(run.arm, batch_size=100)) for run in runs]
    assert ", epoch seconds: -1.050 ± 0.129 s, faster (corrected p 0.001)." in conclusions(compare(same_size))[1]


def test_what_is_not_shown_is_undecided_with_its_interval_and_what_so_many_seeds_would_show():
    comparison = make_comparison(NOISY)
    accuracy = [said for said in conclusions(comparison) if "validation accuracy" in said]
    assert len(accuracy) == 4
    assert not any("better" in sentence for sentence in accuracy)
    both = comparison.question
    low, high = (100 * end for end in both.interval)
    assert (
        f" points; undecided, between {low:+.2f} and {high:+.2f} points. 4 seeds would show a difference of "
        in (accuracy[0])
    )
    assert accuracy[0].endswith(f" {100 * both.detectable_difference:.2f} points with 80% power.")


def test_an_interval_without_0_that_the_correction_leaves_undecided_is_said_to_be_so():
    better = np.array(FINE) + np.array([0.0, 6.0, 12.0, -3.0, 4.0, 8.0, 1.0, 5.0]) / 1000
    comparison = compare(make_runs([FINE, FINE, FINE, better], num_timed=8))
    assert comparison.question.interval[0] > 0.0
    assert comparison.question.verdict == "undecided"
    ends = " and ".join(f"{100 * end:+.2f}" for end in comparison.question.interval)
    place = f"between {ends} points before the correction for all that is tested"
    assert f"the difference in validation accuracy is {place}; " in answer(comparison)
    assert f" points; undecided, {place}. 8 seeds would show " in conclusions(comparison)[0]


def test_the_table_for_a_paper_has_the_arms():
    text = latex(make_comparison(CLEAR))
    assert text.startswith("\\begin{tabular}")
    assert "\\toprule" in text
    assert [cell.strip() for cell in text.splitlines()[4].rstrip("\\").split("&")] == [
        "constant, batch 100", "4", "0.7600 ± 0.0082", "0.7600", "0 of 4", "0.200",
    ]  # fmt: skip


def test_a_change_that_changes_nothing_is_said_to():
    said = conclusions(make_comparison([[0.8, 0.9, 0.7, 0.8]] * 2, arms=ARMS[:2]))
    assert said[0].endswith(", validation accuracy: +0.00 ± 0.00 points; no seed differs.")


def test_averages_over_unlike_cases_are_warned_of_only_where_the_interaction_is_shown():
    warned = [any("interact, so" in s for s in conclusions(make_comparison(v))) for v in (CLEAR, NOISY)]
    assert warned == [True, False]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_from_fewer_than_four_seeds_nothing_follows(n):
    said = conclusions(make_comparison([values[:n] for values in CLEAR]))
    assert len([s for s in said if s.endswith("no verdict, because a verdict needs at least 4 seeds.")]) == 8


def test_an_arm_that_completes_no_cycle_is_named():
    said = [s for s in conclusions(make_comparison(CLEAR)) if s.startswith("triangular, batch 2000: ")]
    (warning,) = [sentence for sentence in said if "450 steps" in sentence]
    assert "only climbs" in warning
    assert "0.0021" in warning


def test_one_arm_is_compared_with_nothing():
    alone = make_comparison(CLEAR, arms=ARMS[:1])
    assert conclusions(alone) == ["There is only one arm, and nothing to compare it with."]
    assert "## Effects" not in markdown(alone, ARTICLE)


def test_another_measure_is_told_in_its_own_unit_and_its_own_direction():
    compared = make_comparison(ERRORS, "val_mean_absolute_error", target=0.25)
    text = markdown(compared, ARTICLE)
    assert "accuracy" not in text
    assert "points" not in text
    assert "## To validation mean absolute error 0.25" in text
    row, _, reached = cells_of(text, "triangular, batch 100")
    assert row[1:3] == ["0.205 ± 0.005774 (n=4)", "0.205 [0.2, 0.21]"]
    assert reached[1] == "4 of 4"
    said = conclusions(compared)
    both = "Triangular, batch 2000, instead of constant, batch 100"
    assert said[0].startswith(f"{both}, validation mean absolute error: ")
    assert said[0].endswith("-0.095 ± 0.005774, better (corrected p < 0.001).")


def test_accuracies_are_compared_in_percentage_points_in_the_table_too():
    (row,) = [
        row for row in cells_of(markdown(make_comparison(CLEAR), ARTICLE), "validation accuracy") if "both" in row
    ]
    differences = 100 * (np.array(CLEAR[3]) - np.array(CLEAR[0]))
    mean, sd = differences.mean(), differences.std(ddof=1)
    half = 3.182446 * sd / 2
    expected = [f"{mean:+.2f} ± {sd:.2f} points", "4", f"{mean - half:+.2f} to {mean + half:+.2f}", "< 0.001", "better"]
    assert row[3:] == expected


def comparison_reaching(steps_to_target, target=0.9):
    """A comparison of constant arms whose seeds reach 0.9 at these steps, None where they never do."""
    runs = []
    for size, by_seed in steps_to_target.items():
        for seed, steps in enumerate(by_seed):
            run = make_run(Arm(size, "constant", Constant(0.1)), seed, 0.5, num_epochs=2)
            epochs = [EpochRecord(e + 1, (e + 1) * 60000 // size - 1, 0.1, {"val_accuracy": 0.5}, 2.0) for e in (0, 1)]
            within = [] if steps is None else [EpochRecord(1, steps - 1, 0.1, {"val_accuracy": 0.9}, 1.0)]
            result = dataclasses.replace(run.result, epochs=epochs, validations=within)
            runs.append(dataclasses.replace(run, result=result))
    return compare(runs, Measure(target=target))


def test_a_seed_that_does_not_reach_the_target_counts_as_infinite():
    compared = comparison_reaching({32: (100, 200, None), 128: (60, None, None), 512: (None, None, None)})
    medians = {arm.arm.batch_size: arm.median_to_target("steps") for arm in compared.arms}
    assert medians == {32: 200, 128: math.inf, 512: math.inf}
    assert compared.arms[1].to_json()["to_target"] == {"steps": None, "examples": None, "seconds": None}
    rows = [cells_of(target_section(compared), f"constant, batch {size}")[0][1:] for size in medians]
    assert rows == [
        ["2 of 3", "200", "6,400", "1.00"], ["1 of 3", *["not reached"] * 3], ["0 of 3", *["not reached"] * 3],
    ]  # fmt: skip


def test_a_batch_size_whose_runs_end_before_or_as_they_reach_the_target_is_told_apart_from_one_that_scales_no_more():
    last = {size: 2 * (60000 // size) for size in (32, 128, 512, 2048)}  # Two epochs.
    reached = {32: (1000, 1000, 1000), 128: (300, 310, 320), 512: (last[512],) * 3, 2048: (None, None, last[2048])}
    compared = comparison_reaching(reached)
    found = scaling(compared)["constant"]
    assert (found.largest, found.at_budget) == (128, (512, 2048))
    context = Context("mnist", "relu_mlp", noise_scale=NoiseScale((0,), (50.0,), (0.5,), ((1.0, 0.0, 1e-3),), 1000, 20))
    words = " ".join(markdown(compared, context).split())
    assert "up to batch 128 (constant). At batch 512, 2048 (constant) the median run reaches the target at its" in words
    all_early = scaling(comparison_reaching({32: (1000,), 128: (600,), 512: (70,)}))["constant"]
    assert (all_early.largest, all_early.at_budget) == (512, ())
    assert scaling(comparison_reaching({32: (None,), 128: (60,)}))["constant"].largest is None


def test_a_target_that_is_not_reached_at_two_batch_sizes_draws_no_line():
    one, none = comparison_reaching({32: (1, 2), 128: (None, None)}), comparison_reaching({32: (None,), 128: (None,)})
    assert "Not reached by any arm; the best mean after the last epoch is 0.5." in target_section(none)
    assert set(comparison_pictures(one)) == set(comparison_pictures(none)) == {"comparison"}


def searches(rates, values=((0.91, 0.93), (0.94, 0.96), (0.91, 0.93))):
    """Searches whose means are equally high below and above these rates."""
    return [
        Search(
            Arm(size, "constant", Constant(0.1)),
            tuple(Trials(rate * f, of_rate, 2.0) for f, of_rate in zip((0.5, 1, 2), values, strict=True)),
            Measure(),
        )
        for size, rate in rates.items()
    ]


def test_the_power_of_the_batch_size_is_recovered():
    exact = fitted_power(searches({size: 0.001 * (size / 32) ** 0.5 for size in (32, 128, 512)}))
    assert exact == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    x, y = np.log([32.0, 128.0, 512.0]), np.log([0.001, 0.003, 0.004])
    slope, intercept = np.polyfit(x, y, 1)
    error = np.sqrt(((y - slope * x - intercept) ** 2).sum() / ((x - x.mean()) ** 2).sum())
    fitted = fitted_power(searches({32: 0.001, 128: 0.003, 512: 0.004}))
    # With one degree of freedom, Student's t is Cauchy's distribution: its quantile is a tangent.
    margin = np.tan(np.pi * 0.475) * error
    assert fitted == pytest.approx((slope, slope - margin, slope + margin))
    assert fitted_power(searches({32: 0.001, 128: 0.004})) is None


def test_the_report_shows_what_was_tried_what_it_cost_and_what_the_rules_would_have_chosen():
    compared = comparison_reaching({32: (100, 200, 300), 128: (60, 70, 80)})
    tried = searches({32: 0.001, 128: 0.003})
    noise = NoiseScale((0, 10, 20), (50.0, 90.0, 40.0), (0.5, 0.3, -0.1), ((1.0, 0.0, 1e-3),) * 3, 1000, 20)
    text = markdown(compared, Context("mnist", "relu_mlp", "steps", tried, noise))
    assert text.splitlines()[6].startswith("This report compares schedules, each at its best")
    assert "All arms take as many steps, rounded to whole epochs." in text
    words = " ".join(text.split())
    assert "Tuning took 12 trial runs, with 12 seconds of training." in words
    first, second = (search.peak for search in tried)
    (row,) = cells_of(tuning_section(tried), "constant, batch 32")
    assert row[1:] == [
        "0.001", f"{first.interval[0]:.3g} to {first.interval[1]:.3g}", "0.9500 ± 0.0141 at 0.001",
        f"{100 * first.regret:.2f} points", "3 rates × 2 seeds", "0.0005 to 0.002", "inside",
    ]  # fmt: skip
    assert first.regret == pytest.approx(second.regret)
    assert f"is expected to lose at most {100 * first.regret:.2f} points of validation accuracy." in words
    assert (
        "100 examples (88 to 116) at the beginning, 300 examples (245 to 385) in the median of 3 points, at " in words
    )
    assert "at least 10,000 examples at the end" in words
    assert "a batch twice as large still takes 75% of its steps" in words
    assert "stay below twice those of perfect scaling up to batch 128 (constant)." in words
    assert ["constant", "128", "0.003", "0.004", "0.002"] in cells_of(text, "constant")
    assert "Fitted power" not in words
    of_three = markdown(compared, Context("mnist", "relu_mlp", "steps", searches({32: 1e-3, 128: 3e-3, 512: 4e-3})))
    assert "Fitted power, with its 95% interval: constant 0.50 (-1.65 to 2.65). The power is" in of_three
    pictures = comparison_pictures(compared, tried, noise)
    assert set(pictures) == {"comparison", "comparison.tuning", "comparison.scaling"}


def test_trials_that_diverged_are_counted_and_an_edge_is_told():
    (search,) = searches({32: 0.001}, values=((0.95, 0.96), (0.93, 0.94), (0.9, 0.91)))
    beyond = Trials(0.004, (0.99, None), 1.0)
    section = tuning_section([dataclasses.replace(search, trials=(*search.trials, beyond), widened=True)])
    words = " ".join(section.split())
    assert "Tuning took 8 trial runs, with 7 seconds of training; 1 of them diverged." in words
    assert "A better rate may lie beyond those tried for constant, batch 32." in words
    (row,) = cells_of(section, "constant, batch 32")
    assert row[-2:] == ["0.0005 to 0.004 (widened)", "at the lower edge"]


def test_a_best_rate_inside_whose_interval_reaches_the_end_of_those_tried_may_lie_beyond():
    means = (0.91, 0.93, 0.95, 0.97, 0.985, 0.995, 1.002, 1.0)
    for highest, may_lie_beyond in ((1.0, True), (0.96, False)):
        trials = tuple(
            Trials(0.001 * 2.0**i, tuple(mean + off for off in (-0.005, 0.0, 0.005)), 1.0)
            for i, mean in enumerate((*means[:7], highest))
        )
        search = Search(ARMS[0], trials, Measure("val_loss", higher_is_better=True))
        assert (search.edge, search.may_lie_beyond) == (None, may_lie_beyond)
        assert ("may lie beyond those tried for constant, batch 100." in tuning_section([search])) == may_lie_beyond
