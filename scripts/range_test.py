"""Sweep the learning rate and suggest bounds for a cycle; see clr_loop/commands/range_test.py."""

import clr_loop.commands.early  # noqa: F401

# isort: split
from clr_loop.commands.range_test import main

if __name__ == "__main__":
    main()
