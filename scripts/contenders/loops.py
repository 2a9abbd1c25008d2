"""The loops that `benchmark.py` times, each in its library's best form, all doing the same work.

A contender begins with a `Job` and gives an `Epoch`: a function that trains for one epoch and returns its metrics on
the host. The work of all: the same initial weights, the same batches in the same order, Adam, another learning rate at
every step, and the loss and accuracy of every step returned. Each imports its own library only.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clr_loop import data, schedules
from clr_loop.runs import files as run_files

if TYPE_CHECKING:
    import keras

Metrics = dict[str, NDArray[np.float32]]
Epoch = Callable[[int, bool], Metrics]
"""(0-based epoch, whether to record every step for TensorBoard) → `loss` and `accuracy`, float32 [steps]."""

# Keras adds epsilon to the second moment's root before the correction of its bias, the others after it. One far below
# all gradients makes the three alike, so that equal losses show equal work.
ADAM_EPSILON = 1e-12

STEPS_PER_EXECUTION = 50

_PREFETCHED_BATCHES = 4


@dataclass(frozen=True)
class Job:
    """What all contenders are to do.

    Attributes:
        model: a name of `clr_loop.models`.
        batch_size: examples per step.
        num_examples: the first so many of MNIST's 60,000.
        copies: how often these are repeated, to make larger data.
        width: what the hidden layers' units are multiplied by.
    """

    model: str
    batch_size: int
    num_examples: int
    copies: int = 1
    width: int = 1

    @property
    def units(self) -> list[int]:
        """The lengths of the vectors between the layers, input and logits among them."""
        return [784, 100 * self.width, 50 * self.width, 10]

    @property
    def examples(self) -> int:
        """Examples in an epoch."""
        return self.num_examples * self.copies

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.examples // self.batch_size)

    def load(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Returns images, uint8 [examples, 28, 28], and labels, int32 [examples]."""
        mnist = data.load("mnist")
        assert isinstance(mnist, data.Dataset)  # And not a stream.
        images, labels = mnist.train
        return (
            np.tile(images[: self.num_examples], (self.copies, 1, 1)),
            np.tile(labels[: self.num_examples], self.copies),
        )

    def weights(self) -> list[NDArray[np.float32]]:
        """Returns the initial kernels, Glorot-uniform, and biases, zero, in the layers' order."""
        rng = np.random.default_rng(0)
        weights = []
        for rows, columns in zip(self.units[:-1], self.units[1:], strict=True):
            limit = np.sqrt(6.0 / (rows + columns))
            weights += [rng.uniform(-limit, limit, (rows, columns)), np.zeros(columns)]
        return [weight.astype(np.float32) for weight in weights]

    def keras_model(self) -> keras.Model:
        """Returns the named Keras model at this width, with the initial weights."""
        import keras

        from clr_loop.data import models

        def widened(layer: keras.Layer) -> keras.Layer:
            config = layer.get_config()
            if "units" in config and layer.name != "logits":
                config["units"] *= self.width
            return type(layer).from_config(config)

        model = keras.models.clone_model(models.build(self.model, (28, 28), 10, seed=0), clone_function=widened)
        model.set_weights(self.weights())
        return model

    def order(self, epoch: int) -> NDArray[np.int32]:
        """Returns the order in which an epoch visits the examples."""
        return data.epoch_order(self.examples, 0, epoch)

    def rates(self, epoch: int) -> NDArray[np.float32]:
        """Returns the learning rate of each step of an epoch; a cycle lasts four epochs."""
        steps = np.arange(epoch * self.steps, (epoch + 1) * self.steps)
        return self.schedule()(steps).astype(np.float32)

    def schedule(self) -> schedules.Triangular:
        """Returns the schedule that `rates` are from."""
        return schedules.Triangular(base_lr=0.001, max_lr=0.006, step_size=2 * self.steps)


