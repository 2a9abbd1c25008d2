"""Checkpoints: a run's whole state on disk, written whole, verified when read.

A checkpoint is a directory with the variables of model and optimizer in TensorFlow's own format and a `manifest.json`
that says what they are: variable paths, shapes and dtypes, optimizer, place in the data, digests of the files. It is
written under another name and renamed when it is complete, so a name that can be found is a checkpoint that was
finished; damage done to it later is found by the digests. Nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from clr_loop import run_files
from clr_loop.loop import TrainLoop

_FORMAT = 1
_MANIFEST, _VARIABLES = "manifest.json", "variables"
_DRAFT = ".draft"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: it is of another run than the loop that it is read into, or damaged."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not those that were saved."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as its manifest describes it; its files are verified by `restore`.

    Attributes:
        directory: where it is.
        manifest: JSON types.
    """

    directory: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps taken when it was saved."""
        return int(self.manifest["step"])

    @property
    def val_accuracy(self) -> float | None:
        """Validation accuracy, 0–1, if it was saved at the end of an epoch."""
        return self.manifest["val_accuracy"]


class RunCheckpoints:
    """Saves checkpoints of a loop, keeps the newest and the best of them, and goes back to the newest that is whole.

    Args:
        directory: of all the run's checkpoints; made when the first is saved.
        train_loop: the loop to save.
        keep: int, at least 1: how many of the newest to keep; the one of the highest validation accuracy stays too.

    Raises:
        ValueError: if keep is below 1.
    """

    def __init__(self, directory: Path, train_loop: TrainLoop, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep_checkpoints must be at least 1, received {keep}; 3 is usual")
        for leftover in directory.glob(f"{_DRAFT}*"):
            shutil.rmtree(leftover)
        self._directory = directory
        self._train_loop = train_loop
        self._keep = keep
        self._kept = find(directory)
        # Traced once: called eagerly, it would spend most of its time in building the same operations again.
        self._write = tf.function(_writer(train_loop), input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
        self._constant = _description(train_loop)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._finishing: Future[None] | None = None

    @property
    def newest(self) -> Checkpoint | None:
        """The checkpoint of the latest step. Raises OSError if its writing failed."""
        self.settle()
        return self._kept[-1] if self._kept else None

    def save(self, val_accuracy: float | None, notes: Mapping[str, Any]) -> None:
        """Saves the loop's state, unless it is saved already or holds a variable that is not finite.

        The variables are on disk when this returns; digests, manifest and the renaming that makes a checkpoint of them
        follow in a thread. A process that is killed before has the checkpoint before.

        Args:
            val_accuracy: of this state, 0–1, or None.
            notes: JSON types, for the manifest.

        Raises:
            OSError: if it, or the one before it, cannot be written; what was saved before is untouched.
        """
        train_loop = self._train_loop
        place = {"step": train_loop.step, "num_skipped": train_loop.num_skipped}
        if self.newest is not None and place == {name: self.newest.manifest[name] for name in place}:
            return
        epoch, batch = divmod(train_loop.position, train_loop.steps_per_epoch)
        draft = self._directory / f"{_DRAFT}_{train_loop.step}"
        with self._os_errors(train_loop.step):
            draft.mkdir(parents=True)
            is_finite = self._write(tf.constant(str(draft / _VARIABLES)))
        if not is_finite:
            # The loss of the next step will tell; the checkpoint to go back to is the one before.
            shutil.rmtree(draft)
            return
        manifest = {
            "format": _FORMAT,
            **place,
            "epoch": epoch,
            "index": batch * train_loop.batch_size,
            "val_accuracy": val_accuracy,
            **self._constant,
            **notes,
        }
        self._finishing = self._thread.submit(self._finish, draft, manifest)

    def settle(self) -> None:
        """Returns when what `save` has begun is finished.

        Raises:
            OSError: if it could not be written.
        """
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    def _finish(self, draft: Path, manifest: dict[str, Any]) -> None:
        """Makes a checkpoint of a draft whose variables are written; in a thread, beside the next steps."""
        with self._os_errors(manifest["step"]):
            manifest["files"] = {file.name: _file_sha256(file) for file in sorted(draft.iterdir())}
            manifest["manifest_sha256"] = _manifest_sha256(manifest)
            (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            directory = self._directory / _name(manifest["step"], manifest["num_skipped"])
            draft.rename(directory)
            self._kept.append(Checkpoint(directory, manifest))
            self._remove_old()

    @contextlib.contextmanager
    def _os_errors(self, step: int) -> Iterator[None]:
        """What the operating system says, in one line, for a disk that is full or gone."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            raise OSError(
                f"checkpoint of step {step} could not be written to {self._directory} ({_reason(error)}); free some "
                "space or choose another directory"
            ) from error

    def restore_newest(self) -> Checkpoint | None:
        """Restores the newest checkpoint that is whole, naming in a warning each damaged one on the way to it.

        The damaged ones are removed, because the run will come by their steps again.

        Returns:
            The checkpoint restored; None, and the loop unchanged, if none was ever saved.

        Raises:
            CheckpointError: if the newest whole one is of another run, or all are damaged.
        """
        while self.newest is not None:
            try:
                restore(self._train_loop, self.newest)
            except DamagedCheckpointError as error:
                logging.warning("%s; the one before it is used", error)
                self._kept.pop()
                continue
            for path in self._directory.glob("step_*"):
                if path.name > self.newest.directory.name:
                    shutil.rmtree(path)
            return self.newest
        if any(self._directory.glob("step_*")):
            raise CheckpointError(f"{self._directory} holds no checkpoint that is whole; start a new run")
        return None

    def _remove_old(self) -> None:
        rated = [checkpoint for checkpoint in self._kept if checkpoint.val_accuracy is not None]
        keep = self._kept[-self._keep :] + ([best_of(rated)] if rated else [])
        for checkpoint in self._kept:
            if checkpoint not in keep:
                # Out of sight first: half of a removal must not look like a checkpoint.
                leaving = checkpoint.directory.rename(self._directory / f"{_DRAFT}_{checkpoint.directory.name}")
                shutil.rmtree(leaving)
        self._kept = [checkpoint for checkpoint in self._kept if checkpoint in keep]


