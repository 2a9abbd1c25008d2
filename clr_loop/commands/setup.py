"""A command's data and model in another process, made there from the same flags."""

from __future__ import annotations

import contextlib
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from absl import flags

from clr_loop import data
from clr_loop.commands import model_flags, terminal

if TYPE_CHECKING:
    import keras

    from clr_loop.loop.loop import TrainLoop

FLAGS = flags.FLAGS
_own_flags: list[str] = []


class Setup:
    """The data and the model of a command. Pickled, it makes them again elsewhere, from the same flags.

    Args:
        module: the command's.
        dataset: what the command has loaded.
        holds_out: whether the runs see what `data.hold_out` leaves.
    """

    def __init__(self, module: str, dataset: data.AnyDataset, holds_out: bool = False) -> None:
        self._module, self._dataset, self._holds_out = module, dataset, holds_out

    def __reduce__(self) -> tuple[Any, ...]:
        settings = model_flags.settings(self._dataset)
        return _set_up, (self._module, sys.argv, os.getcwd(), self._holds_out, settings)

    def dataset(self) -> data.AnyDataset:
        """Return the data."""
        return self._dataset

    def make_model(self, seed: int) -> keras.Model:
        """Return a fresh compiled model."""
        from clr_loop.loop import strategies

        with strategies.scope(None, FLAGS.precision):
            return model_flags.make_model(self._dataset, seed)

    def swept(self, batch_size: int, *num_steps: int) -> tuple[TrainLoop, data.Examples | None]:
        """Return a loop for a range test, and the examples that it is scored on; see `range_test.split`."""
        from clr_loop.loop.make_loop import make_loop
        from clr_loop.studies import range_test

        swept, held_out = range_test.split(self._dataset, batch_size, *num_steps)
        options = model_flags.step_options()
        return make_loop(self.make_model(0), swept, batch_size, feed=FLAGS.feed, options=options), held_out


def _set_up(module: str, arguments: list[str], folder: str, holds_out: bool, settings: dict[str, Any]) -> Setup:
    """Read a command's flags in another process, start TensorFlow and load the data, which must be the same."""
    from clr_loop.runs.settings import in_words

    if os.path.isdir(folder):
        os.chdir(folder)
    _read_flags(module, arguments)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # The terminal is the command's.
        terminal.start_tensorflow()
    dataset = model_flags.load_dataset(is_told=False)
    if holds_out:
        assert isinstance(dataset, data.Dataset)
        dataset = data.hold_out(dataset)
    differing = in_words(model_flags.settings(dataset), settings)
    if differing:
        what = "A worker finds other files than the command has read"
        raise ValueError(f"{what}: {'; '.join(differing.values())}. Give both the same files.")
    return Setup(module, dataset, holds_out)


def _read_flags(module: str, arguments: list[str]) -> None:
    """Define and read the flags of a command, in a process that may have served another one."""
    while _own_flags:
        delattr(FLAGS, _own_flags.pop())
    command = import_module(module)
    before = set(FLAGS)
    command.define_flags()
    _own_flags.extend(set(FLAGS) - before)
    FLAGS.unparse_flags()
    FLAGS(arguments)
