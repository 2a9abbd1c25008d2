"""The benchmark runs, says what it was asked for, and its contenders do the same work. Nothing here is about time."""

import json

import numpy as np
import pytest

from contenders import loops
from contenders.loops import CONTENDERS, Job, growth_jobs
from helpers import scripts
from helpers.processes import fork_for_spawn
from helpers.scripts import assert_one_line_error


def prepare():
    """Let the contenders be forked, and less grow."""
    fork_for_spawn()
    loops.GROWTH_COPIES, loops.GROWTH_WIDTHS = (), (4,)


def run(*flags):
    return scripts.finished(scripts.start_script("benchmark.py", *flags, prepare=prepare), "benchmark.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("benchmark") / "out"
    process = run(
        "--models=relu_mlp", "--batch_sizes=32", "--num_examples=100", "--tables=1,2,3", "--rounds=1",
        f"--output_dir={output_dir}",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout, output_dir


def test_every_contender_is_measured_in_every_round_or_said_to_be_missing(finished):
    stdout, output_dir = finished
    (case,) = json.loads((output_dir / "benchmark.json").read_text())["cases"]
    assert (case["model"], case["batch_size"], case["num_examples"]) == ("relu_mlp", 32, 96)
    lines = [line for line in stdout.splitlines() if line.startswith("| PyTorch") or line.startswith("| JAX")]
    assert set(case["contenders"]) >= {"keras", "keras_best", "step", "clr_loop", "products"}
    missing = len(CONTENDERS) - len(case["contenders"])
    assert sum("not installed" in line for line in lines) == 2 * missing  # In both tables.
    for measured in case["contenders"].values():
        assert len(measured["epoch_seconds"]) == len(measured["recorded_seconds"]) == 1
        assert measured["median_epoch_seconds"] == measured["epoch_seconds"][0]
        assert min(measured["epoch_seconds"] + measured["recorded_seconds"]) > 0.0
        assert measured["compile_seconds"] >= 0.0
        # A Python process with NumPy takes more than ten million bytes: the unit is right.
        assert 10e6 < measured["peak_bytes"] < 10e9


def test_all_that_train_compute_the_same_losses(finished):
    contenders = json.loads((finished[1] / "benchmark.json").read_text())["cases"][0]["contenders"]
    losses = {key: measured["loss"] for key, measured in contenders.items() if key != "products"}
    assert contenders["products"]["loss"] is None
    # Untrained, ten classes: near ln 10. Three steps of one library's Adam and another's agree to rounding.
    assert losses["clr_loop"] == pytest.approx(2.3, abs=0.2)
    assert losses == pytest.approx(dict.fromkeys(losses, losses["clr_loop"]), rel=1e-4)


def test_with_convolutions_too(tmp_path):
    losses = {}
    for key, contender in CONTENDERS.items():
        if contender.has_convolutions and contender.is_installed():
            (tmp_path / key).mkdir()
            epoch = contender.begin(Job("small_cnn", 20, 60), tmp_path / key)
            losses[key] = [float(np.mean(epoch(number, False)["loss"])) for number in range(2)]
    assert len(losses) >= 4
    for key in losses:
        assert losses[key] == pytest.approx(losses["clr_loop"], rel=1e-4)


def test_tables_are_printed_and_written_alike_and_the_picture_is_one(finished):
    stdout, output_dir = finished
    written = (output_dir / "benchmark.md").read_text()
    assert written.strip() in stdout
    (row,) = [line for line in written.splitlines() if line.startswith("| clr_loop") and line.count("|") == 10]
    assert [cell.strip() for cell in row.split("|")][5:7] == ["1.00", "1.00"]
    (all_cases,) = [line for line in written.splitlines() if line.startswith("| clr_loop") and line.count("|") == 4]
    assert all_cases.split("|")[2].rstrip().endswith("), 1.00")
    assert (output_dir / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_batch_size_data_and_width_grow_one_at_a_time(finished):
    jobs = [(job.batch_size, job.copies, job.width) for job in growth_jobs("relu_mlp", 60_000, [100, 2048])]
    sizes = [(32, 1, 1), (128, 1, 1), (512, 1, 1), (2048, 1, 1), (8192, 1, 1), (100, 1, 1)]
    larger = [(100, 1, 4), (100, 1, 16), (100, 4, 1), (2048, 1, 4), (2048, 1, 16), (2048, 4, 1)]
    assert sorted(jobs) == sorted([*sizes, *larger])
    growth = json.loads((finished[1] / "benchmark.json").read_text())["growth"]
    assert [(case["batch_size"], case["copies"], case["width"]) for case in growth] == [(32, 1, 1), (32, 1, 4)]
    assert [case["contenders"]["clr_loop"]["examples"] for case in growth] == [100, 100]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_sizes=0", "whole numbers of at least 1"),
        ("--batch_sizes=200", "The batch size 200 is above num_examples 100; lower it"),
        ("--tables=4", "must be of 1, 2, 3"),
        ("--models=cnn", "must be of article_mlp, relu_mlp, small_cnn"),
        ("--models=small_cnn", "Table 3 widens a dense model; add article_mlp or relu_mlp to --models"),
        ("--contenders=jax", "must include clr_loop"),
    ],
)
def test_a_bad_flag_is_one_line_and_writes_nothing(tmp_path, flag, message):
    process = run(flag, "--num_examples=100", f"--output_dir={tmp_path / 'out'}")
    assert_one_line_error(process, message)
    assert not (tmp_path / "out").exists()
