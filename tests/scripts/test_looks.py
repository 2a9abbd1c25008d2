"""compare_batch_sizes.py with planned looks, a margin and a bound of failure, and what it says on the way."""

import json

import pytest

SLOW = "--learning_rate=1e-05"  # Nothing is learned at it.


@pytest.fixture
def compare(commands, separable, tmp_path):
    def run(*flags):
        sizes = [f"--dataset={separable}", "--model=relu_mlp", "--batch_sizes=50", "--epochs=2", "--seeds=8"]
        return commands.succeed("compare_batch_sizes", *sizes, f"--output_dir={tmp_path}/out", *flags).stdout

    return run


def test_the_first_look_ends_a_comparison_whose_answer_is_known(compare, tmp_path):
    stdout = compare(SLOW, "--looks=2")
    assert "\nlook 1 of 2, 4 seeds: Triangular, batch 50 is better than constant, batch 50, by " in stdout
    assert "(97.1% interval " in stdout
    assert "look 2" not in stdout
    assert "run 8 of 16, " in stdout
    assert len(list((tmp_path / "out").glob("*/seed_*/result.json"))) == 8
    report = (tmp_path / "out" / "report.md").read_text()
    assert "8 seeds, 2 looks at a level of 0.0294, no margin" in report
    assert "4 seeds an arm" in report


def test_a_comparison_that_no_look_decides_runs_all_seeds_and_tells_the_means_of_the_first_once(compare, tmp_path):
    stdout = compare("--schedules=constant,linear_decay", "--learning_rate=0.001", "--looks=2", "--margin=60")
    assert stdout.count("\nmean val_accuracy after 3 seeds, too few for a verdict: ") == 1
    means = stdout.partition("too few for a verdict: ")[2].partition("\n")[0]
    finals = {}
    for schedule in ("constant", "linear_decay"):
        results = [tmp_path / "out" / f"{schedule}_batch_50" / f"seed_{seed}" / "result.json" for seed in range(3)]
        finals[schedule] = sum(json.loads(path.read_text())["final"]["val_accuracy"] for path in results) / 3
    assert {f"{name}, batch 50 {mean:.4g}" for name, mean in finals.items()} == set(means.split("; "))
    assert [f"look {look} of 2, {4 * look} seeds: " in stdout for look in (1, 2)] == [True, True]
    assert "run 16 of 16: " in stdout
    report = (tmp_path / "out" / "report.md").read_text()
    assert "**linear_decay, batch 50 and constant, batch 50 differ by less than 60.00 points" in report
    assert "a margin of 0.6" in report


def test_a_bound_of_failure_is_in_the_plan_and_the_report(compare, tmp_path):
    stdout = compare(SLOW, "--failure_bound=0.6")
    rule = "A run has failed if it diverged, or if its validation accuracy is worse than 0.6."
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["failures"] == rule
    assert rule in " ".join((tmp_path / "out" / "report.md").read_text().split())
    assert "because constant, batch 50 failed in 8 of 8 runs, so it has no typical run" in " ".join(stdout.split())
