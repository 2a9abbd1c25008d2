"""XLA's programs are kept between starts, and a damaged or foreign one never reaches a run."""

import concurrent.futures
import hashlib
import json
import os

import pytest

from clr_loop.commands import xla_cache
from helpers.scripts import assert_one_line_error, run_script, succeed


@pytest.fixture
def cache(tmp_path):
    """An empty cache folder, with the environment of a user who has chosen no other."""
    return tmp_path / "cache", {"XDG_CACHE_HOME": str(tmp_path / "cache"), "TF_XLA_FLAGS": "", "XLA_FLAGS": ""}


def train(run_dir, environment, *flags):
    arguments = ["--dataset=clr_loop.data.examples:regression", "--model=clr_loop.data.examples:regression_model"]
    succeed("train.py", *arguments, "--epochs=1", f"--run_dir={run_dir}", *flags, **environment)
    return json.loads((run_dir / "result.json").read_text())["weights_sha256"]


def assert_known(program):
    """Hold that the program was compiled anew, and is kept from now on."""
    assert program.stat().st_size > 10_000
    assert program.with_suffix(".sha256").read_text() == hashlib.sha256(program.read_bytes()).hexdigest()


def programs(root):
    return sorted(root.glob("clr_loop/xla/*/*.pb"))


def test_the_second_start_reads_the_program_and_ends_with_the_same_weights(cache, tmp_path):
    root, environment = cache
    without = train(tmp_path / "without", environment, "--noxla_cache")
    assert programs(root) == []
    first = train(tmp_path / "first", environment)
    (program,) = programs(root)
    written = program.stat().st_mtime_ns
    assert train(tmp_path / "second", environment) == first == without
    assert programs(root) == [program]
    assert program.stat().st_mtime_ns == written


def test_a_damaged_program_is_removed_before_it_is_used(cache, tmp_path):
    root, environment = cache
    first = train(tmp_path / "first", environment)
    (program,) = programs(root)
    whole = program.read_bytes()
    for damaged in (whole[:1000], whole[:5000] + b"x" + whole[5001:]):
        program.write_bytes(damaged)
        assert train(tmp_path / f"after_{len(damaged)}", environment) == first
        assert_known(program)
    program.with_suffix(".sha256").unlink()  # Somebody else's, or that of a process that was killed.
    program.write_bytes(b"a program of somebody else")
    assert train(tmp_path / "foreign", environment) == first
    assert_known(program)


def test_old_programs_go_when_the_cache_is_full(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_auto_jit=0")
    monkeypatch.setattr(xla_cache, "_MOST_BYTES", 2500)
    for age in range(4):
        place = tmp_path / "clr_loop" / "xla" / ("other" if age % 2 else xla_cache._name())
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{age}.pb").write_bytes(bytes(1000))
        os.utime(place / f"{age}.pb", (1e9 - age, 1e9 - age))
        xla_cache._note(place)
    xla_cache.use()
    assert sorted(path.stem for path in programs(tmp_path)) == ["0", "1"]
    assert os.environ["TF_XLA_FLAGS"].startswith("--tf_xla_auto_jit=0 --tf_xla_persistent_cache_directory=")


def test_the_users_own_cache_and_a_folder_that_cannot_be_made_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_XLA_FLAGS", "--tf_xla_persistent_cache_directory=/mine")
    xla_cache.use()
    assert os.environ["TF_XLA_FLAGS"] == "--tf_xla_persistent_cache_directory=/mine"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TF_XLA_FLAGS", "")
    xla_cache.use()
    assert os.environ["TF_XLA_FLAGS"] == ""


def test_two_processes_at_once_share_it(cache, tmp_path):
    root, environment = cache
    with concurrent.futures.ThreadPoolExecutor() as both:
        digests = list(both.map(lambda name: train(tmp_path / name, environment), ("one", "other")))
    assert digests[0] == digests[1]
    assert len(programs(root)) == 1


def test_a_cache_that_fails_ends_the_run_and_does_not_change_its_arithmetic(tmp_path):
    (tmp_path / "file").write_text("")
    flags = f"--tf_xla_persistent_cache_directory={tmp_path}/file --tf_xla_persistent_cache_device_types=CPU"
    arguments = ["--model=relu_mlp", "--epochs=1", f"--run_dir={tmp_path}/run"]
    done = run_script("train.py", *arguments, TF_XLA_FLAGS=flags)
    assert_one_line_error(done, "XLA's cache of programs failed")
