import json

import keras
import numpy as np
import pytest
from absl import logging

from clr_loop.data import models
from clr_loop.loop.loop import TrainLoop
from clr_loop.runs import checkpoints
from clr_loop.runs.checkpoints import CheckpointError, DamagedCheckpointError, RunCheckpoints


@pytest.fixture(scope="module")
def shared_loop(mnist):
    """A loop of five batches an epoch, without XLA, and its start: tests restore it and need not compile again."""
    train_loop = TrainLoop(
        models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.Adam(), *(a[:100] for a in mnist.train),
        batch_size=20, jit_compile=False,
    )  # fmt: skip
    return train_loop, train_loop.snapshot()


@pytest.fixture
def train_loop(shared_loop):
    train_loop, start = shared_loop
    train_loop.restore(start)
    return train_loop


def save_at(writer, train_loop, *steps, accuracies=()):
    for i, step in enumerate(steps):
        train_loop.run(np.full(step - train_loop.step, 0.01))
        writer.save(accuracies[i] if accuracies else None, {"note": step})
    writer.settle()


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_restored_loop_goes_on_as_if_it_had_never_stopped(train_loop, tmp_path):
    writer = RunCheckpoints(tmp_path, train_loop, keep=3)
    save_at(writer, train_loop, 7)
    after = train_loop.run(np.full(6, 0.02))
    digest = train_loop.weights_sha256()
    restored = RunCheckpoints(tmp_path, train_loop, keep=3).restore_newest()
    assert (restored.step, train_loop.step, train_loop.position) == (7, 7, 7)
    np.testing.assert_array_equal(train_loop.run(np.full(6, 0.02))["loss"], after["loss"])
    assert train_loop.weights_sha256() == digest


def test_the_manifest_says_where_in_the_data_the_run_stands_and_what_it_is_of(train_loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, train_loop, keep=3), train_loop, 7)
    (found,) = checkpoints.find(tmp_path)
    manifest = found.manifest
    assert {name: manifest[name] for name in ("step", "seed", "epoch", "index", "batch_size", "optimizer", "note")} == {
        "step": 7, "seed": 0, "epoch": 1, "index": 40, "batch_size": 20, "optimizer": "Adam", "note": 7,
    }  # fmt: skip
    assert manifest["model_variables"][0] == "relu_mlp/hidden_1/kernel float32[784, 100]"
    assert manifest["data_sha256"] == train_loop.data_sha256()


def test_a_checkpoint_is_hardly_larger_than_its_variables(train_loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, train_loop, keep=3), train_loop, 1)
    (found,) = checkpoints.find(tmp_path)
    now = train_loop.snapshot()
    own = sum(value.nbytes for value in (*now.model, *now.optimizer))
    assert own < sum(path.stat().st_size for path in found.directory.iterdir()) < 1.01 * own + 10_000


def test_the_newest_and_the_best_are_kept(train_loop, tmp_path):
    writer = RunCheckpoints(tmp_path, train_loop, keep=2)
    save_at(writer, train_loop, 0, 1, 2, 3, 4, accuracies=(None, 0.8, 0.9, 0.9, 0.7))
    assert names(tmp_path) == ["step_0000000002", "step_0000000003", "step_0000000004"]
    save_at(writer, train_loop, 5, 6, accuracies=(0.6, None))
    assert names(tmp_path) == ["step_0000000002", "step_0000000005", "step_0000000006"]
    assert checkpoints.best_of(checkpoints.find(tmp_path)).step == 2
    assert writer.newest.step == 6


def test_one_state_is_saved_once(train_loop, tmp_path):
    writer = RunCheckpoints(tmp_path, train_loop, keep=3)
    save_at(writer, train_loop, 2, 2)
    assert names(tmp_path) == ["step_0000000002"]


def test_a_state_that_is_not_finite_is_not_saved(train_loop, tmp_path):
    writer = RunCheckpoints(tmp_path, train_loop, keep=3)
    save_at(writer, train_loop, 1)
    train_loop.model.weights[0].assign(np.full((784, 100), np.nan))
    save_at(writer, train_loop, 2)
    assert names(tmp_path) == ["step_0000000001"]


def test_what_was_not_finished_is_no_checkpoint_and_is_cleared_away(train_loop, tmp_path):
    (tmp_path / ".draft_7").mkdir()
    (tmp_path / ".draft_7" / "variables.index").write_text("half")
    assert RunCheckpoints(tmp_path, train_loop, keep=3).restore_newest() is None
    assert names(tmp_path) == []


