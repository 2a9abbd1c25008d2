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
from clr_loop.studies.comparison.effects import compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.scaling import fitted_power
from clr_loop.studies.comparison.tuning import Search, Trial
from clr_loop.studies.pictures.comparison import comparison_pictures
from clr_loop.studies.report.files import write
from clr_loop.studies.report.sections import Context, markdown, target_section, tuning_section
from clr_loop.studies.report.terminal import in_terminal
from clr_loop.studies.report.words import conclusions
from helpers.made_up_runs import ARMS, make_run, make_runs

ARTICLE = Context("mnist", "article_mlp")

CLEAR = [[0.75, 0.76, 0.77], [0.95, 0.955, 0.95], [0.80, 0.81, 0.80], [0.92, 0.93, 0.93]]
NOISY = [[0.60, 0.76, 0.90], [0.90, 0.60, 0.76], [0.76, 0.90, 0.60], [0.61, 0.75, 0.90]]
ERRORS = [[0.30, 0.31, 0.32], [0.20, 0.21, 0.20], [0.28, 0.28, 0.29], [0.21, 0.22, 0.22]]


def make_comparison(values, measure="val_accuracy", target=0.9, **arguments):
    return compare(make_runs(values, measure=measure, **arguments), Measure(measure, target=target))


def cells_of(text, begin):
    """The cells of each row of the tables that begins with these words."""
    rows = [line for line in text.splitlines() if line.startswith(f"| {begin} ")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_the_first_lines_under_the_title_say_that_settings_are_compared_and_not_schedules():
    lines = markdown(make_comparison(CLEAR), ARTICLE).splitlines()
    assert lines[0].startswith("# ")
    assert lines[2].startswith("This report compares settings, not schedules")
    assert "`python scripts/compare_batch_sizes.py --tune=8`" in " ".join(lines[2:5])


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
    """A comparison whose last seed ran beside others."""
    return make_comparison(CLEAR, num_timed=2)


@pytest.fixture(scope="module")
def written(clear, tmp_path_factory):
    directory = tmp_path_factory.mktemp("written")
    write(clear, directory, ARTICLE)
    return directory


def test_a_row_has_the_figures_of_its_runs_and_times_are_of_the_seeds_that_ran_alone(clear):
    text = markdown(clear, ARTICLE)
    row, reached = cells_of(text, "triangular, batch 2000")
    assert row[:7] == [
        "triangular, batch 2000", "450", "0.100", "1.50 ± 0.00", "1.0", "600,000",
        "0.9267 ± 0.0058 (n=3) [0.9200, 0.9300]",
    ]  # fmt: skip
    # Steps to the target are those of all seeds, seconds those of the timed ones.
    assert reached[1:] == ["3 of 3", "1", "2,000", "0.10"]
    assert "Times are of seeds 0, 1 alone: seed 2 ran side by side with others" in text
    samples = {effect.measure: effect.sample for effect in clear.effects if effect.factor == "both"}
    assert len(samples["val_accuracy"].values) == 3
    assert samples["epoch_seconds"].values == pytest.approx([-0.1, -0.1])


def test_the_files_hold_the_comparison(clear, written):
    assert sorted(file.name for file in written.iterdir()) == [
        "comparison.csv", "comparison.json", "comparison.loss_against_rate.png", "comparison.png",
        "comparison.scaling.png", "report", "report.md",
    ]  # fmt: skip
    content = json.loads((written / "comparison.json").read_text())
    assert [run["arm"] for run in content["runs"]] == [run.arm.label for run in clear.runs]
    assert [run["final"]["val_accuracy"] for run in content["runs"]] == list(itertools.chain(*CLEAR))
    assert content["measure"] == {"name": "val_accuracy", "higher_is_better": True, "target": 0.9}
    assert [arm["final"]["mean"] for arm in content["arms"]] == pytest.approx([np.mean(v) for v in CLEAR])
    assert len(content["effects"]) == 8
    schedule = next(effect for effect in content["effects"] if effect["factor"] == "schedule")
    judged = ("p", "p_corrected", "verdict", "detectable_difference", "seeds_for_half", "seeds_to_tell")
    assert [schedule[name] for name in judged] == [getattr(clear.effects[1], name) for name in judged]
    assert schedule["verdict"] == "shown"
    with open(written / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == list(itertools.chain(*CLEAR))
    for name in ("train_seconds", "median_epoch_seconds", "seconds_to_target"):
        assert {row["seed"] for row in rows if not row[name]} >= {"2"}
    assert {row["seed"] for row in rows if row["train_seconds"]} == {"0", "1"}
    assert [row["steps_to_target"] != "" for row in rows] == [value >= 0.9 for value in itertools.chain(*CLEAR)]
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
        ((_, seconds, final),) = cells_of(text, summary.arm.label)
        assert float(seconds) == summary.epoch_seconds
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
    assert {len(arm.train_seconds.values) for arm in comparison.arms} == {2}
    assert {len(effect.sample.values) for effect in comparison.effects if effect.measure == "epoch_seconds"} == {2}


def test_what_is_shown_is_called_better_or_worse():
    said = conclusions(make_comparison(CLEAR))
    assert said[0].startswith("Triangular, batch 2000, instead of constant, batch 100, validation accuracy: +16.67 ±")
    assert said[0].endswith(" points, better (corrected p 0.001).")
    assert any("2.00 times the speed" in sentence and "faster" in sentence for sentence in said)


def test_what_is_not_shown_is_called_undecided_with_what_more_seeds_would_tell():
    comparison = make_comparison(NOISY)
    accuracy = [said for said in conclusions(comparison) if "validation accuracy" in said]
    assert len(accuracy) == 4
    for sentence in accuracy:
        assert "; undecided: about 23 seeds would tell. 3 seeds find a difference of " in sentence
        assert "better" not in sentence
    (both,) = [effect for effect in comparison.effects[:4] if effect.factor == "both"]
    assert f"of {100 * both.detectable_difference:.2f} points with 80% power; half of it needs 5 seeds." in accuracy[0]


@pytest.mark.parametrize("shift", [0.001, -0.001])
def test_of_a_small_difference_the_far_end_of_its_interval_is_named(shift):
    rises, falls = np.array([0.80, 0.81, 0.82, 0.83] * 4), np.array([0.83, 0.82, 0.81, 0.80] * 4)
    comparison = make_comparison([rises, falls + shift], arms=ARMS[:2])
    far = 100 * (abs(shift) + 2.131450 * (falls - rises).std(ddof=1) / np.sqrt(16))
    verdict = f"no difference larger than {far:.2f} points is likely"
    assert f" | {verdict} |" in markdown(comparison, ARTICLE)
    assert f" points; {verdict}. 16 seeds find a difference of " in conclusions(comparison)[0]


def test_a_change_that_changes_nothing_is_said_to():
    said = conclusions(make_comparison([[0.8, 0.9, 0.7]] * 2, arms=ARMS[:2]))
    assert said[0].endswith(", validation accuracy: +0.00 ± 0.00 points; no seed differs.")


def test_averages_over_unlike_cases_are_warned_of_only_where_the_interaction_is_shown():
    warned = [any("interact, so" in s for s in conclusions(make_comparison(v))) for v in (CLEAR, NOISY)]
    assert warned == [True, False]


def test_from_one_seed_nothing_follows():
    said = conclusions(make_comparison([values[:1] for values in CLEAR]))
    assert len([s for s in said if s.endswith("from one seed; nothing follows, run more seeds.")]) == 8


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
    row, reached = cells_of(text, "triangular, batch 100")
    assert "0.2033 ± 0.005774 (n=3) [0.2, 0.21]" in row
    assert reached[1] == "3 of 3"
    said = conclusions(compared)
    both = "Triangular, batch 2000, instead of constant, batch 100"
    assert said[0].startswith(f"{both}, validation mean absolute error: ")
    assert said[0].endswith("-0.09333 ± 0.005774, better (corrected p 0.005).")


def test_accuracies_are_compared_in_percentage_points_in_the_table_too():
    (row,) = [
        row for row in cells_of(markdown(make_comparison(CLEAR), ARTICLE), "validation accuracy") if "both" in row
    ]
    differences = 100 * (np.array(CLEAR[3]) - np.array(CLEAR[0]))
    mean, sd = differences.mean(), differences.std(ddof=1)
    half = 4.302653 * sd / np.sqrt(3)
    # With two degrees of freedom, p is 1 - t / sqrt(2 + t²); only the schedule's is smaller, so it counts three times.
    t = np.sqrt(3) * mean / sd
    assert 3 * (1 - t / np.sqrt(2 + t**2)) == pytest.approx(0.0012, abs=1e-5)
    expected = [f"{mean:+.2f} ± {sd:.2f} points", f"{mean - half:+.2f} to {mean + half:+.2f}", "0.001", "better"]
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


def test_a_target_that_is_not_reached_at_two_batch_sizes_draws_no_line():
    one, none = comparison_reaching({32: (1, 2), 128: (None, None)}), comparison_reaching({32: (None,), 128: (None,)})
    assert "Not reached by any arm; the best mean after the last epoch is 0.5." in target_section(none)
    assert set(comparison_pictures(one)) == set(comparison_pictures(none)) == {"comparison"}


def searches(rates, values=(0.9, 0.95, 0.93)):
    return [
        Search(
            Arm(size, "constant", Constant(0.1)),
            tuple(Trial(rate * f, value, 2.0) for f, value in zip((0.5, 1, 2), values, strict=True)),
            Measure(),
        )
        for size, rate in rates.items()
    ]


def test_the_power_of_the_batch_size_is_recovered():
    exact = fitted_power(searches({size: 0.001 * (size / 32) ** 0.5 for size in (32, 128, 512)}))
    assert exact == pytest.approx((0.5, 0.0), abs=1e-6)
    x, y = np.log([32.0, 128.0, 512.0]), np.log([0.001, 0.003, 0.004])
    slope, intercept = np.polyfit(x, y, 1)
    error = np.sqrt(((y - slope * x - intercept) ** 2).sum() / ((x - x.mean()) ** 2).sum())
    fitted = fitted_power(searches({32: 0.001, 128: 0.003, 512: 0.004}))
    assert fitted == pytest.approx((slope, error))
    assert fitted_power(searches({32: 0.001, 128: 0.004})) == (pytest.approx(1.0), None)
    assert fitted_power(searches({32: 0.001})) is None


def test_the_report_shows_what_was_tried_what_it_cost_and_what_the_rules_would_have_chosen():
    compared = comparison_reaching({32: (100, 200, 300), 128: (60, 70, 80)})
    tried = searches({32: 0.001, 128: 0.003})
    noise = NoiseScale((0, 10, 20), (50.0, 90.0, 40.0), (0.5, 0.3, -0.1), 1000)
    text = markdown(compared, Context("mnist", "relu_mlp", "steps", tried, noise))
    assert text.splitlines()[2].startswith("This report compares schedules, each at its best")
    assert "All arms take as many steps, rounded to whole epochs." in text
    words = " ".join(text.split())
    assert "Tuning took 6 trial runs, with 12 seconds of training." in words
    assert "100 examples at the beginning, 300 in the median of 3 points, more than 10,000 at the end" in words
    assert "stay below twice those of perfect scaling up to batch 128 (constant)." in words
    assert ["constant", "128", "0.003", "0.004", "0.002"] in cells_of(text, "constant")
    assert "Fitted power: constant 0.79." in words
    pictures = comparison_pictures(compared, tried, noise)
    assert set(pictures) == {"comparison", "comparison.tuning", "comparison.scaling"}


def test_a_diverged_trial_is_counted_and_never_the_best():
    (search,) = searches({32: 0.001}, values=(0.9, None, math.nan))
    assert search.best.learning_rate == 0.0005
    assert search.edge == "lower"
    assert "1 of them diverged" in tuning_section([search])
    (nothing,) = searches({32: 0.001}, values=(None, None, None))
    with pytest.raises(ValueError, match=r"constant, batch 32 diverged in each trial, at rates from 0\.0005 to 0\.002"):
        nothing.best  # noqa: B018
