"""The LR range test: a run of rising rates on the training block itself, after which everything is as it was.

Source: L. N. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.3.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from clr_loop.loop.loop import Metrics, TrainLoop
from clr_loop.runs import events as summaries
from clr_loop.runs import files as run_files
from clr_loop.runs.settings import versions
from clr_loop.schedules import ExponentialRamp, LinearRamp
from clr_loop.studies import plots
from clr_loop.studies.suggestions import (
    DIVERGENCE_FACTOR,
    Bounds,
    Curve,
    NoSuggestionError,
    Suggestion,
    bounds,
    suggest,
)

NUM_STEPS = 1000
"""Steps of a sweep unless told otherwise: 125 for each decade of the default range, which read well also when noisy."""

_RAMPS: dict[str, type[ExponentialRamp] | type[LinearRamp]] = {"exponential": ExponentialRamp, "linear": LinearRamp}

# The smoothing's time constant as a share of the sweep: a tenth of a decade in the default range.
_SMOOTHING = 1 / 80


@dataclass(frozen=True)
class RangeTest:
    """What one sweep found.

    Attributes:
        settings: JSON types: the arguments of `run`, and batch_size, seed and steps_per_epoch of its loop.
        curve: raw and smoothed loss and accuracy over the rates, up to and with the step at which it stopped.
        stop_reason: "finished: …", "divergence: …" or "non-finite loss: …", with step and rate.
    """

    settings: dict[str, Any]
    curve: Curve
    stop_reason: str

    @cached_property
    def suggestions(self) -> list[Suggestion]:
        """What the curve suggests; see `suggestions.suggest`."""
        return suggest([self.curve])

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns the curve as columns [n]: step from 0, learning_rate, loss, accuracy and the smoothed two."""
        curve = self.curve
        return {
            "step": np.arange(len(curve.loss)),
            "learning_rate": curve.learning_rate,
            "loss": curve.loss,
            "accuracy": curve.accuracy,
            "smoothed_loss": curve.smoothed_loss,
            "smoothed_accuracy": curve.smoothed_accuracy,
        }


def run(
    train_loop: TrainLoop,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    num_steps: int = NUM_STEPS,
    sweep: Literal["exponential", "linear"] = "exponential",
    early_stop: float | None = DIVERGENCE_FACTOR,
    on_block: Callable[[int, Metrics], None] | None = None,
) -> RangeTest:
    """Takes num_steps steps with rates from start_lr to end_lr, then puts the loop back as it was.

    The steps go on from where the loop stands, on its own batches, over as many epochs as they need. Whatever happens,
    an exception and Ctrl-C included, variables, optimizer, step and data order are then restored from memory.

    Args:
        train_loop: at any step; its compiled block is used, so training after it does not compile again.
        start_lr: float, finite, above 0; a linear sweep may begin at 0.
        end_lr: float, finite, above start_lr.
        num_steps: int, at least 2.
        sweep: "exponential", equal ratios between neighbours; or "linear", equal differences.
        early_stop: stop when the smoothed loss is above this many times its best so far, float above 1; see
            `suggestions.first_divergence`. A loss that is not finite stops too. None takes every step.
        on_block: called after each block with the number of steps taken so far and the block's metrics.

    Returns:
        The curve, why it ends where it does, and what it suggests.

    Raises:
        ValueError: if an argument is outside its range.
        TypeError: if a rate or early_stop is not a number, or num_steps not an integer.
    """
    _check(start_lr, end_lr, num_steps, sweep, early_stop)
    rates = _RAMPS[sweep](start_lr, end_lr, num_steps)(np.arange(num_steps))
    settings = {
        "batch_size": train_loop.batch_size,
        "seed": train_loop.seed,
        "steps_per_epoch": train_loop.steps_per_epoch,
        "start_lr": start_lr,
        "end_lr": end_lr,
        "num_steps": num_steps,
        "sweep": sweep,
        "early_stop": early_stop,
    }
    time_constant = max(num_steps * _SMOOTHING, 1.0)
    measured = {name: np.empty(0) for name in ("learning_rate", "loss", "accuracy")}
    stop = None
    before = train_loop.snapshot()
    try:
        for first in range(0, num_steps, train_loop.block_steps):
            metrics = train_loop.run(rates[first : first + train_loop.block_steps])
            measured = {name: np.concatenate([measured[name], metrics[name]]) for name in measured}
            if on_block is not None:
                on_block(len(measured["loss"]), metrics)
            stop = _stop(measured["loss"], measured["learning_rate"], time_constant, early_stop)
            if stop is not None:
                break
    finally:
        train_loop.restore(before)
    finished = f"finished: all {num_steps} steps, up to learning rate {rates[-1]:.3g}"
    num_kept, reason = stop or (len(measured["loss"]), finished)
    curve = Curve(
        **{name: values[:num_kept] for name, values in measured.items()},
        time_constant=time_constant,
        divergence_factor=early_stop or DIVERGENCE_FACTOR,
    )
    return RangeTest(settings, curve, reason)


