"""What a run depends on, as config.json and the checkpoints keep it, and what has changed in it since."""

from __future__ import annotations

import dataclasses
import itertools
import json
import platform
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

import clr_loop
from clr_loop import schedules
from clr_loop.arguments import spelled
from clr_loop.loop import keras_private
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.threads import num_threads
from clr_loop.runs.options import OnChange
from clr_loop.schedules.base import path_of

ScheduleFn = Callable[[NDArray[np.int64]], ArrayLike]

_CHANGEABLE = ("schedule", "versions", "threads")  # If the user says how.
FREE = ("epochs", "command", "chosen")  # The weights do not depend on these.
_OF_THE_LOOP = ("metric_names", "jit_compile", "halves", "batch_size", "num_examples", "seed", "shuffle")


def run_settings(loop: TrainLoop, schedule: ScheduleFn, epochs: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run depends on, as JSON types: the caller's settings and what is known here."""
    own = {
        **loop_settings(loop),
        "epochs": epochs,
        "steps_per_epoch": loop.steps_per_epoch,
        "schedule": schedule_config(schedule),
        "versions": versions(),
        "threads": threads_of(loop),
        "chosen": loop.chosen,
    }
    return json.loads(json.dumps({"first_step": loop.step, **settings, **own}))


def threads_of(loop: TrainLoop) -> int | None:
    """Return how many threads a loop computes with, if its bits depend on that.

    Those of a GPU do not, and each of several workers may have its own number.
    """
    return num_threads() if loop.device.startswith("CPU") and loop.num_workers == 1 else None


def loop_settings(loop: TrainLoop) -> dict[str, Any]:
    """Return what makes a loop compute what it computes, without its data and variables, as JSON types.

    Functions and lambdas are known by their names alone.
    """
    model = loop.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of lambdas, which nobody loads here.
            compiled = model.get_compile_config() or {}
    except (TypeError, ValueError, NotImplementedError):  # Something of the user's own that Keras cannot describe.
        compiled = {}
    described = ("loss", "loss_weights", "metrics", "weighted_metrics")
    own = {
        "optimizer": type(loop.optimizer).__name__,
        "optimizer_config": _plain(loop.optimizer.get_config()),
        **{name: _plain(compiled.get(name)) for name in described},
        "precision": model.dtype_policy.name,
        **dataclasses.asdict(loop.options),
        **{name: getattr(loop, name) for name in _OF_THE_LOOP},
        "TF_ENABLE_ONEDNN_OPTS": int(keras_private.has_onednn()),  # By the name under which it is set.
    }
    return json.loads(json.dumps(own, default=path_of))


def _plain(value: Any) -> Any:
    """Return what Keras serializes in a form that people read, without rates, and names that Keras counts up."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_name" in value and "config" in value:
        config = value["config"]
        if isinstance(config, str):  # A function.
            return config
        if value["class_name"] == "__lambda__":
            return "lambda"
        return {"class": value["class_name"], **_plain(config or {})}
    is_optimizer = "learning_rate" in value or "inner_optimizer" in value
    left_out = ("learning_rate", "name") if is_optimizer else ()
    kept = {str(name): _plain(item) for name, item in value.items() if name not in left_out}
    if isinstance(kept.get("name"), str):
        kept["name"] = re.sub(r"_\d+$", "", kept["name"])
    return kept


def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    modules = (clr_loop, tf, keras, np)
    return {"python": platform.python_version(), **{module.__name__: module.__version__ for module in modules}}


def schedule_config(schedule: ScheduleFn) -> dict[str, Any]:
    """Return a schedule's name and arguments; of a function, or a schedule with one inside, where it is defined."""
    try:
        return schedule.to_config()  # type: ignore[attr-defined]
    except (AttributeError, ValueError):
        return {"name": path_of(schedule)}


def in_words(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return a text for each setting that differs and that a run may not change freely.

    >>> in_words({"batch_size": 20, "config": {"a": 1, "b": 2}}, {"batch_size": 25, "config": {"a": 1, "b": 3}})
    {'batch_size': 'batch_size 20, now 25', 'config': "config {'b': 2}, now {'b': 3}"}
    """
    texts = {}
    for name, pair in _differing(saved, now).items():
        if name in FREE:
            continue
        if all(isinstance(side, dict) for side in pair):
            inner = _differing(*pair)
            pair = tuple({key: sides[i] for key, sides in inner.items()} for i in (0, 1))
        elif all(isinstance(side, list) for side in pair):  # The first that differs tells more than all of them.
            pair = next(two for two in itertools.zip_longest(*pair) if two[0] != two[1])
        texts[name] = f"{name} {pair[0]}, now {pair[1]}"
    return texts


def _differing(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return both values of each entry that differs; one that a side lacks is None there."""
    pairs = {name: (saved.get(name), now.get(name)) for name in {**saved, **now}}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


def check_changes(saved: Mapping[str, Any], now: Mapping[str, Any], on_change: OnChange | None) -> None:
    """Raise ValueError if `run_settings` has changed in what must stay, or in what may change if on_change says how."""
    if "scale_inputs" in saved:
        raise ValueError(
            "The run in this directory was made by an earlier version of clr_loop, which divided uint8 inputs by 255 "
            "inside the loop; this version hands them to the model as they are. Start a new run."
        )
    words = in_words(saved, now)
    fixed = {name: text for name, text in words.items() if name not in _CHANGEABLE}
    if fixed or (words and on_change is None):
        advice = (
            f"Give those settings again ({spelled(options={'on_change': 'keep'})}), or choose another directory."
            if fixed
            else f"Choose {spelled(options={'on_change': 'keep'})} (the saved schedule), replace (the new one, at the "
            "same step) or rebase (the new one, from its step 0)."
        )
        listed = "; ".join((fixed or words).values())
        raise ValueError(f"The run in this directory was started with different settings: {listed}. {advice}")


def schedule_from_here(
    schedule: ScheduleFn, saved: Mapping[str, Any], on_change: OnChange | None, step: int
) -> ScheduleFn:
    """Return the schedule with which a run goes on.

    Args:
        schedule: the one that the caller hands in; `saved` is the config of the one that the run has.
        on_change: see `RunOptions`.
        step: the step that the run has come to.

    Raises:
        ValueError: if the saved schedule is needed and cannot be made again, or a function is to be rebased.
    """
    now = schedule_config(schedule)
    if on_change not in ("keep", "rebase") or saved == json.loads(json.dumps(now)):
        return schedule
    known = [schedule] if isinstance(schedule, schedules.Schedule) else []
    try:
        kept = schedules.from_config(saved, known)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The saved schedule cannot be used: {error} Hand it in again, or choose "
            f"{spelled(options={'on_change': 'replace'})}."
        ) from error
    is_rebased = isinstance(kept, schedules.Joined) and schedule_config(kept.schedules[-1]) == now
    if on_change == "keep" or is_rebased:  # The same command resumes a rebased run again and again.
        return kept
    if step == 0:
        return schedule
    if not isinstance(schedule, schedules.Schedule):
        raise ValueError("A plain function cannot be rebased; use a schedule of clr_loop.schedules or shift its steps.")
    return schedules.join([kept, schedule], boundaries=[step])
