"""Shows that a run which is killed again and again ends like one that is not, to the last bit.

Trains once without a break. Then trains again, killing the process with SIGKILL at random moments and resuming it each
time, and compares weights, every step, every epoch and every point in TensorBoard.

Example:

    python scripts/prove_resume.py --kills=20 --train_flags="--model=relu_mlp --epochs=100 --checkpoint_every=200"
"""

import random
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from clr_loop.commands import output_flags, terminal
from clr_loop.runs import files as run_files

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define the command's own flags, and adopt those that it shares with others."""
    flags.DEFINE_integer("kills", 20, "How often to kill the run.", lower_bound=1)
    flags.DEFINE_string("train_flags", "--epochs=100 --checkpoint_every=200", "Flags of scripts/train.py.")
    flags.DEFINE_integer("seed", 0, "Of the random moments.")
    flags.DEFINE_string("output_dir", "runs/prove_resume", f"Where to write; {output_flags.EMPTY}, unless --overwrite.")
    flags.declare_key_flag("overwrite")
    flags.adopt_module_key_flags(terminal)
    flags.register_validator(
        "train_flags",
        _asks_for_checkpoints,
        message="must ask for checkpoints: without one, no run can be resumed",
    )


def _asks_for_checkpoints(text: str) -> bool:
    return re.search(r"checkpoint_every[= ]['\"]?never", text) is None


def run() -> int:
    """Train twice, kill one of the runs again and again, and compare."""
    with output_flags.claim(FLAGS.output_dir, "proof") as output_dir:
        whole, killed = output_dir / "whole", output_dir / "killed"
        _finish("training once without a break", _train(whole, *(["--overwrite"] if FLAGS.overwrite else [])))
        output_flags.begin(output_dir / "killed")  # Now the flags are known to be good.
        train_seconds = run_files.read_json(whole / run_files.RESULT)["train_seconds"]
        num_kills = _kill_often(killed, train_seconds)
        _finish("training the killed run to its end", _train(killed, "--resume"))
        terminal.say("comparing weights, steps, epochs and TensorBoard's points")
        terminal.start_tensorflow()
        with terminal.status("comparing"):
            from clr_loop.studies.comparison.identity import differences

            differing = differences(whole, killed)
    terminal.say("\n".join([*differing, f"kills: {num_kills}", f"bit-identical: {'no' if differing else 'yes'}"]))
    return 1 if differing else 0


def _kill_often(run_dir: Path, train_seconds: float) -> int:
    """Start the run and resume it, killing it each time; return how often it was there to be killed."""
    moments = random.Random(FLAGS.seed)
    num_kills = 0
    for i in range(FLAGS.kills):
        with terminal.status(f"training, to be killed: {i + 1} of {FLAGS.kills}"):
            process = _train(run_dir, *(["--resume"] if i else []))
            if i % 4 != 3:  # Every fourth dies while it starts.
                _wait_for_a_step(process, run_dir / run_files.HISTORY)
            try:
                # No longer than its share of the run, so that something is left for the last kill.
                process.wait(timeout=moments.uniform(0.0, train_seconds / FLAGS.kills))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                num_kills += 1
        checkpoints = sorted(path.name for path in (run_dir / run_files.CHECKPOINTS).glob("step_*"))
        terminal.say(f"kill {num_kills:2d}: newest checkpoint {checkpoints[-1] if checkpoints else 'none'}")
    return num_kills


def _wait_for_a_step(process: subprocess.Popen[str], history: Path) -> None:
    lowest = _size(history)
    while process.poll() is None and _size(history) <= lowest:
        lowest = min(lowest, _size(history))  # A resumed run first cuts the file back to its checkpoint.
        time.sleep(0.01)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _train(run_dir: Path, *more: str) -> subprocess.Popen[str]:
    code = "from clr_loop.commands.train import main; main()"
    command = [sys.executable, "-c", code, *shlex.split(FLAGS.train_flags), f"--run_dir={run_dir}", *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(what: str, process: subprocess.Popen[str]) -> None:
    terminal.say(what)
    with terminal.status(what):
        _, errors = process.communicate()
    if process.returncode != 0:
        raise ValueError(f"train.py ended with exit code {process.returncode}: {errors.strip()}")


main = terminal.command(run, define_flags)
