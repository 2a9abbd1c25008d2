import hashlib
import json
import threading

import keras
import numpy as np
import pytest
from absl import logging

from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.runs import checkpoints
from clr_loop.runs.checkpoints import CheckpointError, DamagedCheckpointError, RunCheckpoints
from helpers.small import FEATURES, LABELS, classifier, compiled, loop_again, loop_of


@pytest.fixture
def loop():
    """A loop of five batches an epoch."""
    return loop_again(num_examples=100, batch_size=20)


def save_at(writer, loop, *steps, metrics=()):
    for i, step in enumerate(steps):
        loop.run(np.full(step - loop.step, 0.01))
        writer.save(metrics[i] if metrics else {}, {"note": step})
    writer.settle()


def restore_newest(directory, loop):
    """What a resumed run does."""
    saved = RunCheckpoints(directory, loop, keep=3)
    newest = saved.newest_whole()
    if newest is not None:
        checkpoints.restore(loop, newest)
        saved.forget_later(newest)
    return newest


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_restored_loop_goes_on_as_if_it_had_never_stopped(loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 7)
    after = loop.run(np.full(6, 0.02))
    digest = loop.weights_sha256()
    restored = restore_newest(tmp_path, loop)
    assert (restored.step, loop.step, loop.position) == (7, 7, 7)
    np.testing.assert_array_equal(loop.run(np.full(6, 0.02))["loss"], after["loss"])
    assert loop.weights_sha256() == digest


def test_half_precision_variables_and_paths_with_brackets_are_restored_to_the_bit(tmp_path):
    model = compiled(lambda: keras.layers.Dense(8, activation="tanh", dtype="bfloat16"))
    loop = loop_of(model, num_examples=100, batch_size=20)
    assert "bfloat16" in [str(variable.dtype) for variable in model.variables]
    directory = tmp_path / "a[1]*" / "back\\slash"
    save_at(RunCheckpoints(directory, loop, keep=3), loop, 3)
    digest = loop.weights_sha256()
    loop.run([0.1])
    restore_newest(directory, loop)
    assert loop.weights_sha256() == digest


def test_the_manifest_says_where_in_the_data_the_run_stands_and_what_it_is_of(loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 7)
    (found,) = checkpoints.find(tmp_path)
    manifest = found.manifest
    assert [manifest[name] for name in ("step", "epoch", "batch", "note")] == [7, 1, 2, 7]
    assert [manifest["loop"][name] for name in ("seed", "batch_size", "optimizer")] == [0, 20, "Adam"]
    assert manifest["loop"]["data_sha256"] == loop.data_sha256()
    assert any("float32[6, 8]" in variable for variable in manifest["loop"]["variables"])


def test_a_checkpoint_is_hardly_larger_than_its_variables(loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 1)
    (found,) = checkpoints.find(tmp_path)
    now = loop.snapshot()
    own = sum(value.nbytes for value in (*now.model, *now.optimizer))
    assert own < sum(path.stat().st_size for path in found.directory.iterdir()) < 1.01 * own + 15_000


@pytest.mark.parametrize("measure", ["val_accuracy", "val_loss"])
def test_the_newest_and_the_best_are_kept(loop, tmp_path, measure):
    def metrics(value):
        better_when_low = {"loss": 1.0, "val_loss": 1.0 - value if measure == "val_loss" else value}
        return better_when_low | ({"val_accuracy": value} if measure == "val_accuracy" else {})

    writer = RunCheckpoints(tmp_path, loop, keep=2)
    save_at(writer, loop, 0, 1, 2, 3, 4, metrics=[{}, *map(metrics, (0.8, 0.9, 0.9, 0.7))])
    assert names(tmp_path) == ["step_0000000002", "step_0000000003", "step_0000000004"]
    save_at(writer, loop, 5, 6, metrics=[metrics(0.6), {}])
    assert names(tmp_path) == ["step_0000000002", "step_0000000005", "step_0000000006"]
    assert checkpoints.best_of(checkpoints.find(tmp_path)).step == 2
    assert writer.newest.step == 6


