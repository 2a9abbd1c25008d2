"""What a script's flags look like to somebody who does not know them."""

import contextlib
import dataclasses
import fcntl
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import warnings

import pytest
from absl import flags
from absl.testing import flagsaver

from clr_loop.commands import model_flags, option_flags, terminal
from clr_loop.loop.options import StepOptions
from clr_loop.runs.options import RunOptions
from clr_loop.studies.report.tables import table_of
from helpers import scripts
from helpers.scripts import SCRIPTS, run_script

FLAGS = flags.FLAGS
NAMES = ("train", "compare_batch_sizes", "range_test", "preview", "prove_resume", "reproduce_smith")


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
def test_help_has_its_headings_in_the_order_of_use_and_helpfull_has_every_flag_once(commands, name):
    told = [commands.succeed(name, flag).stdout for flag in ("--help", "-h", "--helpfull")]
    shown, short, full = map(sections, told)
    assert short == shown
    order = [heading for heading in ("Data and model", "Schedule", "Run", "Output", "Help") if heading in full]
    assert list(shown) == list(full) == order
    for heading, first in shown.items():
        assert full[heading][: len(first)] == first
    names = [name for each in full.values() for name in each]
    code = f"""
from absl import flags
from clr_loop.commands import {name} as command
command.define_flags()
print(*(flag.name for flag in flags.FLAGS.get_key_flags_for_module(command.__name__)))
"""
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert sorted(names) == sorted(listed.stdout.split())
    assert f"python scripts/{name}.py" in told[0]
    assert max(map(len, told[2][told[2].index(f"{order[0]}:") :].splitlines())) <= 100


def test_a_new_user_sees_what_matters_first_and_how_much_more_there_is(commands):
    shown, full = (commands.succeed("train", flag).stdout for flag in ("--help", "--helpfull"))
    assert sections(shown) == {
        "Data and model": ["dataset", "model", "optimizer"],
        "Schedule": ["schedule", "learning_rate", "base_lr", "max_lr", "step_size"],
        "Run": ["batch_size", "epochs", "seed", "resume"],
        "Output": ["run_dir", "overwrite"],
        "Help": ["help", "helpfull"],
    }
    (more,) = map(int, re.findall(r"--helpfull lists (\d+) more flags", shown))
    assert sum(map(len, sections(full).values())) == sum(map(len, sections(shown).values())) + more
    assert "--batch_size: Examples in a step. (default: 100)" in full
    assert "2ep (epochs)" in " ".join(shown.split())  # Lines are broken anywhere.


@pytest.mark.parametrize("kind", [StepOptions, RunOptions])
def test_an_option_is_told_to_a_command_as_it_is_told_to_python(commands, kind):
    full = " ".join(commands.succeed("train", "--helpfull").stdout.split())
    for field in dataclasses.fields(kind):
        assert field.metadata["help"] in " ".join(kind.__doc__.split())
        if field.metadata["has_flag"]:
            assert f"{field.name}: " in full
            assert field.metadata["help"] in full
            default = f"(default: {str(field.default).lower()})"
            assert field.default in (None, False, dataclasses.MISSING) or default in full


@pytest.mark.parametrize(
    ("name", "flags", "returncode"),
    [
        ("preview", ["--batch_size=2000"], 0),
        ("train", ["--help"], 0),
        ("train", ["--base_lr=1"], 2),
        ("compare_batch_sizes", ["--schedules=constant,one_cycle", "--pct_start=2"], 2),
        ("range_test", ["--helpfull"], 0),
        ("prove_resume", ["--help"], 0),
        ("reproduce_smith", ["--scale=2"], 2),
        ("benchmark", ["--help"], 0),
    ],
)
def test_started_by_itself_a_script_answers_without_tensorflow(tmp_path, monkeypatch, name, flags, returncode):
    monkeypatch.chdir(tmp_path)
    done = run_script(f"{name}.py", *flags, **scripts.without_tensorflow(tmp_path))
    assert "imported" not in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == returncode, done.stderr


def test_flags_can_be_read_from_a_file(commands, tmp_path):
    (tmp_path / "flags").write_text("--schedule=constant\n--learning_rate=0.25\n")
    done = commands.succeed("preview", f"--flagfile={tmp_path / 'flags'}", f"--output_dir={tmp_path}")
    assert "0.25" in done.stdout


@pytest.mark.parametrize(("num_runs", "is_said"), [(40, False), (41, True)])
def test_of_more_runs_than_tensorboard_selects_it_is_said_how_to_see_them(tmp_path, num_runs, is_said):
    for i in range(num_runs):
        for number in range(2):  # A resumed run has two files and is one run.
            path = tmp_path / f"seed_{i}" / f"events.out.tfevents.1764403200.host.00000{number}.clr_loop"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    assert ("press Toggle all runs" in terminal.where(tmp_path)) == is_said


def test_a_report_fits_into_100_columns_of_a_terminal_and_goes_to_a_file_as_it_is(monkeypatch, capsys):
    cells = [f"a cell with words {n}" for n in range(9)]
    report = f"# A report\n\n{'words ' * 50}\n\n{table_of([dict(zip(cells, cells, strict=True))])}\n"
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
from clr_loop.commands import model_flags, option_flags, terminal
from clr_loop.loop.options import StepOptions
from clr_loop.runs.options import RunOptions
with terminal.status("waiting"):
    terminal.say("a line meanwhile")
