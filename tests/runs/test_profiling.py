import pytest
import tensorflow as tf

from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Constant
from helpers.runs import BatchEnd
from helpers.small import loop_again


@pytest.fixture
def calls(monkeypatch):
    """What the profiler was told, in place of the profiler: it can run but once in a process at a time."""
    calls = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda directory: calls.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    return calls


def test_the_window_is_kept_to_the_step(fresh_loop, tmp_path, calls):
    at = []
    note = BatchEnd(lambda done: at.append((done, list(calls))))
    fit(fresh_loop(), Constant(0.01), epochs=3, run_dir=tmp_path / "run", callbacks=[note],
        options=RunOptions(profile=(3, 12)))  # fmt: skip
    assert {done for done, told in at if told == ["start"]} <= set(range(4, 13))
    assert 3 in [done for done, told in at if told == []]
    assert 12 in [done for done, told in at if told == ["start"]]
    assert calls == ["start", "stop"]


def test_a_window_that_reaches_beyond_the_end_is_closed_with_the_run(fresh_loop, tmp_path, calls):
    options = RunOptions(profile=(2, 99))
    fit(fresh_loop(), Constant(0.01), epochs=1, run_dir=tmp_path / "run", options=options)
    assert calls == ["start", "stop"]


def test_the_trace_is_where_tensorboard_looks_for_it_and_changes_nothing(tmp_path):
    digests = []
    for profile in (None, (1, 3)):
        run_dir = tmp_path / str(profile)
        options = RunOptions(profile=profile)
        digests.append(fit(loop_again(), Constant(0.01), epochs=1, run_dir=run_dir, options=options).weights_sha256)
    assert digests[0] == digests[1]
    (trace,) = run_dir.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_windows_that_cannot_be_profiled_are_named(fresh_loop, tmp_path):
    with pytest.raises(ValueError, match="A profile needs a directory to be written to; give run_dir"):
        fit(fresh_loop(), Constant(0.01), epochs=1, options=RunOptions(profile=(0, 1)))
    with pytest.raises(ValueError, match="The profile begins at batch 5, and the run has 5"):
        fit(fresh_loop(), Constant(0.01), epochs=1, run_dir=tmp_path / "run", options=RunOptions(profile=(5, 9)))
    assert list(tmp_path.iterdir()) == []