def truncate(directory):
    path = max(directory.glob("variables.data*"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(directory):
    path = max(directory.glob("variables.data*"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(bytes(content))


def remove_the_index(directory):
    (directory / "variables.index").unlink()


def edit_the_manifest(directory):
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace('"step": 2', '"step": 3'))


def empty_the_manifest(directory):
    (directory / "manifest.json").write_text("")


DAMAGES = [truncate, flip_a_bit, remove_the_index, edit_the_manifest, empty_the_manifest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(train_loop, tmp_path, damage, caplog):
    writer = RunCheckpoints(tmp_path, train_loop, keep=3)
    save_at(writer, train_loop, 1)
    digest = train_loop.weights_sha256()
    save_at(writer, train_loop, 2)
    damage(tmp_path / "step_0000000002")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert RunCheckpoints(tmp_path, train_loop, keep=3).restore_newest().step == 1
    assert train_loop.weights_sha256() == digest
    assert f"checkpoint {tmp_path}/step_0000000002 is damaged" in caplog.text
    assert names(tmp_path) == ["step_0000000001"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_all_are_damaged_nothing_is_restored(train_loop, tmp_path, damage):
    save_at(RunCheckpoints(tmp_path, train_loop, keep=3), train_loop, 2)
    damage(tmp_path / "step_0000000002")
    digest = train_loop.weights_sha256()
    with pytest.raises(CheckpointError, match="holds no checkpoint that is whole; start a new run"):
        RunCheckpoints(tmp_path, train_loop, keep=3).restore_newest()
    assert train_loop.weights_sha256() == digest
    assert names(tmp_path) == ["step_0000000002"]


def other_loop(mnist, **changes):
    arguments = {
        "model": models.build("relu_mlp", (28, 28), 10, 1), "optimizer": keras.optimizers.Adam(),
        "images": mnist.train.images[:100], "labels": mnist.train.labels[:100], "batch_size": 20, "seed": 0,
    }  # fmt: skip
    return TrainLoop(**{**arguments, **changes}, jit_compile=False)


def wider():
    return keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10, name="logits")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mnist: {"model": wider()}, "model variables relu_mlp/hidden_1/kernel"),
        (lambda mnist: {"optimizer": keras.optimizers.SGD(momentum=0.9)}, "optimizer Adam, received SGD"),
        (lambda mnist: {"optimizer": keras.optimizers.Adam(beta_2=0.9)}, "{'beta_2': 0.999}, received {'beta_2': 0.9}"),
        (lambda mnist: {"batch_size": 25}, "batch size 20, received 25"),
        (lambda mnist: {"seed": 5}, "seed 0, received 5"),
        (lambda mnist: {"shuffle": False}, "shuffle True, received False"),
        (lambda mnist: {"images": mnist.train.images[100:200]}, "data sha256"),
        (lambda mnist: {"images": mnist.train.images[:99], "labels": mnist.train.labels[:99]}, "num examples 100"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_in_one_line_and_changes_nothing(
    train_loop, mnist, tmp_path, change, message
):
    save_at(RunCheckpoints(tmp_path, train_loop, keep=3), train_loop, 2)
    other = other_loop(mnist, **change(mnist))
    digest = other.weights_sha256()
    with pytest.raises(CheckpointError) as caught:
        RunCheckpoints(tmp_path, other, keep=3).restore_newest()
    assert "is of another run: " in str(caught.value)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["model_variables"].pop(), "received relu_mlp/logits/bias float32[10]"),
        (
            lambda manifest: manifest["model_variables"].__setitem__(0, "relu_mlp/hidden_1/kernel float32[784, 99]"),
            "relu_mlp/hidden_1/kernel float32[784, 99], received relu_mlp/hidden_1/kernel float32[784, 100]",
        ),
    ],
)
def test_a_variable_missing_or_of_another_shape_is_named(train_loop, tmp_path, change, message):
    save_at(RunCheckpoints(tmp_path, train_loop, keep=3), train_loop, 2)
    rewrite(tmp_path / "step_0000000002", change)
    with pytest.raises(CheckpointError) as caught:
        RunCheckpoints(tmp_path, train_loop, keep=3).restore_newest()
    assert message in str(caught.value)


def test_another_format_is_refused(train_loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, train_loop, keep=3), train_loop, 2)
    rewrite(tmp_path / "step_0000000002", lambda manifest: manifest.update(format=99))
    with pytest.raises(CheckpointError, match="no checkpoint that is whole"):
        RunCheckpoints(tmp_path, train_loop, keep=3).restore_newest()


def test_files_of_other_variables_under_a_true_manifest_do_not_half_restore(train_loop, mnist, tmp_path):
    other = other_loop(mnist, model=wider())
    save_at(RunCheckpoints(tmp_path / "other", other, keep=1), other, 2)
    save_at(RunCheckpoints(tmp_path / "own", train_loop, keep=1), train_loop, 2)
    own, theirs = tmp_path / "own" / "step_0000000002", tmp_path / "other" / "step_0000000002"
    for path in theirs.glob("variables*"):
        (own / path.name).write_bytes(path.read_bytes())
    digests = {path.name: checkpoints._file_sha256(path) for path in own.glob("variables*")}
    rewrite(own, lambda manifest: manifest.update(files=digests))
    digest = train_loop.weights_sha256()
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.restore(train_loop, checkpoints.find(tmp_path / "own")[0])
    assert train_loop.weights_sha256() == digest


def test_a_directory_without_checkpoints_has_none(train_loop, tmp_path):
    assert checkpoints.find(tmp_path / "nowhere") == []
    with pytest.raises(ValueError, match="save one an epoch"):
        checkpoints.best_of([])
    with pytest.raises(ValueError, match="keep_checkpoints must be at least 1, received 0"):
        RunCheckpoints(tmp_path, train_loop, keep=0)


def test_damage_found_after_the_manifest_was_read_is_an_error_of_its_own_kind(train_loop, tmp_path):
    save_at(RunCheckpoints(tmp_path, train_loop, keep=3), train_loop, 2)
    (found,) = checkpoints.find(tmp_path)
    truncate(found.directory)
    with pytest.raises(DamagedCheckpointError, match="is not what was saved"):
        checkpoints.restore(train_loop, found)
