import csv
import dataclasses
import itertools
import json

import numpy as np
import pytest

from clr_loop.runs.result import EpochRecord, TrainingResult
from clr_loop.schedules import Constant, Triangular
from clr_loop.studies import report
from clr_loop.studies.comparison import Arm, Run, compare

CONSTANT, TRIANGULAR = Constant(0.1), Triangular(0.001, 0.006, 2000)
ARMS = [
    Arm(size, name, schedule)
    for size in (100, 2000)
    for name, schedule in (("constant", CONSTANT), ("triangular", TRIANGULAR))
]


def make_comparison(accuracies, num_epochs=15, arms=ARMS, num_timed=3):
    """A comparison whose runs end with these accuracies: {arm: one a seed}; epochs of 0.2 s at batch 100, else 0.1.

    Seeds from num_timed on ran beside others, at a hundredth of the speed.
    """
    runs = []
    for arm in arms:
        for seed, accuracy in enumerate(accuracies[ARMS.index(arm)]):
            steps = num_epochs * 60000 // arm.batch_size
            is_timed = seed < num_timed
            seconds = (0.2 if arm.batch_size == 100 else 0.1) * (1 if is_timed else 100)
            records = [EpochRecord(e + 1, e, 0.1, 1.0, 0.5, 0.9, accuracy, seconds) for e in range(num_epochs)]
            rates = np.asarray(arm.schedule(np.arange(steps)), np.float32)
            runs.append(
                Run(
                    arm,
                    seed,
                    TrainingResult(
                        {
                            "optimizer": "Adam",
                            "batch_size": arm.batch_size,
                            "seed": seed,
                            "schedule": {},
                            "steps_per_epoch": 60000 // arm.batch_size,
                            "versions": {},
                        },
                        {"step": np.arange(steps), "learning_rate": rates},
                        records,
                        1.0,
                        60000,
                        0.9,
                        0,
                        "ab",
                        "CPU:0",
                        is_timed,
                    ),
                )
            )
    return compare(runs)


CLEAR = [[0.75, 0.76, 0.77], [0.95, 0.955, 0.95], [0.80, 0.81, 0.80], [0.92, 0.93, 0.93]]
NOISY = [[0.60, 0.76, 0.90], [0.90, 0.60, 0.76], [0.76, 0.90, 0.60], [0.61, 0.75, 0.90]]


def test_the_articles_figures_stand_beside_its_own_two_cells_and_no_other():
    rows = [
        line for line in report.markdown(make_comparison(CLEAR), "mnist", "article_mlp").splitlines() if "|" in line
    ]
    by_arm = {row.split("|")[1].strip(): row for row in rows}
    assert "30.21 s, 0.7598" in by_arm["constant, batch 100"]
    assert "5.47 s, 0.8352" in by_arm["triangular, batch 2000"]
    assert sum("0.7598" in row or "0.8352" in row for row in rows) == 2


@pytest.mark.parametrize(
    ("dataset", "model", "num_epochs"),
    [("fashion_mnist", "article_mlp", 15), ("mnist", "relu_mlp", 15), ("mnist", "article_mlp", 5)],
)
def test_other_settings_are_not_set_beside_the_article(dataset, model, num_epochs):
    text = report.markdown(make_comparison(CLEAR, num_epochs), dataset, model)
    assert "the article" not in text
    assert "0.7598" not in text


def test_a_row_has_the_figures_of_its_runs():
    text = report.markdown(make_comparison(CLEAR), "mnist", "article_mlp")
    (row,) = [line for line in text.splitlines() if line.startswith("| constant, batch 100 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:8] == [
        "constant, batch 100", "9,000", "0.200", "3.00 ± 0.00", "1.0", "300,000",
        "0.7600 ± 0.0100 (n=3) [0.7500, 0.7700]", "not reached, 0 of 3",
    ]  # fmt: skip
    (row,) = [line for line in text.splitlines() if line.startswith("| triangular, batch 2000 ")]
    assert "0.10 (3 of 3)" in row


def test_seeds_that_ran_side_by_side_count_for_accuracy_and_not_for_time(tmp_path):
    comparison = make_comparison(CLEAR, num_timed=2)
    text = report.markdown(comparison, "mnist", "article_mlp")
    (row,) = [line for line in text.splitlines() if line.startswith("| triangular, batch 2000 ")]
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[2:8] == [
        "0.100", "1.50 ± 0.00", "1.0", "600,000", "0.9267 ± 0.0058 (n=3) [0.9200, 0.9300]", "0.10 (2 of 2)",
    ]  # fmt: skip
    assert "Times are of seeds 0, 1 alone: seed 2 ran side by side with others" in text
    samples = {effect.measure: effect.sample for effect in comparison.effects if effect.factor == "both"}
    assert len(samples["val_accuracy"].values) == 3
    assert samples["epoch_seconds"].values == pytest.approx([-0.1, -0.1])

    report.write(comparison, tmp_path, "mnist", "article_mlp")
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


def test_a_comparison_without_a_timed_seed_is_refused():
    with pytest.raises(ValueError, match="must be timed in every arm, received none; run one alone"):
        make_comparison(CLEAR, num_timed=0)


def test_what_is_beyond_the_spread_is_called_better_or_worse():
    said = report.conclusions(make_comparison(CLEAR))
    assert said[0].startswith("Triangular, batch 2000, instead of constant, batch 100, validation accuracy: +16.67 ±")
    assert said[0].endswith("better, beyond the spread over seeds.")
    assert any("2.00 times the speed" in sentence and "faster" in sentence for sentence in said)


def test_what_is_within_the_spread_is_not_called_a_difference():
    said = report.conclusions(make_comparison(NOISY))
    accuracy = [sentence for sentence in said if "validation accuracy" in sentence]
    assert len(accuracy) == 4
    for sentence in accuracy:
        assert sentence.endswith("within the spread over seeds; no difference is shown.")
        assert "better" not in sentence


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
    assert report.conclusions(alone) == ["One arm alone: there is nothing to compare it with."]
    assert "## Effects" not in report.markdown(alone, "mnist", "article_mlp")


def test_the_files_hold_the_comparison(tmp_path):
    compared = make_comparison(CLEAR)
    report.write(compared, tmp_path, "mnist", "article_mlp")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "comparison.csv", "comparison.json", "comparison.png", "report.md",
    ]  # fmt: skip
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert [run["arm"] for run in content["runs"]] == [run.arm.label for run in compared.runs]
    assert [run["val_accuracy"] for run in content["runs"]] == list(itertools.chain(*CLEAR))
    assert [arm["val_accuracy"]["mean"] for arm in content["arms"]] == pytest.approx([np.mean(v) for v in CLEAR])
    assert len(content["effects"]) == 8
    with open(tmp_path / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == list(itertools.chain(*CLEAR))
    assert (tmp_path / "report.md").read_text() == report.markdown(compared, "mnist", "article_mlp")
    assert (tmp_path / "comparison.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_another_optimizer_is_not_the_articles():
    compared = make_comparison(CLEAR)
    runs = [
        dataclasses.replace(
            run, result=dataclasses.replace(run.result, settings={**run.result.settings, "optimizer": "SGD"})
        )
        for run in compared.runs
    ]
    assert "the article" not in report.markdown(dataclasses.replace(compared, runs=runs), "mnist", "article_mlp")
