"""Checkpoints: a run's whole state on disk, written whole and verified when it is read.

A checkpoint is a directory of two files. `variables.npz` holds the variables of model and optimizer as NumPy arrays,
and `manifest.json` says what they are: paths, shapes and dtypes, the loop's settings, the place in the data, digests.
The directory is written under another name and renamed when it is complete, so whatever has a checkpoint's name was
finished. The digests find damage that is done to it later. Nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import itertools
import json
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from absl import logging

from clr_loop.display import Shown
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.state import Snapshot
from clr_loop.runs import files as run_files
from clr_loop.runs.files import MANIFEST, VARIABLES
from clr_loop.runs.result import Best, Monitor
from clr_loop.runs.settings import in_words, loop_settings

_FORMAT = 3
_SHAPE = {
    "step": int, "num_skipped": int, "origin": list, "num_averaged": int, "metrics": dict, "loop": dict,
    "files": {VARIABLES: str},
}  # fmt: skip
_DRAFT = ".draft_"
_NAME = re.compile(r"step_\d{10}(_skipped_\d{6})?(_again_\d+)?")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: it belongs to another run than the loop that it is read into, or is damaged."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are not those that were saved."""

    def __init__(self, directory: Path, what: str) -> None:
        super().__init__(f"The checkpoint {directory} is damaged: {what}.")


class Origin(NamedTuple):
    """Where a loop stood when a run of it began: a run counts its own steps, from 0.

    Attributes:
        step, num_skipped: int, updates that the loop had taken and skipped before.
    """

    step: int = 0
    num_skipped: int = 0

    @property
    def position(self) -> int:
        """Batches that the loop had visited before."""
        return self.step + self.num_skipped


@dataclass(frozen=True, repr=False)
class Checkpoint(Shown):
    """A checkpoint: its directory, and its manifest as JSON types."""

    directory: Path
    manifest: dict[str, Any]

    def _rows(self) -> list[dict[str, object]]:
        metrics = {name: f"{value:.4g}" for name, value in self.manifest["metrics"].items()}
        return [{"step": self.step, **metrics, "directory": self.directory}]

    @property
    def step(self) -> int:
        """Steps that the run had taken when it was saved."""
        return int(self.manifest["step"])

    @property
    def position(self) -> int:
        """Batches that the run had visited when it was saved: steps taken and updates skipped."""
        return self.step + int(self.manifest["num_skipped"])

    @property
    def origin(self) -> Origin:
        """Where the loop stood when the run began."""
        return Origin(*self.manifest["origin"])


