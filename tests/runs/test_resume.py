"""A run that was broken off and resumed, against one that was not: here, where every moment can be chosen."""

import json
import os
import shutil
import types

import keras
import numpy as np
import pytest
from absl import logging

from clr_loop import schedules
from clr_loop.loop import keras_private
from clr_loop.runs import checkpoints
from clr_loop.runs import run as run_module
from clr_loop.runs.checkpoints import CheckpointError, best_of
from clr_loop.runs.fit import NonFiniteLossError, TrainingInterruptedError, fit
from clr_loop.runs.options import RunOptions
from clr_loop.runs.records import read_result
from clr_loop.runs.settings import schedule_config
from clr_loop.studies.comparison.identity import differences
from helpers.runs import BatchEnd, CrashError, crash_after, stop_at
from helpers.small import FEATURES, LABELS, loop_of, nan_at_two

# A resumed run sees the step alone, so one schedule with momentums and one function stand for all.
SCHEDULES = {
    "constant": schedules.Constant(0.01),
    "triangular": schedules.Triangular(0.001, 0.02, 3),
    "triangular2": schedules.Triangular2(0.001, 0.02, 2, step_size_down=3, momentum=(0.8, 0.95)),
    "function": lambda steps: 0.02 / (1 + steps),
}


def visited(seen):
    return BatchEnd(seen.append)


