"""Runs what the README and the pages in docs/ show, as it stands, in a folder that looks like a checkout.

The README's commands run in bash. What stands in for the programs appends flags that make them short. The commands of
docs/ are parsed; the tests of the scripts run them.
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

CHECKOUT = Path(__file__).resolve().parents[1]
README, DOCS = CHECKOUT / "README.md", sorted((CHECKOUT / "docs").glob("*.md"))
MOST_WORDS = 1200

SHORT = {
    "compare_batch_sizes.py": ["--epochs=1", "--seeds=2"],
    "range_test.py": ["--batch_size=100", "--num_steps=200", "--seeds=2"],
    "train.py": ["--epochs=1", "--batch_size=100"],
    "preview.py": [],
}


def blocks(pages, language):
    """Return the code blocks of a language, in their order."""
    return [code for page in pages for code in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


def names(command):
    return " ".join(re.findall(r"\w+\.py|pytest|tensorboard", command))


def short(arguments):
    """Return the arguments of a short run of the same program, or None for what only makes the environment."""
    program, *rest = arguments
    if Path(program).name == "tensorboard":
        return [str(Path(sys.executable).with_name("tensorboard")), *rest, "--inspect"]
    if Path(program).name in ("pip", "python3") or rest[:2] == ["-m", "pytest"]:
        return None
    script, *flags = rest
    if "IS_PARSED_ONLY" in os.environ:
        return [script, *flags, "--help"]
    more = list(SHORT.get(Path(script).name, []))
    if "compare" in script:
        more += ["--tune=3", "--trials=2", "--batch_sizes=100"] if "--tune=8" in flags else ["--batch_sizes=50,200"]
    if "train.py" in script or "compare" in script or "range_test" in script:
        more.append(f"--dataset={os.environ['SMALL']}")
    return [script, *flags, *more]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs a command line in bash."""
    place = tmp_path_factory.mktemp("checkout")
    (place / "scripts").symlink_to(CHECKOUT / "scripts")
    mnist = load("mnist")
    arrays = {"x_train": mnist.train.inputs, "y_train": mnist.train.targets}
    arrays |= {"x_test": mnist.validation.inputs, "y_test": mnist.validation.targets}
    np.savez(place / "small.npz", **{name: array[:1000] for name, array in arrays.items()})
    (place / ".venv" / "bin").mkdir(parents=True)
    path = f"{place / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "SMALL": str(place / "small.npz"), "COLUMNS": "100"}
    with forks.serving(place, short) as make:
        for name in ("python", "python3", "pip", "tensorboard"):
            make(place / ".venv" / "bin" / name)

        def bash(text, **more):
            command = ["bash", "-euo", "pipefail", "-c", text]
            return subprocess.run(command, cwd=place, env=environment | more, capture_output=True, text=True)

        yield bash


@pytest.mark.parametrize("command", blocks([README], "bash"), ids=names)
def test_a_command_of_the_readme_runs(run, command):
    done = run(command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", blocks(DOCS, "bash"), ids=names)
def test_the_flags_of_a_command_in_docs_are_those_of_its_script(run, command):
    done = run(f"{command}\nwait", IS_PARSED_ONLY="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--flagfile=FILE" in done.stdout
    assert not done.stderr


def test_the_snippets_run_one_after_another(run):
    pages = [page for page in DOCS if page.name != "parallel.md"]  # That is a script of its own.
    snippets = "\n".join(blocks([README, *pages], "python"))
    done = run(f"cat > snippets.py <<'END'\n{snippets}\nEND\n.venv/bin/python snippets.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("TrainingResult(15 epochs, 450 steps: ")
    assert "\n(600,)\n" in done.stdout
    assert done.stderr == ""


def test_the_script_that_compares_side_by_side_runs_as_pasted(tmp_path):
    (script,) = blocks([CHECKOUT / "docs" / "parallel.md"], "python")
    (tmp_path / "side_by_side.py").write_text(script)
    command = [sys.executable, str(tmp_path / "side_by_side.py")]  # Its processes are spawned, as a user's are.
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.match(r"Constant 0\.01, batch 2000 is better than constant 0\.001, .*of the time", done.stdout)


def test_links_lead_somewhere():
    for page in (README, *DOCS, CHECKOUT / "docs" / "results" / "README.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.is_file(), f"{page.name}: {link}"
            if heading:
                titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                assert heading in [title.lower().replace(" ", "-") for title in titles], f"{page.name}: {link}"


def test_the_readme_is_short():
    prose = re.sub(r"```\w+\n.*?```", "", README.read_text(), flags=re.DOTALL)
    assert len(prose.split()) <= MOST_WORDS


def test_mypy_passes_on_the_snippets_of_the_readme(tmp_path):
    (tmp_path / "snippets.py").write_text("\n".join(blocks([README], "python")))
    command = [sys.executable, "-m", "mypy", "--config-file=pyproject.toml", tmp_path / "snippets.py"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
