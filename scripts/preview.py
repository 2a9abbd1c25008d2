"""Show what a schedule will do in a run; see clr_loop/commands/preview.py."""

import clr_loop.commands.early  # noqa: F401

# isort: split
from clr_loop.commands.preview import main

if __name__ == "__main__":
    main()