@pytest.mark.parametrize("name", ["triangular2", "function"])
def test_broken_off_anywhere_and_resumed_it_ends_the_same_to_the_bit(train, tmp_path, name):
    whole = train(tmp_path / "whole", SCHEDULES[name])
    # Before the first step; in mid-epoch and mid-cycle; at a cycle's end (6); at an epoch's end; on the last step.
    for i, position in enumerate([0, 3, 6, 6, 10, 13, 14]):
        with pytest.raises(CrashError):
            train(tmp_path / "broken", SCHEDULES[name], resume=i > 0, callbacks=[crash_after(position)])
    resumed = train(tmp_path / "broken", SCHEDULES[name], resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256
    np.testing.assert_array_equal(resumed.history["step"], np.arange(15))
    assert [record.metrics for record in resumed.epochs] == [record.metrics for record in whole.epochs]
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_without_validation_it_goes_on_just_as_well(train, tmp_path):
    train(tmp_path / "whole", validation=None)
    with pytest.raises(CrashError):
        train(tmp_path / "broken", validation=None, callbacks=[crash_after(8)])
    train(tmp_path / "broken", validation=None, resume=True)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_what_was_recorded_after_the_checkpoint_is_undone_and_done_again(train, whole, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "broken", checkpoint_every=4, callbacks=[crash_after(11)])
    assert len((tmp_path / "broken" / "history.csv").read_text().splitlines()) > 1 + 11
    seen = []
    train(tmp_path / "broken", checkpoint_every=4, resume=True, callbacks=[visited(seen)])
    assert seen[0] > 8  # The newest checkpoint was that of step 8.
    assert len((tmp_path / "broken" / "history.csv").read_text().splitlines()) == 1 + 15
    assert differences(whole, tmp_path / "broken") == []


def test_by_default_there_is_a_checkpoint_each_epoch(train, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", checkpoint_every=None, callbacks=[crash_after(12)])
    assert [c.step for c in checkpoints.find(tmp_path / "run" / "checkpoints")] == [0, 5, 10]


def test_asked_to_stop_it_ends_with_a_checkpoint_and_can_go_on(train, whole, tmp_path):
    with pytest.raises(TrainingInterruptedError) as caught:
        train(tmp_path / "stopped", checkpoint_every=2, callbacks=[stop_at(4)])
    assert caught.value.step == 4
    assert caught.value.checkpoint == tmp_path / "stopped" / "checkpoints" / "step_0000000004"
    assert not (tmp_path / "stopped" / "result.json").exists()
    train(tmp_path / "stopped", checkpoint_every=2, resume=True)
    assert differences(whole, tmp_path / "stopped") == []


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_epoch_end", "on_test_end"])
def test_asked_to_stop_in_any_hook_it_stops_between_two_steps(train, whole, tmp_path, hook):
    callback = keras.callbacks.Callback()
    setattr(callback, hook, lambda *arguments, **named: stop_at(0).function(0))
    with pytest.raises(TrainingInterruptedError) as caught:
        train(tmp_path / "stopped", callbacks=[callback])
    assert caught.value.step == (0 if hook.endswith("begin") else 5)
    train(tmp_path / "stopped", resume=True)
    assert differences(whole, tmp_path / "stopped") == []


def test_asked_to_stop_in_its_last_block_a_run_ends_as_it_would_have(train, tmp_path):
    assert train(tmp_path / "run", callbacks=[stop_at(15)]).epochs[-1].epoch == 3


def test_stopped_without_checkpoints_there_is_none(train):
    with pytest.raises(TrainingInterruptedError) as caught:
        train(None, callbacks=[stop_at(4)])
    assert caught.value.checkpoint is None


def test_killed_before_its_settings_were_written_it_still_begins(train, whole, tmp_path):
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)
    (tmp_path / "killed" / "run.lock").touch()
    train(tmp_path / "killed", resume=True)
    assert differences(whole, tmp_path / "killed") == []


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(train, whole, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "broken", callbacks=[crash_after(7)])
    newest = max((tmp_path / "broken" / "checkpoints").glob("step_*"))
    (newest / "variables.npz").write_bytes(b"")
    train(tmp_path / "broken", resume=True)
    assert differences(whole, tmp_path / "broken") == []


def test_without_a_checkpoint_it_starts_afresh_and_says_so(train, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        train(tmp_path / "nothing", resume=True)
    assert "holds no checkpoint to go on from; the run starts afresh" in caplog.text
    with pytest.raises(CrashError):
        train(tmp_path / "none_asked", checkpoint_every=0, callbacks=[crash_after(7)])
    assert not (tmp_path / "none_asked" / "checkpoints").exists()
    train(tmp_path / "none_asked", resume=True)
    assert differences(tmp_path / "nothing", tmp_path / "none_asked") == []


def test_a_run_that_saves_no_more_checkpoints_still_goes_on_from_those_it_has(train, whole, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "broken", callbacks=[crash_after(7)])
    seen = []
    train(tmp_path / "broken", checkpoint_every=0, resume=True, callbacks=[visited(seen)])
    assert seen[0] > 7
    assert differences(whole, tmp_path / "broken") == []


def contents(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("every", [1, 0])
def test_a_finished_run_resumed_stays_as_it_is_and_gives_its_result(train, tmp_path, caplog, every):
    finished = train(tmp_path / "run", checkpoint_every=every)
    before = contents(tmp_path / "run")
    with caplog.at_level(logging.WARNING, logger="absl"):
        again = train(tmp_path / "run", checkpoint_every=every, resume=True)
    assert "is finished: nothing was trained" in caplog.text
    assert (again.weights_sha256, again.epochs) == (finished.weights_sha256, finished.epochs)
    assert contents(tmp_path / "run") == before


def test_a_finished_runs_weights_are_in_the_model(whole, fresh_loop, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    loop = fresh_loop()
    fit(loop, SCHEDULES["triangular"], (FEATURES[120:], LABELS[120:]), epochs=3, run_dir=tmp_path / "run", resume=True)
    assert loop.weights_sha256() == read_result(whole).weights_sha256


def test_a_finished_run_without_checkpoints_is_not_begun_again_for_more_epochs(train, tmp_path):
    train(tmp_path / "run", checkpoint_every=0, epochs=1)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match="is finished and has no checkpoint to go on from; choose another"):
        train(tmp_path / "run", epochs=2, resume=True)
    assert contents(tmp_path / "run") == before


def test_more_epochs_are_the_run_that_was_longer_from_the_start(train, tmp_path):
    train(tmp_path / "long", epochs=3)
    train(tmp_path / "short", epochs=1)
    train(tmp_path / "short", epochs=3, resume=True)
    assert differences(tmp_path / "long", tmp_path / "short") == []


def test_fewer_epochs_than_trained_are_refused_and_nothing_is_changed(train, tmp_path):
    train(tmp_path / "run", epochs=2)
    with pytest.raises(ValueError, match="has more epochs than the 1 asked for"):
        train(tmp_path / "run", epochs=1, resume=True)
    assert len(read_result(tmp_path / "run").epochs) == 2
    with pytest.raises(CrashError):
        train(tmp_path / "broken", callbacks=[crash_after(7)])
    with pytest.raises(ValueError, match="epochs is 1, or 5 batches, but 7 were trained already"):
        train(tmp_path / "broken", epochs=1, resume=True)


def test_seconds_of_an_epoch_count_what_it_took_before_the_break_too(train, tmp_path, fresh_loop, monkeypatch):
    now = 0.0
    loop = fresh_loop()
    run = loop.run

    def slow_run(rates, momentums):
        nonlocal now
        now += 0.5 * len(rates)
        return run(rates, momentums)

    monkeypatch.setattr(loop, "run", slow_run)
    monkeypatch.setattr(run_module, "time", types.SimpleNamespace(perf_counter=lambda: now, time=lambda: now))
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(2)])
    (newest,) = [c for c in checkpoints.find(tmp_path / "run" / "checkpoints") if c.step == 2]
    assert newest.manifest["epoch_seconds"] == 1.0
    assert train(tmp_path / "run", resume=True).epoch_seconds == [2.5, 2.5, 2.5]


OTHER = schedules.LinearRamp(0.0, 0.015, 16)


@pytest.mark.parametrize(
    ("on_change", "from_step_7"),
    [("keep", SCHEDULES["triangular"]), ("replace", OTHER), ("rebase", lambda steps: OTHER(steps - 7))],
)
def test_another_schedule_is_refused_unless_it_is_said_what_to_do(train, tmp_path, on_change, from_step_7):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(7)])
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=r"started with different settings: schedule .*'Triangular'.*, now ") as caught:
        train(tmp_path / "run", OTHER, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "run") == before
    result = train(tmp_path / "run", OTHER, resume=True, on_change=on_change)
    expected = np.concatenate([SCHEDULES["triangular"](np.arange(7)), from_step_7(np.arange(7, 15))])
    np.testing.assert_array_equal(result.history["learning_rate"], expected.astype(np.float32))


