"""The order of the imports; ruff holds the rest: no import inside a function, no print, no flag, no window."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent


def test_imports_run_one_way_and_in_no_circle():
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# Each script is imported in a fork of its own, because each defines flags.
IMPORT_EACH = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.modules.update(dict.fromkeys(("tensorflow", "keras", "tensorboard", "jax", "torch")))
for path in sys.argv[1:]:
    if not os.fork():
        runpy.run_path(path, run_name="script")
        os._exit(0)
    assert os.wait()[1] == 0, path
"""


def test_scripts_read_their_flags_before_they_import_tensorflow():
    command = [sys.executable, "-c", IMPORT_EACH, *sorted((CHECKOUT / "scripts").glob("*.py"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
