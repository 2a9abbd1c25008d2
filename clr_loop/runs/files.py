"""A run directory: who holds it, the files in it, and which of them may be removed. Plain JSON and CSV."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from absl import logging
from numpy.typing import NDArray

from clr_loop.arguments import spelled

CONFIG, RESULT = "config.json", "result.json"
HISTORY, EPOCHS, VALIDATIONS = _CSV = ("history.csv", "epochs.csv", "validations.csv")
CONFIG_SHAPE = {
    "epochs": int, "batch_size": int, "seed": int, "first_step": int, "schedule": {"name": str}, "metric_names": list,
    "versions": dict,
}  # fmt: skip
CHECKPOINTS, MANIFEST, VARIABLES = "checkpoints", "manifest.json", "variables.npz"

# The end of our event files' names tells them from those of others, which TensorBoard would show just as well.
EVENTS_SUFFIX = ".clr_loop"
_EVENTS = f"events.out.tfevents.*{EVENTS_SUFFIX}"
MODELS = ("final", "best", "averaged")
SNAPSHOTS = "snapshots"
_FOLDERS = (CHECKPOINTS, SNAPSHOTS)
_MODEL_FILES = tuple(f"{start}{name}{end}" for name in MODELS for start, end in (
    ("", ".keras"), ("", ".weights.h5"), (".", ".draft.keras"), (".", ".draft.weights.h5"),
))  # fmt: skip
# What a run writes, to the letter. Whatever else is in its directory was put there by somebody else and stays.
_OWN = re.compile("|".join((
    r"config\.json|result\.json|\.config\.json\.draft|\.result\.json\.draft",
    r"(history|epochs|validations|snapshots)\.csv|(curves|snapshots)\.(png|svg|pdf)",
    *map(re.escape, _MODEL_FILES),
    rf"events\.out\.tfevents\.\d{{10}}\..+\.\d{{6}}{re.escape(EVENTS_SUFFIX)}",
    r"checkpoints/(step_\d{10}(_skipped_\d{6})?(_again_\d+)?|\.draft_\d+)/(variables\.npz|\.?manifest\.json(\.draft)?)",
    r"snapshots/(cycle_\d{2,}|\.cycle_\d{2,}\.draft)\.(keras|weights\.h5)",
)))  # fmt: skip

_LARGEST_JSON = 64 * 2**20
_in_use: dict[Path, object] = {}
# What can be gone on with, of what `claim` is asked for.
_RESUMABLE = ("run", "comparison", "smith")


@contextlib.contextmanager
def claim(path: str | os.PathLike[str], kind: str = "run", *, resume: bool = False) -> Iterator[Path]:
    """Hold a directory for this process until the context ends or the process dies; make it if it does not exist.

    Nothing in it is touched. The lock file `<kind>.lock` stays in it and says what the directory is.

    Args:
        path: of the directory.
        kind: what the directory is for. One of another kind is never taken.
        resume: whether it may hold something of this kind already. The holder may claim it again in any case.

    Raises:
        FileExistsError: if the directory is not empty and `resume` is False, or holds something of another kind.
        BlockingIOError: if another process holds the directory.
        OSError: as `make`.
    """
    directory = make(path)
    lock = filelock.FileLock(directory / f"{kind}.lock", blocking=False, is_singleton=True)
    is_wanted = resume or lock.is_locked
    _check_content(directory, kind, is_wanted)  # A directory that is refused does not even get a lock.
    try:
        with lock:
            _check_content(directory, kind, is_wanted)
            _check_links(directory)
            yield directory
    except filelock.Timeout as error:
        raise BlockingIOError(
            f"The directory {directory} is held by another process; wait for that to end or choose another directory."
        ) from error


def _check_content(directory: Path, kind: str, is_wanted: bool) -> None:
    """Raise FileExistsError if what a directory holds does not allow to claim it."""
    lock = directory / f"{kind}.lock"
    if all(file == lock for file in directory.iterdir()):
        return
    if not lock.exists():
        raise FileExistsError(f"The directory {directory} is not empty and holds no {kind}; choose another.")
    if not is_wanted:
        resuming = f"give {spelled(resume=True)} to go on with it, " if kind in _RESUMABLE else ""
        raise FileExistsError(
            f"The directory {directory} already holds a {kind}. Choose another, {resuming}or give "
            f"{spelled(overwrite=True)} to replace it."
        )


def _check_links(directory: Path) -> None:
    """Raise FileExistsError if a link stands where this package would write: it leads to somebody else's file."""
    for path in [*directory.iterdir(), *(directory / SNAPSHOTS).glob("*")]:
        name = path.relative_to(directory).as_posix()
        if path.is_symlink() and (name in _FOLDERS or _OWN.fullmatch(name)):
            raise FileExistsError(f"{path} is a link, and a run writes into its own directory alone; remove the link.")


