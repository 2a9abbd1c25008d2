import functools

import keras
import numpy as np
import pytest

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Triangular
from helpers.small import FEATURES, LABELS, loop_again, with_dropout_and_batch_norm

TRIANGULAR = Triangular(0.001, 0.02, 3)


@pytest.fixture(scope="session")
def validation():
    return FEATURES[120:], LABELS[120:]


@pytest.fixture(scope="session")
def fresh_loop():
    """Makes a loop as a new process would have it, with dropout, batch-norm and a short last batch.

    An epoch has five steps.
    """
    return functools.partial(loop_again, with_dropout_and_batch_norm, num_examples=90, batch_size=20)


@pytest.fixture(scope="session")
def train(fresh_loop, validation):
    """Trains a fresh loop for three epochs, with a checkpoint after each step; takes arguments of `fit`."""

    def train(
        run_dir,
        schedule=TRIANGULAR,
        *,
        validation=validation,
        epochs=3,
        callbacks=(),
        resume=False,
        overwrite=False,
        **options,
    ):
        options = RunOptions(**{"checkpoint_every": 1, "save_models": False, **options})
        return fit(fresh_loop(), schedule, validation, epochs=epochs, callbacks=callbacks, run_dir=run_dir,
                   resume=resume, overwrite=overwrite, options=options)  # fmt: skip

    return train


@pytest.fixture(scope="session")
def whole(train, tmp_path_factory):
    """The directory of a run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    train(run_dir)
    return run_dir


@pytest.fixture(scope="session")
def line_loop():
    """Makes a loop that fits a line: regression with a metric, inputs in a dictionary, and batch-norm if asked for.

    With the same arguments it is the same loop, put back to its start.
    """

    @functools.cache
    def made(batch_size=20, optimizer=None, metrics=("mae",), loss="mse", norm=False, seed=0, **options):
        keras.utils.set_random_seed(0)
        inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((1,), name="b")}
        hidden = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
        hidden = keras.layers.BatchNormalization()(hidden) if norm else hidden
        model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
        model.compile(optimizer or keras.optimizers.Adam(), loss, metrics=list(metrics))
        rng = np.random.default_rng(0)
        arrays = {"a": rng.normal(size=(90, 2)).astype("float32"), "b": rng.normal(size=(90, 1)).astype("float32")}
        options = StepOptions(**{"jit_compile": False, **options})
        targets = arrays["a"][:, :1] - arrays["b"]
        loop = TrainLoop(model, arrays, targets, batch_size=batch_size, seed=seed, options=options)
        return loop, loop.snapshot()

    def make(**arguments):
        loop, start = made(**arguments)
        loop.restore(start)
        return loop

    return make
