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
from numpy.typing import NDArray

from clr_loop.arguments import checked_types
from clr_loop.loop.loop import TrainLoop
from clr_loop.runs import files as run_files
from clr_loop.runs.models import load_weights, save_model

_SOFTMAX = ("CategoricalCrossentropy", "SparseCategoricalCrossentropy")
_SIGMOID = ("BinaryCrossentropy",)


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
            load_weights(loop.model, next(path for path in paths if path.is_file()))
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
            inputs: as the models take them: what a run divides by 255 inside its step must be divided before.
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


def _from_logits(model: keras.Model) -> str | None:
    """Return the name of the compiled loss if it takes logits, else None."""
    loss = model.loss if isinstance(model.loss, keras.losses.Loss) else None
    return type(loss).__name__ if loss is not None and loss.get_config().get("from_logits") else None


def _to_shares(model: keras.Model, outputs: Any) -> Any:
    """Turn logits into probabilities; leave other outputs as they are."""
    name = _from_logits(model)
    if name in _SOFTMAX:
        return tf.nn.softmax(outputs).numpy()
    return tf.sigmoid(outputs).numpy() if name in _SIGMOID else outputs


def _from_shares(model: keras.Model, shares: Any) -> Any:
    """Turn probabilities back into logits, which the compiled loss and metrics take."""
    name = _from_logits(model)
    if name in _SOFTMAX:
        return np.log(np.maximum(shares, 1e-30))
    if name in _SIGMOID:
        return np.log(np.maximum(shares, 1e-30)) - np.log(np.maximum(1 - shares, 1e-30))
    return shares
