"""A schedule class of the user's own: saved by its import path and its numbers, and handed in again to go on."""

import json

import numpy as np
import pytest

from clr_loop.schedules import Constant, from_config
from clr_loop.studies.comparison.identity import differences
from helpers.documented import documented
from helpers.runs import CrashError, crash_after

Sawtooth = documented("Sawtooth")
SAW = Sawtooth(0.02, period=4)
CONFIG = {"name": "docs_extending.Sawtooth", "max_lr": 0.02, "period": 4}


def config_of(run_dir):
    return json.loads((run_dir / "config.json").read_text())["schedule"]


def test_its_run_is_resumed_to_the_same_bit_and_only_with_the_same_numbers(train, tmp_path):
    np.testing.assert_allclose(
        train(tmp_path / "whole", SAW).history["learning_rate"][:5], [0.02, 0.015, 0.01, 0.005, 0.02]
    )
    with pytest.raises(CrashError):
        train(tmp_path / "broken", SAW, callbacks=[crash_after(7)])
    assert config_of(tmp_path / "broken") == CONFIG
    with pytest.raises(ValueError, match=r"schedule \{'period': 4\}, now \{'period': 3\}"):
        train(tmp_path / "broken", Sawtooth(0.02, period=3), resume=True)
    with pytest.raises(ValueError, match=r"schedule cannot be used: docs_extending\.Sawtooth .* Hand it in again"):
        train(tmp_path / "broken", Constant(0.01), resume=True, on_change="keep")
    train(tmp_path / "broken", Sawtooth(0.02, period=4), resume=True)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_a_run_that_was_rebased_to_it_goes_on_with_it(train, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", Constant(0.01), callbacks=[crash_after(6)])
    with pytest.raises(CrashError):
        train(tmp_path / "run", SAW, resume=True, on_change="rebase", callbacks=[crash_after(9)])
    assert config_of(tmp_path / "run")["schedules"][1] == CONFIG
    rates = train(tmp_path / "run", SAW, resume=True, on_change="rebase").history["learning_rate"]
    np.testing.assert_allclose(rates, [*[0.01] * 6, *SAW(np.arange(9))], rtol=1e-6)


def test_its_config_is_not_read_back_without_it():
    assert from_config(SAW.to_config(), known=[SAW]) is SAW
    with pytest.raises(ValueError) as caught:
        from_config(SAW.to_config())
    assert str(caught.value) == (
        "docs_extending.Sawtooth is not a schedule of clr_loop, so it cannot be made again from its name."
    )
