"""Several replicas and workers end where one replica ends; a worker that is gone is noticed."""

import itertools
from signal import SIGKILL, SIGSTOP

import numpy as np
import pytest

from helpers.processes import finish, run_code, start, tf_configs
from helpers.replicas import MOMENTUMS, RATES

TRAIN = "import sys; from helpers.replicas import *; train(sys.argv[1], eval(sys.argv[2]))"
# The order of all that looks at gradients matters: sums over replicas, a transformation, the clip, rates of layers.
OPTIONS = "clip_norm=0.05, skip_non_finite=True, rate_multipliers={'bias': 0.1}, transforms=[squared]"
RUNS = {
    "none": {"one": ("arrays", OPTIONS), "not_clipped": ("arrays", ""),
             "parts": ("arrays", OPTIONS + ", accumulate=3")},
    "mirrored": {"mirrored": ("arrays", OPTIONS), "mirrored_dataset": ("dataset", OPTIONS),
                 "mirrored_parts": ("arrays", OPTIONS.replace("skip_non_finite=True", "accumulate=2"))},
}  # fmt: skip


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Where 40 clipped steps end: with one replica, two on logical CPUs, two workers, and in parts."""
    directory = tmp_path_factory.mktemp("ends")

    def training(strategy, runs, **environment):
        paths = (f"{str(directory / run)!r}: ({way!r}, dict({options}))" for run, (way, options) in runs.items())
        return start(TRAIN, strategy, f"{{{', '.join(paths)}}}", **environment)

    processes = [training(strategy, runs) for strategy, runs in RUNS.items()]
    for index, config in enumerate(tf_configs(2)):
        processes.append(training("multi_worker", {f"worker_{index}": ("arrays", OPTIONS)}, TF_CONFIG=config))
    finish(*processes)
    return {path.stem: dict(np.load(path)) for path in directory.iterdir()}


def weights(end):
    return [value for name, value in sorted(end.items()) if name.startswith("arr_")]


@pytest.mark.parametrize("run", ["parts", "mirrored", "mirrored_dataset", "mirrored_parts", "worker_0", "worker_1"])
def test_one_replica_two_replicas_two_workers_and_parts_end_with_the_same_weights(ends, run):
    for ours, theirs in zip(weights(ends[run]), weights(ends["one"]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(ends[run][name], ends["one"][name], rtol=1e-4)


def test_rates_and_momentums_are_the_same_for_any_number_of_replicas(ends):
    assert len(ends) == 8
    for end in ends.values():
        np.testing.assert_array_equal(end["learning_rate"], RATES.astype(np.float32))
        np.testing.assert_array_equal(end["momentum"], MOMENTUMS.astype(np.float32))


def test_there_is_one_trace_and_one_more_for_the_short_last_batch(ends):
    assert {name: int(end["traces"]) for name, end in ends.items()} == dict.fromkeys(ends, 2)


def test_what_was_chosen_names_the_strategy_and_its_replicas(ends):
    assert str(ends["one"]["chosen"]) == "one replica"
    assert str(ends["mirrored"]["chosen"]) == "2 replicas of MirroredStrategy"
    assert str(ends["worker_1"]["chosen"]) == "2 replicas of MultiWorkerMirroredStrategy"


def test_both_workers_end_equal_to_the_bit(ends):
    for ours, theirs in zip(weights(ends["worker_0"]), weights(ends["worker_1"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_norm_clips_something(ends):
    gap = max(np.abs(a - b).max() for a, b in zip(weights(ends["one"]), weights(ends["not_clipped"]), strict=True))
    assert gap > 0.1


def test_threads_and_handles_of_two_workers_stay_flat_and_different_steps_are_noticed():
    code = "from helpers.replicas import count_threads; count_threads(60)"  # One step, and one iterator, an epoch.
    for index, said in enumerate(finish(*(start(code, TF_CONFIG=config) for config in tf_configs(2)))):
        *counts, error = said.splitlines()
        (threads, handles), (threads_at_end, handles_at_end) = (map(int, line.split()) for line in counts)
        assert threads_at_end <= threads + 20  # One for each step or epoch would be 45.
        assert handles_at_end <= handles + 20
        assert error.startswith(f"This worker stands at batch {5 * index}, and others elsewhere")


# A process that has ended is noticed at the next exchange that both know, and otherwise, like one that only does not
# answer, by TensorFlow's heartbeat after some ten seconds. The pairs wait for it side by side.
LOST = {"evaluate": SIGKILL, "trace": SIGKILL, "run": SIGSTOP}


def test_a_worker_that_is_gone_ends_the_other_with_an_error_in_words():
    code = "import sys; from helpers.replicas import lose_the_other; lose_the_other(sys.argv[1])"
    pairs = {what: [start(code, what, TF_CONFIG=config) for config in tf_configs(2)] for what in LOST}
    try:
        for what, pair in pairs.items():
            assert [process.stdout.readline() for process in pair] == ["trained\n"] * 2
            pair[1].send_signal(LOST[what])
        ends = finish(*(first for first, _ in pairs.values()))
    finally:
        for process in itertools.chain(*pairs.values()):
            process.kill()
            process.communicate()
    for said in ends:
        assert said.startswith("A worker has gone, and the others cannot go on without it")
        assert said.count("\n") == 1


NO_XLA = """
from clr_loop.loop import strategies
from clr_loop.loop.loop import TrainLoop
from helpers.replicas import loop_on, strategy_of
from helpers.small import FEATURES, LABELS, classifier, of_positives
strategy = strategy_of("mirrored")
for options in ({"jit_compile": True}, {"accumulate": 5}):
    try:
        loop_on(strategy, **options)
    except ValueError as error:
        print(error)
print(loop_on(strategy).chosen)
with strategies.scope(strategy, "float32"):
    model = classifier(loss=of_positives)
try:
    TrainLoop(model, FEATURES, LABELS, batch_size=50)
except ValueError as error:
    print(error)
"""


def test_what_several_replicas_cannot_do_is_refused():
    xla, parts, chosen, loss = run_code(NO_XLA).splitlines()
    assert "is not the mean of its examples'" in loss
    assert xla.startswith("jit_compile is True with 2 replicas, but XLA cannot compile the exchange between them")
    assert parts.startswith("A batch of 8 examples cannot be split among 2 replicas and 5 parts of accumulate")
    assert eval(chosen)["feed"] == "resident"
    assert eval(chosen)["xla"] == "without XLA (it cannot compile the exchange between replicas)"