def test_a_rebased_run_resumed_by_the_same_command_is_not_rebased_again(train, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(7)])
    with pytest.raises(CrashError):
        train(tmp_path / "run", OTHER, resume=True, on_change="rebase", callbacks=[crash_after(11)])
    result = train(tmp_path / "run", OTHER, resume=True, on_change="rebase")
    expected = np.concatenate([SCHEDULES["triangular"](np.arange(7)), OTHER(np.arange(8))])
    np.testing.assert_array_equal(result.history["learning_rate"], expected.astype(np.float32))


def test_momentum_cannot_begin_or_end_to_be_cycled_in_mid_run(train, tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="A schedule that cycles the momentum cannot follow one that does not"):
        train(tmp_path / "run", SCHEDULES["triangular2"], resume=True, on_change="replace")


def test_settings_that_a_run_cannot_change_are_listed(train, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", settings={"model": "mlp", "command": ["--a"]}, callbacks=[crash_after(7)])
    for on_change in (None, "replace"):
        with pytest.raises(ValueError, match="started with different settings: model mlp, now cnn"):
            train(tmp_path / "run", settings={"model": "cnn"}, resume=True, on_change=on_change)
    train(tmp_path / "run", settings={"model": "mlp", "command": ["--b"]}, resume=True)


@pytest.fixture(scope="module")
def line_run(line_loop, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("line") / "run"
    fit(line_loop(), SCHEDULES["constant"], epochs=1, run_dir=run_dir)
    return run_dir


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "mae"}, "loss mse, now mae"),
        ({"metrics": ("mse",)}, "metrics mae, now mse"),
        ({"optimizer": keras.optimizers.Adam(beta_2=0.9)}, "optimizer_config {'beta_2': 0.999}, now {'beta_2': 0.9}"),
        ({"optimizer": keras.optimizers.SGD()}, "optimizer Adam, now SGD"),
        ({"clip_norm": 1.0}, "clip_norm None, now 1.0"),
        ({"accumulate": 2}, "accumulate 1, now 2"),
        ({"skip_non_finite": True}, "skip_non_finite False, now True"),
        ({"jit_compile": True}, "jit_compile False, now True"),
        ({"batch_size": 30}, "batch_size 20, now 30"),
        ({"seed": 7}, "seed 0, now 7"),
    ],
)
def test_all_that_a_result_depends_on_is_compared(line_loop, line_run, change, message):
    with pytest.raises(ValueError, match=message):
        fit(line_loop(**change), SCHEDULES["constant"], epochs=2, run_dir=line_run, resume=True)


