"""The flags of a run's length, of seeds, and of the place where a script writes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from absl import flags

from clr_loop.commands import terminal
from clr_loop.runs import files as run_files

FLAGS = flags.FLAGS

flags.DEFINE_integer("epochs", 15, "How often to visit the training set.")
flags.DEFINE_bool("overwrite", False, "Write where an earlier run has written; what it has left is moved aside first.")
flags.DEFINE_enum("figure_format", "png", ("png", "svg", "pdf"), "Write pictures in this format, too, beside PNG.")

_LARGEST_SEED, _MOST_SEEDS = 2**32 - 1, 100_000


class _Seeds(flags.ArgumentParser):
    def parse(self, text: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(text, tuple):
            return text
        with contextlib.suppress(ValueError):
            numbers = [int(number) for number in text.split(",") if number.strip()]
            seeds: Sequence[int] = numbers if "," in text else range(min(numbers[0], _MOST_SEEDS + 1))
            if 0 <= min(seeds) <= max(seeds) <= _LARGEST_SEED and len(set(seeds)) == len(seeds) <= _MOST_SEEDS:
                return tuple(seeds)
        raise ValueError("write a number of seeds, such as 3, or the seeds themselves, such as 0,1,2, each once")


class _AsTyped(flags.ArgumentSerializer):
    def serialize(self, seeds: tuple[int, ...]) -> str:
        return str(len(seeds)) if seeds == tuple(range(len(seeds))) else f"{','.join(map(str, seeds))},"


def define_seeds(number: int, what: str) -> None:
    """Define --seeds, whose value is a tuple of ints."""
    text = f"{what}; a number, such as 3 for 0, 1 and 2, or the seeds themselves: 0,1,2 (7, is one seed)."
    flags.DEFINE(_Seeds(), "seeds", str(number), text, serializer=_AsTyped())


EMPTY = "must be empty or not exist yet"

# Far beyond any run, and steps up to here are exact in float64.
_MOST_STEPS = 2**53


def run_length(num_examples: int, batch_size: int, epochs: int | None = None) -> tuple[int, int]:
    """Return steps_per_epoch and total_steps of a run of so many epochs, or --epochs, with no loop to ask yet."""
    epochs = FLAGS.epochs if epochs is None else epochs
    if not 1 <= batch_size <= num_examples:
        raise ValueError(
            f"batch_size is {batch_size}; choose one from 1 to the {num_examples} training examples that there are."
        )
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; a run visits the data at least once.")
    steps_per_epoch = -(-num_examples // batch_size)  # The last batch of an epoch may be short.
    if epochs * steps_per_epoch > _MOST_STEPS:
        raise ValueError(f"epochs is {epochs}, and no run takes that many steps; give fewer.")
    return steps_per_epoch, epochs * steps_per_epoch


def use_saved_epochs(run_dir: str) -> None:
    """Set --epochs to those that the run in a directory was started with, if there is one."""
    config = run_files.expanded(run_dir) / run_files.CONFIG
    if config.is_file():
        FLAGS.epochs = run_files.read_json(config, {"epochs": int})["epochs"]


def claim(path: str, kind: str, resume: bool = False) -> AbstractContextManager[Path]:
    """Hold a directory as `run_files.claim` does. Only `begin` and `fit` move anything in it."""
    if resume and FLAGS.overwrite:
        raise ValueError("--resume and --overwrite were both given; choose one of them.")
    return run_files.claim(path, kind, resume=resume or FLAGS.overwrite)


def begin(directory: Path) -> None:
    """If --overwrite was given, move what a claimed directory holds aside, and say where to."""
    if FLAGS.overwrite and (aside := run_files.set_aside(directory)) is not None:
        terminal.say(f"moved what was in {directory} to {aside}")
