"""The LR range test: a run of rising rates on the training block itself, after which everything is as it was.

Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clr_loop.arguments import checked_choice, checked_integer, checked_number, checked_types, checked_whole
from clr_loop.data import Examples
from clr_loop.data.nests import num_examples
from clr_loop.display import Pictured
from clr_loop.loop.loop import Metrics, TrainLoop
from clr_loop.runs.result import direction_of
from clr_loop.schedules import ExponentialRamp, LinearRamp
from clr_loop.studies.range_test.curves import DIVERGENCE_FACTOR, Curve
from clr_loop.studies.range_test.held_out import NUM_STEPS, HeldOutScore
from clr_loop.studies.range_test.suggestions import Bounds, NoSuggestionError, bounds, suggest
from clr_loop.studies.seeds import MakeModel, initial_state
from clr_loop.studies.tasks import Processes, spread

_COLUMNS = ("learning_rate", "loss", "score")

_RAMPS: dict[str, type[ExponentialRamp] | type[LinearRamp]] = {"exponential": ExponentialRamp, "linear": LinearRamp}

# The smoothing's time constant as a share of the sweep: a tenth of a decade in the default range.
_SMOOTHING = 1 / 80
# A loss scale begins at 2**15 and is halved after a skipped update, so more in a row than this mean divergence.
_MOST_HALVINGS = 20


@dataclass(frozen=True, repr=False)
class RangeTest(Pictured):
    """The result of one sweep.

    Attributes:
        settings: JSON types: the arguments of `run`, with the number of held-out examples; batch_size and seed of its
            loop; and steps_per_epoch, of the loop's examples and the held-out ones together.
        curve: raw and smoothed loss and score over the rates, up to and including the step at which the sweep stopped.
        stop_reason: "finished: …", "divergence: …", "non-finite loss: …" or "non-finite updates: …", with the rate.
    """

    settings: dict[str, Any]
    curve: Curve
    stop_reason: str

    def _rows(self) -> list[dict[str, object]]:
        rates = self.curve.learning_rate
        return [
            {
                "batch size": self.settings["batch_size"],
                "seed": self.settings["seed"],
                "learning rates": f"{rates[0]:.3g} to {rates[-1]:.3g}",
                "steps": f"{len(rates):,}",
                "stopped by": self.stop_reason,
            }
        ]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the curve as columns [n]: learning_rate, and loss and score raw and smoothed, each by its name."""
        curve, sign = self.curve, -1.0 if self.curve.is_loss else 1.0
        score = {curve.measure: sign * curve.score, f"smoothed_{curve.measure}": sign * curve.smoothed_score}
        loss = {"loss": curve.loss, "smoothed_loss": curve.smoothed_loss}
        return {"learning_rate": curve.learning_rate, **loss, **(score if curve.measure != "loss" else {})}

    def to_json(self) -> dict[str, Any]:
        """Return the test as JSON types, with as many digits of its curve as float32 has."""
        curve = {name: [float(f"{x:.9g}") for x in getattr(self.curve, name)] for name in _COLUMNS}
        read = [self.curve.time_constant, self.curve.divergence_factor, self.curve.measure]
        return {"settings": self.settings, "stop_reason": self.stop_reason, "curve": curve, "read": read}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RangeTest:
        """Return the test that `to_json` has turned into JSON types."""
        rates, loss, score = (np.array(content["curve"][name], np.float32).astype(np.float64) for name in _COLUMNS)
        return cls(content["settings"], Curve(rates, loss, score, *content["read"]), content["stop_reason"])


