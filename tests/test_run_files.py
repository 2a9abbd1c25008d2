import pytest

from clr_loop.runs import files as run_files


def test_only_a_directory_of_its_own_kind_is_overwritten(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    (foreign / "thesis.txt").write_text("precious")
    with run_files.claim(tmp_path / "comparison", "comparison") as directory:
        (directory / "comparison.json").write_text("{}")
    for directory in (foreign, tmp_path / "comparison"):
        before = sorted(directory.iterdir())
        for arguments in ({}, {"overwrite": True}, {"resume": True}):
            with (
                pytest.raises(FileExistsError, match="is not empty and holds no run; choose another"),
                run_files.claim(directory, **arguments),
            ):
                pass
        assert sorted(directory.iterdir()) == before


def test_overwriting_removes_all_but_the_lock(tmp_path):
    with run_files.claim(tmp_path / "run") as directory:
        (directory / "train").mkdir()
        (directory / "train" / "events").write_text("old")
        (directory / "link").symlink_to(tmp_path)
    with run_files.claim(tmp_path / "run", overwrite=True) as directory:
        assert [path.name for path in directory.iterdir()] == ["run.lock"]
    assert tmp_path.is_dir()


def test_a_claim_can_be_made_again_by_its_holder_and_is_free_afterwards(tmp_path):
    with run_files.claim(tmp_path / "run"), run_files.claim(tmp_path / "run"):
        pass
    with run_files.claim(tmp_path / "run") as directory:
        (directory / "history.csv").write_text("")
    with pytest.raises(FileExistsError, match="already holds a run"), run_files.claim(tmp_path / "run"):
        pass


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with (
        pytest.raises(ValueError, match="--resume and --overwrite exclude each other"),
        run_files.claim(tmp_path / "run", resume=True, overwrite=True),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_directory_without_write_permission_is_named(tmp_path, monkeypatch):
    # Root may write anywhere, so the system's answer stands in for that to another user.
    monkeypatch.setattr(run_files.os, "access", lambda path, mode: False)
    with (
        pytest.raises(PermissionError, match="cannot be written to; choose another"),
        run_files.claim(tmp_path / "run"),
    ):
        pass
