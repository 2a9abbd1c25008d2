import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest

from clr_loop.studies.comparison.effects import compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.report import files as report
from helpers.made_up_runs import ARMS, make_runs

ARTICLE = report.Context("mnist", "article_mlp")


def make_comparison(values, measure="val_accuracy", target=0.9, **arguments):
    return compare(make_runs(values, measure=measure, **arguments), Measure(measure, target=target))


CLEAR = [[0.75, 0.76, 0.77], [0.95, 0.955, 0.95], [0.80, 0.81, 0.80], [0.92, 0.93, 0.93]]
NOISY = [[0.60, 0.76, 0.90], [0.90, 0.60, 0.76], [0.76, 0.90, 0.60], [0.61, 0.75, 0.90]]


def test_the_articles_figures_stand_beside_its_own_two_cells_and_no_other():
    text = report.markdown(make_comparison(CLEAR, target=None), ARTICLE)
    rows = [line for line in text.splitlines() if "|" in line]
    by_arm = {row.split("|")[1].strip(): row for row in rows}
    assert "30.21 s, 0.7598" in by_arm["constant, batch 100"]
    assert "5.47 s, 0.8352" in by_arm["triangular, batch 2000"]
    assert sum("0.7598" in row or "0.8352" in row for row in rows) == 2


@pytest.mark.parametrize(
    ("dataset", "model", "num_epochs"),
    [("fashion_mnist", "article_mlp", 15), ("mnist", "relu_mlp", 15), ("mnist", "article_mlp", 5)],
)
def test_other_settings_are_not_set_beside_the_article(dataset, model, num_epochs):
    text = report.markdown(make_comparison(CLEAR, num_epochs=num_epochs), report.Context(dataset, model))
    assert "the article" not in text
    assert "0.7598" not in text


