import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import clr_loop
from clr_loop.loop import strategies

CHECKOUT = Path(__file__).parent.parent


def test_a_wheel_works_outside_the_checkout_and_brings_its_data(tmp_path):
    # From a copy, because a build leaves folders behind; without isolation, because that would need the network.
    source = tmp_path / "source"
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    for name in files.stdout.splitlines():
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel], check=True)
    code = (
        "import clr_loop, clr_loop.data as data; from importlib.resources import files;"
        "print(clr_loop.__file__, data.load('mnist').train.inputs.shape, (files('clr_loop') / 'py.typed').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path}/site/clr_loop/__init__.py (60000, 28, 28) True\n"
    (metadata,) = (tmp_path / "site").glob("clr_loop-*.dist-info")
    installed = {path.name for path in (tmp_path / "site").iterdir()}
    assert installed == {"clr_loop", metadata.name, "bin"}
    program = subprocess.run(
        [sys.executable, tmp_path / "site" / "bin" / "clr-loop", "train", "--help"], cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "clr-loop train --schedule=triangular" in program.stdout


def test_the_names_of_the_package_are_there_and_need_no_tensorflow_until_used():
    code = (
        "import sys, clr_loop; from clr_loop import Triangular, describe, load; Triangular(0.1, 0.2, 3)([0, 3]);"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert [name for name in clr_loop.__all__ if getattr(clr_loop, name, None) is None] == []
    assert dir(clr_loop) == sorted(clr_loop.__all__)
    assert {"TrainLoop", "fit", "quiet"} <= set(clr_loop.__all__)


def test_its_packages_are_imported_when_they_are_used_and_are_no_public_names():
    code = (
        "import sys, clr_loop; clr_loop.schedules.Triangular; clr_loop.studies;"
        "assert not {'tensorflow', 'keras', 'matplotlib'} & set(sys.modules), 'imported too early'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert clr_loop.studies.range_test.run.__module__ == "clr_loop.studies.range_test.sweep"
    packages = {"data", "loop", "runs", "schedules", "studies"}  # Of these, `import *` would hide a user's `loop`.
    assert all(getattr(clr_loop, name).__name__ == f"clr_loop.{name}" for name in packages)
    assert not packages & {*clr_loop.__all__, *dir(clr_loop)}


def test_after_quiet_many_loops_in_a_process_leave_stderr_empty():
    code = """
import clr_loop
clr_loop.quiet()
import logging, keras, numpy as np
from clr_loop import TrainLoop, Triangular, fit
logging.getLogger("tensorflow").setLevel("WARNING")  # A warning of retracing must not even be made.
x, y = np.zeros((10, 3), np.float32), np.zeros((10, 1), np.float32)
for seed in range(6):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    fit(TrainLoop(model, x, y, batch_size=4, seed=seed), Triangular(0.01, 0.1, 2), (x, y), epochs=2)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_another_keras_backend_is_refused_in_one_sentence(monkeypatch):
    # The backends that can be chosen are not installed here, so Keras only says that it runs on one of them.
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(ImportError) as caught:
        runpy.run_path(strategies.__file__)
    assert str(caught.value) == (
        "clr_loop trains with TensorFlow, but Keras runs on jax here; set KERAS_BACKEND=tensorflow in the "
        "environment before Keras is imported."
    )
