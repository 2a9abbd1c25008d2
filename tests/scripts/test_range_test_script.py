"""The LR range test as a user starts it: by its script, and by the script that compares batch sizes."""

import csv
import json
import os
import re
import shlex
import shutil
import sys
from unittest import mock

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from clr_loop.arguments import speaking_flags
from clr_loop.commands import range_test
from clr_loop.schedules import Triangular
from clr_loop.studies.range_test import Bounds
from helpers.scripts import SCRIPTS, assert_one_line_error, succeed


def test_script_writes_what_it_found_and_ends_with_the_command_to_train_with(tmp_path):
    done = succeed(
        "range_test.py", "--model=relu_mlp", "--batch_size=200", "--num_steps=200", "--seeds=2", "--epochs=4",
        f"--output_dir={tmp_path}/out",
    )  # fmt: skip
    found = json.loads((tmp_path / "out" / "range_test.json").read_text())
    bounds = found["bounds"]
    assert bounds["step_size"] == 4 * 300 // 4
    assert [line for line in done.stdout.splitlines() if line.startswith("sweeping")] == [
        "sweeping with seed 0", "sweeping with seed 1",
    ]  # fmt: skip
    python, script, *flags = shlex.split(done.stdout.splitlines()[-1])
    assert os.path.samefile(shutil.which(python), sys.executable)
    assert os.path.samefile(script, SCRIPTS / "train.py")
    assert sorted(flags) == [
        f"--base_lr={bounds['base_lr']:g}", "--batch_size=200", "--epochs=4", f"--max_lr={bounds['max_lr']:g}",
        "--model=relu_mlp", "--step_size=300",
    ]  # fmt: skip
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


@pytest.mark.parametrize("total_steps", [449, 450, 451, 452])
def test_the_run_of_the_command_to_train_with_ends_at_the_low_of_its_second_cycle(monkeypatch, total_steps):
    monkeypatch.setattr(range_test.terminal, "given_flags", lambda module, left_out: [])
    monkeypatch.setattr(range_test, "FLAGS", {name: mock.Mock(present=1) for name in ("model", "batch_size")})
    with speaking_flags():
        command = range_test._train_command(Bounds(0.001, 0.01, total_steps // 4), total_steps)
    lengths = {name: int(steps) for name, steps in re.findall(r"--(step_size\w*)=(\d+)", command)}
    rates = Triangular(0.0, 1.0, **lengths)(np.arange(total_steps + 1))
    lows = np.flatnonzero(rates == 0.0)
    assert list(lows[:2]) == [0, total_steps // 2]
    assert lows[2] - total_steps in (-1, 0)  # The last step, or the one that would follow it.
    assert len(lows) == 3


def test_script_that_finds_no_bounds_says_why_and_does_not_succeed(commands, separable, tmp_path):
    arguments = [
        f"--dataset={separable}",
        "--model=relu_mlp",
        "--end_lr=1e-5",
        "--seeds=1",
        "--num_steps=60",
        "--epochs=1",
    ]
    done = commands.run("range_test", *arguments, f"--output_dir={tmp_path}/out")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("no suggestion: the curve is flat")
    assert json.loads((tmp_path / "out" / "range_test.json").read_text())["bounds"]["reason"] in done.stdout


def test_a_mistake_in_the_rates_is_one_line(commands, separable, tmp_path):
    flags = [f"--dataset={separable}", "--start_lr=1", "--end_lr=0.1", f"--output_dir={tmp_path}/out"]
    assert_one_line_error(commands.run("range_test", *flags), "end_lr 0.1 is not above start_lr 1; swap the two")


def test_a_comparison_takes_the_bounds_of_each_batch_size_from_its_range_test_and_goes_on_with_them(
    commands, separable, tmp_path
):
    flags = [f"--dataset={separable}", "--model=relu_mlp", "--batch_sizes=50,100", "--schedules=triangular"]
    flags += ["--epochs=2", "--bounds=range_test", "--step_size=7", f"--output_dir={tmp_path}/out"]
    done = commands.succeed("compare_batch_sizes", *flags, "--seeds=1")
    report = (tmp_path / "out" / "report.md").read_text()
    (tmp_path / "out" / "triangular_batch_50" / "seed_0" / "result.json").unlink()  # As if it had been killed there.
    resumed = commands.succeed("compare_batch_sizes", *flags, "--seeds=1", "--resume")
    assert "range test, batch" not in resumed.stdout
    found = []
    for size in (50, 100):
        config = json.loads((tmp_path / "out" / f"triangular_batch_{size}" / "seed_0" / "config.json").read_text())
        schedule = config["schedule"]
        bounds = f"--base_lr={schedule['base_lr']} --max_lr={schedule['max_lr']}"
        assert f"range test, batch {size}: {bounds}" in done.stdout
        assert f"{size} `{bounds}`" in report
        assert config[f"range_test_batch_{size}"] == bounds
        assert schedule["step_size"] == 7
        found.append((schedule["base_lr"], schedule["max_lr"]))
    assert found[0] != found[1]
    assert (0.001, 0.006) not in found
    assert (tmp_path / "out" / "comparison.range_test.png").is_file()
    images = EventAccumulator(str(tmp_path / "out" / "report")).Reload().Tags()["images"]
    tags = {tag for tag in images if tag.startswith("range_test/loss")}
    assert tags == {"range_test/loss, batch 50", "range_test/loss, batch 100"}


def test_it_moves_what_is_there_aside_only_when_it_has_new_files(commands, separable, tmp_path):
    output_dir = tmp_path / "out"
    flags = [f"--dataset={separable}", "--model=relu_mlp", "--batch_size=50", "--seeds=1", f"--output_dir={output_dir}"]
    assert "seed 0: " in commands.succeed("range_test", *flags, "--num_steps=60").stdout
    (output_dir / "notes.txt").write_text("mine")
    before = (output_dir / "range_test.json").read_bytes()
    for bad in (["--start_lr=20"], ["--num_steps=1"], ["--model=none"]):
        assert commands.run("range_test", *flags, "--overwrite", *bad).returncode == 2
        assert (output_dir / "range_test.json").read_bytes() == before
    commands.succeed("range_test", *flags, "--overwrite", "--num_steps=40")
    header = (output_dir / "range_test.csv").read_text().splitlines()[0]
    assert header.endswith(",val_accuracy,smoothed_val_accuracy")  # 40 steps of 50 examples are more than two epochs.
    assert json.loads((output_dir / "range_test.json").read_text())["tests"][0]["held_out"] == 200
    assert len((output_dir / "range_test.csv").read_text().splitlines()) <= 41
    assert len(list((output_dir / "seed_0").iterdir())) == 1
    aside = output_dir.with_name("out.1")
    assert (aside / "notes.txt").read_text() == "mine"
    assert (aside / "range_test.json").read_bytes() == before
