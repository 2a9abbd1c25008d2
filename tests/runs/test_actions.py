"""What a run does between its blocks of steps: an action of the package that is a file of its own, and the list."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Triangular
from clr_loop.studies.comparison.identity import differences
from helpers.runs import CrashError, crash_after
from helpers.small import loop_again

SCHEDULE = Triangular(0.001, 0.02, 3)


def train(run_dir, **arguments):
    """Three epochs of four steps, with the norm after every third batch."""
    options = RunOptions(weight_norm_every=3, checkpoint_every=2)
    return fit(loop_again(), SCHEDULE, epochs=3, run_dir=run_dir, options=options, **arguments)


def test_the_norm_of_the_weights_is_that_after_each_third_step_and_resumed_it_is_the_same(tmp_path):
    train(tmp_path / "whole")
    events = EventAccumulator(str(tmp_path / "whole"), size_guidance={"scalars": 0}).Reload()
    loop = loop_again()
    for event, step in zip(events.Scalars("train/weight_norm"), (2, 5, 8, 11), strict=True):
        loop.run(SCHEDULE(np.arange(loop.step, step + 1)))
        weights = np.concatenate([variable.numpy().ravel() for variable in loop.model.trainable_variables])
        assert event.step == step
        assert event.value == pytest.approx(np.linalg.norm(weights), rel=1e-6)
    for position in (5, 9):
        with pytest.raises(CrashError):
            train(tmp_path / "broken", callbacks=[crash_after(position)], resume=position > 5)
    train(tmp_path / "broken", resume=True)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_the_norm_changes_nothing_in_the_run(tmp_path):
    without = fit(loop_again(), SCHEDULE, epochs=3).weights_sha256
    assert train(tmp_path / "run").weights_sha256 == without
