"""Python in processes of its own: the number of devices is fixed when TensorFlow starts, and workers are processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

# Far above what any of them takes. A test that hangs shall end; a busy machine shall not end a test.
LIMIT_SECONDS = 900


def start(code, *arguments, **environment):
    """Start Python with this code; it can import the tests' helpers."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(TESTS), "TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """Wait for all; return what each said, and fail with its errors if one failed."""
    ends = [process.communicate(timeout=LIMIT_SECONDS) for process in processes]
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [said for said, _ in ends]


def run_code(code, *arguments, **environment):
    """Run Python with this code and return what it said."""
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
