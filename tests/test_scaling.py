"""Several replicas and workers, in processes of their own, as the number of devices is fixed when TensorFlow starts."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_scripts import SCRIPTS, run_script
from test_workers import free_addresses

from clr_loop.data import models
from clr_loop.loop import engine as scaling
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.streaming import from_arrays
from clr_loop.studies.identity import differences

# 200 steps over 1,030 images: twenty epochs, each with a short last batch of 30. The layers are smooth, because a
# rectifier makes of a rounding error now and then another path.
TRAIN = """
import contextlib, sys
from clr_loop import data
from clr_loop.data import models
from clr_loop.loop import engine as scaling
import keras, numpy as np, tensorflow as tf
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.streaming import from_arrays

name = sys.argv[1]
if name == "mirrored":
    scaling.split_cpu(2)
strategy = scaling.make_strategy(name)
images, labels = (array[:1030] for array in data.load("mnist").train)
for path, arguments in eval(sys.argv[2]).items():
    with scaling.scope(strategy, "float32"):
        model = models.build("article_mlp", (28, 28), 10, 0)
        optimizer = keras.optimizers.SGD(momentum=0.9)
    train_loop = TrainLoop.from_dataset(
        model, optimizer, from_arrays(images, labels, 100), 1030, strategy=strategy, **arguments
    )
    train_loop.compile(with_momentums=True)
    rates = 0.5 + np.abs(np.arange(200) % 40 - 20) / 10
    metrics = train_loop.run(rates, np.linspace(0.95, 0.85, 200))
    evaluated = train_loop.evaluate(images[:333], labels[:333])
    np.savez(path, *train_loop.snapshot().model, traces=train_loop.num_traces, rates_given=rates,
             **metrics, val_loss=evaluated["loss"], val_accuracy=evaluated["accuracy"])