def test_other_kernels_round_otherwise_and_are_refused(train, tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=1)
    now = not keras_private.has_onednn()
    monkeypatch.setattr(keras_private, "has_onednn", lambda: now)
    with pytest.raises(
        ValueError, match=rf"TF_ENABLE_ONEDNN_OPTS {1 - now}, now {now + 0}\. Give those settings again"
    ):
        train(tmp_path / "run", resume=True)


def test_other_validation_or_training_data_are_refused(train, validation, tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="started with different settings: validation "):
        train(tmp_path / "run", validation=tuple(a[1:] for a in validation), resume=True)
    loop = loop_of(batch_size=20, num_examples=90)
    train_data = loop.data_sha256()
    assert train_data != loop_of(batch_size=20, num_examples=89).data_sha256()


def test_another_version_is_named_and_taken_if_it_is_said_so(train, tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=1)
    monkeypatch.setattr("clr_loop.__version__", "99.0")
    with pytest.raises(
        ValueError, match=r"versions \{'clr_loop': '.*'\}, now \{'clr_loop': '99.0'\}. Choose options=RunOptions"
    ):
        train(tmp_path / "run", resume=True)
    assert train(tmp_path / "run", resume=True, on_change="keep").settings["versions"]["clr_loop"] == "99.0"


@pytest.mark.parametrize("damage", ["remove", "{}", "[", "edit"])
def test_a_config_that_is_gone_or_changed_is_noticed_and_the_checkpoint_holds(train, whole, tmp_path, caplog, damage):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(7)])
    config = tmp_path / "run" / "config.json"
    if damage == "remove":
        config.unlink()
    else:
        edited = config.read_text().replace('"step_size": 3', '"step_size": 4')
        config.write_text(edited if damage == "edit" else damage)
    other = schedules.Triangular(0.001, 0.02, 4)  # What the edited file says.
    with (
        caplog.at_level(logging.WARNING, logger="absl"),
        pytest.raises(ValueError, match="started with different settings"),
    ):
        train(tmp_path / "run", other, resume=True)
    assert "config.json" in caplog.text
    assert "the settings in the checkpoint hold" in caplog.text
    train(tmp_path / "run", resume=True)
    assert differences(whole, tmp_path / "run") == []
    assert json.loads(config.read_text()) == json.loads((whole / "config.json").read_text())


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("history.csv", lambda path: flip(path, 10)),
        ("epochs.csv", lambda path: path.write_text("")),
        ("history.csv", os.unlink),
    ],
)
def test_a_csv_file_that_was_changed_before_the_checkpoint_is_named_and_nothing_is_touched(
    train, tmp_path, name, damage
):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(7)])
    damage(tmp_path / "run" / name)
    before = contents(tmp_path / "run")
    with pytest.raises(ValueError, match=f"{name} no longer begins with what it held at the checkpoint"):
        train(tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_a_torn_last_line_does_not_block_a_resume(train, whole, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(7)])
    for name in ("history.csv", "epochs.csv"):
        with open(tmp_path / "run" / name, "a") as file:
            file.write('8,0.0"1')
    train(tmp_path / "run", resume=True)
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize("damage", [lambda path: flip(path, 60), os.unlink])
def test_a_damaged_event_file_is_named_and_the_run_goes_on(train, whole, tmp_path, caplog, damage):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(7)])
    (events,) = (tmp_path / "run").glob("*tfevents*")
    damage(events)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert train(tmp_path / "run", resume=True).weights_sha256 == read_result(whole).weights_sha256
    assert f"{events} was removed or changed; TensorBoard may lack points" in caplog.text


