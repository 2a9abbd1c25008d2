"""The LR range test as a user starts it: by its script, and by the script that compares batch sizes."""

import csv
import json

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from helpers.scripts import run_script, succeed


def test_script_writes_what_it_found_and_ends_with_the_flags_to_train_with(tmp_path):
    done = succeed(
        "range_test.py", "--model=relu_mlp", "--batch_size=200", "--num_steps=200", "--seeds=2", "--epochs=4",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "range_test.json").read_text())
    bounds = found["bounds"]
    assert bounds["step_size"] == 4 * 300 // 4
    assert done.stdout.splitlines()[-1] == (
        f"--base_lr={bounds['base_lr']:g} --max_lr={bounds['max_lr']:g} --step_size={bounds['step_size']}"
    )
    assert [test["stop_reason"].split(":")[0] for test in found["tests"]] == ["divergence"] * 2
    with open(tmp_path / "out" / "range_test.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(test["steps"] for test in found["tests"])
    assert (tmp_path / "out" / "range_test.png").read_bytes().startswith(b"\x89PNG")
    for seed in (0, 1):
        (file,) = (tmp_path / "out" / f"seed_{seed}").glob("events.out.tfevents.*")
        events = [event for event in EventFileLoader(str(file)).Load() if event.summary.value]
        expected = [row for row in rows if row["seed"] == str(seed)]
        assert [event.step for event in events] == [int(row["step"]) for row in expected]
        for event, row in zip(events, expected, strict=True):
            values = {value.tag: value.tensor.float_val[0] for value in event.summary.value}
            assert set(values) == {"learning_rate", "loss", "accuracy", "smoothed_loss", "smoothed_accuracy"}
            for tag, value in values.items():
                assert value == pytest.approx(float(row[tag]), rel=1e-6, nan_ok=True)
    (file,) = (tmp_path / "out").glob("events.out.tfevents.*")
    pictures = [value for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    assert [each.tag for each in pictures] == ["range_test/loss, batch 200", "range_test/accuracy, batch 200"]
    for each in pictures:
        assert each.metadata.plugin_data.plugin_name == "images"
        assert each.tensor.string_val[2].startswith(b"\x89PNG")


def test_script_that_finds_no_bounds_says_why_and_does_not_succeed(tmp_path):
    arguments = ["--model=relu_mlp", "--end_lr=1e-5", "--seeds=1", "--num_steps=60", "--epochs=1"]
    done = run_script("range_test.py", *arguments, f"--output_dir={tmp_path}/out")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("no suggestion: the curve is flat")
    assert json.loads((tmp_path / "out" / "range_test.json").read_text())["bounds"]["reason"] in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start_lr=1", "--end_lr=0.1"], "error: end_lr 0.1 is not above start_lr 1; swap the two"),
        (["--early_stop=maybe"], "early_stop=maybe: must be a number such as 4, or none"),
    ],
)
def test_script_tells_a_mistake_in_one_line(tmp_path, arguments, message):
    done = run_script("range_test.py", f"--output_dir={tmp_path}/out", *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_comparison_takes_the_bounds_of_each_batch_size_from_its_range_test(tmp_path):
    arguments = ["--model=relu_mlp", "--batch_sizes=100,400", "--epochs=1", "--seeds=1", "--bounds=range_test"]
    done = succeed("compare_batch_sizes.py", *arguments, "--step_size=7", f"--output_dir={tmp_path}/out")
    report = (tmp_path / "out" / "report.md").read_text()
    schedules = []
    for size in (100, 400):
        run_dir = tmp_path / "out" / f"triangular_batch_{size}" / "seed_0"
        config = json.loads((run_dir / "config.json").read_text())
        schedule = config["schedule"]
        flags = f"--base_lr={schedule['base_lr']} --max_lr={schedule['max_lr']}"
        assert f"range test, batch {size}: {flags}" in done.stdout
        assert f"{size} `{flags}`" in report
        assert config[f"range_test_batch_{size}"] == flags
        assert schedule["step_size"] == 7
        schedules.append((schedule["base_lr"], schedule["max_lr"]))
    assert schedules[0] != schedules[1]
    assert (0.001, 0.006) not in schedules
    contradiction = run_script("compare_batch_sizes.py", "--bounds=range_test", "--max_lr=0.1")
    assert contradiction.returncode == 2
    assert "--bounds=range_test finds base_lr and max_lr itself" in contradiction.stderr