def test_one_state_is_saved_once(loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 2, 2)
    assert names(tmp_path) == ["step_0000000002"]


def test_a_state_that_is_not_finite_is_not_saved_and_its_variable_is_named(loop, tmp_path):
    writer = RunCheckpoints(tmp_path, loop, keep=3)
    save_at(writer, loop, 1)
    loop.run([0.01])
    kernel = loop.model.weights[0]
    kernel.assign(np.full(kernel.shape, np.nan))
    assert writer.save({}, {}) == kernel.path
    writer.settle()
    assert names(tmp_path) == ["step_0000000001"]


def test_what_was_not_finished_is_no_checkpoint_and_is_cleared_away(loop, tmp_path):
    (tmp_path / ".draft_7").mkdir()
    (tmp_path / ".draft_7" / "variables.npz").write_text("half")
    assert restore_newest(tmp_path, loop) is None
    assert names(tmp_path) == []


def truncate(directory):
    path = directory / "variables.npz"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(directory):
    path = directory / "variables.npz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))


def remove_the_variables(directory):
    (directory / "variables.npz").unlink()


def edit_the_manifest(directory):
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


def empty_the_manifest(directory):
    (directory / "manifest.json").write_text("")


DAMAGES = [truncate, flip_a_bit, remove_the_variables, edit_the_manifest, empty_the_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(loop, tmp_path, damage, caplog):
    writer = RunCheckpoints(tmp_path, loop, keep=3)
    save_at(writer, loop, 1)
    digest = loop.weights_sha256()
    save_at(writer, loop, 2)
    damage(tmp_path / "step_0000000002")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert restore_newest(tmp_path, loop).step == 1
    assert loop.weights_sha256() == digest
    assert f"checkpoint {tmp_path}/step_0000000002 is damaged" in caplog.text
    assert names(tmp_path) == ["step_0000000001"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_all_are_damaged_nothing_is_restored(loop, tmp_path, damage):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 2)
    damage(tmp_path / "step_0000000002")
    digest = loop.weights_sha256()
    with pytest.raises(CheckpointError, match="holds no checkpoint that is whole; start a new run"):
        restore_newest(tmp_path, loop)
    assert loop.weights_sha256() == digest
    assert names(tmp_path) == ["step_0000000002"]


def test_a_name_that_is_taken_does_not_stop_the_run(loop, tmp_path):
    writer = RunCheckpoints(tmp_path, loop, keep=3)
    (tmp_path / "step_0000000001").write_text("precious")
    (tmp_path / "step_0000000002").symlink_to(tmp_path / "nowhere")
    save_at(writer, loop, 1, 2)
    digest = loop.weights_sha256()
    loop.run([0.1])
    assert restore_newest(tmp_path, loop).step == 2
    assert loop.weights_sha256() == digest
    assert (tmp_path / "step_0000000001").read_text() == "precious"


def other_loop(batch_size=20, seed=0, shuffle=True, num_examples=100, first=0, model=None):
    arrays = (array[first:][:num_examples] for array in (FEATURES, LABELS))
    return TrainLoop(model or classifier(seed=1), *arrays, batch_size=batch_size, seed=seed, shuffle=shuffle,
                     options=StepOptions(jit_compile=False))  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"model": compiled(lambda: keras.layers.Dense(9, activation="tanh"))}, "float32[6, 8], now "),
        (lambda: {"model": classifier(keras.optimizers.SGD(momentum=0.9))}, "optimizer Adam, now SGD"),
        (lambda: {"model": classifier(keras.optimizers.Adam(beta_2=0.9))}, "{'beta_2': 0.999}, now {'beta_2': 0.9}"),
        (lambda: {"model": classifier(loss=lambda y, y_pred: 0.0 * y_pred)}, "loss "),
        (lambda: {"batch_size": 25}, "batch_size 20, now 25"),
        (lambda: {"seed": 5}, "seed 0, now 5"),
        (lambda: {"shuffle": False}, "shuffle True, now False"),
        (lambda: {"first": 100}, "data_sha256"),
        (lambda: {"num_examples": 99}, "num_examples 100, now 99"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_in_one_line_and_changes_nothing(loop, tmp_path, change, message):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 2)
    other = other_loop(**change())
    digest = other.weights_sha256()
    with pytest.raises(CheckpointError) as caught:
        restore_newest(tmp_path, other)
    assert "belongs to another run: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert other.weights_sha256() == digest
    assert names(tmp_path) == ["step_0000000002"]


