import pytest
from absl import logging

from clr_loop.runs import files as run_files
from clr_loop.schedules import Constant


def test_only_a_directory_of_its_own_kind_is_taken(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    (foreign / "thesis.txt").write_text("precious")
    with run_files.claim(tmp_path / "comparison", "comparison") as directory:
        (directory / "comparison.json").write_text("{}")
    for directory in (foreign, tmp_path / "comparison"):
        before = sorted(directory.iterdir())
        for resume in (False, True):
            with (
                pytest.raises(FileExistsError, match="is not empty and holds no run; choose another"),
                run_files.claim(directory, resume=resume),
            ):
                pass
        assert sorted(directory.iterdir()) == before


def put(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("something")


def left(directory):
    files = [path for path in directory.rglob("*") if path.is_symlink() or path.is_file()]
    return sorted(path.relative_to(directory).as_posix() for path in files)


THEIRS = (
    "comparison.xlsx", "range_test.notes.txt", "thesis.txt", ".mine.json.draft", "events.out.tfevents.1.theirs",
    "events.out.tfevents.1.mine.clr_loop", "checkpoints/step_best/variables.npz",
    "checkpoints/.draft_notes/manifest.json", "checkpoints/step_0000000003/notes.txt",
    "snapshots/cycle_best.keras", "final.keras.bak", "seed_1/config.json",
)  # fmt: skip
OWN = (
    "config.json", ".config.json.draft", "result.json", "history.csv", "snapshots.csv", "best.weights.h5", "curves.svg",
    ".final.draft.keras", "events.out.tfevents.1764403200.a-host.000001.clr_loop", "snapshots/cycle_12.keras",
    "checkpoints/step_0000000003/variables.npz",
    "checkpoints/step_0000000009_skipped_000001_again_2/manifest.json", "checkpoints/.draft_7/.manifest.json.draft",
)  # fmt: skip


def test_clearing_removes_what_a_run_writes_to_the_letter_and_nothing_else_and_follows_no_link(tmp_path):
    outside = tmp_path / "outside"
    put(outside, *OWN)
    with run_files.claim(tmp_path / "out") as directory:
        put(directory, *OWN, *THEIRS)
        (directory / "linked").symlink_to(outside)
        (directory / "checkpoints" / "step_0000000004").symlink_to(outside)
        run_files.clear(directory)
        assert left(directory) == sorted([*THEIRS, "linked", "checkpoints/step_0000000004", "run.lock"])
    assert left(outside) == sorted(OWN)


def test_what_is_to_be_overwritten_is_moved_aside_as_it_is(train, tmp_path, caplog):
    train(tmp_path / "run", epochs=1)
    put(tmp_path / "run", *THEIRS)
    before = left(tmp_path / "run")
    for aside in ("run.1", "run.2"):
        with caplog.at_level(logging.WARNING, logger="absl"):
            train(tmp_path / "run", epochs=1, overwrite=True)
        assert f"what was in {tmp_path / 'run'} was moved to {tmp_path / aside}" in caplog.text
    assert left(tmp_path / "run.1") == before  # With a lock, so that it can be resumed.
    train(tmp_path / "run.1", epochs=2, resume=True)
    with pytest.raises(ValueError, match="resume and overwrite were both given; choose one of them"):
        train(tmp_path / "run", resume=True, overwrite=True)
    assert "config.json" in left(tmp_path / "run.2")
    assert not {"thesis.txt", "comparison.xlsx"} & {*left(tmp_path / "run.2"), *left(tmp_path / "run")}


def test_a_run_to_be_overwritten_stays_until_the_new_one_begins(train, tmp_path):
    train(tmp_path / "run")
    before = left(tmp_path / "run")
    with pytest.raises(ValueError, match="rates of shape"):
        train(tmp_path / "run", lambda steps: 0.1, overwrite=True)
    assert left(tmp_path / "run") == before
    train(tmp_path / "run", Constant(0.1), epochs=1, overwrite=True)
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        f"step_{step:010d}" for step in range(3, 6)
    ]
    assert len(list((tmp_path / "run").glob("*tfevents*"))) == 1
    with pytest.raises(FileExistsError, match="already holds a run"):
        train(tmp_path / "run")


def test_a_claim_can_be_made_again_by_its_holder_and_is_free_afterwards(tmp_path):
    with run_files.claim(tmp_path / "run"), run_files.claim(tmp_path / "run"):
        pass
    with run_files.claim(tmp_path / "run") as directory:
        (directory / "history.csv").write_text("")
    with pytest.raises(FileExistsError, match="already holds a run"), run_files.claim(tmp_path / "run"):
        pass


def test_a_directory_without_write_permission_is_named(tmp_path, monkeypatch):
    # Root may write anywhere, so the system's answer stands in for that to another user.
    monkeypatch.setattr(run_files.os, "access", lambda path, mode: False)
    with (
        pytest.raises(PermissionError, match=r"You cannot write to the directory .*; choose another"),
        run_files.claim(tmp_path / "run"),
    ):
        pass


def test_values_that_are_not_finite_can_be_written_and_read(tmp_path):
    run_files.write_json(tmp_path / "a.json", {"a": float("nan"), "b": float("-inf")})
    assert repr(run_files.read_json(tmp_path / "a.json")) == "{'a': nan, 'b': -inf}"
