"""Runs of other models than image classifiers, killed or broken off in mid-epoch, end the same to the last bit."""

import numpy as np
import pytest

from clr_loop.runs.fit import RunOptions, TrainingInterruptedError, fit
from clr_loop.runs.records import read_result
from clr_loop.schedules import Triangular
from clr_loop.studies.identity import differences
from clr_loop.studies.range_test import run as sweep
from helpers.processes import LIMIT_SECONDS, start
from helpers.runs import stop_at
from helpers.small import classifier, loop_of

SCHEDULE = Triangular(0.001, 0.01, 30)

# A regression with a dict of inputs. The run kills itself after the block that reaches a position; 0 lets it end.
REGRESSION = """
import os, signal, sys
from helpers.runs import BatchEnd
from clr_loop import RunOptions, TrainLoop, Triangular, fit
from clr_loop.data.examples import regression, regression_model
from clr_loop.loop.step import StepOptions
import keras

run_dir, position, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "resume"
keras.utils.set_random_seed(0)
(x, y), validation = regression()
x, y = {name: array[:1030] for name, array in x.items()}, y[:1030]
loop = TrainLoop(regression_model(), x, y, batch_size=100, options=StepOptions(jit_compile=False))
kill = BatchEnd(lambda done: os.kill(os.getpid(), signal.SIGKILL) if done >= position > 0 else None)
options = RunOptions(checkpoint_every=4)
fit(loop, Triangular(0.001, 0.01, 15), validation, epochs=3, callbacks=[kill], run_dir=run_dir, resume=resume,
    options=options)
"""


def run_regression(run_dir, position, how):
    process = start(REGRESSION, run_dir, position, how)
    process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode


def test_a_killed_regression_with_a_dict_of_inputs_ends_with_the_digests_of_one_that_was_not(tmp_path):
    assert run_regression(tmp_path / "whole", 0, "begin") == 0
    assert run_regression(tmp_path / "killed", 6, "begin") == -9
    assert run_regression(tmp_path / "killed", 17, "resume") == -9
    assert read_result(tmp_path / "killed") is None
    assert run_regression(tmp_path / "killed", 0, "resume") == 0
    assert not differences(tmp_path / "whole", tmp_path / "killed")
    result = read_result(tmp_path / "whole")
    assert result.weights_sha256 == read_result(tmp_path / "killed").weights_sha256
    assert set(result.final) >= {"loss", "mae", "val_loss", "val_mae"}


def test_a_stream_broken_off_in_mid_epoch_skips_what_it_has_visited(tmp_path):
    def train(name, callbacks=(), resume=False):
        loop = loop_of(feed="stream", jit_compile=False)
        options = RunOptions(checkpoint_every=1)
        return fit(
            loop, SCHEDULE, epochs=3, run_dir=tmp_path / name, callbacks=callbacks, resume=resume, options=options
        )

    train("whole")
    with pytest.raises(TrainingInterruptedError):
        train("broken", [stop_at(6)])
    train("broken", resume=True)
    assert not differences(tmp_path / "whole", tmp_path / "broken")


def test_a_range_test_on_a_stream_leaves_no_trace_and_reads_what_a_resident_one_does():
    loops = [loop_of(classifier(), feed=feed, jit_compile=False) for feed in ("resident", "stream")]
    before = [loop.weights_sha256() for loop in loops]
    curves = [sweep(loop, 1e-5, 1.0, num_steps=40, early_stop=None).curve for loop in loops]
    np.testing.assert_array_equal(curves[0].loss, curves[1].loss)
    assert [loop.weights_sha256() for loop in loops] == before