def rewrite(directory, change):
    """Edits a manifest as somebody would who also corrects its digest."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["manifest_sha256"] = checkpoints._manifest_sha256(manifest)
    path.write_text(json.dumps(manifest))


def test_a_variable_that_is_missing_is_named(loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 2)
    rewrite(tmp_path / "step_0000000002", lambda manifest: manifest["loop"]["variables"].pop())
    with pytest.raises(CheckpointError, match=r"variables None, now adam/.*float32\[5\]"):
        restore_newest(tmp_path, loop)


def test_another_format_is_refused_and_not_removed(loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 1, 2)
    rewrite(tmp_path / "step_0000000002", lambda manifest: manifest.update(format=99))
    with pytest.raises(CheckpointError, match="has format 99, and this version of clr_loop reads format 3"):
        restore_newest(tmp_path, loop)
    assert names(tmp_path) == ["step_0000000001", "step_0000000002"]


def test_files_of_other_variables_under_a_true_manifest_do_not_half_restore(loop, tmp_path):
    other = other_loop(model=compiled(lambda: keras.layers.Dense(9)))
    save_at(RunCheckpoints(tmp_path / "other", other, keep=1), other, 2)
    save_at(RunCheckpoints(tmp_path / "own", loop, keep=1), loop, 2)
    own, theirs = (tmp_path / name / "step_0000000002" / "variables.npz" for name in ("own", "other"))
    own.write_bytes(theirs.read_bytes())
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    rewrite(own.parent, lambda manifest: manifest["files"].update({"variables.npz": digest}))
    before = loop.weights_sha256()
    with pytest.raises(CheckpointError, match="cannot be read: a variable has "):
        restore_newest(tmp_path / "own", loop)
    assert loop.weights_sha256() == before


def test_a_directory_without_checkpoints_has_none(tmp_path):
    assert checkpoints.find(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="save one each epoch"):
        checkpoints.best_of([])


def test_damage_found_after_the_manifest_was_read_is_an_error_of_its_own_kind(loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, loop, keep=3), loop, 2)
    (found,) = checkpoints.find(tmp_path)
    truncate(found.directory)
    with pytest.raises(DamagedCheckpointError, match="is not what was saved"):
        checkpoints.restore(loop, found)


def test_a_disk_that_is_full_is_one_line_and_what_was_saved_stays(loop, tmp_path, monkeypatch):
    writer = RunCheckpoints(tmp_path, loop, keep=3)
    save_at(writer, loop, 1)

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.np, "savez", full)
    with pytest.raises(OSError, match=r"checkpoint of step 2 could not be written to .* \(No space left on device\)"):
        save_at(writer, loop, 2)
    monkeypatch.undo()
    assert restore_newest(tmp_path, loop).step == 1


def test_what_the_run_changes_while_the_checkpoint_is_written_is_not_in_it(tmp_path):
    loop, sizes = loop_of(), [50, 50]
    writer = RunCheckpoints(tmp_path, loop, keep=3)
    writing = threading.Event()
    writer._thread.submit(writing.wait)  # The thread that writes.
    writer.save({}, {"batch_sizes": sizes})
    sizes.append(50)
    writing.set()
    writer.settle()
    assert json.loads((tmp_path / "step_0000000000" / "manifest.json").read_text())["batch_sizes"] == [50, 50]
