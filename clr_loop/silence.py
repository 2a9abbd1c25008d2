"""TensorFlow without what it writes to stderr."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from importlib import import_module


def quiet() -> None:
    """Import TensorFlow and Keras without what they write to stderr, and let them log only errors from then on.

    It must come before anything else imports TensorFlow. TF_CPP_MIN_LOG_LEVEL in the environment stays if it is set.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with without_stderr():
        import_module("keras")
        import_module("tensorflow")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discard stderr, also that of C++, which logs before it can be asked not to."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