@checked_types
def run(
    loop: TrainLoop,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = NUM_STEPS,
    sweep: Literal["exponential", "linear"] = "exponential",
    early_stop: float | None = DIVERGENCE_FACTOR,
    held_out: Examples | None = None,
    on_block: Callable[[int, Metrics], None] = lambda num_steps, metrics: None,
) -> RangeTest:
    """Take num_steps steps with rates from start_lr to end_lr, then put the loop back as it was.

    The steps go on from where the loop stands, on its own batches, over as many epochs as they need. Whatever happens,
    an exception or Ctrl-C included, variables, optimizer, step and data order are then restored from memory. The score
    is the first compiled metric for which higher is better; for a model without one, the suggestions read the loss.

    A model that sees its examples again memorizes some of them. Its training score then goes on rising at rates that
    teach it nothing about others, and the suggested max_lr is too high. So give held-out examples where the sweep takes
    more than two epochs; `split` makes them.

    Args:
        loop: at any step. Its compiled block is used, so training after it does not compile again.
        start_lr: float, above 0; a linear sweep may begin at 0.
        end_lr: float, above start_lr.
        num_steps: int, at least 2.
        sweep: "exponential", equal ratios between neighbors; or "linear", equal differences.
        early_stop: stop when the smoothed loss has diverged by this factor, float above 1; see
            `curves.first_divergence`. A loss that is not finite stops the sweep, too. None takes every step.
        held_out: examples that the loop does not train on. The score is read on them, in inference mode, once in
            each time constant of the smoothing, and is interpolated in between. None reads it on the batch of each
            step, as does a model whose evaluation does not give the metric.
        on_block: called after each block with the number of steps taken so far and the metrics of the block.

    Returns:
        The curve, and why it ends where it does. Where the loop skips an update that is not finite, the
        rate is taken with the next batch; the reason says how many were skipped.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if a rate or early_stop is not a number, or num_steps not an integer.
    """
    rates = _checked_rates(start_lr, end_lr, num_steps, sweep)
    _check_early_stop(early_stop)
    score = _score_of(loop, held_out)
    curve, num_skipped = _sweep(loop, rates, early_stop, score, on_block)
    num_held_out = 0 if isinstance(score, str) else num_examples(held_out)
    steps_for_all = math.ceil((loop.num_examples + num_held_out) / loop.batch_size)
    settings = {
        "batch_size": loop.batch_size,
        "seed": loop.seed,
        "steps_per_epoch": steps_for_all if num_held_out else loop.steps_per_epoch,
        "start_lr": start_lr,
        "end_lr": end_lr,
        "num_steps": num_steps,
        "sweep": sweep,
        "early_stop": early_stop,
        "held_out": num_held_out,
    }
    return RangeTest(settings, curve, _why(curve, num_steps, num_skipped, early_stop))


def _check_early_stop(early_stop: float | None) -> None:
    if early_stop is not None and not 1.0 < checked_number("early_stop", early_stop) < math.inf:
        raise ValueError(
            f"early_stop is {early_stop:g}; it is a multiple of the best loss and must be finite and above 1. A usual "
            f"one is {DIVERGENCE_FACTOR:g}, and None takes every step."
        )


def _score_of(loop: TrainLoop, held_out: Examples | None) -> str | HeldOutScore:
    """Return what a sweep is scored by: the held-out examples, or a metric of each batch, by its name."""
    measure = next((name for name in loop.metric_names[1:] if direction_of(name) == "max"), "loss")
    if held_out is None or measure not in loop.evaluate(held_out):  # A model's own test_step may return anything.
        return measure
    return HeldOutScore(loop, held_out, measure)


def _sweep(
    loop: TrainLoop,
    rates: NDArray[np.float32],
    early_stop: float | None,
    score: str | HeldOutScore,
    on_block: Callable[[int, Metrics], None],
) -> tuple[Curve, int]:
    """Take a step with each rate and undo them; return the curve and the number of skipped updates.

    A loop that skips an update that is not finite takes its rate with the next batch. The score is that of held-out
    examples, or the metric of this name of each batch.
    """
    measure = score if isinstance(score, str) else score.name
    time_constant = max(len(rates) * _SMOOTHING, 1.0)
    block_steps = loop.block_steps if isinstance(score, str) else int(time_constant)

    def curve_of(columns: NDArray[np.float64]) -> Curve:
        learning_rate, loss, of_batches = columns
        return Curve(learning_rate, loss, of_batches, time_constant, early_stop or DIVERGENCE_FACTOR, measure)

    columns = np.empty((3, 0))
    num_done = num_skipped_in_a_row = 0
    before = loop.snapshot()
    try:
        while num_done < len(rates):
            block = rates[num_done : num_done + block_steps]
            if isinstance(score, HeldOutScore):
                score.read(columns.shape[1])
            metrics = loop.run(block)
            num_skipped = loop.num_skipped - before.num_skipped
            num_skipped_in_a_row = 0 if len(metrics["loss"]) else num_skipped_in_a_row + len(block)
            if num_skipped_in_a_row > max(time_constant, _MOST_HALVINGS):
                columns = np.hstack([columns, [[block[0]], [np.nan], [np.nan]]])
                break
            of_batches = -metrics["loss"] if measure == "loss" else metrics[measure]
            columns = np.hstack([columns, [metrics["learning_rate"], metrics["loss"], of_batches]])
            num_done = int(np.searchsorted(rates, columns[0].max(initial=-1.0), side="right"))
            on_block(num_done, metrics)
            if early_stop is not None and curve_of(columns).num_usable < columns.shape[1]:
                break
    finally:
        loop.restore(before)
    kept = None if early_stop is None else curve_of(columns).num_usable + 1
    curve = curve_of(columns[:, :kept])
    if isinstance(score, HeldOutScore):
        curve = dataclasses.replace(curve, score=score.along(len(curve.loss)), measure=f"val_{measure}")
    return curve, num_skipped


