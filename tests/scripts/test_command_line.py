"""What a script's flags look like to somebody who does not know them."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from clr_loop.commands import terminal
from clr_loop.studies.report.tables import markdown_table
from helpers import scripts
from helpers.scripts import SCRIPTS, assert_one_line_error, run_script, succeed

NAMES = ["train.py", "compare_batch_sizes.py", "range_test.py", "preview.py", "benchmark.py", "prove_resume.py"]


@pytest.fixture
def without_tensorflow(tmp_path):
    return scripts.without_tensorflow(tmp_path)


def sections(text):
    """Heading → names of the flags under it, of a help text."""
    found = {}
    for line in text.splitlines():
        if re.fullmatch(r"(Data and model|Schedule|Run|Output|Help):", line):
            found[line[:-1]] = []
        elif flag := re.match(r"  --(?:\[no\])?(\w+):", line):
            found[list(found)[-1]].append(flag[1])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_help_has_its_headings_in_the_order_of_use_and_helpfull_has_every_flag_once(name, without_tensorflow):
    shown, full = (sections(succeed(name, flag, **without_tensorflow).stdout) for flag in ("--help", "--helpfull"))
    order = [heading for heading in ("Data and model", "Schedule", "Run", "Output", "Help") if heading in full]
    assert list(shown) == list(full) == order
    for heading, flags in shown.items():
        assert full[heading][: len(flags)] == flags
    names = [flag for flags in full.values() for flag in flags]
    code = f"""
import runpy, sys
from absl import flags
sys.path.insert(0, {str(SCRIPTS)!r})
sys.argv = [{str(SCRIPTS / name)!r}]
runpy.run_path(sys.argv[0], run_name="script")
print(*(flag.name for flag in flags.FLAGS.get_key_flags_for_module("script")))
"""
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(names) == sorted(listed.stdout.split())


def test_a_new_user_sees_what_matters_first_and_how_much_more_there_is(without_tensorflow):
    shown, full = (succeed("train.py", flag, **without_tensorflow).stdout for flag in ("--help", "--helpfull"))
    assert sections(shown) == {
        "Data and model": ["dataset", "model", "optimizer"],
        "Schedule": ["schedule", "learning_rate", "base_lr", "max_lr", "step_size"],
        "Run": ["batch_size", "epochs", "seed", "resume"],
        "Output": ["run_dir", "overwrite"],
        "Help": ["help", "helpfull"],
    }
    (more,) = map(int, re.findall(r"--helpfull lists (\d+) more flags", shown))
    assert sum(map(len, sections(full).values())) == sum(map(len, sections(shown).values())) + more
    listing = full[full.index("Data and model:") :]
    assert max(map(len, listing.splitlines())) <= 100
    assert "--batch_size: Examples in a step. (default: 100)" in listing


@pytest.mark.parametrize(
    ("name", "typed", "meant"),
    [
        ("train.py", "lr", "learning_rate"),
        ("train.py", "bs", "batch_size"),
        ("compare_batch_sizes.py", "bs", "batch_sizes"),
        ("train.py", "batch", "batch_size"),
        ("train.py", "epoch", "epochs"),
        ("train.py", "output", "run_dir"),
        ("range_test.py", "out", "output_dir"),
        ("train.py", "optim", "optimizer"),
        ("preview.py", "momentm", "momentum"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_likeliest_one(name, typed, meant, without_tensorflow):
    done = run_script(name, f"--{typed}=1", **without_tensorflow)
    assert_one_line_error(done, f"Unknown command line flag '{typed}'; did you mean --{meant}? --help")


def test_an_unknown_flag_that_is_like_none_gets_no_guess(without_tensorflow):
    done = run_script("train.py", "--zzz=1", **without_tensorflow)
    assert_one_line_error(done, "Unknown command line flag 'zzz'; --help and --helpfull list the flags.")


def test_flags_can_be_read_from_a_file(tmp_path):
    (tmp_path / "flags").write_text("--schedule=constant\n--learning_rate=0.25\n")
    done = succeed("preview.py", f"--flagfile={tmp_path / 'flags'}", f"--output_dir={tmp_path}")
    assert "0.25" in done.stdout


def test_a_report_fits_into_100_columns_of_a_terminal_and_goes_to_a_file_as_it_is(monkeypatch, capsys):
    cells = [f"a cell with words {n}" for n in range(9)]
    report = f"# A report\n\n{'words ' * 50}\n\n{markdown_table(cells, [cells])}\n"
    terminal.say_markdown(report)
    assert capsys.readouterr().out == f"{report}\n"
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    terminal.say_markdown(report)
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) == 100
    assert shown.split().count("cell") == 2 * len(cells)


def test_a_status_is_erased_from_a_terminal_and_never_written_to_a_file():
    code = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from clr_loop.commands import terminal
with terminal.status("waiting"):
    terminal.say("a line meanwhile")
"""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    subprocess.run([sys.executable, "-c", code], stderr=inside, check=True)
    os.close(inside)
    written = os.read(outside, 1000).decode()
    assert "waiting …" in written
    assert not written.rsplit("\r", 2)[1].strip()
    os.close(outside)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("a line meanwhile\n", "")
