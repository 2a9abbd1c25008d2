"""Runs Keras' own tests, and trains each `fit` in them twice from the same state: by Keras and by the loop.

    python tests/keras_suite.py                                        all files of Keras that train a model
    python tests/keras_suite.py trainers/trainer_test.py -k fit_flow   one file, and arguments of pytest

A call of `fit` is trained by the loop, put back, trained by Keras without callbacks and validation, compared, and put
back again; then the test goes on with its own call. It prints how many calls are equal, refused with a reason before
anything is trained, refused by Keras, too, or none of these, and exits with 1 if there are such.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
import types
import unittest.mock
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
from keras.src.trainers.data_adapters import array_slicing

from clr_loop import StepOptions, TrainLoop

KERAS = Path(keras.src.__file__).parent
# Other backends, formats and machines, and what fits no model.
LEFT_OUT = ("jax", "torch", "openvino", "litert", "orbax", "export", "distribut", "remote_monitor", "sklearn")

keras_fit = TensorFlowTrainer.fit
outcomes: list[tuple[str, str, str]] = []  # Of each call: the test, what became of it, and the reason.


class RefusedError(Exception):
    """The loop was not made."""


def loop_of(model, x, y, batch_size, class_weight, sample_weight):
    """Return a loop that takes the batches of `fit` without shuffling."""
    options = StepOptions(jit_compile=False if model.jit_compile is False else "auto")
    if isinstance(x, tf.data.Dataset):
        return TrainLoop.from_dataset(model, x, class_weight=class_weight, options=options)
    first = keras.tree.flatten(x)[0]
    num_examples = first.shape[0] if hasattr(first, "shape") else 32
    return TrainLoop(
        model, x, y, batch_size=min(batch_size or 32, num_examples), shuffle=False, sample_weight=sample_weight,
        class_weight=class_weight, options=options,
    )  # fmt: skip


def compared(model, x, y, batch_size, epochs, class_weight, sample_weight):
    """Return "equal" or "differs", and the largest distance of two weights; the model is put back."""
    try:
        loop = loop_of(model, x, y, batch_size, class_weight, sample_weight)
    except (ValueError, TypeError) as error:
        raise RefusedError(" ".join(str(error).split())[:160]) from error
    start = loop.snapshot()
    rate = float(keras.ops.convert_to_numpy(loop.optimizers[0].learning_rate))
    loop.run(np.full(epochs * loop.steps_per_epoch, rate))
    loop.finalize()
    ours = [np.asarray(keras.ops.convert_to_numpy(variable), np.float64) for variable in model.variables]
    loop.restore(start)
    keras_fit(
        model, x, y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0, class_weight=class_weight,
        sample_weight=sample_weight,
    )  # fmt: skip
    theirs = [np.asarray(keras.ops.convert_to_numpy(variable), np.float64) for variable in model.variables]
    loop.restore(start)
    near = all(np.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in zip(ours, theirs, strict=True))
    distance = max((float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True) if a.size), default=0.0)
    return "equal" if near else "differs", f"by up to {distance:.2g}"


def arrays_of(batches):
    """Return the arrays that batches (x, y) make together, and their size; the batches stay what they are."""
    batches = list(batches)
    x, y = (
        keras.tree.map_structure(lambda *parts: np.concatenate(parts), *nests) for nests in zip(*batches, strict=True)
    )
    return (x, y, None), len(keras.tree.flatten(batches[0])[0])


def fit(
    self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, validation_split=0.0,
    validation_data=None, shuffle=True, class_weight=None, sample_weight=None, initial_epoch=0, steps_per_epoch=None,
    **others,
):  # fmt: skip
    """Compare the two trainings, then do what the test asked for."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0].rpartition("/")[2]
    data, size, is_comparable = (x, y, sample_weight), batch_size, steps_per_epoch is None
    if isinstance(x, types.GeneratorType) and steps_per_epoch is not None and epochs == 1:
        (data, size), is_comparable = arrays_of(itertools.islice(x, steps_per_epoch)), True
    if validation_split:
        data, _ = array_slicing.train_validation_split(data, validation_split)
    kind, words = "left out", "steps_per_epoch, which the loop does not have"
    if is_comparable:
        TensorFlowTrainer.fit = keras_fit
        try:
            kind, words = compared(self, data[0], data[1], size, epochs - initial_epoch, class_weight, data[2])
        except RefusedError as error:
            kind, words = "refused", str(error)
        except Exception as error:
            kind, words = "fails", f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        finally:
            TensorFlowTrainer.fit = fit
    try:
        result = keras_fit(
            self, x, y, batch_size=batch_size, epochs=epochs, verbose=verbose, callbacks=callbacks,
            validation_split=validation_split, validation_data=validation_data, shuffle=shuffle,
            class_weight=class_weight, sample_weight=sample_weight, initial_epoch=initial_epoch,
            steps_per_epoch=steps_per_epoch, **others,
        )  # fmt: skip
    except Exception:
        outcomes.append((test, "refused by both" if kind == "refused" else kind, words))
        raise
    outcomes.append((test, kind, words))
    return result


def files_that_train():
    """Return Keras' test files in which a model is trained."""
    paths = sorted(KERAS.rglob("*_test.py"))
    names = {path: path.relative_to(KERAS).as_posix() for path in paths}
    trains = (".fit(", "run_layer_test(")
    return [
        str(path)
        for path, name in names.items()
        if not any(part in name for part in LEFT_OUT) and any(word in path.read_text() for word in trains)
    ]


def main(arguments):
    """Run the tests and print the table; return the exit code."""
    files = [str(KERAS / name) for name in arguments if name.endswith("_test.py")] or files_that_train()
    rest = [argument for argument in arguments if not argument.endswith("_test.py")]
    for name in ("jax", "pandas"):  # Keras' tests import them, and use them with their own backends and inputs alone.
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = unittest.mock.MagicMock(name=name, __spec__=None)
    TensorFlowTrainer.fit = fit
    plugins = ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, "-W", "ignore"]
    pytest.main(
        [
            "-q",
            "--no-header",
            "--tb=no",
            "--continue-on-collection-errors",
            *plugins,
            f"--rootdir={KERAS}",
            *rest,
            *files,
        ]
    )
    TensorFlowTrainer.fit = keras_fit
    counts = Counter(kind for _, kind, _ in outcomes)
    print(f"\n{len(outcomes)} calls of fit: " + ", ".join(f"{n} {kind}" for kind, n in counts.most_common()))
    reasons = Counter((kind, words) for _, kind, words in outcomes if kind not in ("equal", "differs"))
    for (kind, words), number in sorted(reasons.items()):
        print(f"{number:4d}  {kind}: {words}")
    for test, kind, words in outcomes:
        if kind in ("differs", "fails"):
            print(f"      {test}: {kind}: {words}")
    return int(counts["differs"] + counts["fails"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