def replace_by_a_copy(path):
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def append_to(path):
    with open(path, "ab") as file:
        file.write(b"9,9.0")


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("history.csv", os.unlink),
        ("epochs.csv", os.unlink),
        (".", shutil.rmtree),
        ("history.csv", replace_by_a_copy),
        ("epochs.csv", append_to),
        ("validations.csv", replace_by_a_copy),
        ("*tfevents*", replace_by_a_copy),
        ("*tfevents*", append_to),
        ("history.csv", lambda path: flip(path, 40)),
        ("validations.csv", lambda path: flip(path, 10)),
        ("*tfevents*", lambda path: flip(path, 40)),
    ],
)
def test_a_file_that_somebody_else_changes_in_mid_run_ends_the_run_without_a_result(train, tmp_path, pattern, damage):
    def change(batches_done):
        if batches_done == 10:
            (path,) = (tmp_path / "run").glob(pattern) if pattern != "." else [tmp_path / "run"]
            damage(path)

    every = 0 if pattern == "." else 5
    with pytest.raises(OSError, match="was removed, replaced or changed while the run was writing to it"):
        train(tmp_path / "run", checkpoint_every=every, validate_every=3, callbacks=[BatchEnd(change)])
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize("name", ["history.csv", "snapshots.csv", "final.keras", "checkpoints"])
def test_a_link_in_a_run_directory_is_not_written_through(train, whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "run")
    target, link = tmp_path / "target", tmp_path / "run" / name
    if link.is_dir():
        shutil.move(link, target)
    else:
        target.write_text("precious")
        link.unlink(missing_ok=True)
    link.symlink_to(target)
    with pytest.raises(FileExistsError, match=f"{link} is a link, and a run writes into its own directory alone"):
        train(tmp_path / "run", epochs=4, resume=True)
    assert target.is_dir() or target.read_text() == "precious"


@pytest.mark.parametrize(
    "change",
    [
        {"settings": None}, {"records": []}, {"records": {}}, {"records": {"history.csv": 3}},
        {"step": "x"}, {"step": -1},
        {"records": {"history.csv": {"size": -3, "sha256": ""}}}, {"batch_sizes": 3}, {"batch_sizes": ["x"]},
        {"origin": [0, -1]}, {"origin": [0, 0, 0]}, {"metrics": "x"}, {"metrics": {"val_loss": "x"}},
        {"num_averaged": -3},
    ],
)  # fmt: skip
def test_a_manifest_that_is_well_formed_and_nonsense_is_named_in_one_sentence(train, whole, tmp_path, change):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for directory in (tmp_path / "run" / "checkpoints").iterdir():
        manifest = json.loads((directory / "manifest.json").read_text()) | change
        manifest["manifest_sha256"] = checkpoints._manifest_sha256(manifest)
        (directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError) as caught:
        train(tmp_path / "run", resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "[]", '{"epochs": "many"}', "[" * 100_000, '{"schedule": {"name": 3}}'])
def test_a_config_that_is_well_formed_and_nonsense_is_named_in_one_sentence(whole, tmp_path, content):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        read_result(tmp_path / "run")