"""
    outside, inside = pty.openpty()
    fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    subprocess.run([sys.executable, "-c", code], stderr=inside, check=True)
    os.close(inside)
    written = ""
    with contextlib.suppress(OSError):  # That is a terminal's end.
        while True:
            written += os.read(outside, 1000).decode()
    assert "waiting …" in written
    assert not written.rsplit("\r", 2)[1].strip()
    os.close(outside)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("a line meanwhile\n", "")


# --- Options and flags ---


@pytest.fixture
def given():
    """Parses the flags of StepOptions and RunOptions for one test, as train.py has them."""
    assert model_flags.FLAGS is FLAGS  # It defines those of StepOptions.
    if "profile" not in FLAGS:
        option_flags.define(RunOptions, lengths=("checkpoint_every", "validate_every"))
    with flagsaver.flagsaver():
        yield lambda *texts: FLAGS(["train", *texts])


def test_options_are_what_the_flags_say(given):
    given()
    assert StepOptions(**option_flags.values(StepOptions)) == StepOptions()
    given(
        "--jit_compile=true", "--clip_norm=0.5", "--accumulate=2", "--skip_non_finite", "--nohalve_batches",
        "--average=0.999", "--rate_multipliers=bias=2,a.*=0",
    )  # fmt: skip
    assert StepOptions(**option_flags.values(StepOptions)) == StepOptions(
        jit_compile=True, clip_norm=0.5, accumulate=2, skip_non_finite=True, halve_batches=False, average=0.999,
        rate_multipliers={"bias": 2.0, "a.*": 0.0},
    )  # fmt: skip
    given("--average=swa", "--profile=100:200", "--on_change=keep", "--patience=3", "--checkpoint_every=2ep")
    assert option_flags.values(StepOptions)["average"] == "swa"
    found = option_flags.values(RunOptions)
    assert found.pop("checkpoint_every") == "2ep"  # The command turns it into steps.
    assert found.pop("validate_every") == "0"
    assert RunOptions(**found) == RunOptions(profile=(100, 200), on_change="keep", patience=3)


@pytest.mark.parametrize("rebases", [False, True])
def test_the_line_that_resumes_a_run_neither_overwrites_nor_rebases_it_once_more(given, monkeypatch, rebases):
    change = ["--on_change", "rebase", "--resume"] if rebases else ["--overwrite"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--step_size=3ep", "--run_dir=a b", "--resume_from=4", *change])
    given(*(["--on_change=rebase"] if rebases else []))
    python, script, *flags = shlex.split(terminal.resume_command())
    assert os.path.samefile(shutil.which(python), sys.executable)
    kept = ["--on_change=keep"] if rebases else []
    assert (script, flags) == ("train.py", ["--step_size=3ep", "--run_dir=a b", *kept, "--resume"])


# --- The installed program ---


def test_the_program_lists_its_commands_at_once_and_passes_its_flags_on(tmp_path):
    code = "from clr_loop.commands.main import main; main()"

    def clr_loop(*arguments):
        environment = os.environ | scripts.without_tensorflow(tmp_path)
        command = [sys.executable, "-c", f"import sys; sys.argv[0] = '/usr/bin/clr-loop'; {code}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    listed = clr_loop().stdout
    assert listed == clr_loop("--help").stdout
    for module, name in terminal.COMMANDS.items():
        assert f"\n  clr-loop {name} " in listed
        (tmp_path / module).mkdir()  # The commands are those of the package.
    told = clr_loop("range-test", "--help").stdout
    assert "    clr-loop range-test --model=relu_mlp --batch_size=2000\n" in told
    assert ".py" not in told.replace("module.py", "")
    wrong = clr_loop("trian")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert wrong.stderr.startswith("error: clr-loop has no command trian; it has train, range-test, ")
    assert clr_loop("preview", "--batch_size=2000").returncode == 0
    assert (tmp_path / "runs" / "preview" / "preview.png").is_file()


def test_the_program_names_itself_in_the_commands_that_it_prints(given, monkeypatch, tmp_path):
    program = tmp_path / "clr-loop"
    program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [f"{program} train", "--run_dir=a b", "--overwrite"])
    given()
    assert terminal.resume_command() == "clr-loop train '--run_dir=a b' --resume"
    assert terminal.program("range_test") == ["clr-loop", "range-test"]
    assert terminal.as_called("see --schedule of train.py") == "see --schedule of clr-loop train"
    monkeypatch.setattr(sys, "argv", ["scripts/range_test.py"])
    assert terminal.program("train")[1:] == ["scripts/train.py"]
    assert terminal.as_called("see --schedule of train.py") == "see --schedule of train.py"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("The rate is wrong."), "error: The rate is wrong.\n"),
        (KeyError("loss"), "error: KeyError: 'loss'; this is a fault of clr_loop\n"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_a_fault_with_its_traceback(monkeypatch, capsys, error, told):
    def fail():
        raise error

    monkeypatch.setattr(sys, "argv", ["command"])
    with flagsaver.flagsaver(), warnings.catch_warnings(), pytest.raises(SystemExit) as caught:
        terminal.command(fail)()
    shown = capsys.readouterr().err
    assert caught.value.code == 2
    assert shown.endswith(told)
    assert shown.startswith("Traceback" if isinstance(error, KeyError) else told)
