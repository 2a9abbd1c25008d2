"""Workers: who they are, how they meet, and what those that are not the chief may write."""

import contextlib
import json
import socket
import threading

import pytest

from clr_loop.loop import strategies, workers
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
        ("[" * 100_000, "maximum recursion depth exceeded"),
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


def test_workers_with_different_facts_all_hear_what_differs():
    addresses, failed = free_addresses(3), {}

    def meet(index):
        facts = {"--seed": str(index // 2), "the version of keras": "3.15.1"}
        try:
            workers.meet(Task(addresses, index), facts)
        except ValueError as error:
            failed[index] = str(error)

    threads = [threading.Thread(target=meet, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    join(threads)
    words = "The workers were not started alike: worker 0 has --seed 0, and worker 2 has 1. Start all of them with"
    assert failed == dict.fromkeys(range(3), f"{words} the same flags and versions.")


def test_of_two_workers_with_one_index_one_hears_it_and_the_others_wait_for_the_right_one():
    addresses, failed, ended = free_addresses(3), [], threading.Event()
    elsewhere = (addresses[0], *free_addresses(1), addresses[2])

    def meet(workers_of, index):
        try:
            workers.meet(Task(workers_of, index), timeout_seconds=60.0)
        except ValueError as error:
            failed.append(str(error))
            ended.set()

    tasks = [(addresses, 0), (addresses, 1), (elsewhere, 1)]
    threads = [threading.Thread(target=meet, args=task) for task in tasks]
    for thread in threads:
        thread.start()
    assert ended.wait(60.0)  # Whichever of the two called later.
    threads.append(threading.Thread(target=meet, args=(addresses, 2)))
    threads[-1].start()
    join(threads)
    assert failed == ["Two workers have index 1 in TF_CONFIG; give each its own."]


def sums_of_two(here, there):
    """What `sums_over_workers` gives a worker with these facts, while another has those."""
    pairs = iter([([1, *numbers], [1, *others]) for numbers, others in zip(calls(here), calls(there), strict=False)])

    def sums(*numbers):
        ours, theirs = next(pairs)
        assert list(numbers) == ours
        return [a + b for a, b in zip(ours, theirs, strict=True)]

    return sums


def calls(facts):
    """The numbers that `check_alike` adds up, call by call."""
    names = sorted(facts)
    for numbers in ([strategies._hashed(names)], [strategies._hashed(facts[name]) for name in names]):
        yield [*numbers, *(number**2 for number in numbers)]


def test_workers_that_do_not_train_the_same_run_hear_what_differs():
    here = {"seed": 0, "clip_norm": None, "schedule": {"name": "Constant", "learning_rate": 0.1}, "epochs": 3}
    strategies.check_alike(sums_of_two(here, here), here)
    there = {**here, "seed": 1, "schedule": {"name": "Constant", "learning_rate": 0.2}}
    with pytest.raises(ValueError, match=r"they differ in schedule \(here .*0\.1.*\), seed \(here 0\)\. Start all"):
        strategies.check_alike(sums_of_two(here, there), here)
    with pytest.raises(ValueError, match="settings of different names"):
        strategies.check_alike(sums_of_two(here, {"seed": 0}), here)


def test_a_single_worker_waits_for_nobody():
    assert workers.meet(Task(free_addresses(1), 0), timeout_seconds=5.0) is None  # And no ConnectionError.


@pytest.mark.parametrize(("index", "missing"), [(0, 1), (1, 0)])
def test_a_missing_worker_is_named(index, missing):
    addresses = free_addresses(2)
    message = rf"Worker {missing} \({addresses[missing]}\) did not appear within 0\.3 s"
    with pytest.raises(ConnectionError, match=message):
        workers.meet(Task(addresses, index), timeout_seconds=0.3)


def start_meeting(addresses, indices, failed, timeout_seconds):
    """Start these workers in threads; failed gets the error of each that fails."""

    def meet(index):
        try:
            workers.meet(Task(addresses, index), timeout_seconds=timeout_seconds)
        except ConnectionError as error:
            failed[index] = str(error)

    threads = [threading.Thread(target=meet, args=(index,)) for index in indices]
    for thread in threads:
        thread.start()
    return threads


def join(threads):
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()


def call(address):
    """Call a worker as soon as it listens."""
    host, _, port = address.rpartition(":")
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, int(port)), 10.0)


def test_nobody_goes_on_while_one_is_missing():
    addresses, failed = free_addresses(3), {}
    # Worker 1 is the more patient one: one that hangs up first would be missing too.
    join([*start_meeting(addresses, (1,), failed, 3.0), *start_meeting(addresses, (0,), failed, 1.5)])
    assert f"Worker 2 ({addresses[2]}) did not appear" in failed[0]
    assert f"Worker 0 ({addresses[0]}) did not appear" in failed[1]


def test_nobody_goes_on_with_a_worker_that_has_hung_up():
    addresses, failed = free_addresses(3), {}
    chief = start_meeting(addresses, (0,), failed, 3.0)
    join(start_meeting(addresses, (1,), failed, 0.4))
    join([*start_meeting(addresses, (2,), failed, 0.4), *chief])
    assert f"Worker 1 ({addresses[1]}), 2 ({addresses[2]}) did not appear" in failed[0]
    assert set(failed) == {0, 1, 2}


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"cannot listen on {address} .Address already in use."):
            workers.meet(Task((address, "127.0.0.1:1"), 0))


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"clr_loop worker \0\0\0\x09", bytes(100)])
def test_a_stranger_on_the_port_does_not_count_as_a_worker(said):
    addresses, failed = free_addresses(2), {}
    chief = start_meeting(addresses, (0,), failed, 1.0)
    with call(addresses[0]) as line:
        line.sendall(said)
        join(chief)
    assert f"Worker 1 ({addresses[1]})" in failed[0]


def test_a_stranger_that_answers_in_the_place_of_the_chief_is_not_believed():
    addresses, failed = free_addresses(2), {}
    host, _, port = addresses[0].rpartition(":")
    with socket.create_server((host, int(port))) as stranger:
        worker = start_meeting(addresses, (1,), failed, 1.0)
        while worker[0].is_alive():
            stranger.settimeout(0.2)
            with contextlib.suppress(OSError), stranger.accept()[0] as line:
                line.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        join(worker)
    assert f"Worker 0 ({addresses[0]})" in failed[1]


def test_silent_connections_do_not_hold_the_others_up():
    addresses, failed = free_addresses(2), {}
    threads = start_meeting(addresses, (0,), failed, 20.0)
    with contextlib.ExitStack() as stack:
        for _ in range(60):  # At a second each they would take three times as long as there is.
            stack.enter_context(call(addresses[0]))
        threads += start_meeting(addresses, (1,), failed, 20.0)
        join(threads)
    assert failed == {}


def test_a_worker_whose_address_is_none_of_its_machine_listens_on_all_interfaces():
    port = free_addresses(1)[0].rpartition(":")[2]
    with workers._listen(f"192.0.2.1:{port}") as listener:  # An address that is kept for documentation.
        assert listener.getsockname() == ("0.0.0.0", int(port))
        socket.create_connection(("127.0.0.1", int(port)), 10.0).close()
    with workers._listen(f"127.0.0.1:{port}") as listener:
        assert listener.getsockname() == ("127.0.0.1", int(port))


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
