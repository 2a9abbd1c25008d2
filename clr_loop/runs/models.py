"""Models on disk, as Keras opens them, and finished or broken-off runs, read back."""

from __future__ import annotations

import contextlib
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from numpy.typing import NDArray

from clr_loop.arguments import checked_types
from clr_loop.data.functions import in_one_line
from clr_loop.display import Shown
from clr_loop.runs import checkpoints
from clr_loop.runs import files as run_files
from clr_loop.runs.checkpoints import Checkpoint, CheckpointError, find
from clr_loop.runs.records import read_epochs, read_result
from clr_loop.runs.result import EpochRecord, TrainingResult


def save_model(model: keras.Model, path: Path) -> Path:
    """Save a model as `<path>.keras`; if Keras cannot, its weights as `<path>.weights.h5`, with a warning.

    The file is written under another name first and renamed, so that no reader sees half of it. The model is saved with
    its compiled loss, metrics and optimizer.
    """
    whole, weights = (path.with_name(path.name + suffix) for suffix in (".keras", ".weights.h5"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of lambdas, and what cannot be saved is told below.
            with _with_optimizer_of_trainable_variables(model):
                _write(model.save, whole)
        weights.unlink(missing_ok=True)
        return whole
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        words = f"the model cannot be saved whole ({in_one_line(error)}), so {weights.name} has its weights"
        warnings.warn(f"{words}; give its classes a get_config.", stacklevel=2)
    _write(model.save_weights, weights)
    whole.unlink(missing_ok=True)
    return weights


@contextlib.contextmanager
def _with_optimizer_of_trainable_variables(model: keras.Model) -> Iterator[None]:
    """Give the model, inside this context, an optimizer with the state of its trainable variables alone.

    The loop's optimizer has a state for frozen layers, too, which may be trained later. Keras builds the optimizer that
    it loads for the trainable variables, and would leave out a state of another size.
    """
    whole = model.optimizer
    part = type(whole).from_config(whole.get_config())
    part.build(model.trainable_variables)
    state = {variable.path: variable for variable in whole.variables}
    is_known = len(state) == len(whole.variables) and all(variable.path in state for variable in part.variables)
    if len(part.variables) == len(whole.variables) or not is_known:
        yield
        return
    for variable in part.variables:
        variable.assign(state[variable.path])
    model.optimizer = part
    try:
        yield
    finally:
        model.optimizer = whole


def _write(save: Callable[[Path], Any], target: Path) -> None:
    name, _, suffix = target.name.partition(".")
    draft = target.with_name(f".{name}.draft.{suffix}")
    draft.unlink(missing_ok=True)  # It may be a link to somebody else's file.
    try:
        save(draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


@checked_types
def load_weights(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Give a model the weights of a file that Keras has written.

    Args:
        model: built, with the layers of the model that was saved.
        path: ends in `.keras` or `.weights.h5`.

    Raises:
        ValueError: if the file is missing, is no such file, or is of another model.
    """
    path = run_files.expanded(path)
    if not path.name.endswith((".keras", ".weights.h5")):
        raise ValueError(f"{path} is no file of weights; give one that ends in .keras or .weights.h5.")
    if not path.is_file():
        raise ValueError(f"There is no file {path} to begin from.")
    try:
        model.load_weights(path)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"The weights in {path} are not those of {model.name}: {in_one_line(error)}.") from error


@dataclass(frozen=True, repr=False)
class SavedRun(Shown):
    """A run as its directory holds it, finished or not.

    Attributes:
        directory: the run's.
        settings: what the run depends on, JSON types.
        history: of every step, as in `TrainingResult`.
        epochs, validations: as in `TrainingResult`.
        result: None if the run is not finished.
        checkpoints: those that are kept, by step.
    """

    directory: Path
    settings: dict[str, Any]
    history: dict[str, NDArray[Any]]
    epochs: list[EpochRecord]
    validations: list[EpochRecord]
    result: TrainingResult | None
    checkpoints: list[Checkpoint]

    def _rows(self) -> list[dict[str, object]]:
        metrics = self.epochs[-1].metrics if self.epochs else {}
        return [
            {
                "run": self.directory,
                "state": "not finished" if self.result is None else "finished",
                "epochs": len(self.epochs),
                "steps": f"{len(self.history['step']):,}",
                **{name: f"{value:.4g}" for name, value in metrics.items()},
                "checkpoints": len(self.checkpoints),
            }
        ]

    def model(self, name: str = "final") -> keras.Model:
        """Return a finished run's model, compiled: "final", "best" of all epochs, or "averaged".

        Raises:
            ValueError: if there is no such file.
        """
        path = self.directory / f"{name}.keras"
        if not path.is_file():
            there = ", ".join(sorted(path.name for path in self.directory.glob("*.keras"))) or "none"
            raise ValueError(f"There is no {path}; the models there are: {there}.")
        return keras.models.load_model(path)

    def load_weights(self, model: keras.Model, step: int | None = None) -> None:
        """Give a model the weights of a checkpoint, without the data; the newest, or that of a step.

        Raises:
            CheckpointError: if there is no such checkpoint, it is damaged, or the model has other variables.
        """
        candidates = [checkpoint for checkpoint in self.checkpoints if step in (None, checkpoint.step)]
        if not candidates:
            steps = ", ".join(str(checkpoint.step) for checkpoint in self.checkpoints) or "none"
            raise CheckpointError(f"{self.directory} holds no checkpoint of step {step}; choose one of: {steps}.")
        checkpoints.load_weights(model, candidates[-1])


@checked_types
def load_run(run_dir: str | os.PathLike[str]) -> SavedRun:
    """Read a run's directory.

    Raises:
        ValueError: if there is no run, or a file is damaged.
    """
    directory = run_files.expanded(run_dir)
    if not (directory / run_files.CONFIG).is_file():
        raise ValueError(f"{directory} holds no run; it has no {run_files.CONFIG}.")
    epochs, validations = read_epochs(directory)
    return SavedRun(
        directory,
        run_files.read_json(directory / run_files.CONFIG, run_files.CONFIG_SHAPE),
        run_files.read_history(directory),
        epochs,
        validations,
        read_result(directory),
        find(directory / run_files.CHECKPOINTS),
    )