def test_a_row_has_the_figures_of_its_runs():
    text = report.markdown(make_comparison(CLEAR), ARTICLE)
    row, *_ = [line for line in text.splitlines() if line.startswith("| constant, batch 100 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:7] == [
        "constant, batch 100", "9,000", "0.200", "3.00 ± 0.00", "1.0", "300,000",
        "0.7600 ± 0.0100 (n=3) [0.7500, 0.7700]",
    ]  # fmt: skip


def test_seeds_that_ran_side_by_side_count_for_accuracy_and_not_for_time(tmp_path):
    comparison = make_comparison(CLEAR, num_timed=2)
    text = report.markdown(comparison, ARTICLE)
    row, reached = [line for line in text.splitlines() if line.startswith("| triangular, batch 2000 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2:7] == [
        "0.100", "1.50 ± 0.00", "1.0", "600,000", "0.9267 ± 0.0058 (n=3) [0.9200, 0.9300]",
    ]  # fmt: skip
    # Steps to the target are those of all seeds, seconds those of the timed ones.
    assert [cell.strip() for cell in reached.split("|")[2:6]] == ["3 of 3", "1", "2,000", "0.10"]
    assert "Times are of seeds 0, 1 alone: seed 2 ran side by side with others" in text
    samples = {effect.measure: effect.sample for effect in comparison.effects if effect.factor == "both"}
    assert len(samples["val_accuracy"].values) == 3
    assert samples["epoch_seconds"].values == pytest.approx([-0.1, -0.1])

    report.write(comparison, tmp_path, ARTICLE)
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows if not row["train_seconds"]} == {"2"}
    assert all((row["median_epoch_seconds"] == "") == (row["seed"] == "2") for row in rows)
    assert all(row["val_accuracy"] for row in rows)


def test_a_seed_that_ran_beside_others_in_one_arm_is_timed_in_none():
    runs = list(make_comparison(CLEAR).runs)
    runs[1] = dataclasses.replace(runs[1], result=dataclasses.replace(runs[1].result, is_timed=False))
    comparison = compare(runs)
    assert comparison.timed_seeds == [0, 2]
    assert {len(arm.train_seconds.values) for arm in comparison.arms} == {2}
    assert {len(effect.sample.values) for effect in comparison.effects if effect.measure == "epoch_seconds"} == {2}


def test_what_is_shown_is_called_better_or_worse():
    said = report.conclusions(make_comparison(CLEAR))
    assert said[0].startswith("Triangular, batch 2000, instead of constant, batch 100, validation accuracy: +16.67 ±")
    assert said[0].endswith(" points, better (corrected p 0.001).")
    assert any("2.00 times the speed" in sentence and "faster" in sentence for sentence in said)


def test_what_is_not_shown_is_called_undecided_with_what_more_seeds_would_tell():
    comparison = make_comparison(NOISY)
    accuracy = [said for said in report.conclusions(comparison) if "validation accuracy" in said]
    assert len(accuracy) == 4
    for sentence in accuracy:
        assert "; undecided: about 23 seeds would tell. 3 seeds find a difference of " in sentence
        assert "better" not in sentence
    (both,) = [effect for effect in comparison.effects[:4] if effect.factor == "both"]
    assert f"of {100 * both.detectable_difference:.2f} points with 80 % power; half of it needs 5 seeds." in accuracy[0]


@pytest.mark.parametrize("shift", [0.001, -0.001])
def test_of_a_small_difference_the_far_end_of_its_interval_is_named(shift):
    rises, falls = np.array([0.80, 0.81, 0.82, 0.83] * 4), np.array([0.83, 0.82, 0.81, 0.80] * 4)
    comparison = make_comparison([rises, falls + shift], arms=ARMS[:2])
    far = 100 * (abs(shift) + 2.131450 * (falls - rises).std(ddof=1) / np.sqrt(16))
    verdict = f"no difference larger than {far:.2f} points is likely"
    assert f" | {verdict} |" in report.markdown(comparison, ARTICLE)
    assert f" points; {verdict}. 16 seeds find a difference of " in report.conclusions(comparison)[0]


def test_a_change_that_changes_nothing_is_said_to():
    said = report.conclusions(make_comparison([[0.8, 0.9, 0.7]] * 2, arms=ARMS[:2]))
    assert said[0].endswith(", validation accuracy: +0.00 ± 0.00 points; no seed differs.")


def test_averages_over_unlike_cases_are_warned_of_only_where_the_interaction_is_shown():
    warned = [any("interact, so" in s for s in report.conclusions(make_comparison(v))) for v in (CLEAR, NOISY)]
    assert warned == [True, False]


def test_from_one_seed_nothing_follows():
    said = report.conclusions(make_comparison([values[:1] for values in CLEAR]))
    assert len([s for s in said if s.endswith("from one seed; nothing follows, run more seeds.")]) == 8


def test_an_arm_that_completes_no_cycle_is_named():
    said = [s for s in report.conclusions(make_comparison(CLEAR)) if s.startswith("triangular, batch 2000: ")]
    (warning,) = [sentence for sentence in said if "450 steps" in sentence]
    assert "only climbs" in warning
    assert "0.0021" in warning


def test_one_arm_is_compared_with_nothing():
    alone = make_comparison(CLEAR, arms=ARMS[:1])
    assert report.conclusions(alone) == ["There is one arm alone, and nothing to compare it with."]
    assert "## Effects" not in report.markdown(alone, ARTICLE)


def test_the_files_hold_the_comparison(tmp_path):
    compared = make_comparison(CLEAR)
    report.write(compared, tmp_path, ARTICLE)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "comparison.csv", "comparison.json", "comparison.loss_against_rate.png", "comparison.png",
        "comparison.scaling.png", "report", "report.md",
    ]  # fmt: skip
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [run["arm"] for run in content["runs"]] == [run.arm.label for run in compared.runs]
    assert [run["final"]["val_accuracy"] for run in content["runs"]] == list(itertools.chain(*CLEAR))
    assert content["measure"] == {"name": "val_accuracy", "higher_is_better": True, "target": 0.9}
    assert [arm["final"]["mean"] for arm in content["arms"]] == pytest.approx([np.mean(v) for v in CLEAR])
    assert len(content["effects"]) == 8
    schedule = next(effect for effect in content["effects"] if effect["factor"] == "schedule")
    judged = ("p", "p_corrected", "verdict", "detectable_difference", "seeds_for_half", "seeds_to_tell")
    assert [schedule[name] for name in judged] == [getattr(compared.effects[1], name) for name in judged]
    assert schedule["verdict"] == "shown"
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == list(itertools.chain(*CLEAR))
    assert (tmp_path / "report.md").read_text() == report.markdown(compared, ARTICLE)
    assert (tmp_path / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_another_optimizer_is_not_the_articles():
    compared = make_comparison(CLEAR)
    runs = [
        dataclasses.replace(
            run, result=dataclasses.replace(run.result, settings={**run.result.settings, "optimizer": "SGD"})
        )
        for run in compared.runs
    ]
    assert "the article" not in report.markdown(dataclasses.replace(compared, runs=runs), ARTICLE)


def test_the_first_lines_under_the_title_say_that_settings_are_compared_and_not_schedules():
    lines = report.markdown(make_comparison(CLEAR), ARTICLE).splitlines()
    assert lines[0].startswith("# ")
    assert lines[2].startswith("This report compares settings, not schedules")
    assert "`python scripts/compare_batch_sizes.py --tune=8`" in " ".join(lines[2:5])


ERRORS = [[0.30, 0.31, 0.32], [0.20, 0.21, 0.20], [0.28, 0.28, 0.29], [0.21, 0.22, 0.22]]


def test_another_measure_is_told_in_its_own_unit_and_its_own_direction(tmp_path):
    compared = make_comparison(ERRORS, "val_mean_absolute_error", target=0.25)
    text = report.markdown(compared, ARTICLE)
    assert "accuracy" not in text
    assert "points" not in text
    assert "| validation mean absolute error " in text
    assert "## To validation mean absolute error 0.25" in text
    row, *_ = [line for line in text.splitlines() if line.startswith("| triangular, batch 100 ")]
    assert "0.2033 ± 0.005774 (n=3) [0.2, 0.21]" in row
    said = report.conclusions(compared)
    both = "Triangular, batch 2000, instead of constant, batch 100"
    assert said[0].startswith(f"{both}, validation mean absolute error: ")
    assert said[0].endswith("-0.09333 ± 0.005774, better (corrected p 0.005).")

    report.write(compared, tmp_path, ARTICLE)
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_mean_absolute_error"]) for row in rows] == list(itertools.chain(*ERRORS))
    assert [row["seconds_to_target"] != "" for row in rows] == [value <= 0.25 for value in itertools.chain(*ERRORS)]
    effects = json.loads((tmp_path / "comparison.json").read_text())["effects"]
    assert {effect["measure"] for effect in effects} == {"val_mean_absolute_error", "epoch_seconds"}


def test_without_a_target_nothing_is_said_of_one():
    text = report.markdown(make_comparison(CLEAR, target=None), ARTICLE)
    assert "## To " not in text
    assert "target" not in text


def test_accuracies_are_compared_in_percent_points_in_the_table_too():
    text = report.markdown(make_comparison(CLEAR), ARTICLE)
    (row,) = [line for line in text.splitlines() if line.startswith("| validation accuracy | both ")]
    differences = 100 * (np.array(CLEAR[3]) - np.array(CLEAR[0]))
    half = 4.302653 * differences.std(ddof=1) / np.sqrt(3)
    assert f"{differences.mean():+.2f} ± {differences.std(ddof=1):.2f} points" in row
    assert f"{differences.mean() - half:+.2f} … {differences.mean() + half:+.2f}" in row
    # With two degrees of freedom, p is 1 - t / sqrt(2 + t²); only the schedule's is smaller, so it counts three times.
    t = np.sqrt(3) * differences.mean() / differences.std(ddof=1)
    assert 3 * (1 - t / np.sqrt(2 + t**2)) == pytest.approx(0.0012, abs=1e-5)
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == ["0.001", "better"]
