"""Programs for a shell that start in a moment: each stands for a fork, see `processes`."""

import contextlib
import json
import os
import runpy
import socket
import sys
import threading
from multiprocessing.connection import Connection, wait

from helpers.processes import start_fork

# It hands its arguments, environment, folder and files to the server, and ends as the fork does.
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

    `prepare` is called in the fork: arguments → the arguments to run instead, or None to run nothing.
    """
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(directory / "socket"))
    server.listen()
    threading.Thread(target=_serve, args=(server, prepare), daemon=True).start()

    def make(path):
        path.write_text(_CLIENT.replace("ADDRESS", repr(server.getsockname())))
        path.chmod(0o755)

    try:
        yield make
    finally:
        server.shutdown(socket.SHUT_RDWR)


def _serve(server, prepare):
    with contextlib.suppress(OSError), server:
        while True:
            threading.Thread(target=_answer, args=(server.accept()[0], prepare), daemon=True).start()


def _answer(client, prepare):
    """Run what a client asks for, and tell it how that ended; if it is killed, so is the fork."""
    size, files, _, _ = socket.recv_fds(client, 4, 3)
    told = b""
    while len(told) < int.from_bytes(size, "big"):
        told += client.recv(65536)
    arguments, environment, directory = json.loads(told)
    fork = start_fork(map(Connection, files), environment, directory, _run, prepare, arguments)
    if client in wait([client, fork.sentinel]):
        fork.kill()
    fork.join()
    with contextlib.suppress(OSError), client:
        client.sendall(str(fork.exitcode).encode())


def _run(prepare, arguments):
    prepared = prepare(arguments)
    if prepared is not None:
        sys.argv, sys.executable = prepared, os.path.abspath(arguments[0])  # What it starts is served, too.
        sys.path.insert(0, os.path.dirname(os.path.abspath(prepared[0])))
        runpy.run_path(prepared[0], run_name="__main__")
