"""The scripts as a user meets them: in a process of their own."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

from helpers.processes import Fork

READ_AT_IMPORT = {"PYTHONPATH", "KERAS_HOME", "TF_ENABLE_ONEDNN_OPTS"}
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def start_script(name, *flags, **arguments):
    """Start a script in a fork, with the arguments of `Fork`."""
    return Fork(_run, SCRIPTS / name, *flags, **arguments)


def start_python(name, *flags, **arguments):
    """Start a script by a new Python, which imports TensorFlow itself; its output is piped."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / name), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **arguments,
    )


def _run(path, *flags):
    sys.argv = [str(path), *map(str, flags)]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def run_script(name, *flags, **environment):
    """Run a script; return the finished process. A new Python starts it if it gets what is read at an import."""
    starts = start_python if READ_AT_IMPORT & set(environment) else start_script
    return finished(starts(name, *flags, env=os.environ | environment), name, *flags)


def finished(process, name, *flags):
    """Wait for a script, and return what it ended with."""
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess([name, *flags], process.returncode, stdout, stderr)


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
