"""The compiled program of a loop: the block for the layers that are trained now, with XLA where the model takes it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from clr_loop.data.functions import in_one_line
from clr_loop.loop import checks, keras_private
from clr_loop.loop.batches import num_examples_of
from clr_loop.loop.block import Block, Metrics
from clr_loop.loop.choose import check_cache, choose
from clr_loop.loop.evaluation import Evaluation
from clr_loop.loop.feeds import Feed, Window, made_ready
from clr_loop.loop.options import StepOptions
from clr_loop.loop.rates import Vector
from clr_loop.loop.step import batch_begin, make_step
from clr_loop.loop.strategies import is_distributed
from clr_loop.loop.transforms.averages import Averages
from clr_loop.loop.trial import Trial


class Program:
    """Takes the steps of a window, and evaluates, in programs that are made again when other layers are trained.

    Args:
        model, feed, options: see `TrainLoop`.
        trial: what was learned about the model.
        averages: what follows the weights, if anything.
        counts: see `Block`.

    Attributes:
        choice: what the steps run on, and why.
    """

    def __init__(
        self,
        model: keras.Model,
        feed: Feed,
        options: StepOptions,
        trial: Trial,
        averages: Averages | None,
        counts: tf.Variable,
    ) -> None:
        self._model, self._feed, self._options, self._trial = model, feed, options, trial
        self._averages, self._counts = averages, counts
        self.choice = choose(model, trial, feed, options)
        self._signature = getattr(feed, "signature", None)
        self._compiled_with = self._what_is_compiled()
        self._trained: Any = None
        self._traces_before = 0  # Of blocks that were made for other layers.
        self._block: Any = None

    @property
    def num_traces(self) -> int:
        """How often a block was traced."""
        return self._traces_before + (0 if self._block is None else self._block.num_traces)

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of the model as it is trained now."""
        self.bring_up_to_date()
        return self._evaluation

    def bring_up_to_date(self) -> None:
        """Make the block and the evaluation, or make them again if another layer is frozen than before."""
        if self._what_is_compiled() != self._compiled_with:
            raise ValueError(
                f"The model {self._model.name} was compiled again, or has other variables, since this loop was made; "
                "make a new loop of it."
            )
        layers = tuple(layer.trainable for layer in keras_private.layers_of(self._model))
        trained = tuple(map(id, self._model.trainable_variables)), layers
        if self._trained not in (None, trained) and keras_private.inner(self._model.optimizer).use_ema:
            raise ValueError(
                "Layers were frozen or unfrozen, and the optimizer keeps averages (use_ema=True) of those that were "
                "trained before; compile the model again and make a new loop, or use StepOptions(average=…)."
            )
        if trained != self._trained:
            self._trained, self._compiled = trained, set[bool]()
            self._evaluation = Evaluation(
                self._model, self._trial.names, self._trial.limits, checks.has_text(self._feed.first_batch)
            )
            self._make_block()

    def is_compiled(self, with_momentums: bool) -> bool:
        """Return whether all is compiled that steps with or without momentums need."""
        self.bring_up_to_date()
        return with_momentums in self._compiled

    def compile(self, with_momentums: bool) -> None:
        """Trace and compile a block for each shape of windows: one of no steps is enough."""
        none = np.zeros(0, np.float32)
        momentums = none if with_momentums else None
        for window in self._empty_windows():
            try:
                self._block(window, 0, none, momentums)
            except (tf.errors.OpError, ValueError, NotImplementedError) as error:
                if not self.choice.jit_compile or self._options.jit_compile is True:
                    raise
                check_cache(error)
                self._compile_without_xla(window, momentums, error)
        self._compiled.add(with_momentums)

    def take_steps(self, window: Window, first: int, rates: Vector, momentums: Vector | None, batch: int) -> Metrics:
        """Take steps; see `Block`. `batch` counts the batches visited before them, for an error."""
        try:
            return self._block(window, first, rates, momentums)
        except tf.errors.InvalidArgumentError as error:
            if self._signature is None:
                raise
            epoch, index = divmod(batch, self._feed.steps_per_epoch)
            shapes = checks.shapes(keras.tree.map_structure(lambda x: x[0], window.batches))
            raise ValueError(
                f"Batch {index} of epoch {epoch + 1}, of shape {shapes}: the step failed ({in_one_line(error)})."
            ) from error

    def _what_is_compiled(self) -> tuple[Any, list[int]]:
        return keras_private.compiled_with(self._model), list(map(id, self._model.variables))

    def _make_block(self) -> None:
        model, strategy, trial = self._model, self._model.distribute_strategy, self._trial
        take = trial.own_step or make_step(model, self._options, self.choice.halves, self._averages)
        begin = batch_begin(model, trial.optimizers)
        signature = None if is_distributed(strategy) else self._signature
        self._traces_before = self.num_traces
        self._block = Block(take, begin, trial.names, strategy, self.choice.jit_compile, self._counts, signature)

    def _empty_windows(self) -> Iterator[Window]:
        """Yield a window of each shape that the feed gives; memory that nobody fills takes no room."""
        feed, batch_size = self._feed, int(num_examples_of(self._feed.first_batch))
        short = 0 if self._signature is not None else feed.num_examples % batch_size
        for k, size in ((feed.window_batches, batch_size), (1, short)):
            if size:
                empty = keras.tree.map_structure(
                    lambda x, k=k, size=size: tf.raw_ops.Empty(shape=(k, size, *x.shape[1:]), dtype=x.dtype),
                    feed.first_batch,
                )
                yield made_ready(empty, k, batch_size, self._model.distribute_strategy)

    def _compile_without_xla(self, window: Window, momentums: Vector | None, error: Exception) -> None:
        """Compile a plain graph in place of an XLA program, with a warning; if that fails, too, XLA is not to blame."""
        with_xla, self.choice = self.choice, self.choice._replace(jit_compile=False, halves=False)
        self._make_block()
        try:
            self._block(window, 0, np.zeros(0, np.float32), momentums)
        except Exception:
            self.choice = with_xla
            self._make_block()
            raise
        self.choice.words["xla"] = "without XLA (it refuses the model)"
        warnings.warn(
            f"XLA cannot compile the model {self._model.name} ({in_one_line(error)}); the loop goes on "
            "without it. Give StepOptions(jit_compile=False) to say so yourself.",
            stacklevel=5,
        )
