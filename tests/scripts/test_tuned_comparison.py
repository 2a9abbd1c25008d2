"""compare_batch_sizes.py --tune and --budget: what is tried, what is kept, and how mistakes are answered."""

import json

import numpy as np
import pytest

from clr_loop.schedules import to_steps
from helpers.scripts import assert_one_line_error, run_script, succeed, without_tensorflow


@pytest.fixture(scope="module")
def separable(tmp_path_factory):
    """Images whose class is easy to see, so that a range test finds bounds in little time."""
    rng = np.random.default_rng(0)
    centers = 0.5 * rng.standard_normal((3, 4, 4))

    def examples(number):
        labels = np.arange(number) % 3
        return (centers[labels] + 0.5 * rng.standard_normal((number, 4, 4))).astype(np.float32), labels

    path = tmp_path_factory.mktemp("separable") / "separable.npz"
    (x_train, y_train), (x_test, y_test) = examples(900), examples(300)
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


def flags_of(separable, output_dir):
    return [
        f"--dataset={separable}", "--model=relu_mlp", "--batch_sizes=50,200", "--epochs=2", "--seeds=2", "--tune=3",
        "--noise_scale", "--validate_every=4", f"--output_dir={output_dir}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tuned(separable, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("tuned") / "out"
    return succeed("compare_batch_sizes.py", *flags_of(separable, output_dir)), output_dir


def test_every_arm_runs_at_the_best_of_its_own_trials(tuned):
    done, output_dir = tuned
    content = json.loads((output_dir / "comparison.json").read_text())
    assert len(content["tuning"]) == 4
    for search in content["tuning"]:
        assert len(search["trials"]) == (4 if search["widened"] else 3)
        finished = [trial for trial in search["trials"] if trial["value"] is not None]
        assert max(finished, key=lambda t: (t["value"], -t["learning_rate"]))["learning_rate"] == search["best"]
        place = output_dir / f"{search['schedule']}_batch_{search['batch_size']}" / "seed_0"
        schedule = json.loads((place / "config.json").read_text())["schedule"]
        assert schedule.get("max_lr", schedule.get("learning_rate")) == search["best"]
        if search["schedule"] == "triangular":
            assert schedule["base_lr"] == search["best"] / 4
            steps = {50: 36, 200: 10}[search["batch_size"]]
            assert schedule["step_size"] == to_steps("25%", steps // 2, steps, "step_size")
    assert "compares schedules, each at its best" in done.stdout
    assert "## Gradient noise scale" in done.stdout
    assert {path.name for path in output_dir.glob("*.png")} >= {
        "comparison.png", "comparison.range_test.png", "comparison.tuning.png",
    }  # fmt: skip


def test_trials_train_on_what_is_left_with_a_seed_of_their_own_and_never_see_the_test_set(tuned):
    _, output_dir = tuned
    trials = sorted((output_dir / "tuning").glob("*/*"))
    assert {path.name for path in trials} == {f"seed_{2**32 - 1}"}
    configs = [json.loads((path / "config.json").read_text()) for path in trials]
    results = [json.loads((path / "result.json").read_text()) for path in trials if (path / "result.json").exists()]
    assert {result["num_examples"] for result in results} == {810}
    (trial_data,) = {config["validation"] for config in configs}
    final = json.loads((output_dir / "constant_batch_50" / "seed_0" / "config.json").read_text())
    assert trial_data != final["validation"]
    assert final["validate_every"] == 4


def test_it_goes_on_without_running_anything_again(tuned, separable):
    _, output_dir = tuned
    before = {path: path.read_bytes() for path in output_dir.rglob("result.json")}
    found = (output_dir / "comparison.found.json").read_bytes()
    done = succeed("compare_batch_sizes.py", *flags_of(separable, output_dir), "--resume")
    assert "range test" not in done.stdout
    assert {path: path.read_bytes() for path in output_dir.rglob("result.json")} == before
    assert (output_dir / "comparison.found.json").read_bytes() == found


def test_overwrite_removes_the_trials_too(tuned, separable):
    _, output_dir = tuned
    flags = [flag for flag in flags_of(separable, output_dir) if not flag.startswith(("--tune", "--noise"))]
    succeed("compare_batch_sizes.py", *flags, "--overwrite")
    assert sorted(path.name for path in output_dir.iterdir() if path.is_dir()) == [
        "constant_batch_200", "constant_batch_50", "report", "triangular_batch_200", "triangular_batch_50",
    ]  # fmt: skip


# Twenty, so that on a busy machine, too, an epoch of batch 200 takes less time than forty of batch 50.
@pytest.mark.parametrize(("budget", "epochs"), [("steps", 2), ("seconds", 20)])
def test_arms_with_one_budget_train_for_other_numbers_of_epochs(separable, tmp_path, budget, epochs):
    flags = [f"--dataset={separable}", "--model=relu_mlp", "--batch_sizes=50,200", f"--epochs={epochs}", "--seeds=1"]
    done = succeed("compare_batch_sizes.py", *flags, f"--budget={budget}", f"--output_dir={tmp_path}/out")
    results = {
        size: json.loads((tmp_path / "out" / f"constant_batch_{size}" / "seed_0" / "result.json").read_text())
        for size in (50, 200)
    }
    assert results[50]["epochs"] == epochs
    if budget == "steps":  # 36 steps; 5 steps in an epoch at batch 200.
        assert (results[50]["steps"], results[200]["steps"]) == (36, 35)
        assert "All arms take as many steps, rounded to whole epochs." in done.stdout
    else:
        found = json.loads((tmp_path / "out" / "comparison.found.json").read_text())
        epoch_seconds = [found[f"epoch_seconds, batch {size}"] for size in (50, 200)]
        assert results[200]["epochs"] == max(1, round(epochs * epoch_seconds[0] / epoch_seconds[1]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tune=2"], "--tune=2 would try too few rates"),
        (["--tune=8", "--schedules=constant,linear_ramp"], "--tune finds a highest rate, and linear_ramp has none"),
        (
            ["--bounds=range_test", "--warmup=1ep"],
            "--warmup climbs to a rate that --tune and --bounds=range_test would",
        ),
        (["--tune=8", "--learning_rate=0.1"], "--tune finds the rate of every arm itself; leave out --learning_rate"),
        (["--tune=8", "--bounds=range_test"], "leave out --bounds=range_test"),
        (["--tune=8", "--measure=loss"], "--tune needs a measure on held-out examples, such as val_loss"),
        (["--batch_sizes=50,901"], "batch_size is 901; choose one from 1 to the 900 training examples"),
        (["--batch_sizes=50,850", "--tune=8"], "batch_size is 850; choose one from 1 to the 810 training examples"),
        (["--batch_sizes=900,10", "--budget=steps", "--epochs=4"], "The budget of 4 steps is less than half an epoch"),
    ],
)
def test_a_mistake_is_one_line_before_tensorflow_starts(separable, tmp_path, flags, message):
    environment = without_tensorflow(tmp_path)
    where = [f"--dataset={separable}", f"--output_dir={tmp_path}/out"]
    assert_one_line_error(run_script("compare_batch_sizes.py", *where, *flags, **environment), message)
    assert not (tmp_path / "out").exists()


def test_too_few_examples_to_hold_out_are_told_before_the_first_run(tmp_path):
    labels = np.arange(12) % 4
    images = np.zeros((12, 4, 4), np.float32)
    np.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    flags = [f"--dataset={tmp_path}/few.npz", "--batch_sizes=4", "--tune=8", f"--output_dir={tmp_path}/out"]
    assert_one_line_error(run_script("compare_batch_sizes.py", *flags), "no example of class 0 is held out")
    assert not (tmp_path / "out").exists()
