"""Holds the README's sentences of results against the files in docs/results that they follow from."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from clr_loop.studies.comparison.effects import Values, contrasts, corrected, effect_of
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.statistics import ALPHA, holm, p_value, power

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "docs" / "results"
README = " ".join((CHECKOUT / "README.md").read_text().split())
SIZES, NAMES = (100, 2000), ("constant", "triangular")


@pytest.fixture(scope="module")
def rows():
    """The runs of the article's arms."""
    with open(RESULTS / "article.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def accuracies(rows):
    """The accuracy of every arm of the article with every seed, [batch size, schedule, seed]."""
    seeds = sorted({int(row["seed"]) for row in rows})
    y = np.full((2, 2, len(seeds)), np.nan)
    for row in rows:
        place = SIZES.index(int(row["batch_size"])), NAMES.index(row["schedule"]), seeds.index(int(row["seed"]))
        y[place] = float(row["val_accuracy"])
    assert np.isfinite(y).all()
    return y


@pytest.fixture(scope="module")
def effects(accuracies):
    values = Values(Measure(), SIZES, NAMES, accuracies)
    assert not values.failed.any()
    return {effect.factor: effect for effect in corrected([effect_of(values, each) for each in contrasts(values)])}


def test_the_table_of_the_arms_is_that_of_the_file(accuracies):
    assert f"ran with {accuracies.shape[2]} seeds" in README
    for i, size in enumerate(SIZES):
        for j, name in enumerate(NAMES):
            of_arm = accuracies[i, j]
            cells = f"{of_arm.mean():.4f} ± {of_arm.std(ddof=1):.4f} | {of_arm.min():.4f}, {of_arm.max():.4f}"
            assert re.search(rf"\| {name}, batch {size} +\| {re.escape(cells)} ", README)


def test_the_answer_is_that_of_the_file(effects):
    both = effects["both"]
    low, high = (100 * end for end in both.interval)
    assert both.verdict == "shown"
    assert f"ends {100 * both.mean:.1f} points above its constant one (95% interval {low:.1f} to {high:.1f})" in README


def test_the_reason_is_that_of_the_file(accuracies):
    (constant, triangular), (_, large) = accuracies.mean(axis=-1)
    assert f"replacing it gains {100 * (triangular - constant):.1f} points" in README
    assert f"the large batch costs {100 * (triangular - large):.1f} points" in README


def test_the_power_of_the_default_number_of_seeds_is_what_the_seeds_of_the_file_have(effects):
    both = effects["both"]
    size = both.mean / np.std(both.differences, ddof=1)
    # Alone in its family it would be this, and in a family of eight tests that show nothing else the other.
    best, worst = (round(100 * power(size, 8, ALPHA / tests)) for tests in (1, 8))
    assert f"Eight seeds, the command's default, show a difference of this size in {worst} to {best}% of" in README


def test_the_times_are_those_of_a_run_alone_on_the_machine():
    with open(RESULTS / "times_arms.csv", newline="") as file:
        seconds = {row["arm"]: float(row["epoch_seconds"]) for row in csv.DictReader(file)}
    for arm, of_arm in seconds.items():
        assert re.search(rf"\| {arm} +\|[^|]+\|[^|]+\| {of_arm:.3f} ", README)
    report = (RESULTS / "times_report.md").read_text()
    ratio, low, high = re.search(r"takes (\d\.\d+) of the time, 95% interval (\d\.\d+) to (\d\.\d+)", report).groups()
    assert f"its epoch takes {ratio} of the time ({low} to {high}) on two cores" in README


def test_the_time_on_one_core_is_that_of_the_file(rows):
    seconds = {(int(row["batch_size"]), row["schedule"], row["seed"]): float(row["epoch_seconds"]) for row in rows}
    seeds = {row["seed"] for row in rows}
    logs = [np.log(seconds[2000, "triangular", seed] / seconds[100, "constant", seed]) for seed in seeds]
    assert f"on two cores and {np.exp(np.mean(logs)):.2f} on one." in README


def test_the_gains_of_averages_are_those_of_the_file():
    with open(RESULTS / "averages.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 14
    gains = {name: [100 * (float(row[name]) - float(row["last"])) for row in rows] for name in ("swa", "ensemble_of_5")}
    swa, ensemble = (f"{np.mean(gain):.2f} ± {np.std(gain, ddof=1):.2f}" for gain in gains.values())
    assert f"gain {swa} points from `swa` and {ensemble} from an ensemble of five" in README
    assert max(holm([float(p_value(gain)) for gain in gains.values()])) < 0.001


@pytest.mark.parametrize(
    ("change", "words", "verdict"),
    [
        ("triangular instead of constant", "the cycle gains {} points over the constant rate ({})", "better"),
        ("one_triangle instead of constant", "one triangle {} ({})", "better"),
        ("linear_decay instead of constant", "a linear decay without a climb {} ({})", "better"),
        ("what linear_decay does at batch 2000, minus what it does at 100", "{} points less at batch 2000", "shown"),
        ("batch 2000 instead of 100", "The large batch costs {} points.", "worse"),
    ],
)
def test_the_sentences_on_tuned_schedules_are_those_of_their_report(change, words, verdict):
    report = (RESULTS / "controls_report.md").read_text()
    row = next(line for line in report.splitlines() if f"| {change} " in line)
    *_, effect, seeds, interval, _, said, _ = [cell.strip() for cell in row.split("|")]
    assert words.format(effect.split()[0].lstrip("+-"), interval) in README
    assert (seeds, said) == ("11", verdict)


def test_the_table_of_tuned_schedules_is_that_of_their_file():
    page = (CHECKOUT / "docs" / "compare.md").read_text()
    with open(RESULTS / "controls_arms.csv", newline="") as file:
        arms = list(csv.DictReader(file))
    assert len(arms) == 10
    for arm in arms:
        row = next(line for line in page.splitlines() if line.startswith(f"| {arm['schedule'].ljust(12)} |"))
        assert f"{float(arm['mean']):.4f} ± {float(arm['sd']):.4f}" in row
