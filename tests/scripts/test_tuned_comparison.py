"""compare_batch_sizes.py --tune and --budget: what is tried, what is kept, and how mistakes are answered."""

import json

import pytest

from clr_loop.schedules import to_steps
from clr_loop.studies.comparison.peak import find_peak


def flags_of(separable, output_dir):
    return [
        f"--dataset={separable}", "--model=relu_mlp", "--batch_sizes=50,200", "--epochs=2", "--seeds=1", "--tune=3",
        "--trials=2",
        "--noise_scale", "--validate_every=4", f"--output_dir={output_dir}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(commands, separable, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("tuned") / "out"
    return commands.succeed("compare_batch_sizes", *flags_of(separable, output_dir)), output_dir


def test_every_arm_runs_at_the_peak_of_its_own_trials(tuned):
    _, output_dir = tuned
    content = json.loads((output_dir / "comparison.json").read_text())
    assert len(content["tuning"]) == 4
    for search in content["tuning"]:
        assert len(search["trials"]) in (range(4, 7) if search["widened"] else [3])
        assert {len(trials["values"]) for trials in search["trials"]} == {2}
        assert search["trials"][0]["learning_rate"] <= search["learning_rate"] <= search["trials"][-1]["learning_rate"]
        rates, values = zip(*((trials["learning_rate"], trials["values"]) for trials in search["trials"]), strict=True)
        assert search["learning_rate"] == float(f"{find_peak(rates, values).learning_rate:.3g}")
        place = output_dir / f"{search['schedule']}_batch_{search['batch_size']}" / "seed_0"
        schedule = json.loads((place / "config.json").read_text())["schedule"]
        assert schedule.get("max_lr", schedule.get("learning_rate")) == search["learning_rate"]
        if search["schedule"] == "triangular":
            assert schedule["base_lr"] == search["learning_rate"] / 4
            steps = {50: 36, 200: 10}[search["batch_size"]]
            assert schedule["step_size"] == to_steps("25%", steps // 2, steps, "step_size")
    report = (output_dir / "report.md").read_text()
    assert "compares schedules, each at its best" in report
    assert "## Gradient noise scale" in report
    assert {path.name for path in output_dir.glob("*.png")} >= {
        "comparison.png", "comparison.range_test.png", "comparison.tuning.png",
    }  # fmt: skip


def test_trials_train_on_what_is_left_with_seeds_of_their_own_and_never_see_the_test_set(tuned):
    done, output_dir = tuned
    for trial in ("trial 1 of constant_", "trial 2 of triangular_"):
        assert any(f": {trial}" in line and ", batch 200: val_accuracy" in line for line in done.stdout.splitlines())
    trials = sorted((output_dir / "tuning").glob("*/*"))
    assert {path.name for path in trials} == {f"seed_{2**32 - 1}", f"seed_{2**32 - 2}"}
    configs = [json.loads((path / "config.json").read_text()) for path in trials]
    results = [json.loads((path / "result.json").read_text()) for path in trials if (path / "result.json").exists()]
    assert {result["num_examples"] for result in results} == {810}
    (trial_data,) = {config["validation"] for config in configs}
    final = json.loads((output_dir / "constant_batch_50" / "seed_0" / "config.json").read_text())
    assert trial_data != final["validation"]
    assert final["validate_every"] == 4


def test_it_goes_on_without_running_anything_again(commands, tuned, separable):
    _, output_dir = tuned
    before = {path: path.read_bytes() for path in output_dir.rglob("result.json")}
    found = (output_dir / "comparison.found.json").read_bytes()
    done = commands.succeed("compare_batch_sizes", *flags_of(separable, output_dir), "--resume")
    assert "range test" not in done.stdout
    assert {path: path.read_bytes() for path in output_dir.rglob("result.json")} == before
    assert (output_dir / "comparison.found.json").read_bytes() == found


def test_overwrite_moves_the_trials_aside_too(commands, tuned, separable):
    _, output_dir = tuned
    flags = [flag for flag in flags_of(separable, output_dir) if not flag.startswith(("--tune", "--noise"))]
    commands.succeed("compare_batch_sizes", *flags, "--schedules=constant", "--overwrite")
    assert sorted(path.name for path in output_dir.iterdir() if path.is_dir()) == [
        "constant_batch_200", "constant_batch_50", "report",
    ]  # fmt: skip
    assert (output_dir.with_name(f"{output_dir.name}.1") / "tuning").is_dir()


# A hundred, so that on a busy machine, too, an epoch of batch 200 takes less time than two hundred of batch 50.
@pytest.mark.parametrize(("budget", "epochs"), [("steps", 2), ("seconds", 100)])
def test_arms_with_one_budget_train_for_other_numbers_of_epochs(commands, separable, tmp_path, budget, epochs):
    flags = [f"--dataset={separable}", "--model=relu_mlp", "--batch_sizes=50,200", f"--epochs={epochs}", "--seeds=1"]
    flags += ["--schedules=constant"]
    commands.succeed("compare_batch_sizes", *flags, f"--budget={budget}", f"--output_dir={tmp_path}/out")
    results = {
        size: json.loads((tmp_path / "out" / f"constant_batch_{size}" / "seed_0" / "result.json").read_text())
        for size in (50, 200)
    }
    assert results[50]["epochs"] == epochs
    if budget == "steps":  # 36 steps; 5 steps in an epoch at batch 200.
        assert (results[50]["steps"], results[200]["steps"]) == (36, 35)
        assert "All arms take as many steps, rounded to whole epochs." in (tmp_path / "out" / "report.md").read_text()
    else:
        found = json.loads((tmp_path / "out" / "comparison.found.json").read_text())
        epoch_seconds = [found[f"epoch_seconds, batch {size}"] for size in (50, 200)]
        assert results[200]["epochs"] == max(1, round(epochs * epoch_seconds[0] / epoch_seconds[1]))