@checked_types
def run_seeds(
    loop: TrainLoop,
    make_model: MakeModel,
    seeds: Sequence[int],
    on_start: Callable[[int], None] = lambda seed: None,
    **arguments: Any,
) -> list[RangeTest]:
    """Run a range test for each seed, all on one compiled block, and leave no trace.

    Args:
        loop: at step 0. It gets the initial weights and the data order of each seed in turn.
        make_model: seed → a fresh model, like the loop's.
        seeds: ints in [0, 2**32), at least one; 3 or more show how far they agree.
        on_start: called before each test with its seed.
        **arguments: see `run`.

    Raises:
        ValueError: if there is no seed or the loop has taken a step; else, and TypeError, as `run`.
    """
    if not seeds:
        raise ValueError("seeds is empty; give at least one, such as range(3).")
    if loop.step != 0:
        raise ValueError(f"The loop is at step {loop.step}, but each seed starts at step 0; use `run`, or a new loop.")
    before = loop.snapshot()
    tests = []
    try:
        for seed in seeds:
            on_start(seed)
            loop.restore(dataclasses.replace(before, **initial_state(make_model, seed)))
            tests.append(run(loop, **arguments))
    finally:
        loop.restore(before)
    return tests


def spread_seeds(
    make_loop: Callable[[], tuple[TrainLoop, Examples | None]],
    make_model: MakeModel,
    seeds: Sequence[int],
    processes: Processes,
    directory: Path,
    **arguments: Any,
) -> list[RangeTest]:
    """Run a range test for each seed in the processes of an executor.

    Args:
        make_loop: called once in each process; returns a loop at step 0 and the held-out examples, or None.
        make_model, seeds: see `run_seeds`.
        processes, directory: see `tasks.spread`.
        **arguments: see `run`.
    """
    begin = partial(_begin, make_loop, make_model, arguments)
    with closing(spread(begin, list(seeds), processes, directory)) as done:
        tests = dict(done)
    return [tests[seed] for seed in seeds]


def _begin(
    make_loop: Callable[[], tuple[TrainLoop, Examples | None]], make_model: MakeModel, arguments: Mapping[str, Any]
) -> Callable[[int], RangeTest]:
    loop, held_out = make_loop()
    return lambda seed: run_seeds(loop, make_model, [seed], held_out=held_out, **arguments)[0]


def suggested_bounds(tests: Sequence[RangeTest], epochs: int) -> Bounds:
    """Return the pair that the tests agree on, with a step_size of two whole cycles in `epochs` epochs.

    Args:
        tests: of one batch size, at least one.
        epochs: int, at least 1, of the planned run.

    Raises:
        ValueError: if epochs is below 1.
        NoSuggestionError: if the curves do not support a pair; it says why, and what to change.
    """
    total_steps = checked_whole("epochs", epochs) * tests[0].settings["steps_per_epoch"]
    return bounds(suggest([test.curve for test in tests]), total_steps)


def bounds_or_reason(tests: Sequence[RangeTest], epochs: int) -> Bounds | NoSuggestionError:
    """Return what `suggested_bounds` returns, or the reason why there are none."""
    try:
        return suggested_bounds(tests, epochs)
    except NoSuggestionError as error:
        return error


def _checked_rates(start_lr: float, end_lr: float, num_steps: int, sweep: str) -> NDArray[np.float32]:
    """Return the rates of a sweep; the ramp checks each of the two for itself."""
    if checked_integer("num_steps", num_steps) < 2:
        raise ValueError(f"num_steps is {num_steps}; a sweep takes at least 2, and {NUM_STEPS} make a readable curve.")
    ramp = _RAMPS[checked_choice("sweep", sweep, *_RAMPS)](start_lr, end_lr, num_steps)
    if not start_lr < end_lr:
        raise ValueError(f"end_lr {end_lr:g} is not above start_lr {start_lr:g}; swap the two or raise end_lr.")
    return ramp(np.arange(num_steps)).astype(np.float32)


def _why(curve: Curve, num_steps: int, num_skipped: int, early_stop: float | None) -> str:
    """Say why the sweep ended where it did."""
    skipped = f"; {num_skipped} updates were skipped because they were not finite" if num_skipped else ""
    step = curve.num_usable
    if num_skipped and np.isnan(curve.loss[-1]):
        return f"non-finite updates: none was taken from learning rate {curve.learning_rate[-1]:.3g} on{skipped}"
    if early_stop is None or step == len(curve.loss):
        return f"finished: all {num_steps} steps, up to learning rate {curve.learning_rate[-1]:.3g}{skipped}"
    where = f"at step {step} with learning rate {curve.learning_rate[step]:.3g}{skipped}"
    if not np.isfinite(curve.loss[step]):
        return f"non-finite loss: {curve.loss[step]} {where}"
    if curve.loss.min() < 0.0:
        return f"divergence: the smoothed loss rose by {early_stop - 1.0:g} times what it had fallen {where}"
    return f"divergence: the smoothed loss went above {early_stop:g} times its best {where}"
