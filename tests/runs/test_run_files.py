import pytest

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


def test_clearing_removes_what_was_made_and_nothing_else_and_follows_no_link(tmp_path):
    outside = tmp_path / "outside"
    mine = ("seed_1/config.json", "seed_1/run.lock", "events.out.tfevents.1.host.000000.clr_loop")
    put(outside, *mine)
    with run_files.claim(tmp_path / "out", "comparison") as directory:
        put(directory, "comparison.json", "comparison.png", "report.md", "thesis.txt", "events.out.tfevents.1.theirs",
            "arm/seed_0/config.json", "arm/seed_0/run.lock", "arm/seed_0/checkpoints/step_0000000003/variables.npz",
            "arm/seed_1/run.lock", "arm/seed_1/notes.txt", "arm/other/config.json")  # fmt: skip
        (directory / "linked").symlink_to(outside)
        (directory / "arm" / "seed_9").symlink_to(outside / "seed_1")
        (directory / "train").symlink_to(outside)
        run_files.clear(directory, "comparison.*", "report.md", "*/seed_*/")
        assert left(directory) == [
            "arm/other/config.json", "arm/seed_1/notes.txt", "arm/seed_9", "comparison.lock",
            "events.out.tfevents.1.theirs", "linked", "thesis.txt", "train",
        ]  # fmt: skip
        assert not (directory / "arm" / "seed_0").exists()
    assert left(outside) == sorted(mine)


def test_a_run_to_be_overwritten_stays_until_the_new_one_begins(train, tmp_path):
    train(tmp_path / "run")
    before = left(tmp_path / "run")
    with run_files.claim(tmp_path / "run", resume=True):
        with pytest.raises(ValueError, match="rates of shape"):
            train(tmp_path / "run", lambda steps: 0.1)
        assert left(tmp_path / "run") == before
        train(tmp_path / "run", Constant(0.1), epochs=1)
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        f"step_{step:010d}" for step in range(3, 6)
    ]
    assert len(list((tmp_path / "run" / "train").iterdir())) == 1
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
