"""Ends a script with one line if it is interrupted while it still imports its modules; scripts import this first.

Nothing is begun then, and an interrupt within an import shows as a traceback or as a broken library. `terminal.run`
puts Python's own handler back.
"""

import os
import signal
import sys


def _end(number: int, frame: object) -> None:
    os.write(2, b"error: Interrupted before anything was started.\n")
    os._exit(130)


# A job in the background ignores the signal; of a process that was spawned, the one that spawned it takes care.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler and "multiprocessing" not in sys.modules:
    signal.signal(signal.SIGINT, _end)