def find(directory: Path) -> list[Checkpoint]:
    """Returns the checkpoints in a directory whose manifest can be read, by step; warns of the others.

    Args:
        directory: a run's `checkpoints`; [] if it does not exist.
    """
    found = []
    for path in sorted(directory.glob("step_*")):
        try:
            found.append(Checkpoint(path, _read_manifest(path)))
        except CheckpointError as error:
            logging.warning("%s", error)
    return found


def best_of(checkpoints: list[Checkpoint]) -> Checkpoint:
    """Returns the one of the highest validation accuracy, the earliest of several.

    Args:
        checkpoints: from `find`, at least one of them saved at the end of an epoch.

    Raises:
        ValueError: if none was.
    """
    rated = [checkpoint for checkpoint in checkpoints if checkpoint.val_accuracy is not None]
    if not rated:
        raise ValueError("checkpoints must hold one from the end of an epoch, received none; save one an epoch")
    return max(rated, key=lambda checkpoint: checkpoint.val_accuracy or 0.0)


def restore(train_loop: TrainLoop, checkpoint: Checkpoint) -> None:
    """Puts a loop into the state of a checkpoint: all variables, the step, and with it the place in the data.

    Args:
        train_loop: of the same model, optimizer, data and batch size as the one that was saved.
        checkpoint: from `find`.

    Raises:
        DamagedCheckpointError: if a file is missing or not the one that was saved. The loop is unchanged.
        CheckpointError: if the loop differs from the one that was saved. The loop is unchanged.
    """
    for name, sha256 in checkpoint.manifest["files"].items():
        path = checkpoint.directory / name
        if not path.is_file() or _file_sha256(path) != sha256:
            raise DamagedCheckpointError(f"checkpoint {checkpoint.directory} is damaged: {name} is not what was saved")
    _check_same(checkpoint, _description(train_loop))
    before = train_loop.snapshot()
    try:
        _saver(train_loop).read(str(checkpoint.directory / _VARIABLES)).assert_consumed()
    except (tf.errors.OpError, AssertionError, ValueError) as error:
        train_loop.restore(before)
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"checkpoint {checkpoint.directory} cannot be read: {reason}") from error
    train_loop.num_skipped = checkpoint.manifest["num_skipped"]


