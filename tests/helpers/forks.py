"""A Python that has imported TensorFlow already: commands run in forks of it, which saves each of them some seconds."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import traceback
from pathlib import Path

# What stands in for a program: it hands arguments, environment, folder and files to the server, and ends as the fork.
_CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(ADDRESS)
told = json.dumps([sys.argv, dict(os.environ), os.getcwd()]).encode()
socket.send_fds(server, [len(told).to_bytes(4, "big")], [0, 1, 2])
server.sendall(told)
sys.exit(int(server.recv(16)))
"""


@contextlib.contextmanager
def serving(directory, prepare):
    """Serve programs made by the function that this yields, path → None, until the end.

    `prepare` names a function, `module:name`: arguments → the arguments to run instead, or None to run nothing.
    """
    address = str(directory / "socket")

    def make(path):
        path.write_text(_CLIENT.replace("ADDRESS", repr(address)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    code = "import sys; from helpers import forks; forks.serve(*sys.argv[1:])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parents[1], *sys.path]))}
    server = subprocess.Popen([sys.executable, "-c", code, address, prepare], env=environment, stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"ready\n"
        yield make
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def serve(address, prepare):
    """Run what clients ask for, each in a fork."""
    import pkgutil
    import runpy

    import clr_loop

    clr_loop.quiet()
    import clr_loop.loop.make_loop
    import clr_loop.studies.report

    asked = socket.socket(socket.AF_UNIX)
    asked.bind(address)
    asked.listen()
    print("ready", flush=True)
    prepared = pkgutil.resolve_name(prepare)
    while True:
        client, _ = asked.accept()
        if os.fork():
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            continue
        size, files, _, _ = socket.recv_fds(client, 4, 3)
        told = b""
        while len(told) < int.from_bytes(size, "big"):
            told += client.recv(65536)
        arguments, environment, folder = json.loads(told)
        if not (runner := os.fork()):
            for i, file in enumerate(files):
                os.dup2(file, i)
            os.environ.clear()
            os.environ.update(environment)
            os.chdir(folder)
            code = 1
            try:
                sys.argv = prepared(arguments)
                if sys.argv is not None:
                    sys.executable = os.path.abspath(arguments[0])  # What it starts is served, too.
                    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
                    runpy.run_path(sys.argv[0], run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        threading.Thread(target=_end_with, args=(client, runner), daemon=True).start()
        _, status = os.waitpid(runner, 0)
        with contextlib.suppress(OSError):
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)


def _end_with(client, runner):
    """Kill a fork when the program is killed that it runs for."""
    if not client.recv(1):
        os.kill(runner, signal.SIGKILL)
