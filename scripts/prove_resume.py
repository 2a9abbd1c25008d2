"""Show that a killed and resumed run ends like one that is not; see clr_loop/commands/prove_resume.py."""

import clr_loop.commands.early  # noqa: F401

# isort: split
from clr_loop.commands.prove_resume import main

if __name__ == "__main__":
    main()
