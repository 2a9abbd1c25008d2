import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from clr_loop.schedules import OneCycle
from clr_loop.studies.pictures.runs import schedule_figure
from helpers.scripts import SCRIPTS, run_script


def preview(tmp_path, *flags):
    return run_script("preview.py", "--batch_size=2000", f"--output_dir={tmp_path}", *flags)


def test_it_prints_the_description_and_draws_it(tmp_path):
    process = preview(tmp_path / "new" / "folder", "--num_examples=59999", "--figure_format=svg")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0].startswith("450 steps, 15 epochs: the learning rate starts at 0.001, ends at 0.00212")
    assert "the rate only climbs, to 0.00212; for two whole cycles use --step_size=112" in lines[2]
    picture = tmp_path / "new" / "folder" / "preview.png"
    assert lines[-1] == f"picture: {picture}"
    assert imread(picture).std() > 0.01  # Something is drawn.
    assert picture.with_suffix(".svg").read_bytes().startswith(b"<?xml")


def test_a_schedule_that_ends_before_the_run_is_told_of_once_and_only_in_the_notes(tmp_path):
    process = preview(tmp_path, "--schedule=one_cycle", "--total_steps=50%", "--momentum=0.85,0.95")
    assert process.returncode == 0
    assert process.stderr == ""
    assert process.stdout.count("--total_steps=450") == 1


def test_a_run_too_long_for_any_machine_is_described_and_drawn_all_the_same(tmp_path):
    process = preview(tmp_path, "--batch_size=100", "--epochs=1000000000")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("600,000,000,000 steps, 1,000,000,000 epochs: ")
    # Its countless cycles fill the whole height everywhere; even samples would draw slow cycles that are not there.
    picture = imread(tmp_path / "preview.png")
    heights = (picture[..., 2] - picture[..., 0] > 0.3).sum(axis=0)
    heights = heights[np.flatnonzero(heights)[0] : np.flatnonzero(heights)[-1] + 1]
    assert heights[5:-5].min() > 0.7 * heights.max()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step_size=2epp"], "error: step_size is '2epp', which is not a length such as"),
        (["--momentum=0.9"], "is the optimizer's, and a preview has none; give low,high"),
        (["--epochs=0"], "error: epochs is 0; a run visits the data at least once"),
        (["--epochs=99999999999999999999"], "and no run takes that many steps"),
        (["--batch_size=60001"], "error: batch_size is 60001; choose one from 1 to the 60000 training examples"),
    ],
)
def test_a_bad_flag_is_named_without_a_traceback_and_draws_nothing(tmp_path, flags, message):
    process = preview(tmp_path, *flags)
    assert process.returncode != 0
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_named_and_kept(tmp_path):
    (tmp_path / "file").write_text("mine")
    process = preview(tmp_path / "file")
    assert process.returncode == 2
    assert "a file has its name" in process.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("script", "flags", "returncode"),
    [
        ("preview.py", ["--batch_size=2000"], 0),
        ("train.py", ["--help"], 0),
        ("train.py", ["--step_size=2epp"], 2),
        ("train.py", ["--base_lr=1"], 2),
        ("compare_batch_sizes.py", ["--schedules=constant,one_cycle", "--pct_start=2"], 2),
    ],
)
def test_neither_a_preview_nor_help_nor_a_bad_flag_imports_tensorflow(tmp_path, script, flags, returncode):
    # A TensorFlow that cannot be imported stands before the real one.
    for name in ("tensorflow", "keras"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')\n")
    code = f"""
import runpy, sys
sys.path[:0] = [{str(tmp_path)!r}, {str(SCRIPTS)!r}]
sys.argv = ["{script}", *{flags!r}]
runpy.run_path({str(SCRIPTS / script)!r}, run_name="__main__")
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "imported" not in process.stderr
    assert "Traceback" not in process.stderr
    assert process.returncode == returncode, process.stderr


def test_the_picture_holds_the_rates_the_momentum_and_the_notes():
    schedule = OneCycle(0.1, 450, momentum=(0.85, 0.95))
    steps = np.arange(450)
    figure = schedule_figure(
        steps, schedule(steps), schedule.momentum_at(steps), 30, "one_cycle, batch 2000", ["a note"]
    )
    rate_axes, log_axes, momentum_axes = figure.axes
    assert (rate_axes.get_yscale(), log_axes.get_yscale()) == ("linear", "log")
    np.testing.assert_array_equal(rate_axes.lines[0].get_ydata(), schedule(steps))
    np.testing.assert_array_equal(momentum_axes.lines[0].get_ydata(), schedule.momentum_at(steps))
    figure.canvas.draw()
    assert rate_axes.child_axes[0].get_xlim() == pytest.approx(np.array(rate_axes.get_xlim()) / 30)
    assert figure.get_suptitle() == "one_cycle, batch 2000"
    assert figure.get_supxlabel() == "a note"
    assert len(schedule_figure(steps, np.linspace(0.01, 0.1, 450), None, 30, "title").axes) == 1