"""


def tf_configs(number):
    addresses = free_addresses(number)
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index in range(number)
    ]


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Where 200 clipped steps end: with one replica, two on logical CPUs, two workers, and in micro-batches."""
    directory = tmp_path_factory.mktemp("ends")
    clipped = {"clip_norm": 0.05, "skip_non_finite": True}
    runs = [
        ("none", {"one": clipped, "not_clipped": {}, "micro_batches": {**clipped, "accumulate": 3}}, ""),
        ("mirrored", {"mirrored": clipped, "mirrored_micro_batches": {"clip_norm": 0.05, "accumulate": 2}}, ""),
        *(("multi_worker", {f"worker_{i}": clipped}, config) for i, config in enumerate(tf_configs(2))),
    ]
    processes = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                TRAIN,
                name,
                repr({str(directory / f"{run}.npz"): arguments[run] for run in arguments}),
            ],
            env=os.environ | ({"TF_CONFIG": config} if config else {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, arguments, config in runs
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-2000:]
    return {run: dict(np.load(directory / f"{run}.npz")) for _, arguments, _ in runs for run in arguments}


def weights(end):
    return [value for name, value in sorted(end.items()) if name.startswith("arr_")]


@pytest.mark.parametrize("run", ["micro_batches", "mirrored", "mirrored_micro_batches", "worker_0", "worker_1"])
def test_one_replica_two_replicas_two_workers_and_micro_batches_end_with_the_same_weights(ends, run):
    for ours, theirs in zip(weights(ends[run]), weights(ends["one"]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(ends[run][name], ends["one"][name], rtol=1e-4)


def test_the_rates_are_the_same_for_any_number_of_replicas_and_one_trace_serves_all(ends):
    for end in ends.values():
        np.testing.assert_array_equal(end["learning_rate"], end["rates_given"].astype(np.float32))
        assert end["traces"] == 1


def test_both_workers_end_equal_to_the_bit(ends):
    for ours, theirs in zip(weights(ends["worker_0"]), weights(ends["worker_1"]), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_norm_clips_something(ends):
    gap = max(np.abs(a - b).max() for a, b in zip(weights(ends["one"]), weights(ends["not_clipped"]), strict=True))
    assert gap > 0.1


WORKER_FLAGS = ["--strategy=multi_worker", "--model=relu_mlp", "--batch_size=64", "--epochs=20", "--max_lr=0.01",
                "--step_size=50", "--checkpoint_every=7", "--clip_norm=1"]  # fmt: skip


def start_workers(npz, run_dir, *flags):
    return [
        subprocess.Popen(
            [
                sys.executable,
                str(SCRIPTS / "train.py"),
                f"--dataset={npz}",
                f"--run_dir={run_dir}",
                *WORKER_FLAGS,
                *flags,
            ],
            env=os.environ | {"TF_CONFIG": config},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for config in tf_configs(2)
    ]


def finish(processes):
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, _, code in ended] == [0, 0], ended
    return ended


@pytest.fixture(scope="module")
def npz(tmp_path_factory, mnist):
    """300 + 100 images of MNIST: five batches of 64, the last one short."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    (x_train, y_train), (x_test, y_test) = mnist.train, mnist.validation
    np.savez(path, x_train=x_train[:300], y_train=y_train[:300], x_test=x_test[:100], y_test=y_test[:100])
    return path


def test_a_worker_that_is_killed_ends_the_other_and_resumed_the_run_is_bit_identical(npz, tmp_path):
    whole = start_workers(npz, tmp_path / "whole")
    killed = start_workers(npz, tmp_path / "killed", "--epochs=100000")
    checkpoints = tmp_path / "killed" / "checkpoints"
    while not list(checkpoints.glob("step_000000002*")):
        assert killed[0].poll() is None, killed[0].communicate()
        with_patience(killed[0])
    killed[1].send_signal(signal.SIGKILL)
    _, errors = killed[0].communicate(timeout=60)
    assert killed[0].returncode == 2
    assert errors.startswith("error: all 2 workers must stay, received no more from one of them after step ")
    assert errors.count("\n") == 1
    killed[1].communicate()
    (said, _, _), (nothing, _, _) = finish(whole)
    assert "2 replicas of MultiWorkerMirroredStrategy; feed stream (several replicas share each batch)" in said
    assert nothing == ""  # Only the chief speaks, and only the chief writes.
    assert len(list((tmp_path / "whole" / "train").glob("*tfevents*"))) == 1
    newest = max(int(path.name[5:15]) for path in checkpoints.iterdir() if path.name.startswith("step_"))
    assert newest <= 100, f"it was killed too late, at step {newest}, to be resumed as a run of 20 epochs"
    finish(start_workers(npz, tmp_path / "killed", "--resume"))
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


def with_patience(process):
    try:
        process.wait(timeout=0.02)
    except subprocess.TimeoutExpired:
        return


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--strategy=multi_worker"], "error: TF_CONFIG must describe the workers, received None"),
        (["--logical_devices=2"], "error: --logical_devices must go with --strategy=mirrored, received it with none"),
        (["--strategy=mirrored", "--jit_compile=true"], "received true: XLA cannot compile the exchange between"),
        (["--strategy=mirrored", "--feed=resident"], "error: --feed must be auto or stream with --strategy=mirrored"),
        (["--strategy=parameter_server"], "value should be one of <none|mirrored|multi_worker>"),
    ],
)
def test_combinations_that_cannot_work_are_refused_at_once(flags, message, tmp_path):
    done = run_script("train.py", *flags, f"--run_dir={tmp_path}/run")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_two_logical_devices_train_from_the_command_line(npz, tmp_path):
    flags = ["--strategy=mirrored", "--logical_devices=2", "--batch_size=64", "--epochs=2", "--accumulate=2"]
    done = run_script("train.py", f"--dataset={npz}", *flags, f"--run_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (
        "chosen:  CPU:0, 2 replicas of MirroredStrategy; feed stream (several replicas share each batch); float32; "
        "without XLA (it cannot compile the exchange between replicas)" in done.stdout
    )


def stream(mnist, batch_size=20, num_examples=100, **arguments):
    images, labels = (array[:num_examples] for array in mnist.train)
    return TrainLoop.from_dataset(
        models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.SGD(), from_arrays(images, labels, batch_size),
        num_examples, **arguments,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1 micro-batch, received 0"),
        ({"accumulate": 21}, "1 replicas x 21 micro-batches, received batches of 20 and a last one of 20"),
        ({"accumulate": 2, "num_examples": 101}, "received batches of 20 and a last one of 1;"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number above 0, received 0.0"),
        ({"clip_norm": float("nan")}, "clip_norm must be a finite number above 0, received nan"),
    ],
)
def test_what_cannot_be_shared_or_clipped_is_refused(mnist, arguments, message):
    with pytest.raises(ValueError, match=message):
        stream(mnist, **arguments)


def test_keras_own_accumulation_is_refused(make_loop):
    with pytest.raises(ValueError, match="received gradient_accumulation_steps 4; give the loop accumulate instead"):
        make_loop(optimizer=keras.optimizers.SGD(gradient_accumulation_steps=4))


def test_clipping_is_that_of_keras_global_clipnorm_on_one_replica(make_loop, rates):
    ours = make_loop(optimizer=keras.optimizers.SGD(), batch_size=64, clip_norm=0.1)
    keras_own = make_loop(optimizer=keras.optimizers.SGD(global_clipnorm=0.1), batch_size=64)
    free = make_loop(optimizer=keras.optimizers.SGD(), batch_size=64)
    losses = [train_loop.run(20 * rates)["loss"] for train_loop in (ours, keras_own, free)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert np.abs(losses[0] - losses[2]).max() > 0.01


@pytest.mark.parametrize("jit_compile", [True, False])
def test_micro_batches_make_one_update_and_the_schedule_counts_updates(make_loop, rates, jit_compile):
    whole, parts = (make_loop(batch_size=64, jit_compile=jit_compile, accumulate=k) for k in (1, 5))
    expected, metrics = whole.run(rates[:12]), parts.run(rates[:12])
    assert parts.step == 12
    np.testing.assert_array_equal(metrics["learning_rate"], rates[:12].astype(np.float32))
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4)
    for ours, theirs in zip(parts.model.weights, whole.model.weights, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)


def test_an_unknown_strategy_is_refused_with_the_alternative(mnist):
    class OfParameterServers(tf.distribute.ParameterServerStrategy):
        def __init__(self):
            """Without the servers that the real one waits for."""

    with pytest.raises(ValueError, match=r"received ParameterServerStrategy, .* use MultiWorkerMirroredStrategy"):
        stream(mnist, strategy=OfParameterServers())


def test_a_cpu_cannot_be_split_once_tensorflow_computes():
    tf.zeros(())
    with pytest.raises(ValueError, match="must be set before TensorFlow computes, received 2 after it"):
        scaling.split_cpu(2)
    with pytest.raises(ValueError, match="logical_devices must be at least 1, received 0"):
        scaling.split_cpu(0)


def test_one_device_needs_no_strategy():
    if len(tf.config.list_logical_devices("GPU")) < 2:
        assert scaling.make_strategy("mirrored") is None
    assert scaling.make_strategy("none") is None


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("jit_compile", [True, False], ids=["xla", "plain"])
def test_a_lower_precision_trains_nearly_as_float32_with_variables_in_float32(mnist, precision, jit_compile):
    losses = {}
    for each in ("float32", precision):
        with scaling.scope(None, each):
            model = models.build("relu_mlp", (28, 28), 10, 0)
            optimizer = scaling.scaled(keras.optimizers.SGD(), each)
        images, labels = (array[:200] for array in mnist.train)
        train_loop = TrainLoop(model, optimizer, images, labels, 100, jit_compile=jit_compile)
        losses[each] = train_loop.run([0.1] * 10)["loss"]
        assert train_loop.step == 10
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"
    np.testing.assert_allclose(losses[precision], losses["float32"], rtol=0.02)
    assert not np.array_equal(losses[precision], losses["float32"])


@pytest.mark.parametrize("jit_compile", [True, False], ids=["xla", "plain"])
def test_updates_skipped_by_a_loss_scale_are_counted_and_do_not_advance_the_schedule(make_loop, rates, jit_compile):
    # The whole of the data in each batch, so that a batch that is passed over is not missed.
    arguments = {"num_examples": 50, "batch_size": 50, "shuffle": False, "jit_compile": jit_compile, "clip_norm": 0.5}
    plain = make_loop(optimizer=keras.optimizers.SGD(), **arguments)
    scaled = make_loop(
        optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), initial_scale=2.0**127), **arguments
    )
    metrics = scaled.run(20 * rates)
    assert scaled.num_skipped >= 2
    assert (scaled.step, scaled.position, len(metrics["loss"])) == (30 - scaled.num_skipped, 30, scaled.step)
    expected = plain.run(20 * rates[: scaled.step])
    np.testing.assert_array_equal(metrics["learning_rate"], expected["learning_rate"])
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-4)  # Unscaled.


def test_a_loss_scale_takes_momentums_and_goes_into_a_snapshot(make_loop, rates):
    train_loop = make_loop(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()), batch_size=50)
    start = train_loop.snapshot()
    first = train_loop.run(rates, np.linspace(0.95, 0.8, 30))
    train_loop.restore(start)
    again = train_loop.run(rates, np.linspace(0.95, 0.8, 30))
    np.testing.assert_array_equal(first["loss"], again["loss"])
    train_loop.restore(start)
    assert not np.array_equal(train_loop.run(rates)["loss"], first["loss"])