class RunCheckpoints:
    """Saves checkpoints of a loop in a directory; keeps the newest `keep` of them, and the best (see `best_of`).

    Only checkpoints that this package has written are ever removed. Whatever else is there is stepped over.
    """

    def __init__(self, directory: Path, loop: TrainLoop, keep: int, monitor: Monitor = Monitor()) -> None:
        for draft in directory.glob(f"{_DRAFT}*"):
            if draft.name.removeprefix(_DRAFT).isdecimal():
                _remove(draft)
        self._directory, self._loop, self._keep, self._monitor = directory, loop, keep, monitor
        self._description = _description(loop)
        self.origin = Origin(loop.step, loop.num_skipped)
        self._kept: list[Checkpoint] = []
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._finishing: Future[None] | None = None

    @property
    def newest(self) -> Checkpoint | None:
        """The checkpoint of the latest step. Raises OSError if its writing failed."""
        return self.kept[-1] if self.kept else None

    @property
    def kept(self) -> list[Checkpoint]:
        """The checkpoints that are kept, by step. Raises OSError if the writing of one failed."""
        self.settle()
        return self._kept

    def save(self, metrics: Mapping[str, float], notes: Mapping[str, Any]) -> str | None:
        """Save the loop's state, unless it is saved already; save nothing and return a variable that is not finite.

        The state is copied at once, and a thread writes it beside the next steps. If that fails, this or the next call
        raises OSError, and what was saved before is untouched.

        Args:
            metrics: of the epoch that ends here; {} in mid-epoch.
            notes: JSON types, for the manifest.
        """
        loop = self._loop
        step, num_skipped = loop.step - self.origin.step, loop.num_skipped - self.origin.num_skipped
        if self.newest is not None and (self.newest.step, self.newest.position) == (step, step + num_skipped):
            return None
        state = loop.snapshot()
        for variable, value in zip(_variables(loop), [*state.model, *state.optimizer], strict=True):
            if value.dtype.kind in "fV" and not np.isfinite(value).all():  # V: bfloat16 and its like.
                return variable.path
        epoch, batch = divmod(step + num_skipped, loop.steps_per_epoch)
        place = {"step": step, "num_skipped": num_skipped, "epoch": epoch, "batch": batch, "origin": self.origin}
        place["num_averaged"] = state.num_averaged
        notes = copy.deepcopy(dict(notes))  # The run goes on while the thread writes.
        manifest = {"format": _FORMAT, **place, "metrics": dict(metrics), "loop": self._description, **notes}
        self._finishing = self._thread.submit(self._write, state, manifest)
        return None

    def settle(self) -> None:
        """Return when what `save` has begun is finished. Raises OSError if it could not be written."""
        finishing, self._finishing = self._finishing, None
        if finishing is not None:
            finishing.result()

    def _write(self, state: Snapshot, manifest: dict[str, Any]) -> None:
        """Write a checkpoint as a draft and rename it; in a thread, beside the next steps."""
        draft = self._directory / f"{_DRAFT}{manifest['step']}"
        try:
            _remove(draft)
            draft.mkdir(parents=True)
            arrays = {f"model.{i}": array for i, array in enumerate(state.model)}
            arrays |= {f"optimizer.{i}": array for i, array in enumerate(state.optimizer)}
            arrays |= {f"other.{i}": array for i, array in enumerate(state.others)}
            arrays |= {f"average.{i}": array for i, array in enumerate(state.averages)}
            np.savez(draft / VARIABLES, allow_pickle=False, **arrays)
            manifest["files"] = {VARIABLES: hashlib.sha256((draft / VARIABLES).read_bytes()).hexdigest()}
            manifest["manifest_sha256"] = _manifest_sha256(manifest)
            run_files.write_json(draft / MANIFEST, manifest)
            directory = self._free_name(manifest["step"], manifest["num_skipped"])
            draft.rename(directory)
            self._kept.append(Checkpoint(directory, manifest))
            self._remove_old()
        except OSError as error:
            raise OSError(
                f"The checkpoint of step {manifest['step']} could not be written to {self._directory} "
                f"({error.strerror or error}); free some space or choose another directory."
            ) from error

    def _free_name(self, step: int, num_skipped: int) -> Path:
        name = f"step_{step:010d}" + (f"_skipped_{num_skipped:06d}" if num_skipped else "")
        names = itertools.chain([name], (f"{name}_again_{i}" for i in itertools.count(2)))
        return next(path for path in map(self._directory.joinpath, names) if not os.path.lexists(path))

    def newest_whole(self, step: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint whose files are those that were saved, None if there is none at all.

        With a step, only a checkpoint of that step will do. This warns of each damaged one, and raises CheckpointError
        if all are damaged or there is none of that step.
        """
        self._kept = find(self._directory)
        candidates = [checkpoint for checkpoint in self._kept if step in (None, checkpoint.step)]
        if step is not None and not candidates:
            steps = ", ".join(str(checkpoint.step) for checkpoint in self._kept) or "none"
            raise CheckpointError(f"{self._directory} holds no checkpoint of step {step}; choose one of: {steps}.")
        for checkpoint in reversed(candidates):
            try:
                _check_files(checkpoint)
            except DamagedCheckpointError as error:
                logging.warning("%s The one before it is used.", error)
            else:
                return checkpoint
        if any(_entries(self._directory)):
            raise CheckpointError(f"{self._directory} holds no checkpoint that is whole; start a new run.")
        return None

    def forget_later(self, checkpoint: Checkpoint) -> None:
        """Remove the checkpoints after this one, because the run will come by their steps again."""
        self._kept = [kept for kept in self._kept if kept.position <= checkpoint.position]
        for path in _entries(self._directory):
            if path.name > checkpoint.directory.name:
                _remove(path)

    def _remove_old(self) -> None:
        keep = self._kept[-self._keep :]
        with contextlib.suppress(ValueError):  # None was saved at the end of an epoch with validation.
            keep.append(best_of(self._kept, self._monitor))
        for checkpoint in self._kept:
            if checkpoint not in keep:
                _remove(checkpoint.directory)
        self._kept = [checkpoint for checkpoint in self._kept if checkpoint in keep]


def find(directory: Path) -> list[Checkpoint]:
    """Return the checkpoints in a run's directory `checkpoints`, by step; warn of those whose manifest is damaged.

    Raises:
        CheckpointError: if one was saved by another version of this package.
    """
    readable = []
    for path in _entries(directory):
        try:
            readable.append(Checkpoint(path, _read_manifest(path)))
        except DamagedCheckpointError as error:
            logging.warning("%s", error)
    return sorted(readable, key=lambda checkpoint: (checkpoint.position, checkpoint.directory.name))


def best_of(checkpoints: list[Checkpoint], monitor: Monitor = Monitor()) -> Checkpoint:
    """Return the one whose epoch has the best rating by the monitored metric; the earliest of several.

    Raises:
        ValueError: if none was saved at the end of an epoch with validation.
    """
    best = Best(monitor)
    better = [checkpoint for checkpoint in checkpoints if best.is_better(checkpoint.manifest["metrics"])]
    if not better:
        raise ValueError("No checkpoint was saved at the end of an epoch with validation; save one each epoch.")
    return better[-1]


def restore(loop: TrainLoop, checkpoint: Checkpoint) -> None:
    """Put a loop into the state of a checkpoint: all variables, the step, and with it the place in the data.

    Raises:
        DamagedCheckpointError: if a file is missing or not the one that was saved. The loop is unchanged.
        CheckpointError: if the loop differs from the one that was saved in model, optimizer, data or options. The loop
            is unchanged.
    """
    _check_files(checkpoint)
    if words := in_words(checkpoint.manifest["loop"], _description(loop)):
        raise CheckpointError(
            f"The checkpoint {checkpoint.directory} belongs to another run: {'; '.join(words.values())}. Use what it "
            "was saved with, or another directory."
        )
    model = read_variables(checkpoint, "model", loop.model.variables)
    averages = [] if loop.averages is None else read_variables(checkpoint, "average", loop.averages.values)
    loop.restore(
        Snapshot(
            model,
            optimizer=read_variables(checkpoint, "optimizer", loop.optimizer_variables),
            others=read_variables(checkpoint, "other", loop.other_variables),
            averages=averages,
            seed=loop.seed,
            step=checkpoint.origin.step + checkpoint.step,
            num_skipped=checkpoint.origin.num_skipped + checkpoint.manifest["num_skipped"],
            num_averaged=checkpoint.manifest["num_averaged"],
        )
    )


def read_variables(
    checkpoint: Checkpoint, of: Literal["model", "optimizer", "other", "average"], variables: Sequence[Any]
) -> list[np.ndarray]:
    """Return what a checkpoint holds for these variables.

    Raises:
        DamagedCheckpointError: if a file is missing or not the one that was saved.
        CheckpointError: if their number, a shape or a dtype is another one.
    """
    content = _check_files(checkpoint)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            names = [name for name in arrays.files if name.startswith(f"{of}.")]
            if len(names) != len(variables):
                raise ValueError(f"it has {len(names)} variables of the {of} in place of {len(variables)}")
            return [_like(arrays[f"{of}.{i}"], variable) for i, variable in enumerate(variables)]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"The checkpoint {checkpoint.directory} cannot be read: {error}.") from error


def load_weights(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Give a model the weights of a checkpoint. Raises as `read_variables` does; the model is unchanged then."""
    arrays = read_variables(checkpoint, "model", model.variables)
    for variable, array in zip(model.variables, arrays, strict=True):
        variable.assign(array)


def _like(array: np.ndarray, variable: Any) -> np.ndarray:
    """Return an array with a variable's dtype: NumPy's files do not know bfloat16 and its like."""
    old = np.array(keras.ops.convert_to_numpy(variable))
    array = array.view(old.dtype) if array.dtype.kind == "V" else array
    if array.shape != old.shape or array.dtype != old.dtype:
        raise ValueError(f"a variable has {array.dtype}{array.shape} in place of {old.dtype}{old.shape}")
    return array


def _entries(directory: Path) -> list[Path]:
    """Return what was written as a checkpoint: a directory with such a name that is not a link."""
    paths = sorted(path for path in directory.glob("step_*") if _NAME.fullmatch(path.name))
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def _remove(directory: Path) -> None:
    """Remove a checkpoint or the draft of one; what else is in the directory stays, and with it the directory."""
    if directory.is_symlink() or not directory.is_dir():
        return
    for name in (MANIFEST, VARIABLES, f".{MANIFEST}.draft"):  # Without its manifest it is no checkpoint any more.
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _variables(loop: TrainLoop) -> list[keras.Variable]:
    return [*loop.model.variables, *loop.optimizer_variables]


def _description(loop: TrainLoop) -> dict[str, Any]:
    """Return what must be equal in the loop that was saved and the one that it is restored into."""
    # Keras numbers what it names itself in one process, as in `adam_3/iteration`; another process counts from 0 again.
    paths = [re.sub(r"_\d+(?=[/_]|$)", "", variable.path) for variable in _variables(loop)]
    variables = [f"{p} {v.dtype}{list(v.shape)}" for p, v in zip(paths, _variables(loop), strict=True)]
    return {**loop_settings(loop), "variables": variables, "data_sha256": loop.data_sha256()}


def _check_files(checkpoint: Checkpoint) -> bytes:
    """Return the content of the variables' file, if it is what was saved."""
    path = checkpoint.directory / VARIABLES
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != checkpoint.manifest["files"][VARIABLES]:
        raise DamagedCheckpointError(checkpoint.directory, f"{VARIABLES} is not what was saved")
    return content


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = run_files.read_json(directory / MANIFEST, {"format": int, "manifest_sha256": str})
        if manifest["manifest_sha256"] != _manifest_sha256(manifest):
            raise ValueError("it is not what was saved")
        if manifest["format"] == _FORMAT:
            run_files.check_shape(manifest, _SHAPE, "it")
            run_files.check_shape(manifest["metrics"], dict.fromkeys(manifest["metrics"], (int, float)), "metrics")
            counts = [manifest[name] for name in ("step", "num_skipped", "num_averaged")] + manifest["origin"]
            if len(counts) != 5 or not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError("it does not count in whole numbers from 0")
    except (ValueError, TypeError) as error:
        raise DamagedCheckpointError(directory, f"{MANIFEST}: {error}") from error
    if manifest["format"] != _FORMAT:
        raise CheckpointError(
            f"The checkpoint {directory} has format {manifest['format']}, and this version of clr_loop reads format "
            f"{_FORMAT}. Up to format 2 the loop divided uint8 inputs by 255; now the model gets them as they are. Use "
            "the version that saved it, or start a new run."
        )
    return manifest


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
