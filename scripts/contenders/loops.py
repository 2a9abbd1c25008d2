"""The loops that `benchmark.py` times, each in its library's best form, all doing the same work.

A contender begins with a `Job` and gives an `Epoch`: a function that trains for one epoch and returns its metrics on
the host. All do the same work: the same initial weights, the same batches in the same order, Adam, another learning
rate at every step, and the loss and accuracy of every step returned. Each imports its own library only.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clr_loop import data, schedules

if TYPE_CHECKING:
    import keras

Metrics = dict[str, NDArray[np.float32]]
Epoch = Callable[[int, bool], Metrics]
"""(0-based epoch, whether to record every step for TensorBoard) → `loss` and `accuracy`, float32 [steps]."""

# Keras adds epsilon to the second moment's root before it corrects the bias, the others after that. An epsilon far
# below all gradients makes them alike, so that equal losses show equal work.
ADAM_EPSILON = 1e-12
STEPS_PER_EXECUTION = 50
_PREFETCHED_BATCHES = 4

GROWTH_BATCH_SIZES = (32, 128, 512, 2048, 8192)
GROWTH_COPIES = (1, 4)
GROWTH_WIDTHS = (4, 16)


@dataclass(frozen=True)
class Job:
    """What all contenders are to do."""

    model: str  # The hidden layers of article_mlp, relu_mlp or small_cnn, before an output of logits.
    batch_size: int
    num_examples: int  # The first so many of MNIST's 60,000.
    copies: int = 1  # How often these are repeated, to make larger data.
    width: int = 1  # What the hidden layers' units are multiplied by.

    @property
    def activation(self) -> str:
        """The name of the hidden layers' activation."""
        return "softmax" if self.model == "article_mlp" else "relu"

    @property
    def is_convolutional(self) -> bool:
        """Whether the model begins with convolutions, each with max pooling."""
        return self.model == "small_cnn"

    @property
    def kernels(self) -> list[tuple[int, ...]]:
        """The shapes of the kernels, [inputs, outputs] or [height, width, inputs, outputs], in the layers' order."""
        if self.is_convolutional:
            return [(3, 3, 1, 16), (3, 3, 16, 32), (5 * 5 * 32, 64), (64, 10)]
        return list(itertools.pairwise([784, 100 * self.width, 50 * self.width, 10]))

    @property
    def examples(self) -> int:
        """Examples in an epoch."""
        return self.num_examples * self.copies

    @property
    def steps(self) -> int:
        """Steps in an epoch."""
        return -(-self.examples // self.batch_size)

    @property
    def schedule(self) -> schedules.Triangular:
        """The schedule; a cycle lasts four epochs."""
        return schedules.Triangular(base_lr=0.001, max_lr=0.006, step_size=2 * self.steps)

    def rates(self, epoch: int) -> NDArray[np.float32]:
        """Return the learning rate of each step of an epoch."""
        return self.schedule(np.arange(epoch * self.steps, (epoch + 1) * self.steps)).astype(np.float32)

    def order(self, epoch: int) -> NDArray[np.int32]:
        """Return the order in which an epoch visits the examples."""
        return data.epoch_order(self.examples, 0, epoch)

    def load(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Return images, uint8 [examples, 28, 28], and labels, int32 [examples]."""
        images, labels = (array[: self.num_examples] for array in data.load("mnist").train[:2])
        return np.tile(images, (self.copies, 1, 1)), np.tile(labels, self.copies)

    def weights(self) -> list[NDArray[np.float32]]:
        """Return the initial kernels, Glorot-uniform, and biases, zero, in the layers' order."""
        rng = np.random.default_rng(0)
        weights = []
        for shape in self.kernels:
            limit = np.sqrt(6.0 / (math.prod(shape[:-2]) * sum(shape[-2:])))
            weights += [rng.uniform(-limit, limit, shape), np.zeros(shape[-1])]
        return [weight.astype(np.float32) for weight in weights]

    def keras_model(self, rate: Any = 0.001, rescale: bool = False, **compiled: Any) -> keras.Model:
        """Return a compiled Keras model with the initial weights; with rescale it takes pixels of 0–255."""
        import keras
        from keras import layers

        stack: list[Any] = [layers.Rescaling(1 / 255)] if rescale else []
        stack += [layers.Reshape((28, 28, 1))] if self.is_convolutional else []
        for *shape, units in self.kernels[:-1]:
            if len(shape) == 3:
                stack += [layers.Conv2D(units, 3, activation=self.activation), layers.MaxPooling2D()]
            else:
                stack += [layers.Flatten(), layers.Dense(units, self.activation)]
        model = keras.Sequential([keras.Input((28, 28)), *stack, layers.Dense(10)])
        model.set_weights(self.weights())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate, epsilon=ADAM_EPSILON), loss, metrics=["accuracy"], **compiled)
        return model