def test_files_that_are_not_its_own_survive_a_resume(train, whole, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", callbacks=[crash_after(7)])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run, saved = tmp_path / "run", tmp_path / "run" / "checkpoints"
    strangers = [
        run / "events.out.tfevents.1.theirs", run / "train" / "notes.txt", elsewhere / "step_0000000099" / "a.txt",
        saved / "step_0000000011" / "b.txt", saved / "step_0000000003_backup" / "c.txt", saved / "step_0000000008",
        saved / ".draft_notes.txt", elsewhere / "events.out.tfevents.2.host.000000.clr_loop",
    ]  # fmt: skip
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_text("precious")
    (saved / "step_0000000099").symlink_to(elsewhere / "step_0000000099")
    (saved / "step_0000000098").symlink_to(elsewhere / "nowhere")
    train(run, resume=True)
    assert all(path.read_text() == "precious" for path in strangers)
    assert train(run, resume=True).weights_sha256 == read_result(whole).weights_sha256


def test_a_second_fit_in_the_same_process_is_refused(train, tmp_path):
    def again(batches_done):
        if batches_done == 7:
            train(tmp_path / "run", resume=True)

    with pytest.raises(BlockingIOError, match="Another fit in this process writes to"):
        train(tmp_path / "run", callbacks=[BatchEnd(again)])


def test_a_saved_schedule_that_cannot_be_made_again_is_named(train, tmp_path):
    train(tmp_path / "run", SCHEDULES["function"], epochs=1)
    with pytest.raises(
        ValueError, match=r"The saved schedule cannot be used: .* choose options=RunOptions\(on_change='rep"
    ):
        train(tmp_path / "run", epochs=2, resume=True, on_change="keep")


def test_a_function_is_the_same_schedule_in_another_process():
    assert schedule_config(flip)["name"].endswith("test_resume.flip")
    assert "0x" not in schedule_config(lambda steps: steps)["name"]


def test_a_loss_that_is_not_finite_names_the_checkpoint_to_go_back_to(train, tmp_path):
    with pytest.raises(NonFiniteLossError) as caught:
        train(tmp_path / "run", lambda steps: np.where(steps < 7, 0.01, 1e38), checkpoint_every=3)
    assert caught.value.checkpoint == tmp_path / "run" / "checkpoints" / "step_0000000006"
    assert "from step 6 on" in str(caught.value)
    assert "(resume=True, options=RunOptions(resume_from=6, on_change='replace'))" in str(caught.value)
    result = train(tmp_path / "run", SCHEDULES["constant"], checkpoint_every=3, resume=True, on_change="replace")
    assert np.isfinite(result.history["loss"]).all()
    np.testing.assert_array_equal(result.history["step"], np.arange(15))


def test_a_loss_that_rose_before_it_became_nan_names_a_checkpoint_from_before_it_rose(train, tmp_path):
    rates = np.concatenate([np.full(8, 0.01), np.full(4, 1e3), np.full(3, 1e38)])
    with pytest.raises(NonFiniteLossError, match="resume_from=") as caught:
        train(tmp_path / "run", lambda steps: rates[steps], keep_checkpoints=15)
    steps = [c.step for c in checkpoints.find(tmp_path / "run" / "checkpoints")]
    assert max(steps) >= 12  # The newest is there, and holds weights that are huge already.
    sound = int(caught.value.checkpoint.name.removeprefix("step_"))
    assert sound == 8  # The update of step 8 breaks the weights.
    again = train(tmp_path / "run", SCHEDULES["constant"], resume=True, on_change="replace", resume_from=sound)
    assert np.isfinite(again.history["loss"]).all()
    assert len(again.history["loss"]) == 15


def test_one_may_go_back_to_a_checkpoint_and_comes_to_the_same_end(train, tmp_path):
    whole = train(tmp_path / "run", keep_checkpoints=20)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="no checkpoint of step 99; choose one of: 0, 1, 2, 3"):
        train(tmp_path / "run", resume=True, resume_from=99)
    again = train(tmp_path / "run", resume=True, resume_from=4, keep_checkpoints=20)
    assert again.weights_sha256 == whole.weights_sha256
    with pytest.raises(ValueError, match="resume_from is 4, but the run is not resumed"):
        train(tmp_path / "other", resume_from=4)