def keras_fit(job: Job, log_dir: Path) -> Epoch:
    """Keras `fit` with a callback that sets the rate before each batch and keeps what follows, as the article does."""
    import keras
    import tensorflow as tf

    class CyclicLR(keras.callbacks.Callback):
        def __init__(self, rates: NDArray[np.float32], means: list[tuple[float, float]]) -> None:
            super().__init__()
            self.rates, self.means = rates, means

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = self.rates[batch]

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.means.append((logs["loss"], logs["accuracy"]))

    class LearningRateSummary(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            with writer.as_default():
                tf.summary.scalar("learning_rate", self.model.optimizer.learning_rate, first_step + batch)

    model = job.keras_model()
    model.compile(keras.optimizers.Adam(epsilon=ADAM_EPSILON), _keras_loss(), metrics=["accuracy"])
    order, batches = _keras_batches(job)
    writer = tf.summary.create_file_writer(str(log_dir))
    first_step = 0

    def epoch(number: int, record: bool) -> Metrics:
        nonlocal first_step
        first_step = number * job.steps
        order.assign(job.order(number))
        means: list[tuple[float, float]] = []
        callbacks = [CyclicLR(job.rates(number), means)]
        if record:
            callbacks += [keras.callbacks.TensorBoard(log_dir, write_graph=False, update_freq=1), LearningRateSummary()]
        model.fit(batches, callbacks=callbacks, shuffle=False, verbose=0)
        return _from_running_means(means)

    return epoch


def keras_fit_best(job: Job, log_dir: Path) -> Epoch:
    """Keras `fit` at its best: many steps per call, XLA, and the schedule inside the optimizer.

    Callbacks see the end of a call only, so here a row of the result, and of what is recorded, stands for many steps.
    """
    import keras

    class Triangular(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            schedule = job.schedule()
            position = keras.ops.cast(step % schedule.period, "float32")
            height = 1.0 - keras.ops.abs(position / schedule.step_size - 1.0)
            return schedule.base_lr + (schedule.max_lr - schedule.base_lr) * height

        def get_config(self) -> dict[str, Any]:
            return {}

    class Means(keras.callbacks.Callback):
        def __init__(self, means: list[tuple[float, float]]) -> None:
            super().__init__()
            self.means = means

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.means.append((logs["loss"], logs["accuracy"]))

    model = job.keras_model()
    model.compile(
        keras.optimizers.Adam(Triangular(), epsilon=ADAM_EPSILON),
        _keras_loss(),
        metrics=["accuracy"],
        steps_per_execution=min(STEPS_PER_EXECUTION, job.steps),
        jit_compile=True,
    )
    order, batches = _keras_batches(job)

    def epoch(number: int, record: bool) -> Metrics:
        order.assign(job.order(number))
        means: list[tuple[float, float]] = []
        callbacks: list[keras.callbacks.Callback] = [Means(means)]
        if record:
            callbacks.append(keras.callbacks.TensorBoard(log_dir, write_graph=False, update_freq=1))
        model.fit(batches, callbacks=callbacks, shuffle=False, verbose=0)
        return _from_running_means(means)

    return epoch


def step_function(job: Job, log_dir: Path) -> Epoch:
    """One `tf.function` call a step over `tf.data`, as TensorFlow's guide to custom training loops does it."""
    import keras
    import tensorflow as tf

    model, optimizer, loss_fn = job.keras_model(), keras.optimizers.Adam(epsilon=ADAM_EPSILON), _keras_loss()
    order, batches = _keras_batches(job)
    writer = tf.summary.create_file_writer(str(log_dir))

    @tf.function
    def train_step(images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = loss_fn(labels, logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.learning_rate.assign(rate)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.equal(tf.argmax(logits, -1, labels.dtype), labels)
        return loss, tf.reduce_mean(tf.cast(right, tf.float32))

    def epoch(number: int, record: bool) -> Metrics:
        order.assign(job.order(number))
        rates = job.rates(number)
        rows = []
        for i, (images, labels) in enumerate(batches):
            loss, accuracy = train_step(images, labels, tf.constant(rates[i]))
            rows.append((loss, accuracy))
            if record:
                with writer.as_default(step=number * job.steps + i):
                    tf.summary.scalar("learning_rate", rates[i])
                    tf.summary.scalar("loss", loss)
                    tf.summary.scalar("accuracy", accuracy)
        if record:
            writer.flush()
        losses, accuracies = zip(*rows, strict=True)
        return {"loss": tf.stack(losses).numpy(), "accuracy": tf.stack(accuracies).numpy()}

    return epoch


def clr_loop(job: Job, log_dir: Path) -> Epoch:
    """`TrainLoop.run`; recorded, with the history and TensorBoard's events of `training.fit`."""
    import time

    import keras

    from clr_loop.loop.loop import TrainLoop
    from clr_loop.runs.events import SummaryWriter

    train_loop = TrainLoop(
        job.keras_model(), keras.optimizers.Adam(epsilon=ADAM_EPSILON), *job.load(), batch_size=job.batch_size
    )
    files = run_files.RunFiles(log_dir)
    summaries = SummaryWriter(log_dir, {})

    def epoch(number: int, record: bool) -> Metrics:
        rates = job.rates(number)
        if not record:
            return train_loop.run(rates)
        parts = []
        for start in range(0, job.steps, train_loop.block_steps):
            began = time.time()
            parts.append(train_loop.run(rates[start : start + train_loop.block_steps]))
            files.add_steps(number * job.steps + start, parts[-1])
            summaries.add_steps(number * job.steps + start, parts[-1], began, time.time())
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return epoch


def jax_scan(job: Job, log_dir: Path) -> Epoch:
    """JAX: an epoch is one jitted `lax.scan` with optax, data resident, the state donated."""
    import functools

    import jax
    import jax.numpy as jnp
    import optax

    activation = {"article_mlp": jax.nn.softmax, "relu_mlp": jax.nn.relu}[job.model]
    adam = optax.scale_by_adam(eps=ADAM_EPSILON)
    weights = [jnp.asarray(weight) for weight in job.weights()]
    state = (weights, adam.init(weights))
    images, labels = (jnp.asarray(array) for array in job.load())
    images = images.reshape(len(images), -1)
    write = _event_writer(log_dir)

    def loss_fn(weights: list[Any], images: Any, labels: Any) -> tuple[Any, Any]:
        kernel_1, bias_1, kernel_2, bias_2, kernel_3, bias_3 = weights
        hidden = activation(images @ kernel_1 + bias_1)
        hidden = activation(hidden @ kernel_2 + bias_2)
        logits = hidden @ kernel_3 + bias_3
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: Any, images: Any, labels: Any, order: Any, rates: Any) -> Any:
        def step(state: Any, of_step: Any) -> Any:
            weights, moments = state
            chosen, rate = of_step
            batch = images[chosen].astype(jnp.float32) / 255.0
            metrics, gradients = jax.value_and_grad(loss_fn, has_aux=True)(weights, batch, labels[chosen])
            updates, moments = adam.update(gradients, moments)
            weights = jax.tree.map(lambda weight, update: weight - rate * update, weights, updates)
            return (weights, moments), metrics

        return jax.lax.scan(step, state, (order, rates))

    def epoch(number: int, record: bool) -> Metrics:
        nonlocal state
        rates = job.rates(number)
        order = job.order(number).reshape(job.steps, job.batch_size)
        state, (loss, accuracy) = train(state, images, labels, order, rates)
        metrics = {"loss": np.asarray(loss), "accuracy": np.asarray(accuracy)}
        if record:
            write(number * job.steps, {"learning_rate": rates, **metrics})
        return metrics

    return epoch


def pytorch(job: Job, log_dir: Path) -> Epoch:
    """PyTorch, eager, with fused Adam, the data in memory as float32, and no wait for a value inside the epoch."""
    import torch
    from torch.nn import functional

    activation = {"article_mlp": lambda: torch.nn.Softmax(dim=-1), "relu_mlp": torch.nn.ReLU}[job.model]
    layers = [torch.nn.Linear(*pair) for pair in zip(job.units[:-1], job.units[1:], strict=True)]
    model = torch.nn.Sequential(layers[0], activation(), layers[1], activation(), layers[2])
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), job.weights(), strict=True):
            parameter.copy_(torch.from_numpy(weight.T))  # PyTorch keeps kernels transposed.
    optimizer = torch.optim.Adam(model.parameters(), eps=ADAM_EPSILON, fused=True)
    images, labels = job.load()
    all_images = torch.from_numpy(images.reshape(len(images), -1)).float().div_(255.0)
    all_labels = torch.from_numpy(labels).long()
    write = _event_writer(log_dir)

    def epoch(number: int, record: bool) -> Metrics:
        order = torch.from_numpy(job.order(number)).split(job.batch_size)
        rates = job.rates(number)
        losses, accuracies = torch.empty(job.steps), torch.empty(job.steps)
        for i, (chosen, rate) in enumerate(zip(order, rates.tolist(), strict=True)):
            batch, classes = all_images[chosen], all_labels[chosen]
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            logits = model(batch)
            loss = functional.cross_entropy(logits, classes)
            loss.backward()
            optimizer.step()
            losses[i] = loss.detach()
            accuracies[i] = (logits.detach().argmax(-1) == classes).float().mean()
        metrics = {"loss": losses.numpy(), "accuracy": accuracies.numpy()}
        if record:
            write(number * job.steps, {"learning_rate": rates, **metrics})
        return metrics

    return epoch


def matrix_products(job: Job, log_dir: Path) -> Epoch:
    """The floor: the matrix products of an epoch alone, as NumPy float32 `@` on all cores; nothing is trained."""
    # No gradient of the first layer's input is needed. The results go to memory that is there already, as fresh
    # memory for each would cost more than some of the products.
    images, _ = job.load()
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255.0
    rng = np.random.default_rng(0)
    inputs = [rng.random((job.batch_size, units), np.float32) for units in job.units]
    gradients = [rng.random((job.batch_size, units), np.float32) for units in job.units]
    kernels = job.weights()[::2]
    of_kernels = [np.empty_like(kernel) for kernel in kernels]
    outputs = [np.empty_like(array) for array in inputs]

    def epoch(number: int, record: bool) -> Metrics:
        for start in range(0, job.examples, job.batch_size):
            inputs[0] = pixels[start : start + job.batch_size]
            n = len(inputs[0])
            for i, kernel in enumerate(kernels):
                np.matmul(inputs[i][:n], kernel, out=outputs[i + 1][:n])
            for i in reversed(range(len(kernels))):
                np.matmul(inputs[i][:n].T, gradients[i + 1][:n], out=of_kernels[i])
                if i:
                    np.matmul(gradients[i + 1][:n], kernels[i].T, out=outputs[i][:n])
        return {}

    return epoch


@dataclass(frozen=True)
class Contender:
    """A contender.

    Attributes:
        label: its name in the tables.
        begin: (job, an existing directory for what is recorded) → epoch; imports what it needs.
        requires: modules beyond this package's own requirements.
        on_tensorflow: whether it computes with TensorFlow.
    """

    label: str
    begin: Callable[[Job, Path], Epoch]
    requires: tuple[str, ...] = ()
    on_tensorflow: bool = True

    def is_installed(self) -> bool:
        """Returns whether all that it needs can be imported."""
        return all(importlib.util.find_spec(module) is not None for module in self.requires)


CONTENDERS = {
    "keras": Contender("Keras fit + LR callback", keras_fit),
    "keras_best": Contender("Keras fit at its best", keras_fit_best),
    "step": Contender("tf.function per step", step_function),
    "clr_loop": Contender("clr_loop", clr_loop),
    "jax": Contender("JAX scan", jax_scan, ("jax", "optax"), on_tensorflow=False),
    "pytorch": Contender("PyTorch", pytorch, ("torch",), on_tensorflow=False),
    "products": Contender("matrix products alone", matrix_products, on_tensorflow=False),
}


def _keras_loss() -> Any:
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _keras_batches(job: Job) -> tuple[Any, Any]:
    """Returns the order as a variable to be assigned, and a `tf.data` pipeline of an epoch's batches in that order."""
    import tensorflow as tf

    images, labels = job.load()
    all_images, all_labels = tf.constant(images), tf.constant(labels)
    order = tf.Variable(np.arange(job.examples, dtype=np.int32))

    def batch(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        start = i * job.batch_size
        chosen = order[start : start + job.batch_size]
        chosen.set_shape([job.batch_size])
        return tf.cast(tf.gather(all_images, chosen), tf.float32) / 255.0, tf.gather(all_labels, chosen)

    # By hand and not tf.data.AUTOTUNE: at the end of an epoch its thread is waited for, up to as long again.
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = tf.data.Dataset.range(job.steps).map(batch, num_parallel_calls=os.cpu_count() or 1)
    return order, batches.prefetch(_PREFETCHED_BATCHES).with_options(options)


def _from_running_means(means: list[tuple[float, float]]) -> Metrics:
    """Takes Keras' means since the epoch's start apart: what each call added to them, by itself."""
    totals = np.array(means, np.float64) * np.arange(1, len(means) + 1)[:, None]
    loss, accuracy = np.diff(totals, axis=0, prepend=0.0).astype(np.float32).T
    return {"loss": loss, "accuracy": accuracy}


def _event_writer(log_dir: Path) -> Callable[[int, Metrics], None]:
    """Returns (first step, metrics) → writes an event per step, for libraries without a writer of their own.

    TensorBoard's bare record writer: its higher ones, PyTorch's among them, would import TensorFlow if it is there.
    """
    import time

    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    writer = RecordWriter(open(log_dir / "events.out.tfevents.0", "wb"))  # noqa: SIM115 (open as long as the process)

    def write(first_step: int, metrics: Metrics) -> None:
        now = time.time()
        for i, row in enumerate(zip(*(values.tolist() for values in metrics.values()), strict=True)):
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in zip(metrics, row, strict=True)]
            writer.write(Event(wall_time=now, step=first_step + i, summary=Summary(value=values)).SerializeToString())
        writer.flush()

    return write
