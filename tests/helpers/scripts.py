"""The commands as a user meets them: in a process of their own, or in one for all where a process is no claim."""

import contextlib
import io
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from importlib import import_module
from multiprocessing import Pipe
from pathlib import Path
from unittest import mock

from helpers.processes import Fork, start_fork

READ_AT_IMPORT = {"PYTHONPATH", "KERAS_HOME"}
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def start_script(name, *flags, **arguments):
    """Start a script in a fork, with the arguments of `Fork`."""
    return Fork(_run, SCRIPTS / name, *flags, **arguments)


def start_python(name, *flags, **arguments):
    """Start a script by a new Python, which imports TensorFlow itself and asks for oneDNN; its output is piped."""
    environment = {**arguments.pop("env", os.environ)}
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    return subprocess.Popen(
        [sys.executable, str(SCRIPTS / name), *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
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
    return assert_success(run_script(name, *flags, **environment))


def without_tensorflow(directory):
    """Return an environment in which importing TensorFlow or Keras fails."""
    for name in ("tensorflow", "keras"):
        (directory / f"{name}.py").write_text("raise SystemExit('imported')")
    return {"PYTHONPATH": f"{directory}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def assert_success(done):
    """Hold that a command ended well; return what it ended with."""
    assert done.returncode == 0, done.stderr
    return done


def epoch_rows(stdout):
    """Return the table of the epochs that a command has printed, a dict of texts for each."""
    lines = [line.split() for line in stdout.splitlines()]
    begin = next(i for i, cells in enumerate(lines) if cells[:2] == ["epoch", "lr"])
    rows = [cells for cells in lines[begin + 1 :] if cells and re.fullmatch(r"\d+/\d+", cells[0])]
    return [dict(zip(lines[begin], cells, strict=True)) for cells in rows]


def assert_one_line_error(done, message, code=2):
    """Hold that a script ended with one line that says what is wrong."""
    assert message in done.stderr, done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.returncode == code, done.stderr


# --- One command many times in one process ---


class OneProcess:
    """A forked process for each command, which runs it again and again, each time with flags as new."""

    def __init__(self):
        self._running = {}

    def run(self, name, *flags, tensorflow=True):
        """Run a command in the current directory; return what it ended with.

        tensorflow: False lets an import of TensorFlow or Keras fail.
        """
        if name not in self._running:
            ours, theirs = Pipe()
            self._running[name] = start_fork((), dict(os.environ), os.getcwd(), _serve, name, theirs), ours
            theirs.close()
        connection = self._running[name][1]
        connection.send((name, [str(flag) for flag in flags], os.getcwd(), tensorflow))
        return subprocess.CompletedProcess([name, *flags], *connection.recv())

    def succeed(self, name, *flags):
        """Run a command that must end well; return what it ended with."""
        return assert_success(self.run(name, *flags))

    def close(self):
        """End the processes."""
        for process, connection in self._running.values():
            connection.send(None)
            process.join()


def _serve(name, connection):
    import_module(f"clr_loop.commands.{name}")
    while (request := connection.recv()) is not None:
        connection.send(_answer(*request))


def _answer(name, flags, directory, tensorflow):
    """Run a command here; return its exit code, stdout and stderr."""
    os.chdir(directory)
    kept = dict(sys.modules)
    with (
        _caught() as (out, err),
        _fresh_flags(),
        _signals_restored(),
        warnings.catch_warnings(),
        mock.patch.dict(os.environ),
        contextlib.nullcontext() if tensorflow else _blocked("tensorflow", "keras"),
        mock.patch.object(sys, "argv", [str(SCRIPTS / f"{name}.py"), *flags]),
    ):
        try:
            import_module(f"clr_loop.commands.{name}").main()
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
    for added in set(sys.modules) - set(kept):  # A module of the user's is another one in another directory.
        if (getattr(sys.modules[added], "__file__", None) or "").startswith(directory):
            del sys.modules[added]
    return code, out.read(), err.read()


@contextlib.contextmanager
def _caught():
    """Write what goes to stdout and stderr, also from C++, to files."""
    files = [tempfile.TemporaryFile("w+") for _ in (1, 2)]  # noqa: SIM115
    kept = [os.dup(number) for number in (1, 2)]
    for number, file in zip((1, 2), files, strict=True):
        os.dup2(file.fileno(), number)
    try:
        yield files
    finally:
        for number, stream, file, old in zip((1, 2), (sys.stdout, sys.stderr), files, kept, strict=True):
            stream.flush()
            os.dup2(old, number)
            os.close(old)
            file.seek(0, io.SEEK_SET)


@contextlib.contextmanager
def _fresh_flags():
    """Remove the flags that a command defines, and take back what it reads into the others."""
    from absl import flags
    from absl.testing import flagsaver

    before = set(flags.FLAGS)
    try:
        with flagsaver.flagsaver():
            yield
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()


@contextlib.contextmanager
def _blocked(*names):
    """Let an import of these modules fail."""
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        sys.modules.update(kept)


@contextlib.contextmanager
def _signals_restored():
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
