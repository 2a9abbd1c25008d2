"""Workers: who they are, how they meet, and what those that are not the chief may write."""

import json
import socket
import threading

import pytest

from clr_loop.loop import workers
from clr_loop.loop.workers import Task
from helpers.processes import free_addresses


def tf_config(index=0, **changes):
    config = {"cluster": {"worker": ["a:1000", "b:1000"]}, "task": {"type": "worker", "index": index}}
    return json.dumps({**config, **changes})


def test_a_task_is_read_from_tf_config_and_the_first_is_the_chief():
    tasks = [workers.read_task(tf_config(index)) for index in (0, 1)]
    assert tasks == [Task(("a:1000", "b:1000"), 0), Task(("a:1000", "b:1000"), 1)]
    assert [task.is_chief for task in tasks] == [True, False]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "TF_CONFIG is None"),
        ("{", "Expecting property name"),
        ("[]", "list indices must be integers"),
        (tf_config(task={"type": "worker"}), "it has no 'index'"),
        (tf_config(cluster={"ps": ["a:1"]}), "it has no 'worker'"),
        (tf_config(cluster={"worker": ["a:1"], "ps": ["b:1"]}), "only tasks of type worker are known"),
        (tf_config(cluster={"worker": ["a"]}), "'a' is not host:port"),
        (tf_config(cluster={"worker": ["a:99999"]}), "'a:99999' is not host:port"),
        (tf_config(cluster={"worker": ["a:1", "a:1"]}), "two workers have the same address"),
        (tf_config(index=2), "index 2 is none of 2 workers"),
        (tf_config(index="0"), "index '0' is none of 2 workers"),
    ],
)
def test_a_malformed_tf_config_is_one_line_with_an_example(config, reason):
    with pytest.raises(ValueError, match="which does not describe the workers") as caught:
        workers.read_task(config)
    assert reason in str(caught.value)
    assert str(caught.value).endswith('set it like {"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": '
                                      '"worker", "index": 0}}.')  # fmt: skip
    assert "\n" not in str(caught.value)


def test_workers_meet_in_any_order_and_leave_their_ports_free():
    addresses = free_addresses(3)
    arrived = []
    threads = []
    for index in (2, 0, 1):
        thread = threading.Thread(
            target=lambda index=index: (workers.meet(Task(addresses, index)), arrived.append(index))
        )
        thread.start()
        threads.append(thread)
        thread.join(timeout=0.2)
        assert thread.is_alive() is (index != 1) or len(threads) == 3
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(arrived) == [0, 1, 2]
    for address in addresses:
        socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()


def test_a_single_worker_waits_for_nobody():
    assert workers.meet(Task(free_addresses(1), 0), timeout_seconds=0.0) is None  # And no ConnectionError.


@pytest.mark.parametrize(("index", "missing"), [(0, 1), (1, 0)])
def test_a_missing_worker_is_named(index, missing):
    addresses = free_addresses(2)
    message = rf"Worker {missing} \({addresses[missing]}\) did not appear within 0\.3 s"
    with pytest.raises(ConnectionError, match=message):
        workers.meet(Task(addresses, index), timeout_seconds=0.3)


def test_nobody_goes_on_while_one_is_missing():
    addresses = free_addresses(3)
    failed = {}

    def meet(index):
        try:
            workers.meet(Task(addresses, index), timeout_seconds=1.0)
        except ConnectionError as error:
            failed[index] = str(error)

    threads = [threading.Thread(target=meet, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert f"Worker 2 ({addresses[2]}) did not appear" in failed[0]
    assert f"Worker 0 ({addresses[0]}) did not appear" in failed[1]


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"cannot listen on {address} .Address already in use."):
            workers.meet(Task((address, "127.0.0.1:1"), 0))


def test_a_stranger_on_the_port_does_not_count_as_a_worker():
    addresses = free_addresses(2)
    failed = []

    def meet():
        try:
            workers.meet(Task(addresses, 0), timeout_seconds=1.0)
        except ConnectionError as error:
            failed.append(str(error))

    thread = threading.Thread(target=meet)
    thread.start()
    while thread.is_alive():
        try:
            with socket.create_connection(("127.0.0.1", int(addresses[0].rpartition(":")[2])), 1.0) as out:
                out.sendall(b"GET / HTTP/1.1\r\n\r\n")
        except OSError:
            thread.join(timeout=0.05)
    assert "Worker 1" in failed[0]


@pytest.mark.parametrize("resume", [True, False])
def test_a_private_copy_holds_the_run_on_resuming_and_leaves_it_untouched(tmp_path, resume):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "file").write_text("saved")
    (tmp_path / "run.lock").write_text("")
    with workers.private_copy(tmp_path, resume) as copy:
        assert sorted(path.name for path in copy.rglob("*")) == (["checkpoints", "file", "run.lock"] if resume else [])
        (copy / "more").write_text("gone in the end")
    assert not copy.exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "file", "run.lock"]