def run_seeds(
    train_loop: TrainLoop,
    make_model: Callable[[int], keras.Model],
    num_seeds: int,
    on_start: Callable[[int], None] | None = None,
    **arguments: Any,
) -> list[RangeTest]:
    """Runs a range test for each of the seeds 0 … num_seeds - 1, all on one compiled block, and leaves no trace.

    Args:
        train_loop: at step 0; the seeds' initial weights and orders of the data are put into it in turn.
        make_model: seed → a fresh model, like the loop's.
        num_seeds: int, at least 1.
        on_start: called before each test with its seed.
        **arguments: see `run`.

    Raises:
        ValueError: if num_seeds is below 1 or the loop has taken a step; else, and TypeError, as `run`.
    """
    if num_seeds < 1:
        raise ValueError(f"seeds must be at least 1, received {num_seeds}; 3 or more show how far they agree")
    if train_loop.step != 0:
        raise ValueError(f"the loop must not have taken a step yet, received one at step {train_loop.step}; use `run`")
    before = train_loop.snapshot()
    tests = []
    try:
        for seed in range(num_seeds):
            if on_start is not None:
                on_start(seed)
            initial = [keras.ops.convert_to_numpy(variable) for variable in make_model(seed).variables]
            train_loop.restore(dataclasses.replace(before, model=initial, seed=seed))
            tests.append(run(train_loop, **arguments))
    finally:
        train_loop.restore(before)
    return tests


def suggested_bounds(tests: Sequence[RangeTest], epochs: int) -> Bounds:
    """Returns the pair that the tests agree on, with a step_size of two whole cycles in `epochs` epochs.

    Args:
        tests: of one batch size, at least one.
        epochs: int, at least 1, of the run planned.

    Raises:
        ValueError: if epochs is below 1.
        NoSuggestionError: if the curves do not support a pair; says why, and what to change.
    """
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, received {epochs}; give the length of the run planned")
    return bounds(suggest([test.curve for test in tests]), epochs * tests[0].settings["steps_per_epoch"])


def text(tests: Sequence[RangeTest], epochs: int) -> str:
    """Returns in words why each sweep ended, what they suggest, and last the line to paste, or why there is none.

    Arguments: see `suggested_bounds`.
    """
    lines = [f"seed {test.settings['seed']}: {test.stop_reason}" for test in tests]
    lines += [str(suggestion) for suggestion in suggest([test.curve for test in tests])]
    try:
        cycles = f"two whole cycles in {epochs} epochs at batch {tests[0].settings['batch_size']}:"
        lines += [cycles, str(suggested_bounds(tests, epochs))]
    except NoSuggestionError as error:
        lines.append(str(error))
    return "\n".join(lines)