def growth_jobs(model: str, num_examples: int, batch_sizes: Sequence[int]) -> list[Job]:
    """Return the jobs of table 3: one thing grows at a time, batch size, data or width."""
    jobs = [Job(model, size, num_examples) for size in GROWTH_BATCH_SIZES if size <= num_examples]
    jobs += [Job(model, size, num_examples, copies=copies) for size in batch_sizes for copies in GROWTH_COPIES]
    jobs += [Job(model, size, num_examples, width=width) for size in batch_sizes for width in GROWTH_WIDTHS]
    return list(dict.fromkeys(jobs))


def keras_fit(job: Job, log_dir: Path, at_best: bool = False) -> Epoch:
    """Keras `fit` with a callback that sets the rate before each batch and keeps what follows, as the article does.

    At its best it takes many steps in a call, with XLA (on a CPU not for convolutions, which are much slower there),
    and the schedule is inside the optimizer. Callbacks see the end of a call only, so a row of the result, and of what
    is recorded, then stands for many steps.
    """
    import keras
    import tensorflow as tf

    from clr_loop.schedules.for_keras import as_keras

    class EachBatch(keras.callbacks.Callback):
        def __init__(self, number: int, record: bool) -> None:
            super().__init__()
            self.rates, self.first_step, self.record = job.rates(number), number * job.steps, record
            self.means: list[tuple[float, float]] = []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if not at_best:
                self.model.optimizer.learning_rate = self.rates[batch]
                if self.record:
                    with writer.as_default():
                        tf.summary.scalar("learning_rate", self.rates[batch], self.first_step + batch)

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.means.append((logs["loss"], logs["accuracy"]))

    if at_best:
        steps = min(STEPS_PER_EXECUTION, job.steps)
        rate, uses_xla = as_keras(job.schedule), not job.is_convolutional
        model = job.keras_model(rate, steps_per_execution=steps, jit_compile=uses_xla)
    else:
        model = job.keras_model()
    order, batches = _keras_batches(job)
    writer = tf.summary.create_file_writer(str(log_dir))

    def epoch(number: int, record: bool) -> Metrics:
        order.assign(job.order(number))
        each = EachBatch(number, record)
        board = [keras.callbacks.TensorBoard(log_dir, write_graph=False, update_freq=1)] if record else []
        model.fit(batches, callbacks=[each, *board], shuffle=False, verbose=0)
        # Keras' means are of all steps since the epoch's start; what each call added to them is what it had itself.
        totals = np.array(each.means, np.float64) * np.arange(1, len(each.means) + 1)[:, None]
        return _metrics(*np.diff(totals, axis=0, prepend=0.0).T)

    return epoch


