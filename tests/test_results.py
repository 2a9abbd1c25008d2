"""Holds the README's sentences of results against the files in docs/results that they follow from."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from clr_loop.studies.comparison.effects import Values, contrasts, corrected, effect_of
from clr_loop.studies.comparison.failures import failed
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.statistics import ALPHA, critical_t, holm, p_value, power, standard_error

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "docs" / "results"
README, PAGE = (" ".join((CHECKOUT / path).read_text().split()) for path in ("README.md", "docs/compare.md"))
SIZES, NAMES = (100, 2000), ("constant", "triangular")


def rows_of(name):
    with open(RESULTS / name, newline="") as file:
        return list(csv.DictReader(file))


def accuracies_of(name, schedules=NAMES):
    """The accuracies in a file of runs, [batch size, schedule, seed]."""
    rows = [row for row in rows_of(name) if row["schedule"] in schedules]
    seeds = sorted({int(row["seed"]) for row in rows})
    y = np.full((2, len(schedules), len(seeds)), np.nan)
    for row in rows:
        place = SIZES.index(int(row["batch_size"])), schedules.index(row["schedule"]), seeds.index(int(row["seed"]))
        y[place] = float(row["val_accuracy"])
    assert np.isfinite(y).all()
    return y


def effects_of(y, schedules=NAMES):
    """What a comparison of these accuracies says, by the factor that was changed."""
    values = Values(Measure(), SIZES, schedules, y)
    return {effect.factor: effect for effect in corrected([effect_of(values, each) for each in contrasts(values)])}


@pytest.fixture(scope="module")
def accuracies():
    """The accuracy of every arm of the article with every seed."""
    return accuracies_of("article.csv")


@pytest.fixture(scope="module")
def effects(accuracies):
    assert not Values(Measure(), SIZES, NAMES, accuracies).failed.any()
    return effects_of(accuracies)


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


def test_the_reason_is_that_of_the_files(accuracies):
    (constant, triangular), (large_constant, large) = 100 * accuracies.mean(axis=-1)
    assert f"the cyclic rate gains {triangular - constant:.1f} points over 0.1" in README
    assert f"the large batch then costs {triangular - large:.1f}, because" in README
    assert f"the large batch gains {large_constant - constant:.1f} points" in README
    assert f"the cyclic rate then costs {large_constant - large:.1f}." in README


def test_a_lower_constant_rate_is_better_than_the_articles_cyclic_arm():
    both = effects_of(accuracies_of("low_rate.csv"))["both"]
    assert (both.verdict, both.is_better, len(both.differences)) == ("shown", False, 8)
    assert f"A constant 0.0035 at batch 100 ends {-100 * both.mean:.1f} points above the article's cyclic" in README


def test_the_power_of_the_default_number_of_seeds_is_what_the_seeds_of_the_file_have(effects):
    both = effects["both"]
    size = both.mean / np.std(both.differences, ddof=1)
    # Alone in its family it would be this, and in a family of eight tests that show nothing else the other.
    best, worst = (round(100 * power(size, 8, ALPHA / tests)) for tests in (1, 8))
    assert f"Eight seeds, the command's default, show a difference of this size in {worst} to {best}% of" in README


def test_the_times_are_those_of_a_run_alone_on_the_machine():
    seconds = {row["arm"]: float(row["epoch_seconds"]) for row in rows_of("times_arms.csv")}
    for arm, of_arm in seconds.items():
        assert re.search(rf"\| {arm} +\|[^|]+\|[^|]+\| {of_arm:.3f} ", README)
    words = r"takes (\d\.\d+) of the time, 95% interval (\d\.\d+) to (\d\.\d+)\.\*\*"  # Which is shown.
    two, one = (
        "{} of the time ({} to {})".format(*re.search(words, (RESULTS / f"{name}_report.md").read_text()).groups())
        for name in ("times", "times_one_core")
    )
    assert f"its epoch takes {two} on two cores and {one.replace(' of the time', '')} on one." in README


def test_of_the_articles_arms_the_rule_calls_runs_failed_where_they_are_few(accuracies):
    sets = accuracies.reshape(2, 2, 40, 8)
    are_failed = Values(Measure(), SIZES, NAMES, sets).failed
    without = [effects_of(sets[:, :, i])["schedule"].verdict == "none" for i in range(40)]
    assert not are_failed[0].any()
    counts = f"it calls {are_failed.sum()} of the {are_failed.size:,} runs failed, all at batch 2000"
    assert f"In sets of eight seeds {counts}, and {sum(without)} of the 40 sets give no verdict on the schedule" in PAGE


def test_the_gains_of_averages_are_those_of_the_file():
    rows = rows_of("averages.csv")
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
        ("batch 2000 instead of 100", "The large batch costs {} points.", "worse"),
    ],
)
def test_the_sentences_on_tuned_schedules_are_those_of_their_report(change, words, verdict):
    effect, seeds, interval, said = effect_in("controls_report.md", change)
    assert words.format(effect.lstrip("+-"), interval) in README
    assert (seeds, said) == ("11", verdict)


@pytest.mark.parametrize(
    ("change", "words", "verdict"),
    [
        ("triangular, batch 2000, instead", "constant rate at batch 100 is {} ({}), undecided;", "undecided"),
        ("one_triangle, batch 2000, instead", "one triangle there is better, by {} ({}).", "better"),
    ],
)
def test_the_sentences_on_both_changes_at_their_best_are_those_of_their_report(change, words, verdict):
    effect, _, interval, said = effect_in("controls_report.md", change)
    assert words.format(effect if verdict == "undecided" else effect.lstrip("+"), interval) in PAGE
    assert said == verdict


def effect_in(report, change):
    """The effect of a change in a report: the mean, the seeds, the interval and the verdict."""
    lines = (RESULTS / report).read_text().splitlines()
    row = next(line for line in lines if f"| {change} " in line)
    *_, effect, seeds, interval, _, said, _ = [cell.strip() for cell in row.split("|")]
    return effect.split()[0], seeds, interval, said


@pytest.fixture(scope="module")
def against_decays():
    """What the cycle has more than each decay at each batch size: mean, interval, and p corrected over these four."""
    picks = {
        (row["schedule"], int(row["batch_size"])): float(row["regret_variance"])
        for row in rows_of("controls_picks.csv")
    }
    found, p = {}, []
    for decay in ("linear_decay", "cosine_decay"):
        y = accuracies_of("controls.csv", (decay, "triangular"))
        for size, differences in zip(SIZES, y[:, 1] - y[:, 0], strict=True):
            added = picks[decay, size] + picks["triangular", size]
            half = critical_t(len(differences)) * standard_error(differences, added)
            found[decay, size] = 100 * differences.mean(), 100 * half
            p.append(p_value(differences, added))
    return {key: (*values, corrected_p) for (key, values), corrected_p in zip(found.items(), holm(p), strict=True)}


def test_the_climb_pays_at_the_large_batch_alone(against_decays):
    ends = {key: f"{mean - half:+.2f} to {mean + half:+.2f}" for key, (mean, half, _) in against_decays.items()}
    means = {key: f"{mean:.2f}" for key, (mean, *_) in against_decays.items()}
    is_shown = {key: p <= ALPHA for key, (*_, p) in against_decays.items()}
    assert is_shown == {key: key[1] == 2000 for key in against_decays}
    linear, cosine = ("linear_decay", 2000), ("cosine_decay", 2000)
    assert f"At batch 2000 the cycle ends {means[linear]} points above the decay ({ends[linear]}), so there" in README
    assert f"ends {means[linear]} points above the linear decay ({ends[linear]}) and {means[cosine]} above" in PAGE
    assert f"the cosine decay ({ends[cosine]}), both shown" in PAGE
    small = f"({ends['linear_decay', 100]}, and {ends['cosine_decay', 100]})"
    assert f"at batch 100 no difference is shown {small}." in PAGE


def test_the_table_of_tuned_schedules_is_that_of_their_file():
    page = (CHECKOUT / "docs" / "compare.md").read_text()
    arms = rows_of("controls_arms.csv")
    assert len(arms) == 10
    picks = {(row["schedule"], row["batch_size"]): float(row["learning_rate"]) for row in rows_of("controls_picks.csv")}
    for arm in arms:
        row = next(line for line in page.splitlines() if line.startswith(f"| {arm['schedule'].ljust(12)} |"))
        place = 2 if arm["batch_size"] == "100" else 4
        cells = [cell.strip() for cell in row.split("|")]
        score = f"{float(arm['mean']):.4f} ± {float(arm['sd']):.4f}"
        assert cells[place : place + 2] == [f"{picks[arm['schedule'], arm['batch_size']]:g}", score]
        if arm["schedule"] != "constant":
            effect, _, interval, said = effect_in("controls_report.md", f"{arm['schedule']} instead of constant")
            assert cells[6] == f"{effect} ({interval}), {said}"


def test_the_sentences_on_batch_sizes_are_those_of_their_report():
    report = " ".join((RESULTS / "sizes_report.md").read_text().split())
    powers = re.search(r"interval: constant (\S+) \((.*?)\); triangular (\S+) \((.*?)\)\.", report).groups()
    assert "gives {} for the constant rate (95% interval {}) and {} for the cyclic one ({}), so".format(*powers) in PAGE
    places = "at the beginning", "in the median of 16 points", "at the end"
    noise = [re.search(rf"([\d,]+) examples \(([^)]*)\) {place}", report).groups() for place in places]
    words = "is {} examples (95% interval {}) {} of a run, {} ({}) {} and {} ({}) {}."
    assert words.format(*(word for found, place in zip(noise, places, strict=True) for word in (*found, place))) in PAGE
    sizes = re.search(r"perfect scaling up to batch (\d+) \(constant\), (\d+) \(triangular\)", report).groups()
    assert "Up to batch {} with the constant rate, and up to {} with the cyclic one, the".format(*sizes) in PAGE


@pytest.mark.parametrize("name", ["low_rate.csv", "times.csv", "times_one_core.csv", "controls.csv", "sizes.csv"])
def test_no_run_of_a_report_fails_by_the_rule(name):
    of_arm = {}
    for row in rows_of(name):
        of_arm.setdefault((row["batch_size"], row["schedule"]), []).append(float(row["val_accuracy"]))
    assert not any(failed(values).any() for values in of_arm.values())


def test_the_digests_of_one_process_a_pool_and_dask_are_equal():
    rows = rows_of("parallel.csv")
    assert len({(row["arm"], row["seed"]) for row in rows}) == 32
    assert all(row["one_process"] == row["pool"] == row["dask"] for row in rows)