def write(tests: Sequence[RangeTest], epochs: int, output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Writes range_test.json, .csv and .png and TensorBoard's events: a run for each seed, and the picture.

    Args:
        tests, epochs: see `suggested_bounds`.
        output_dir: an existing directory.
        settings: JSON types, to be kept with the tests: names of dataset, model and so on.
    """
    found = suggest([test.curve for test in tests])
    try:
        pair: dict[str, Any] = dataclasses.asdict(suggested_bounds(tests, epochs))
    except NoSuggestionError as error:
        pair = {"reason": str(error)}
    run_files.write_json(
        output_dir / "range_test.json",
        {
            "settings": {**settings, "epochs": epochs},
            "tests": [
                {**test.settings, "stop_reason": test.stop_reason, "steps": len(test.curve.loss)} for test in tests
            ],
            "suggestions": [suggestion.to_json() for suggestion in found],
            "bounds": pair,
            "versions": versions(),
        },
    )
    columns = [test.columns() for test in tests]
    with open(output_dir / "range_test.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["seed", *columns[0]])
        for test, curves in zip(tests, columns, strict=True):
            for step, *values in zip(*curves.values(), strict=True):
                writer.writerow([test.settings["seed"], step, *(f"{value:.9g}" for value in values)])
    bands = {s.name: (min(s.found), s.learning_rate, max(s.found)) for s in found if s.learning_rate is not None}
    title = ", ".join(str(settings[name]) for name in ("dataset", "model") if name in settings)
    picture = output_dir / "range_test.png"
    drawn = [_broken(test.columns(), test.curve.num_usable) for test in tests]
    plots.range_test(drawn, bands, f"{title}, batch {tests[0].settings['batch_size']}".lstrip(", ")).savefig(picture)
    for test, curves in zip(tests, columns, strict=True):
        del curves["step"]
        summaries.write_curves(output_dir / f"seed_{test.settings['seed']}", curves)
    summaries.write_picture(output_dir, "range_test", picture.read_bytes())


def _broken(columns: dict[str, NDArray[Any]], step: int) -> dict[str, NDArray[Any]]:
    """Takes the smoothed values out at the step of divergence, so that no line joins what was smoothed apart."""
    for name in ("smoothed_loss", "smoothed_accuracy"):
        columns[name] = np.where(columns["step"] == step, np.nan, columns[name])
    return columns


def _stop(
    losses: NDArray[np.float64], rates: NDArray[np.float64], time_constant: float, early_stop: float | None
) -> tuple[int, str] | None:
    """The number of steps to keep, the one that stopped the sweep included, and the reason; None to go on."""
    if early_stop is None:
        return None
    step = Curve(rates, losses, losses, time_constant, early_stop).num_usable  # The accuracy has no say in it.
    if step == len(losses):
        return None
    where = f"at step {step} with learning rate {rates[step]:.3g}"
    if not np.isfinite(losses[step]):
        return step + 1, f"non-finite loss: {losses[step]} {where}"
    return step + 1, f"divergence: the smoothed loss went above {early_stop:g} times its best {where}"


def _check(start_lr: Any, end_lr: Any, num_steps: Any, sweep: Any, early_stop: Any) -> None:
    if sweep not in _RAMPS:
        raise ValueError(f"sweep must be one of {', '.join(_RAMPS)}, received {sweep!r}; choose one of these")
    for name, value in (("start_lr", start_lr), ("end_lr", end_lr), ("early_stop", early_stop)):
        if value is not None or name != "early_stop":
            if not isinstance(value, Real) or isinstance(value, bool):
                raise TypeError(f"{name} must be a number, received {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, received {value}; give a plain number")
    if start_lr < 0.0 or (start_lr == 0.0 and sweep == "exponential"):
        least = "above 0 for an exponential sweep" if sweep == "exponential" else "at least 0"
        raise ValueError(f"start_lr must be {least}, received {start_lr}; a usual value is 1e-07")
    if not start_lr < end_lr:
        raise ValueError(
            f"end_lr must be above start_lr, received start_lr {start_lr:g} and end_lr {end_lr:g}; exchange them or "
            "raise end_lr"
        )
    if not isinstance(num_steps, Integral) or isinstance(num_steps, bool):
        raise TypeError(f"num_steps must be a whole number of steps, received {num_steps!r}")
    if num_steps < 2:
        raise ValueError(f"num_steps must be at least 2, received {num_steps}; {NUM_STEPS} make a readable curve")
    if early_stop is not None and early_stop <= 1.0:
        raise ValueError(
            f"early_stop must be above 1 times the best loss, received {early_stop:g}; a usual value is "
            f"{DIVERGENCE_FACTOR:g}, and None takes every step"
        )
