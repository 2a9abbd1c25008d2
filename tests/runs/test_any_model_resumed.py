"""Runs of streams and of other models than classifiers, broken off in mid-epoch, end the same to the last bit."""

import numpy as np
import pytest

from clr_loop.runs.fit import TrainingInterruptedError, fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import read_result
from clr_loop.schedules import Triangular
from clr_loop.studies import range_test
from clr_loop.studies.comparison.identity import differences
from helpers.runs import CrashError, crash_after, stop_at
from helpers.small import classifier, loop_again, loop_of

SCHEDULE = Triangular(0.001, 0.01, 30)


def test_a_regression_with_a_dict_of_inputs_ends_with_the_digests_of_one_that_was_not_broken_off(line_loop, tmp_path):
    validation = {"a": np.ones((7, 2), np.float32), "b": np.zeros((7, 1), np.float32)}, np.ones((7, 1), np.float32)

    def train(name, callbacks=(), resume=False):
        options = RunOptions(checkpoint_every=4)
        return fit(line_loop(norm=True), SCHEDULE, validation, epochs=4, callbacks=callbacks, run_dir=tmp_path / name,
                   resume=resume, options=options)  # fmt: skip

    whole = train("whole")
    for position in (6, 17):  # Epochs of five steps.
        with pytest.raises(CrashError):
            train("broken", [crash_after(position)], resume=position > 6)
    assert read_result(tmp_path / "broken") is None
    assert train("broken", resume=True).weights_sha256 == whole.weights_sha256
    assert not differences(tmp_path / "whole", tmp_path / "broken")
    assert set(whole.final) == {"loss", "mae", "val_loss", "val_mae"}


def test_a_stream_broken_off_in_mid_epoch_skips_what_it_has_visited(tmp_path):
    def train(name, callbacks=(), resume=False):
        options = RunOptions(checkpoint_every=1)
        return fit(loop_again(feed="stream"), SCHEDULE, epochs=3, run_dir=tmp_path / name, callbacks=callbacks,
                   resume=resume, options=options)  # fmt: skip

    train("whole")
    with pytest.raises(TrainingInterruptedError):
        train("broken", [stop_at(6)])
    train("broken", resume=True)
    assert not differences(tmp_path / "whole", tmp_path / "broken")


def test_a_range_test_on_a_stream_leaves_no_trace_and_reads_what_a_resident_one_does():
    loops = [loop_of(classifier(), feed=feed) for feed in ("resident", "stream")]
    before = [loop.weights_sha256() for loop in loops]
    curves = [range_test.run(loop, 1e-5, 1.0, num_steps=40, early_stop=None).curve for loop in loops]
    np.testing.assert_array_equal(curves[0].loss, curves[1].loss)
    assert [loop.weights_sha256() for loop in loops] == before
