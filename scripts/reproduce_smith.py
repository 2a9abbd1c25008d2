"""Run Smith's own experiment; see clr_loop/commands/reproduce_smith.py."""

import clr_loop.commands.early  # noqa: F401

# isort: split
from clr_loop.commands.reproduce_smith import main

if __name__ == "__main__":
    main()
