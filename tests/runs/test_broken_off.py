"""What happens to a run's process: it is killed, it is not alone, its disk is full. In real processes."""

import shutil

import pytest

from clr_loop.studies.comparison.identity import differences
from helpers.processes import finish, start

TRAIN = """
import os, resource, sys, keras
from helpers.runs import BatchEnd
from helpers.small import FEATURES, LABELS, loop_of, with_dropout_and_batch_norm
from clr_loop.runs.fit import fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import Triangular

run_dir, resume, kill_at, limit = sys.argv[1], sys.argv[2] == "resume", int(sys.argv[3]), int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
loop = loop_of(with_dropout_and_batch_norm(), batch_size=10, jit_compile=False)
kill = BatchEnd(lambda done: os.kill(os.getpid(), 9) if kill_at and done >= kill_at else None)
try:
    fit(loop, Triangular(0.001, 0.02, 7), (FEATURES, LABELS), epochs=6, run_dir=run_dir, resume=resume,
        callbacks=[kill], options=RunOptions(checkpoint_every=3))
except OSError as error:
    sys.exit(f"error: {error}")
"""


HOLD = """
import signal, sys
from clr_loop.runs import files
with files.claim(sys.argv[1], resume=True):
    print("held", flush=True)
    signal.pause()
"""


def train(run_dir, resume=False, kill_at=0, limit=0):
    return start(TRAIN, run_dir, "resume" if resume else "new", kill_at, limit)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    finish(train(run_dir))
    return run_dir


def test_killed_three_times_and_resumed_it_ends_the_same_to_the_bit(whole, tmp_path):
    for i, position in enumerate((5, 44, 83)):
        process = train(tmp_path / "run", resume=i > 0, kill_at=position)
        process.communicate()
        assert process.returncode == -9
    finish(train(tmp_path / "run", resume=True))
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("share", [0.1, 0.9])  # The first checkpoint finds no room, or TensorBoard's last events.
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(whole, tmp_path, share):
    largest = max(path.stat().st_size for path in whole.rglob("*"))
    process = train(tmp_path / "run", limit=int(share * largest))
    _, errors = process.communicate()
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run" / "result.json").exists()
    finish(train(tmp_path / "run", resume=True))
    assert differences(whole, tmp_path / "run") == []


def test_a_second_process_is_kept_out_until_the_first_has_gone(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    holder = start(HOLD, tmp_path / "run")
    try:
        assert holder.stdout.readline() == "held\n"
        process = train(tmp_path / "run", resume=True)
        _, errors = process.communicate()
        assert "is held by another process; wait for that to end" in errors.splitlines()[-1]
    finally:
        holder.kill()
        holder.communicate()
    finish(train(tmp_path / "run", resume=True))