def step_function(job: Job, log_dir: Path) -> Epoch:
    """One `tf.function` call a step over `tf.data`, as TensorFlow's guide to custom training loops does it."""
    import tensorflow as tf

    model = job.keras_model()
    order, batches = _keras_batches(job)
    writer = tf.summary.create_file_writer(str(log_dir))

    @tf.function
    def train_step(images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = model.loss(labels, logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.learning_rate.assign(rate)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        right = tf.equal(tf.argmax(logits, -1, labels.dtype), labels)
        return loss, tf.reduce_mean(tf.cast(right, tf.float32))

    def epoch(number: int, record: bool) -> Metrics:
        order.assign(job.order(number))
        rows = []
        for step, (rate, (images, labels)) in enumerate(zip(job.rates(number), batches, strict=True)):
            rows.append(train_step(images, labels, tf.constant(rate)))
            if record:
                with writer.as_default(step=number * job.steps + step):
                    for name, value in zip(("learning_rate", "loss", "accuracy"), (rate, *rows[-1]), strict=True):
                        tf.summary.scalar(name, value)
        if record:
            writer.flush()
        return _metrics(*map(tf.stack, zip(*rows, strict=True)))

    return epoch


def _metrics(loss: Any, accuracy: Any) -> Metrics:
    return {"loss": np.asarray(loss, np.float32), "accuracy": np.asarray(accuracy, np.float32)}


def _keras_batches(job: Job) -> tuple[Any, Any]:
    """Return the order as a variable to be assigned, and a `tf.data` pipeline of an epoch's batches in that order."""
    import tensorflow as tf

    images, labels = map(tf.constant, job.load())
    order = tf.Variable(np.arange(job.examples, dtype=np.int32))

    def batch(i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = order[i * job.batch_size : (i + 1) * job.batch_size]
        chosen.set_shape([job.batch_size])
        return tf.cast(tf.gather(images, chosen), tf.float32) / 255.0, tf.gather(labels, chosen)

    # As `loop/stream.py` does: the end of an epoch would wait for the thread that tunes.
    options = tf.data.Options()
    options.autotune.enabled = False
    batches = tf.data.Dataset.range(job.steps).map(batch, num_parallel_calls=os.cpu_count() or 1)
    return order, batches.prefetch(_PREFETCHED_BATCHES).with_options(options)


def clr_loop(job: Job, log_dir: Path) -> Epoch:
    """`TrainLoop.run`; recorded, with the history and TensorBoard's events of `fit`."""
    from clr_loop.loop.loop import TrainLoop
    from clr_loop.runs.events import SummaryWriter
    from clr_loop.runs.files import RunFiles

    loop = TrainLoop(job.keras_model(rescale=True), *job.load(), batch_size=job.batch_size)
    files, summaries = RunFiles(log_dir), SummaryWriter(log_dir, None)

    def epoch(number: int, record: bool) -> Metrics:
        rates = job.rates(number)
        if not record:
            return loop.run(rates)
        parts = []
        for start in range(0, job.steps, loop.block_steps):
            began = time.time()
            parts.append(loop.run(rates[start : start + loop.block_steps]))
            files.add_steps(number * job.steps + start, parts[-1])
            summaries.add_steps(number * job.steps + start, parts[-1], began, time.time())
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return epoch


def jax_scan(job: Job, log_dir: Path) -> Epoch:
    """JAX: an epoch is one jitted `lax.scan` with optax, data resident, the state donated.

    Convolution and pooling are written as a matrix product and a maximum, which XLA computes many times as fast on a
    CPU as its own operations for them.
    """
    import jax
    import jax.numpy as jnp
    import optax

    activation = getattr(jax.nn, job.activation)
    adam = optax.scale_by_adam(eps=ADAM_EPSILON)
    weights = [jnp.asarray(weight) for weight in job.weights()]
    state = (weights, adam.init(weights))
    images, labels = (jnp.asarray(array) for array in job.load())
    images = images[..., None] if job.is_convolutional else images.reshape(len(images), -1)

    def layer(x: Any, kernel: Any, bias: Any) -> Any:
        if kernel.ndim == 2:
            return activation(x.reshape(len(x), -1) @ kernel + bias)
        rows, columns, _, channels = kernel.shape
        height, width = x.shape[1] + 1 - rows, x.shape[2] + 1 - columns
        shifted = [x[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
        x = activation(jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, channels) + bias)
        x = x[:, : height // 2 * 2, : width // 2 * 2]
        return x.reshape(len(x), height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))

    def loss_and_accuracy(weights: list[Any], images: Any, labels: Any) -> tuple[Any, Any]:
        *hidden, (kernel, bias) = zip(weights[::2], weights[1::2], strict=True)
        logits = functools.reduce(lambda x, weights: layer(x, *weights), hidden, images) @ kernel + bias
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), (logits.argmax(-1) == labels).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def train(state: Any, images: Any, labels: Any, order: Any, rates: Any) -> Any:
        def step(state: Any, of_step: Any) -> Any:
            (weights, moments), (chosen, rate) = state, of_step
            batch = images[chosen].astype(jnp.float32) / 255.0
            metrics, gradients = jax.value_and_grad(loss_and_accuracy, has_aux=True)(weights, batch, labels[chosen])
            updates, moments = adam.update(gradients, moments)
            return (jax.tree.map(lambda weight, update: weight - rate * update, weights, updates), moments), metrics

        return jax.lax.scan(step, state, (order, rates))

    def epoch(number: int) -> Metrics:
        nonlocal state
        order = job.order(number).reshape(job.steps, job.batch_size)
        state, metrics = train(state, images, labels, order, job.rates(number))
        return _metrics(*metrics)

    return _recorded(job, log_dir, epoch)


def pytorch(job: Job, log_dir: Path, is_compiled: bool = False) -> Epoch:
    """PyTorch with fused Adam, the data in memory as float32, and no wait for a value inside the epoch.

    Forward and backward pass run eagerly, or through `torch.compile`. Images and kernels have the channels last.
    """
    import torch
    from torch.nn import functional

    def tensor(weight: Any) -> Any:
        made = torch.from_numpy(weight)
        return made.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last) if made.ndim == 4 else made

    weights = [tensor(weight).requires_grad_() for weight in job.weights()]
    *hidden, last = zip(weights[::2], weights[1::2], strict=True)
    activation = functools.partial(torch.softmax, dim=-1) if job.activation == "softmax" else torch.relu
    optimizer = torch.optim.Adam(weights, eps=ADAM_EPSILON, fused=True)
    images, labels = map(torch.from_numpy, job.load())
    images = images.unsqueeze(1) if job.is_convolutional else images.flatten(1)
    images, labels = images.float().div_(255.0), labels.long()

    def layer(x: Any, kernel: Any, bias: Any) -> Any:
        if kernel.ndim == 4:
            return functional.max_pool2d(activation(functional.conv2d(x, kernel, bias)), 2)
        x = x.permute(0, 2, 3, 1).flatten(1) if x.ndim == 4 else x
        return activation(torch.addmm(bias, x, kernel))

    def forward(batch: Any, classes: Any) -> tuple[Any, Any]:
        for kernel, bias in hidden:
            batch = layer(batch, kernel, bias)
        logits = torch.addmm(last[1], batch, last[0])
        return functional.cross_entropy(logits, classes), (logits.detach().argmax(-1) == classes).float().mean()

    if is_compiled:
        forward = torch.compile(forward)

    def epoch(number: int) -> Metrics:
        order, rates = torch.from_numpy(job.order(number)).split(job.batch_size), job.rates(number)
        losses, accuracies = torch.empty(job.steps), torch.empty(job.steps)
        for i, (chosen, rate) in enumerate(zip(order, rates.tolist(), strict=True)):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss, accuracies[i] = forward(images[chosen], labels[chosen])
            loss.backward()
            optimizer.step()
            losses[i] = loss.detach()
        return _metrics(losses, accuracies)

    return _recorded(job, log_dir, epoch)


def _recorded(job: Job, log_dir: Path, epoch: Callable[[int], Metrics]) -> Epoch:
    """Return an epoch that can be recorded, with an event for each step, for libraries without a writer of their own.

    It uses TensorBoard's bare record writer: the higher ones, PyTorch's too, would import TensorFlow if it is there.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    writer = RecordWriter(open(log_dir / "events.out.tfevents.0", "wb"))  # noqa: SIM115 (open as long as the process)

    def run(number: int, record: bool) -> Metrics:
        metrics = epoch(number)
        if record:
            columns, now = {"learning_rate": job.rates(number), **metrics}, time.time()
            for step, row in enumerate(zip(*(values.tolist() for values in columns.values()), strict=True)):
                values = [Summary.Value(tag=tag, simple_value=value) for tag, value in zip(columns, row, strict=True)]
                event = Event(wall_time=now, step=number * job.steps + step, summary=Summary(value=values))
                writer.write(event.SerializeToString())
            writer.flush()
        return metrics

    return run


def matrix_products(job: Job, log_dir: Path) -> Epoch:
    """The floor: the matrix products of an epoch alone, as NumPy float32 `@` on all cores; nothing is trained.

    The first layer's input needs no gradient. The results go to memory that is there already, because fresh memory for
    each would cost more than some of the products.
    """
    pixels = job.load()[0].reshape(job.examples, -1).astype(np.float32) / 255.0
    rng = np.random.default_rng(0)
    kernels = job.weights()[::2]
    units = [784, *(kernel.shape[-1] for kernel in kernels)]
    inputs, gradients, outputs = ([rng.random((job.batch_size, n), np.float32) for n in units] for _ in range(3))
    of_kernels = [np.empty_like(kernel) for kernel in kernels]

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


class Contender(NamedTuple):
    """A contender: its name, (job, directory for what is recorded) → epoch, and what that computes with."""

    label: str
    begin: Callable[[Job, Path], Epoch]
    requires: tuple[str, ...] = ()
    on_tensorflow: bool = False
    has_convolutions: bool = True

    def is_installed(self) -> bool:
        """Return whether all that it needs can be imported."""
        return all(importlib.util.find_spec(module) is not None for module in self.requires)


_keras_at_best = functools.partial(keras_fit, at_best=True)
_pytorch_compiled = functools.partial(pytorch, is_compiled=True)
CONTENDERS = {
    "keras": Contender("Keras fit + LR callback", keras_fit, on_tensorflow=True),
    "keras_best": Contender("Keras fit at its best", _keras_at_best, on_tensorflow=True),
    "step": Contender("tf.function per step", step_function, on_tensorflow=True),
    "clr_loop": Contender("clr_loop", clr_loop, on_tensorflow=True),
    "jax": Contender("JAX scan", jax_scan, ("jax", "optax")),
    "pytorch": Contender("PyTorch, eager", pytorch, ("torch",)),
    "pytorch_compiled": Contender("PyTorch, torch.compile", _pytorch_compiled, ("torch",)),
    "products": Contender("matrix products alone", matrix_products, has_convolutions=False),
}