def _saver(train_loop: TrainLoop) -> tf.train.Checkpoint:
    # Lists, in the order that the manifest names, so that nothing depends on how Keras tracks its objects.
    return tf.train.Checkpoint(
        model=[variable.value for variable in train_loop.model.variables],
        optimizer=[variable.value for variable in train_loop.optimizer.variables],
    )


def _writer(train_loop: TrainLoop) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function of a path that writes all variables there, and returns whether all of them are finite."""
    saver = _saver(train_loop)
    variables = [variable.value for variable in (*train_loop.model.variables, *train_loop.optimizer.variables)]
    floats = [variable for variable in variables if variable.dtype.is_floating]

    def write(path: tf.Tensor) -> tf.Tensor:
        saver.write(path)
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(variable)) for variable in floats])

    return write


def _description(train_loop: TrainLoop) -> dict[str, Any]:
    """What must be equal in the loop that was saved and the one that it is restored into."""
    optimizer_config = train_loop.optimizer.get_config()
    for name in ("learning_rate", "name"):
        optimizer_config.pop(name, None)
    return {
        "model_variables": [_variable(variable) for variable in train_loop.model.variables],
        "optimizer": type(train_loop.optimizer).__name__,
        "optimizer_config": json.loads(json.dumps(optimizer_config, default=repr)),
        "optimizer_variables": [_variable(variable) for variable in train_loop.optimizer.variables],
        "batch_size": train_loop.batch_size,
        "seed": train_loop.seed,
        "shuffle": train_loop.shuffle,
        "num_examples": train_loop.num_examples,
        "data_sha256": train_loop.data_sha256(),
    }


def _variable(variable: keras.Variable) -> str:
    return f"{variable.path} {variable.dtype}{list(variable.shape)}"


def _unnumbered(variable: str) -> str:
    """Without the numbers by which Keras tells apart what it has named itself in one process: `adam_3/iteration`."""
    return re.sub(r"_\d+(?=[/_ ])", "", variable)


def _check_same(checkpoint: Checkpoint, description: Mapping[str, Any]) -> None:
    for name, ours in description.items():
        theirs = checkpoint.manifest[name]
        if isinstance(ours, list):  # Of variables: the first that differs tells more than all of them.
            pairs = itertools.zip_longest(theirs, ours, fillvalue="nothing")
            theirs, ours = next((pair for pair in pairs if _unnumbered(pair[0]) != _unnumbered(pair[1])), (None, None))
        if theirs == ours:
            continue
        if isinstance(ours, dict):
            theirs, ours = run_files.only_differing(theirs, ours)
        raise CheckpointError(
            f"checkpoint {checkpoint.directory} is of another run: {name.replace('_', ' ')} {theirs}, received {ours}; "
            "use the settings that it was saved with, or another directory"
        )


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / _MANIFEST).read_text())
        is_whole = manifest["manifest_sha256"] == _manifest_sha256(manifest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(
            f"checkpoint {directory} is damaged: {_MANIFEST} cannot be read ({error})"
        ) from error
    if not is_whole:
        raise DamagedCheckpointError(f"checkpoint {directory} is damaged: {_MANIFEST} is not what was saved")
    if manifest["format"] != _FORMAT:
        raise CheckpointError(
            f"checkpoint {directory} must be of format {_FORMAT}, received {manifest['format']}; use the clr_loop that "
            "saved it"
        )
    return manifest


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _reason(error: OSError | tf.errors.OpError) -> str:
    """What the operating system said, without TensorFlow's account of where in the graph that was."""
    text = error.strerror if isinstance(error, OSError) else error.message
    return next((code for code in map(os.strerror, errno.errorcode) if code in str(text)), type(error).__name__)


def _name(step: int, num_skipped: int) -> str:
    return f"step_{step:010d}" + (f"_skipped_{num_skipped:06d}" if num_skipped else "")
