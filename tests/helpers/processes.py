"""Python in processes of its own: scripts, workers, and replicas, whose number is fixed when TensorFlow starts.

To import TensorFlow takes a processor four seconds. So these processes are forked from one that has imported it and
computed nothing with it.
"""

import atexit
import json
import multiprocessing
import os
import socket
import sys
import tempfile
import threading
from multiprocessing.connection import Connection

import pytest

# Far above what any of them takes. A test that hangs shall end; a busy machine shall not end a test.
LIMIT_SECONDS = 900

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["keras", "tensorflow", "clr_loop.runs.fit", "clr_loop.studies.report.files"])


def start_fork(streams, environment, directory, function, *arguments):
    """Start a forked process that calls a function, and return it.

    streams: Connections that become its stdin, stdout and stderr, of which None leaves one alone. They are closed here.
    environment: TensorFlow has read its own already.
    """
    streams = list(streams)
    process = _CONTEXT.Process(target=_begin, args=(streams, environment, directory, function, arguments))
    process.start()
    for stream in filter(None, streams):
        stream.close()
    return process


def _begin(streams, environment, directory, function, arguments):
    """Make this process what a shell would have started, and call the function."""
    for number, stream in enumerate(streams):
        if stream is not None:
            os.dup2(stream.fileno(), number)
            stream.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # As Python does at its end; multiprocessing leaves that out.


class Fork:
    """A forked process that calls a function, with what the tests need of `subprocess.Popen`.

    env is its environment, and `prepare` is called before all else.
    """

    def __init__(self, function, *arguments, env=None, prepare=None):
        reader, writer = multiprocessing.Pipe(duplex=False)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        streams = None, writer, Connection(os.dup(self._errors.fileno()))
        environment = dict(os.environ if env is None else env)
        self._process = start_fork(streams, environment, os.getcwd(), _call, prepare, function, arguments)
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        self._ended = None

    def poll(self):
        return self._process.exitcode

    returncode = property(poll)

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self):
        """Wait for the end; return what it said and its errors."""
        if self._ended is None:
            with self.stdout, self._errors:
                limit = threading.Timer(LIMIT_SECONDS, self.kill)
                limit.start()
                said = self.stdout.read()
                self._process.join()
                limit.cancel()
                self._errors.seek(0)
                self._ended = said, self._errors.read()
        return self._ended


def fork_for_spawn(patch=None):
    """Let this process fork what it would spawn; for `prepare`, or until the end of a test that hands in a patch."""
    (patch or pytest.MonkeyPatch()).setattr(multiprocessing, "get_context", lambda method=None: _CONTEXT)


def _call(prepare, function, arguments):
    if prepare is not None:
        prepare()
    function(*arguments)


def _run(code, *arguments):
    sys.argv = ["-c", *map(str, arguments)]
    exec(code, {"__name__": "__main__"})


def start(code, *arguments, **environment):
    """Start a process with this code, as `python -c` does; it can import the tests' helpers."""
    return Fork(_run, code, *arguments, env=os.environ | environment)


def finish(*processes):
    """Wait for all; return what each said, and fail with its errors if one failed."""
    ends = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [said for said, _ in ends]


def run_code(code, *arguments, **environment):
    """Run this code and return what it said."""
    return finish(start(code, *arguments, **environment))[0]


def free_addresses(number):
    """Return addresses on the loopback interface that were free just now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    addresses = tuple(f"127.0.0.1:{each.getsockname()[1]}" for each in sockets)
    for each in sockets:
        each.close()
    return addresses


def tf_configs(number):
    """Return TF_CONFIG for each of so many workers on this machine."""
    addresses = free_addresses(number)
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index in range(number)
    ]
