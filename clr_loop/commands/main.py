"""The installed program `clr-loop`, whose first argument is the name of a command."""

import clr_loop.commands.early  # noqa: F401

# isort: split
import sys
from importlib import import_module

_HELP = """clr-loop trains Keras models with a learning rate for every step, and compares schedules over seeds.

  clr-loop train            trains a model with one schedule
  clr-loop range-test       finds the rates that a cycle should move between
  clr-loop compare          compares batch sizes and schedules over several seeds
  clr-loop preview          shows what a schedule will do, without training
  clr-loop reproduce-smith  repeats Smith's experiment with CIFAR-10
  clr-loop prove-resume     kills a run again and again, and compares it with one that was not killed

Each command has --help."""


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(_HELP)
        return
    from clr_loop.commands.terminal import COMMANDS  # Not before: the help is there at once.

    modules = {called: module for module, called in COMMANDS.items()}
    if name not in modules:
        sys.exit(f"error: clr-loop has no command {name}; it has {', '.join(modules)}. Each has --help.")
    sys.argv[:2] = [f"{sys.argv[0]} {name}"]  # As `terminal.program` reads it.
    import_module(f"clr_loop.commands.{modules[name]}").main()