@contextlib.contextmanager
def sole_use(directory: Path) -> Iterator[None]:
    """Raise BlockingIOError if another `fit` of this process works in the directory."""
    key, mine = directory.resolve(), object()
    if _in_use.setdefault(key, mine) is not mine:  # Looks and sets at once, so two threads cannot both succeed.
        raise BlockingIOError(f"Another fit in this process writes to {directory}; give each its own run_dir.")
    try:
        yield
    finally:
        del _in_use[key]


def make(path: str | os.PathLike[str]) -> Path:
    """Make a directory, if it is not there yet, and return it; ~ is the user's home.

    Raises OSError if it cannot be made or written to.
    """
    directory = expanded(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        why = "a file has its name" if is_file else f"the system says: {error.strerror}"
        raise type(error)(f"The directory {directory} cannot be made, because {why}; choose another.") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(f"You cannot write to the directory {directory}; choose another.")
    return directory


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with the user's home in place of ~."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(f"{path} cannot be found, because the home of its user is not known; write it out.") from error


def clear(directory: Path) -> None:
    """Remove the files of a run, and the directories that this leaves empty. No link is followed.

    Args:
        directory: a claimed directory.
    """
    for path in _without_links(directory, "**/*"):
        if _OWN.fullmatch(path.relative_to(directory).as_posix()) and path.is_file() and not path.is_symlink():
            path.unlink()
            _remove_empty(path.parent, directory)


def set_aside(directory: Path) -> Path | None:
    """Move what a claimed directory holds, but its lock, into a new one beside it, such as `train.1` for `train`.

    Returns:
        The new directory, or None where there was nothing to move.
    """
    directory = directory.resolve()
    held = [path for path in directory.iterdir() if path.suffix != ".lock"] if directory.is_dir() else []
    if not held:
        return None
    names = (directory.with_name(f"{directory.name}.{i}") for i in itertools.count(1))
    aside = next(path for path in names if not os.path.lexists(path))
    aside.mkdir()
    for path in held:
        path.rename(aside / path.name)
    for lock in directory.glob("*.lock"):  # It says what the directory holds.
        (aside / lock.name).touch()
    return aside


def _without_links(directory: Path, pattern: str) -> list[Path]:
    """Return what a pattern finds without passing through a link on the way."""
    paths = sorted(directory.glob(pattern))
    return [p for p in paths if not any(d.is_symlink() for d in p.parents if directory in d.parents)]


def _remove_empty(directory: Path, root: Path) -> None:
    with contextlib.suppress(OSError):
        while directory != root:
            directory.rmdir()
            directory = directory.parent


def unfinish(directory: Path) -> None:
    """Remove what only a finished run has: its result and its models."""
    for name in (RESULT, *_MODEL_FILES):
        (directory / name).unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file under another name first and rename it, so that no reader sees half of it."""
    draft = path.with_name(f".{path.name}.draft")
    with _naming(path):
        draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, at least one, that all have the names of the first."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_json(path: Path, shape: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a JSON object, with NaN and infinities as Python writes them.

    Args:
        path: of the file, which may come from anybody.
        shape: what the object must hold: name → a type, a tuple of them, or the shape of an object within.

    Raises:
        ValueError: if there is no such object, or it is larger than 64 MiB.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError("it is larger than 64 MiB")
        content = json.loads(path.read_text())
        check_shape(content, shape or {}, "it")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it or start a new run.") from error
    return content


def check_shape(value: Any, shape: Any, name: str) -> None:
    """Raise ValueError, which calls the value by this name, if it does not have a shape; see `read_json`."""
    if isinstance(shape, Mapping):
        check_shape(value, dict, name)
        for key, inner in shape.items():
            if key not in value:
                raise ValueError(f"{name} has no {key}")
            check_shape(value[key], inner, key)
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is int):
        raise ValueError(f"{name} is {'an object' if isinstance(value, dict) else repr(value)[:40]}")


class RunFiles:
    """Appends to the CSV files in a claimed directory while a run goes on.

    history.csv has a line for each step: the 0-based step, then its metrics. epochs.csv has a line for each epoch, and
    validations.csv, made when the first comes, one of the same form for each validation within an epoch.

    Every method raises OSError if a file is no longer what was written to it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = {name: _OwnFile(directory / name) for name in (HISTORY, EPOCHS)}

    def add_steps(self, first_step: int, metrics: Mapping[str, NDArray[np.float32]]) -> None:
        """Append a line for each step from `first_step` on; metrics: name → float32 [n], the same names each time."""
        columns = [values.tolist() for values in metrics.values()]
        # Nine digits tell any two float32 apart.
        form = ",".join(["%d", *["%.9g"] * len(columns)]) + "\n"
        rows = zip(range(first_step, first_step + len(columns[0])), *columns, strict=True)
        self._files[HISTORY].append(["step", *metrics], "".join([form % row for row in rows]))

    def add_epoch(self, row: Mapping[str, float]) -> None:
        """Append a line for an epoch; the same names each time."""
        self._add_row(EPOCHS, row)

    def add_validation(self, row: Mapping[str, float]) -> None:
        """Append a line for a validation within an epoch; the same names each time."""
        if VALIDATIONS not in self._files:
            self._files[VALIDATIONS] = _OwnFile(self._directory / VALIDATIONS)
        self._add_row(VALIDATIONS, row)

    def _add_row(self, name: str, row: Mapping[str, float]) -> None:
        self._files[name].append(list(row), ",".join(map(repr, row.values())) + "\n")

    def verify(self) -> None:
        """Read all of the files, and compare them with what was written."""
        for file in self._files.values():
            file.verify()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


class _OwnFile:
    """A text file that nobody else may write to while it is open."""

    def __init__(self, path: Path) -> None:
        self._path, self._digest = path, hashlib.sha256(path.read_bytes() if path.is_file() else b"")
        self._file = open(path, "a", newline="")  # noqa: SIM115 (It is closed by `close`.)
        self._place = place_of(path)

    def append(self, header: list[str], lines: str) -> None:
        if place_of(self._path) != self._place:
            raise changed(self._path)
        if self._file.tell() == 0:
            first = io.StringIO()
            csv.writer(first, lineterminator="\n").writerow(header)  # A metric may have any name.
            lines = first.getvalue() + lines
        with _naming(self._path):
            self._file.write(lines)
            self._file.flush()
        self._digest.update(lines.encode())
        self._place = place_of(self._path)

    def verify(self) -> None:
        is_there = place_of(self._path) == self._place
        if not is_there or hashlib.sha256(self._path.read_bytes()).digest() != self._digest.digest():
            raise changed(self._path)

    def close(self) -> None:
        with _naming(self._path):
            self._file.close()


def place_of(path: Path) -> tuple[int, ...]:
    """Return what tells a file from a copy of it, and its size in bytes; () if it is gone."""
    try:
        status = os.stat(path, follow_symlinks=False)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size


def changed(path: str | Path) -> OSError:
    """Return the error of a file that is no longer what the run has written."""
    what = "was removed, replaced or changed while the run was writing to it"
    return OSError(f"{path} {what}; the run ends here. Resume it from its checkpoints, or start a new run.")


@contextlib.contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Give an OSError that names no file, such as that of a full disk, the name of this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_history(directory: Path) -> dict[str, NDArray[Any]]:
    """Read `history.csv`: `step` int64 [n], every other column float32 [n], to the bit; {} if it holds nothing yet.

    Raises ValueError, as does `read_epochs`, if the file holds anything else.
    """
    columns = _read_csv(directory / HISTORY)
    return {name: values if name == "step" else values.astype(np.float32) for name, values in columns.items()}


def read_epochs(directory: Path, name: str = EPOCHS) -> list[dict[str, float]]:
    """Read `epochs.csv` or `validations.csv`: a dictionary a line, with ints for `epoch` and `step`, else floats."""
    columns = _read_csv(directory / name)
    return [dict(zip(columns, row, strict=True)) for row in zip(*(v.tolist() for v in columns.values()), strict=True)]


def _read_csv(path: Path) -> dict[str, NDArray[Any]]:
    """Read the columns of a file by their names: int64 [n] for `epoch` and `step`, else float64 [n]."""
    if not path.exists():
        return {}
    try:
        with open(path, newline="") as file:
            header, *rows = list(csv.reader(file)) or [[]]
        columns = zip(*rows, strict=True) if rows else [()] * len(header)
        return {
            name: np.array(column, np.int64 if name in ("epoch", "step") else np.float64)
            for name, column in zip(header, columns, strict=True)
        }
    except (ValueError, OverflowError, csv.Error) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or start a new run.") from error


def digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each CSV file that is there, by its name."""
    paths = {name: directory / name for name in _CSV}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items() if path.is_file()}


def small_files(directory: Path) -> dict[str, bytes]:
    """Return the content of a run's settings, result and CSV files, by name: all that `read_result` reads."""
    paths = [directory / name for name in (CONFIG, *_CSV, RESULT)]  # With the last one the run is finished.
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


class GrowingFiles:
    """The files that grow in a run's directory: the CSV files and TensorBoard's events.

    Cutting them back to their sizes at some moment undoes all that was recorded since.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[str, tuple[int, Any]] = {}  # Bytes read so far, and their running digest.

    def notes(self) -> dict[str, dict[str, Any]]:
        """Return {name: {"size": bytes, "sha256": their digest}} of all of them, after a `check`."""
        self.check()
        for name in dict.fromkeys([*self._read, *self._paths()]):
            size, digest = self._read.get(name, (0, hashlib.sha256()))
            with open(self._directory / name, "rb") as file:
                file.seek(size)
                new = file.read()
            digest.update(new)
            self._read[name] = size + len(new), digest
        return {name: {"size": size, "sha256": digest.hexdigest()} for name, (size, digest) in self._read.items()}

    def check(self) -> None:
        """Raise OSError if a file that was noted before is gone or shorter."""
        for name, (size, _) in self._read.items():
            path = self._directory / name
            if not path.is_file() or path.stat().st_size < size:
                raise changed(path)

    def verify(self) -> None:
        """Raise OSError if a file no longer begins with what it held when it was noted last."""
        for name, (size, digest) in self._read.items():
            if not _is_kept(self._directory / name, {"size": size, "sha256": digest.hexdigest()}):
                raise changed(self._directory / name)

    def take_back(self, notes: Mapping[str, Mapping[str, Any]]) -> None:
        """Take all files back to what `notes` returned, and remove those that came later.

        An event file that was changed since is left as it is, with a warning: the run does not depend on it.

        Raises:
            ValueError: if a CSV file was changed. Then nothing is touched.
        """
        paths = self._paths()
        for name in [name for name, note in notes.items() if name not in paths or not _is_kept(paths[name], note)]:
            path = self._directory / name
            if name in _CSV:
                what = "no longer begins with what it held at the checkpoint"
                raise ValueError(f"{path} {what}; restore it or start a new run.")
            logging.warning("%s was removed or changed; TensorBoard may lack points of this run", path)
        for name, path in paths.items():
            if name not in notes:
                path.unlink()
            elif path.stat().st_size > notes[name]["size"]:
                os.truncate(path, notes[name]["size"])

    def _paths(self) -> dict[str, Path]:
        """Return the files that are there, by their paths in the directory."""
        patterns = (*_CSV, _EVENTS)
        paths = [path for pattern in patterns for path in _without_links(self._directory, pattern)]
        files = [path for path in paths if path.is_file() and not path.is_symlink()]
        return {path.relative_to(self._directory).as_posix(): path for path in files}


def _is_kept(path: Path, note: Mapping[str, Any]) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return hashlib.sha256(file.read(note["size"])).hexdigest() == note["sha256"]
