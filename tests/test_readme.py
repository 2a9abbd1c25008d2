"""Runs every command and every snippet of the README, in the README's order, in a folder that looks like a checkout.

The text is taken as it stands. What stands in for the programs appends flags that make them short.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clr_loop.data import load
from helpers import forks
from helpers.processes import free_addresses

CHECKOUT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)
COMMANDS = [text for language, text in BLOCKS if language == "bash"]
SNIPPETS = [text for language, text in BLOCKS if language == "python"]

SHORT = {
    "compare_batch_sizes.py": ["--epochs=2", "--seeds=2", "--batch_sizes=50,200"],
    "range_test.py": ["--batch_size=100", "--num_steps=200", "--seeds=2"],
    "train.py": ["--epochs=1", "--batch_size=100"],
    "prove_resume.py": ["--kills=1"],
    "preview.py": [],
    "reproduce_smith.py": ["--data_dir=cifar-10.npz", "--scale=0.001", "--batch_size=10", "--seeds=1"],
}


def short(arguments):
    """Return the arguments of a short run of the same program, or None for what only makes the environment."""
    program, *rest = arguments
    if "IS_SHORT" in os.environ:  # A program that such a program has started.
        return rest
    os.environ["IS_SHORT"], small = "1", f"--dataset={os.environ['SMALL']}"
    if Path(program).name == "tensorboard":
        return [str(Path(sys.executable).with_name("tensorboard")), *rest, "--inspect"]
    if Path(program).name in ("pip", "python3") or rest[:2] == ["-m", "pytest"]:
        return None
    script, *given = rest
    more = list(SHORT.get(Path(script).name, []))
    if any("--tune" in flag for flag in given):
        more += ["--tune=3", "--batch_sizes=100", "--epochs=1"]
    if "train.py" in script or "compare" in script or "range_test" in script:
        more += [] if any("--dataset" in flag for flag in given) else [small]
    if "prove_resume" in script:
        more += [f"--train_flags={small} --epochs=20 --batch_size=20 --checkpoint_every=10"]
    return [script, *given, *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command line in bash."""
    place = tmp_path_factory.mktemp("checkout")
    (place / "scripts").symlink_to(CHECKOUT / "scripts")
    mnist = load("mnist")
    arrays = {"x_train": mnist.train.inputs, "y_train": mnist.train.targets}
    arrays |= {"x_test": mnist.validation.inputs, "y_test": mnist.validation.targets}
    np.savez(place / "small.npz", **{name: array[:1000] for name, array in arrays.items()})
    images, labels = np.zeros((50, 32, 32, 3), np.uint8), np.arange(50) % 10
    np.savez(place / "cifar-10.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    (place / ".venv" / "bin").mkdir(parents=True)
    path = f"{place / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "SMALL": str(place / "small.npz"), "COLUMNS": "100"}
    with forks.serving(place, short) as make:
        for name in ("python", "python3", "pip", "tensorboard"):
            make(place / ".venv" / "bin" / name)

        def bash(text):
            return subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text], cwd=place, env=environment, capture_output=True, text=True
            )

        yield bash


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda text: " ".join(re.findall(r"\w+\.py|pytest|tensorboard", text))
)
def test_a_command_of_the_readme_runs(run, command):
    for written, free in zip(("127.0.0.1:2222", "127.0.0.1:2223"), free_addresses(2), strict=True):
        command = command.replace(written, free)
    done = run(f"{command}\nwait")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_snippets_of_the_readme_run_one_after_another(run):
    done = run("cat > snippets.py <<'END'\n" + "\n".join(SNIPPETS) + "\nEND\n.venv/bin/python snippets.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
