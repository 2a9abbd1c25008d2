"""Compare batch sizes and schedules; see clr_loop/commands/compare_batch_sizes.py."""

import clr_loop.commands.early  # noqa: F401

# isort: split
from clr_loop.commands.compare_batch_sizes import main

if __name__ == "__main__":
    main()
