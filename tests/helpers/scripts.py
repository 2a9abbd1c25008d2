"""The scripts as a user meets them: in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def start_script(name, *flags, **arguments):
    """Start a script; its output is piped."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / name), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **arguments,
    )


def run_script(name, *flags, **environment):
    """Run a script; return the finished process."""
    return subprocess.run(
        [sys.executable, str(SCRIPTS / name), *map(str, flags)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
    )


def succeed(name, *flags, **environment):
    """Run a script that must end well; return the finished process."""
    done = run_script(name, *flags, **environment)
    assert done.returncode == 0, done.stderr
    return done


def without_tensorflow(directory):
    """Return an environment in which importing TensorFlow or Keras fails."""
    for name in ("tensorflow", "keras"):
        (directory / f"{name}.py").write_text("raise SystemExit('imported')")
    return {"PYTHONPATH": f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def assert_one_line_error(done, message, code=2):
    """Hold that a script ended with one line that says what is wrong."""
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.returncode == code
