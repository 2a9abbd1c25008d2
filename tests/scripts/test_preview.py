import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread

from clr_loop.schedules import LinearRamp, OneCycle
from clr_loop.studies.pictures.runs import schedule_picture
from helpers.scripts import SCRIPTS, run_script


def test_it_prints_the_description_and_draws_it(tmp_path):
    flags = ["--batch_size=2000", "--num_examples=59999", "--figure_format=svg"]
    process = run_script("preview.py", *flags, f"--output_dir={tmp_path}/new/folder")
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert lines[0].startswith("450 steps, 15 epochs: the learning rate starts at 0.001, ends at 0.00212")
    assert "the rate only climbs, to 0.00212; for two whole cycles use --step_size=112" in lines[2]
    picture = tmp_path / "new" / "folder" / "preview.png"
    assert lines[-1] == f"picture: {picture}"
    assert imread(picture).std() > 0.01  # Something is drawn.
    assert picture.with_suffix(".svg").read_bytes().startswith(b"<?xml")


def test_a_schedule_that_ends_before_the_run_is_told_of_once_and_only_in_the_notes(commands, tmp_path):
    flags = ["--batch_size=2000", f"--output_dir={tmp_path}"]
    process = commands.run("preview", *flags, "--schedule=one_cycle", "--total_steps=50%", "--momentum=0.85,0.95")
    assert process.returncode == 0
    assert process.stderr == ""
    assert process.stdout.count("--total_steps=450") == 1


def test_a_run_too_long_for_any_machine_is_described_and_drawn_all_the_same(commands, tmp_path):
    process = commands.run("preview", "--batch_size=100", "--epochs=1000000000", f"--output_dir={tmp_path}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("600,000,000,000 steps, 1,000,000,000 epochs: ")
    # Its countless cycles fill the whole height everywhere; even samples would draw slow cycles that are not there.
    picture = imread(tmp_path / "preview.png")
    heights = (picture[..., 2] - picture[..., 0] > 0.3).sum(axis=0)
    heights = heights[np.flatnonzero(heights)[0] : np.flatnonzero(heights)[-1] + 1]
    assert heights[5:-5].min() > 0.7 * heights.max()


def test_the_picture_holds_the_rates_the_momentum_and_the_notes():
    schedule = OneCycle(0.1, 450, momentum=(0.85, 0.95))
    steps = np.arange(450)
    figure = schedule_picture(schedule, 450, 30, "one_cycle, batch 2000", ["a note"]).together()
    rate_axes, log_axes, momentum_axes = figure.axes
    assert (rate_axes.get_yscale(), log_axes.get_yscale()) == ("linear", "log")
    np.testing.assert_array_equal(rate_axes.lines[0].get_ydata(), schedule(steps))
    np.testing.assert_array_equal(momentum_axes.lines[0].get_ydata(), schedule.momentum_at(steps))
    figure.canvas.draw()
    assert rate_axes.child_axes[0].get_xlim() == pytest.approx(np.array(rate_axes.get_xlim()) / 30)
    assert figure.get_suptitle() == "one_cycle, batch 2000"
    assert figure.get_supxlabel() == "a note"
    assert len(schedule_picture(LinearRamp(0.01, 0.1, 450), 450, 30, "title").together().axes) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_does_not_end_a_command(tmp_path, closed):
    script = SCRIPTS / "preview.py"
    line = f"{sys.executable} {script} --batch_size=2000 --output_dir={tmp_path} {closed}"
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 0
    assert (tmp_path / "preview.png").is_file()


def test_a_terminal_of_ascii_and_a_python_without_docstrings_will_do(tmp_path):
    plain = {**os.environ, "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}
    plain = {name: value for name, value in plain.items() if name not in ("HOME", "USER", "LOGNAME")}
    for flags in ([f"--output_dir={tmp_path}", "--batch_size=2000"], ["--help"]):
        command = [sys.executable, "-OO", SCRIPTS / "preview.py", *flags]
        done = subprocess.run(command, env=plain, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"None" not in done.stdout[:10]
