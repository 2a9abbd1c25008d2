"""XLA's compiled programs, kept in the user's cache folder from one start of a script to the next.

TensorFlow reads and writes the programs. It takes a damaged one for a model that it cannot compile, so this module
keeps a digest of each and removes what does not match before TensorFlow starts. What a program depends on beside the
model (TensorFlow, the processor, the number of cores, XLA's flags) is part of the folder's name.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

# About a hundred programs. All of them are read at each start, in less than 0.1 s.
_MOST_BYTES = 64 * 2**20
_PROGRAMS = "*/*.pb"


def use() -> None:
    """Let TensorFlow, which must not have been imported yet, keep its programs for the CPU.

    Nothing happens where the user has chosen a cache in TF_XLA_FLAGS, or the folder cannot be written to.
    """
    given = os.environ.get("TF_XLA_FLAGS", "")
    if "persistent_cache" in given:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clr_loop" / "xla"
    directory = root / _name()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _tidy(root)
    except OSError:
        return
    if directory.stat().st_uid != os.getuid() or not os.access(directory, os.W_OK):
        return
    cache = f"--tf_xla_persistent_cache_directory={directory} --tf_xla_persistent_cache_device_types=CPU"
    os.environ["TF_XLA_FLAGS"] = f"{given} {cache}".strip()
    atexit.register(_note, directory)


def _name() -> str:
    """Return a name that is another one wherever a program might be another one."""
    processor = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else platform.processor()
    lines = sorted({line for line in processor.splitlines() if line.startswith(("model name", "flags"))})
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [os.cpu_count()]
    given = [os.environ.get(name, "") for name in ("XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS")]
    made_for = repr((lines, len(cores), given, platform.machine()))
    return f"tensorflow-{importlib.metadata.version('tensorflow')}-{hashlib.sha256(made_for.encode()).hexdigest()[:16]}"


def _tidy(root: Path) -> None:
    """Remove programs that are damaged or not known, and the oldest beyond the limit."""
    kept: list[tuple[float, int, Path]] = []
    for path in root.glob(_PROGRAMS):
        with contextlib.suppress(OSError):  # Another process has just removed it.
            note = path.with_suffix(".sha256")
            if note.is_file() and note.read_text() == hashlib.sha256(path.read_bytes()).hexdigest():
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
            else:
                _remove(path)
    total = 0
    for _, size, path in sorted(kept, reverse=True):
        total += size
        if total > _MOST_BYTES:
            _remove(path)


def _remove(program: Path) -> None:
    for path in (program, program.with_suffix(".sha256")):
        path.unlink(missing_ok=True)


def _note(directory: Path) -> None:
    """Note the digests of programs that have come."""
    for path in directory.glob("*.pb"):
        note, draft = path.with_suffix(".sha256"), path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            if not note.exists():
                draft.write_text(hashlib.sha256(path.read_bytes()).hexdigest())
                draft.replace(note)