def test_the_best_epoch_has_a_checkpoint_wherever_the_others_fall(train, tmp_path):
    result = train(tmp_path / "run", checkpoint_every=4, epochs=6, keep_checkpoints=1)
    accuracies = [record.metrics["val_accuracy"] for record in result.epochs]
    best = best_of(checkpoints.find(tmp_path / "run" / "checkpoints"))
    assert best.step == 5 * (int(np.argmax(accuracies)) + 1)


def test_a_slow_step_makes_short_blocks_so_that_a_signal_is_answered(fresh_loop, monkeypatch):
    now = 0.0
    loop = fresh_loop()
    run = loop.run

    def slow_run(rates, momentums):
        nonlocal now
        now += 0.4 * len(rates)
        return run(rates, momentums)

    monkeypatch.setattr(loop, "run", slow_run)
    monkeypatch.setattr(run_module, "time", types.SimpleNamespace(perf_counter=lambda: now, time=lambda: now))
    steps_done = []
    fit(loop, SCHEDULES["constant"], epochs=2, callbacks=[visited(steps_done)])
    assert max(np.diff(steps_done)) * 0.4 <= 2.0


def test_several_workers_cut_a_run_alike_whatever_their_clocks_say(fresh_loop, monkeypatch):
    loop = fresh_loop()
    monkeypatch.setattr(loop, "num_workers", 2)
    cuts = []
    for seconds in (1e-6, 9.0):
        ticks = iter(np.arange(0.0, 1e6) * seconds)
        monkeypatch.setattr(run_module, "time", types.SimpleNamespace(perf_counter=lambda t=ticks: next(t), time=float))
        cuts.append([])
        fit(fresh_loop(), SCHEDULES["constant"], epochs=2, callbacks=[visited(cuts[-1])])
    assert cuts[0] == cuts[1]


def test_skipped_updates_are_counted_kept_over_a_resume_and_do_not_advance_the_schedule(tmp_path):
    model = loop_of().model
    model.compile(keras.optimizers.Adam(), nan_at_two)
    loop = loop_of(model, num_examples=30, batch_size=1, skip_non_finite=True, jit_compile=False)
    start = loop.snapshot()
    num_bad = int((LABELS[:30] == 2).sum())

    def train(run_dir, **arguments):
        loop.restore(start)
        options = RunOptions(checkpoint_every=7)
        return fit(loop, SCHEDULES["triangular"], epochs=2, run_dir=run_dir, options=options, **arguments)

    whole = train(tmp_path / "whole")
    assert whole.num_skipped == 2 * num_bad > 0
    steps = np.arange(60 - 2 * num_bad)
    np.testing.assert_array_equal(whole.history["step"], steps)
    np.testing.assert_array_equal(whole.history["learning_rate"], SCHEDULES["triangular"](steps).astype(np.float32))
    with pytest.raises(CrashError):
        train(tmp_path / "broken", callbacks=[crash_after(40)])
    assert train(tmp_path / "broken", resume=True).num_skipped == whole.num_skipped
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_the_comparison_of_two_runs_sees_every_kind_of_difference(train, whole, tmp_path):
    train(tmp_path / "other", schedules.Triangular(0.001, 0.021, 3))
    found = "\n".join(differences(whole, tmp_path / "other"))
    for what in ("weights_sha256", "history.csv, learning_rate", "history.csv, loss", "epochs.csv",
                 "TensorBoard, train/learning_rate", "TensorBoard, validation/loss"):  # fmt: skip
        assert what in found


@pytest.mark.parametrize("name", ["history.csv", "epochs.csv", "result.json", "config.json"])
def test_a_finished_run_whose_files_were_cut_is_not_read_as_if_it_were_whole(whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match=name):
        read_result(tmp_path / "run")
