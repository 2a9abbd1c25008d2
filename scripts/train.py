"""Train a model with one learning-rate schedule; see clr_loop/commands/train.py."""

import clr_loop.commands.early  # noqa: F401

# isort: split
from clr_loop.commands.train import main

if __name__ == "__main__":
    main()
