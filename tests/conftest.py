import atexit
import os
import shutil
import signal
import tempfile
from importlib import import_module

# A shell starts a job in the background with SIGINT ignored, and the scripts that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As the commands ask for it. By itself TensorFlow does so on some processors only, and a pool's processes must agree.
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
# Many tests compile the same programs, in processes of their own. The first process of pytest hands this to all others.
if "TF_XLA_FLAGS" not in os.environ:
    programs = tempfile.mkdtemp(prefix="clr_loop_xla_")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["TF_XLA_FLAGS"] = (
        f"--tf_xla_persistent_cache_directory={programs} --tf_xla_persistent_cache_device_types=CPU"
    )

# The programs of tests are small and run for a moment. XLA compiles them in a fifth of the time if it does not optimize
# them; "emitters" are the newer and slower way in which it writes machine code.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Matplotlib's list of fonts is made once, here, and not by several processes at once in the user's home.
if "MPLCONFIGDIR" not in os.environ:
    os.environ["MPLCONFIGDIR"] = tempfile.mkdtemp(prefix="clr_loop_fonts_")
    atexit.register(shutil.rmtree, os.environ["MPLCONFIGDIR"], ignore_errors=True)
    import_module("matplotlib.font_manager")

# TensorFlow's C++ logs before it can be asked not to, and pytest would print that after its own summary.
kept = os.dup(2)
with open(os.devnull, "w") as nowhere:
    os.dup2(nowhere.fileno(), 2)
try:
    import tensorflow as tf

    tf.config.list_logical_devices()
finally:
    os.dup2(kept, 2)
    os.close(kept)

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from clr_loop.data import build_model, load
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions

# The same examples in every run, and as long as each takes on a busy machine.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@pytest.fixture(scope="session")
def mnist():
    return load("mnist")


@pytest.fixture
def make_loop(mnist):
    """Make a loop over the first `num_examples` of MNIST; further arguments are those of `StepOptions`."""

    def make(num_examples=200, model="relu_mlp", optimizer=None, seed=0, batch_size=100, shuffle=True, **options):
        if isinstance(model, str):
            model = build_model(model, mnist, seed, optimizer)
        inputs, targets = (array[:num_examples] for array in mnist.train[:2])
        return TrainLoop(
            model, inputs, targets, batch_size=batch_size, seed=seed, shuffle=shuffle, options=StepOptions(**options)
        )

    return make


@pytest.fixture
def rates():
    """A vector of 30 rates, no two of them equal."""
    return np.linspace(0.001, 0.01, 30)
