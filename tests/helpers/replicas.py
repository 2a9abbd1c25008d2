"""What a process of `test_replicas` runs: the same training on one replica, on two, or as one of two workers."""

import dataclasses
import os
import signal

import keras
import numpy as np
import tensorflow as tf

from clr_loop.loop import strategies, workers
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.loop.stream import dataset_of_arrays
from helpers.small import FEATURES, LABELS, classifier

RATES = 0.5 + np.abs(np.arange(40) - 20) / 10
MOMENTUMS = np.linspace(0.95, 0.85, 40)


def squared(gradients):
    """A transformation that is not linear, so the order matters."""

    def of_batch(batch, total=None):
        result = gradients(batch, total)
        return result._replace(gradients=[g * tf.abs(g) for g in result.gradients])

    return of_batch


def strategy_of(name):
    """Make a strategy of this name; workers meet first."""
    if name == "mirrored":
        strategies.split_cpu(2)
    if name == "multi_worker":
        workers.meet(workers.read_task(os.environ["TF_CONFIG"]), timeout_seconds=600)
    return strategies.make_strategy(name)


def loop_on(strategy, way="arrays", batch_size=48, **options):
    """Return a loop over 200 examples: in batches of 48, of which the last has 8 examples."""
    with strategies.scope(strategy, "float32"):
        model = classifier(keras.optimizers.SGD(momentum=0.9))
    if way == "dataset":
        dataset_of = dataset_of_arrays((FEATURES, LABELS), 48, True)
        return TrainLoop.from_dataset(model, dataset_of, 200, options=StepOptions(**options))
    return TrainLoop(model, FEATURES, LABELS, batch_size=batch_size, options=StepOptions(**options))


def train(name, runs):
    """Train with each of {path: (way, options)}, where options may name `squared`, and save where it ends."""
    strategy = strategy_of(name)
    for path, (way, options) in runs.items():
        loop = loop_on(strategy, way, **options)
        loop.compile(with_momentums=True)
        metrics = loop.run(RATES, MOMENTUMS)
        evaluated = loop.evaluate(FEATURES[:133], LABELS[:133])
        numbers = {f"val_{measure}": value for measure, value in evaluated.items()}
        traces, chosen = loop.num_traces, loop.chosen["replicas"]
        np.savez(path, *loop.snapshot().model, traces=traces, chosen=chosen, **metrics, **numbers)


def count_threads(num_epochs):
    """Train as a worker; print how many threads and handles there are after a quarter of the epochs and at the end.

    Then print what is said when the workers go on from different steps.
    """
    loop = loop_on(strategy_of("multi_worker"), batch_size=200)
    for part in (num_epochs // 4, num_epochs - num_epochs // 4):
        for _ in range(part):
            loop.run(np.full(loop.steps_per_epoch, 0.01))
        with open("/proc/self/status") as file:
            threads = next(line.split()[1] for line in file if line.startswith("Threads:"))
        print(threads, len(os.listdir("/proc/self/fd")))
    loop = loop_on(loop.model.distribute_strategy)
    loop.restore(dataclasses.replace(loop.snapshot(), step=5 * workers.read_task(os.environ["TF_CONFIG"]).index))
    try:
        loop.run([0.1])
    except ValueError as error:
        print(error)


def lose_the_other(what):
    """Train as one of two workers. The second then waits to be killed; the first prints what it is told doing this."""
    loop = loop_on(strategy_of("multi_worker"))
    loop.run([0.01] * 3)
    print("trained", flush=True)
    if workers.read_task(os.environ["TF_CONFIG"]).index == 1:
        signal.pause()
    try:
        if what == "evaluate":
            loop.evaluate(FEATURES, LABELS)
        if what == "trace":
            loop.model.layers[0].trainable = False
        for _ in range(1000):
            loop.run([0.01] * 3)
    except ConnectionError as error:
        print(error)
