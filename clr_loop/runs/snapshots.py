"""Snapshot ensembles: the models at the lows of a cyclical rate, and the mean of their predictions.

Source: G. Huang et al., Snapshot Ensembles: Train 1, Get M for Free, arXiv 1704.00109.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from numpy.typing import NDArray

from clr_loop.arguments import checked_types
from clr_loop.data.functions import in_one_line
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.own_step import has_own
from clr_loop.runs import files as run_files
from clr_loop.runs.models import load_weights, save_model

_NOT_OF_OUTPUTS = (
    "Ensembles of snapshots are evaluated by their mean outputs and the targets, and this model's loss or a metric "
    "needs more, such as a mask or a loss that a layer adds; leave snapshots out"
)


def check(loop: TrainLoop, validation: Sequence[Any]) -> None:
    """Raise ValueError if ensembles of the model's snapshots could not be evaluated.

    The mean prediction of an ensemble has outputs alone. A loss that needs more, such as a mask or what a layer adds
    to it, is noticed by its value on the model's own outputs.
    """
    inputs, *truth = validation
    if has_own(loop.model, "train_step") or has_own(loop.model, "test_step"):
        raise ValueError(
            "The model has a train_step or test_step of its own, so ensembles of it cannot be evaluated here."
        )
    if keras.tree.is_nested(loop.predict(keras.tree.map_structure(lambda x: x[:1], inputs))):
        raise ValueError("The model has several outputs, and ensembles of snapshots average one; leave snapshots out.")
    own = loop.evaluate(*validation)
    try:
        shares = _to_shares(loop.model, loop.predict(inputs))
        of_outputs = loop.score(_from_shares(loop.model, shares), *truth)
    except (TypeError, tf.errors.OpError) as error:
        raise ValueError(f"{_NOT_OF_OUTPUTS} ({in_one_line(error)}).") from error
    differing = [name for name in own if not np.isclose(own[name], of_outputs[name], rtol=1e-3, atol=1e-6)]
    if differing:
        name = differing[0]
        raise ValueError(f"{_NOT_OF_OUTPUTS}: {name} is {own[name]:.4g}, and {of_outputs[name]:.4g} without them.")


def save(loop: TrainLoop, run_dir: Path, cycle: int) -> None:
    """Save the model at the end of a cycle, counted from 1."""
    directory = run_dir / run_files.SNAPSHOTS
    directory.mkdir(exist_ok=True)
    save_model(loop.model, directory / f"cycle_{cycle:02d}")


def evaluate(loop: TrainLoop, run_dir: Path, num_cycles: int, validation: Sequence[Any]) -> list[dict[str, float]]:
    """Evaluate each snapshot, and the ensembles of the last 1, 2 … snapshots; the loop is then as before.

    Args:
        loop: of one output.
        num_cycles: int, how many snapshots the run has made.
        validation: inputs, targets[, sample_weight].

    Returns:
        For each cycle its number, each metric of its model, `ensemble_of` (how many snapshots there are from this cycle
        to the last), and each metric of their mean prediction as `ensemble_<metric>`.
    """
    inputs, *truth = validation
    before, rows = loop.snapshot(), list[dict[str, float]]()
    total: Any = 0.0
    try:
        for cycle in range(num_cycles, 0, -1):
            stem = run_dir / run_files.SNAPSHOTS / f"cycle_{cycle:02d}"
            paths = [stem.with_name(stem.name + suffix) for suffix in (".keras", ".weights.h5")]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                logging.warning("%s is gone; the ensembles leave it and those before it out", paths[0])
                break
            load_weights(loop.model, path)
            total = total + _to_shares(loop.model, loop.predict(inputs))
            size = num_cycles - cycle + 1
            ensemble = loop.score(_from_shares(loop.model, total / size), *truth)
            own = loop.evaluate(inputs, *truth)
            joint = {f"ensemble_{name}": value for name, value in ensemble.items()}
            rows.insert(0, {"cycle": cycle, **own, "ensemble_of": size, **joint})
    finally:
        loop.restore(before)
    return rows


class Ensemble:
    """Models whose predictions are averaged: classifiers' probabilities, and other outputs as they are.

    Attributes:
        models: the compiled models.
    """

    def __init__(self, models: Sequence[keras.Model]) -> None:
        self.models = list(models)

    def predict(self, inputs: Any, batch_size: int = 1000) -> NDArray[Any]:
        """Return the mean prediction, [n, …]: probabilities, also where the models' outputs are logits.

        Args:
            inputs: as the models take them.
        """
        shares = [_to_shares(m, m.predict(inputs, batch_size=batch_size, verbose=0)) for m in self.models]
        return np.mean(shares, axis=0)


@checked_types
def ensemble(paths: Sequence[str | os.PathLike[str]]) -> Ensemble:
    """Load the models of an ensemble from their `.keras` files.

    Raises:
        ValueError: if there is no path, or a file is missing.
    """
    if not paths:
        raise ValueError("An ensemble needs at least one model; give the paths of .keras files.")
    missing = [str(path) for path in paths if not Path(path).is_file()]
    if missing:
        raise ValueError(f"There is no file {missing[0]}; give paths of .keras files.")
    return Ensemble([keras.models.load_model(path) for path in paths])


def _link(model: keras.Model) -> str | None:
    """Return "softmax" or "sigmoid" if the compiled loss takes logits, else None.

    Raises:
        ValueError: if that cannot be known: the loss takes logits and is none of Keras', or there are several.
    """
    losses = [loss for loss in keras.tree.flatten(model.loss) if isinstance(loss, keras.losses.Loss)]
    names = [type(loss).__name__ for loss in losses if loss.get_config().get("from_logits")]
    if not names:
        return None
    if len(losses) == 1 and names[0].startswith("Binary"):
        return "sigmoid"
    if len(losses) == 1 and "Categorical" in names[0]:
        return "softmax"
    raise ValueError(
        f"The loss {names[0]} takes logits, and how they become probabilities is not known here; end the model in "
        "probabilities, or average its predictions yourself."
    )


def _to_shares(model: keras.Model, outputs: Any) -> Any:
    """Turn logits into probabilities; leave other outputs as they are."""
    link = _link(model)
    if link == "softmax":
        return tf.nn.softmax(outputs).numpy()
    return tf.sigmoid(outputs).numpy() if link == "sigmoid" else outputs


def _from_shares(model: keras.Model, shares: Any) -> Any:
    """Turn probabilities back into logits, which the compiled loss and metrics take."""
    link = _link(model)
    if link == "softmax":
        return np.log(np.maximum(shares, 1e-30))
    if link == "sigmoid":
        return np.log(np.maximum(shares, 1e-30)) - np.log(np.maximum(1 - shares, 1e-30))
    return shares
