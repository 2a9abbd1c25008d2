"""Validations within an epoch: where they are, what they hold, and that they change nothing else."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.runs import files
from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import read_result
from clr_loop.schedules import Triangular
from clr_loop.studies.comparison.identity import differences
from helpers.runs import CrashError, crash_after
from helpers.small import FEATURES, LABELS, loop_again

SCHEDULE = Triangular(0.001, 0.02, 3)
VALIDATION = FEATURES[:50], LABELS[:50]


def train(run_dir, validate_every=3, **arguments):
    """Three epochs of seven steps, the last of them short, validated after every third batch."""
    options = RunOptions(validate_every=validate_every, checkpoint_every=2)
    return fit(loop_again(batch_size=32), SCHEDULE, VALIDATION, epochs=3, run_dir=run_dir, options=options, **arguments)


def test_each_holds_the_validation_of_its_own_step_and_the_epoch_so_far(tmp_path):
    result = train(tmp_path / "run")
    assert [(record.epoch, record.step) for record in result.validations] == [
        (1, 2), (1, 5), (2, 8), (2, 11), (3, 14), (3, 17),
    ]  # fmt: skip
    loop = loop_again(batch_size=32)
    for record in result.validations:
        loop.run(SCHEDULE(np.arange(loop.step, record.step + 1)))
        expected = loop.evaluate(*VALIDATION)
        assert {name: record.metrics[f"val_{name}"] for name in expected} == expected
        since = np.arange(7 * (record.epoch - 1), record.step + 1)
        assert record.metrics["loss"] == pytest.approx(result.history["loss"][since].mean(), rel=1e-6)
        assert 0.0 < record.epoch_seconds < result.epochs[record.epoch - 1].epoch_seconds
    assert read_result(tmp_path / "run").validations == result.validations
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0}).Reload()
    steps = [event.step for event in events.Scalars("validation/loss")]
    assert steps == sorted(record.step for record in [*result.validations, *result.epochs])


def test_they_change_nothing_else(tmp_path):
    with_them, without = train(tmp_path / "with"), train(tmp_path / "without", validate_every=0)
    assert with_them.weights_sha256 == without.weights_sha256
    assert [record.metrics for record in with_them.epochs] == [record.metrics for record in without.epochs]
    assert not (tmp_path / "without" / files.VALIDATIONS).exists()


def test_broken_off_and_resumed_they_are_the_same(tmp_path):
    train(tmp_path / "whole")
    for position in (0, 3, 5, 7, 12):
        with pytest.raises(CrashError):
            train(tmp_path / "broken", callbacks=[crash_after(position)], resume=position > 0)
    train(tmp_path / "broken", resume=True)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_a_validation_that_was_changed_on_disk_is_noticed(tmp_path):
    train(tmp_path / "run")
    path = tmp_path / "run" / files.VALIDATIONS
    path.write_text(path.read_text().replace("1,2,", "1,1,", 1))
    with pytest.raises(ValueError, match=r"validations\.csv is gone or was changed after the run"):
        read_result(tmp_path / "run")


def test_they_need_validation_data_and_a_whole_number():
    with pytest.raises(ValueError, match="validate_every is 3, but there is no validation data"):
        fit(loop_again(), SCHEDULE, epochs=1, options=RunOptions(validate_every=3))
    with pytest.raises(ValueError, match="validate_every is -1; it must be at least 0"):
        RunOptions(validate_every=-1)
