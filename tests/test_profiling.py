import numpy as np
import pytest
import tensorflow as tf

from clr_loop.data import Split
from clr_loop.runs.fit import fit
from clr_loop.runs.profiling import StepProfiler
from clr_loop.schedules import Constant


@pytest.fixture
def calls(monkeypatch):
    """What the profiler was told, in place of the profiler: it can run but once in a process at a time."""
    calls = []
    monkeypatch.setattr(tf.profiler.experimental, "start", lambda directory: calls.append("start"))
    monkeypatch.setattr(tf.profiler.experimental, "stop", lambda: calls.append("stop"))
    return calls


def test_the_window_is_kept_to_the_step(make_loop, mnist, tmp_path, calls):
    train_loop = make_loop(batch_size=20)
    at = []
    validation = Split(*(a[:50] for a in mnist.validation))
    fit(train_loop, Constant(0.01), validation, epochs=2, run_dir=tmp_path / "run", profile=(3, 14),
        on_block=lambda done, metrics: at.append((done, list(calls))))  # fmt: skip
    assert {done for done, told in at if told == ["start"]} <= set(range(4, 15))
    assert 3 in [done for done, told in at if told == []]
    assert 14 in [done for done, told in at if told == ["start"]]
    assert calls == ["start", "stop"]


def test_a_window_beyond_the_end_is_closed_with_the_run(make_loop, mnist, tmp_path, calls):
    validation = Split(*(a[:50] for a in mnist.validation))
    fit(make_loop(batch_size=50), Constant(0.01), validation, epochs=1, run_dir=tmp_path / "run", profile=(2, 99))
    assert calls == ["start", "stop"]


def test_the_trace_is_where_tensorboard_looks_for_it_and_changes_nothing(make_loop, mnist, tmp_path):
    validation = Split(*(a[:50] for a in mnist.validation))
    digests = []
    for profile in (None, (1, 3)):
        run_dir = tmp_path / str(profile)
        result = fit(make_loop(batch_size=50), Constant(0.01), validation, epochs=1, run_dir=run_dir, profile=profile)
        digests.append(result.weights_sha256)
    assert digests[0] == digests[1]
    (trace,) = run_dir.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_bad_windows_are_named(make_loop, mnist, tmp_path):
    for window in ((3, 3), (-1, 2)):
        with pytest.raises(ValueError, match="profile must be FROM:TO with 0 <= FROM < TO, received"):
            StepProfiler(tmp_path, *window)
    with pytest.raises(ValueError, match="profile must come with a run_dir"):
        fit(make_loop(), Constant(0.01), mnist.validation, epochs=1, profile=(0, 1))
    assert np.array_equal(list(tmp_path.iterdir()), [])
