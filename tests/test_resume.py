"""A run that was broken off and resumed, against one that was not: here, where every moment can be chosen."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from clr_loop import schedules
from clr_loop.data import Split, models
from clr_loop.loop.loop import TrainLoop
from clr_loop.runs import checkpoints
from clr_loop.runs import fit as training
from clr_loop.runs.fit import NonFiniteLossError, TrainingInterruptedError, fit
from clr_loop.runs.records import read_result
from clr_loop.runs.settings import schedule_config
from clr_loop.runs.timing import Stopwatch
from clr_loop.studies.identity import differences

EPOCHS, STEPS_PER_EPOCH = 3, 5

SCHEDULES = {
    "constant": schedules.Constant(0.01),
    "triangular": schedules.Triangular(0.001, 0.02, 3),
    "triangular2": schedules.Triangular2(0.001, 0.02, 2, step_size_down=3, momentum=(0.8, 0.95)),
    "exp_range": schedules.ExpRange(0.001, 0.02, 3, gamma=0.9),
    "custom": schedules.Cyclic(0.001, 0.02, 3, scale_fn=lambda x: 1 / (5 ** (x * 0.1)), scale_mode="iterations"),
    "one_cycle": schedules.OneCycle(0.02, total_steps=15, momentum=(0.85, 0.95)),
    "cosine_restarts": schedules.CosineRestarts(0.001, 0.02, first_cycle_steps=3, t_mul=2),
    "linear_ramp": schedules.LinearRamp(0.001, 0.02, total_steps=15),
    "exponential_ramp": schedules.ExponentialRamp(0.001, 0.02, total_steps=15),
    "joined": schedules.join([schedules.Constant(0.01), schedules.Triangular(0.001, 0.02, 3)], boundaries=[4]),
    "function": lambda steps: 0.02 / (1 + steps),
}


def nan_at_sevens(labels, logits):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.where(labels == 7, np.nan, losses)


class CrashError(Exception):
    pass


def crash_after(position):
    """What `fit` calls after each block; breaks the run off in the first block that goes beyond a position."""

    def on_block(batches_done, metrics):
        if batches_done > position:
            raise CrashError

    return on_block


@pytest.fixture(scope="module")
def fresh_loop(mnist):
    """Makes a loop as a new process would have it, with dropout, batch-norm and a short last batch; compiles once."""
    model = keras.Sequential(
        [
            keras.Input((28, 28)),
            keras.layers.Flatten(),
            keras.layers.Dense(16, kernel_initializer=keras.initializers.GlorotUniform(seed=1)),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.3, seed=2),
            keras.layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=3)),
        ]
    )
    train_loop = TrainLoop(model, keras.optimizers.Adam(), *(a[:90] for a in mnist.train), batch_size=20)
    start = train_loop.snapshot()

    def make():
        train_loop.restore(start)
        return train_loop

    return make


@pytest.fixture(scope="module")
def validation(mnist):
    return Split(*(a[:50] for a in mnist.validation))


@pytest.fixture
def train(fresh_loop, validation):
    def train(run_dir, schedule=SCHEDULES["triangular"], **arguments):
        arguments = {"epochs": EPOCHS, "checkpoint_every": 1, **arguments}
        return fit(fresh_loop(), schedule, validation, run_dir=run_dir, **arguments)

    return train


@pytest.mark.parametrize("name", SCHEDULES)
def test_broken_off_anywhere_and_resumed_it_ends_the_same_to_the_bit(train, tmp_path, name):
    whole = train(tmp_path / "whole", SCHEDULES[name])
    # Before the first step; in mid-epoch and mid-cycle; at a cycle's end (6); at an epoch's end; on the last step.
    for i, position in enumerate([0, 3, 6, 6, 10, 13, 14]):
        with pytest.raises(CrashError):
            train(tmp_path / "broken", SCHEDULES[name], resume=i > 0, on_block=crash_after(position))
    resumed = train(tmp_path / "broken", SCHEDULES[name], resume=True)
    assert resumed.weights_sha256 == whole.weights_sha256
    np.testing.assert_array_equal(resumed.history["step"], np.arange(15))
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_the_comparison_of_two_runs_sees_every_kind_of_difference(train, tmp_path):
    train(tmp_path / "one")
    train(tmp_path / "other", schedules.Triangular(0.001, 0.021, 3))
    found = "\n".join(differences(tmp_path / "one", tmp_path / "other"))
    for what in ("weights_sha256", "history.csv, learning_rate", "history.csv, loss", "epochs.csv",
                 "TensorBoard, train/learning_rate", "TensorBoard, validation/loss"):  # fmt: skip
        assert what in found
    history = tmp_path / "one" / "history.csv"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    assert "history.csv, step: 14 and 15 values" in differences(tmp_path / "one", tmp_path / "other")


def test_what_was_recorded_after_the_checkpoint_is_undone_and_done_again(train, tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(CrashError):
        train(tmp_path / "broken", checkpoint_every=4, on_block=crash_after(11))
    assert len((tmp_path / "broken" / "history.csv").read_text().splitlines()) > 1 + 11
    seen = []
    train(tmp_path / "broken", checkpoint_every=4, resume=True, on_block=lambda done, metrics: seen.append(done))
    assert seen[0] > 8  # The newest checkpoint was that of step 8.
    assert len((tmp_path / "broken" / "history.csv").read_text().splitlines()) == 1 + 15
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_asked_to_stop_it_ends_with_a_checkpoint_and_can_go_on(train, tmp_path):
    train(tmp_path / "whole")
    answers = iter([False, False, True])
    with pytest.raises(TrainingInterruptedError) as caught:
        train(tmp_path / "stopped", checkpoint_every=2, should_stop=lambda: next(answers))
    assert caught.value.step == 4
    assert caught.value.checkpoint == tmp_path / "stopped" / "checkpoints" / "step_0000000004"
    assert not (tmp_path / "stopped" / "result.json").exists()
    train(tmp_path / "stopped", checkpoint_every=2, resume=True)
    assert differences(tmp_path / "whole", tmp_path / "stopped") == []


def test_asked_to_stop_before_the_first_step_it_takes_none(train, tmp_path):
    with pytest.raises(TrainingInterruptedError) as caught:
        train(tmp_path / "stopped", should_stop=lambda: True)
    assert caught.value.step == 0
    assert caught.value.checkpoint == tmp_path / "stopped" / "checkpoints" / "step_0000000000"


def test_killed_before_its_settings_were_written_it_still_begins(train, tmp_path):
    train(tmp_path / "whole")
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)
    (tmp_path / "killed" / "run.lock").touch()
    train(tmp_path / "killed", resume=True)
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(train, tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(CrashError):
        train(tmp_path / "broken", on_block=crash_after(7))
    newest = max((tmp_path / "broken" / "checkpoints").iterdir())
    (newest / "variables.index").write_bytes(b"")
    train(tmp_path / "broken", resume=True)
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_without_a_checkpoint_it_starts_afresh_and_says_so(train, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="absl"):
        train(tmp_path / "nothing", resume=True)
    assert "holds no checkpoint to go on from; the run starts afresh" in caplog.text
    with pytest.raises(CrashError):
        train(tmp_path / "none_asked", checkpoint_every=None, on_block=crash_after(7))
    train(tmp_path / "none_asked", resume=True)
    assert differences(tmp_path / "nothing", tmp_path / "none_asked") == []


def test_a_run_that_saves_no_more_checkpoints_still_goes_on_from_those_it_has(train, tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(CrashError):
        train(tmp_path / "broken", on_block=crash_after(7))
    seen = []
    train(tmp_path / "broken", checkpoint_every=None, resume=True, on_block=lambda done, metrics: seen.append(done))
    assert seen[0] > 7
    assert differences(tmp_path / "whole", tmp_path / "broken") == []


def test_a_finished_run_resumed_stays_as_it_is(train, tmp_path):
    finished = train(tmp_path / "run")
    again = train(tmp_path / "run", resume=True)
    assert again.weights_sha256 == finished.weights_sha256
    assert again.epochs == finished.epochs


def test_more_epochs_are_the_run_that_was_longer_from_the_start(train, tmp_path):
    train(tmp_path / "long", epochs=3)
    train(tmp_path / "short", epochs=1)
    train(tmp_path / "short", epochs=3, resume=True)
    assert differences(tmp_path / "long", tmp_path / "short") == []


def test_fewer_epochs_than_trained_are_refused_and_nothing_is_changed(train, tmp_path):
    train(tmp_path / "run", epochs=2)
    with pytest.raises(ValueError, match="epochs must be at least those trained already, received 1"):
        train(tmp_path / "run", epochs=1, resume=True)
    assert len(read_result(tmp_path / "run").epochs) == 2


def test_seconds_of_an_epoch_count_what_it_took_before_the_break_too(train, fresh_loop, tmp_path, monkeypatch):
    with pytest.raises(CrashError):
        train(tmp_path / "run", on_block=crash_after(2))
    (newest,) = [c for c in checkpoints.find(tmp_path / "run" / "checkpoints") if c.step == 2]
    before = newest.manifest["epoch_seconds"]
    assert before > 0.0
    assert train(tmp_path / "run", resume=True).epochs[0].epoch_seconds > before


OTHER = schedules.LinearRamp(0.0, 0.015, 16)


@pytest.mark.parametrize(
    ("on_change", "from_step_7"),
    [("keep", SCHEDULES["triangular"]), ("replace", OTHER), ("rebase", lambda steps: OTHER(steps - 7))],
)
def test_another_schedule_is_refused_unless_it_is_said_what_to_do(train, tmp_path, on_change, from_step_7):
    with pytest.raises(CrashError):
        train(tmp_path / "run", on_block=crash_after(7))
    before = (tmp_path / "run" / "history.csv").read_text()
    with pytest.raises(
        ValueError, match=r"the run was begun with other settings: schedule .*'Triangular'.*, now "
    ) as caught:
        train(tmp_path / "run", OTHER, resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "history.csv").read_text() == before
    result = train(tmp_path / "run", OTHER, resume=True, on_change=on_change)
    expected = np.concatenate([SCHEDULES["triangular"](np.arange(7)), from_step_7(np.arange(7, 15))])
    np.testing.assert_array_equal(result.history["learning_rate"], expected.astype(np.float32))


def test_momentum_cannot_begin_or_end_to_be_cycled_in_mid_run(train, tmp_path):
    train(tmp_path / "run", epochs=1)
    with pytest.raises(ValueError, match="a schedule that cycles the momentum cannot follow one that does not"):
        train(tmp_path / "run", SCHEDULES["one_cycle"], resume=True, on_change="replace")


def test_settings_that_a_run_cannot_change_are_listed(train, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "run", settings={"model": "mlp", "command": ["--a"]}, on_block=crash_after(7))
    message = "a run must keep its settings, received other ones: model mlp, now cnn; use the saved ones"
    for on_change in (None, "replace"):
        with pytest.raises(ValueError, match=message):
            train(tmp_path / "run", settings={"model": "cnn"}, resume=True, on_change=on_change)
    train(tmp_path / "run", settings={"model": "mlp", "command": ["--b"]}, resume=True)


def test_another_version_is_named_and_taken_if_it_is_said_so(train, tmp_path, monkeypatch):
    train(tmp_path / "run", epochs=1)
    monkeypatch.setattr("clr_loop.__version__", "99.0")
    with pytest.raises(
        ValueError, match=r"versions \{'clr_loop': '.*'\}, now \{'clr_loop': '99.0'\}; choose --on_change"
    ):
        train(tmp_path / "run", resume=True)
    assert train(tmp_path / "run", resume=True, on_change="keep").settings["versions"]["clr_loop"] == "99.0"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{}", "config.json must hold the settings of a run"),
        ("config.json", "[", "config.json cannot be read"),
        ("history.csv", "step,loss\nx,1\n" + " " * 10_000, "history.csv is damaged"),
        ("epochs.csv", "epoch\n1 2\n" + " " * 10_000, "epochs.csv is damaged"),
    ],
)
def test_a_file_edited_by_hand_is_named_and_the_result_stays(train, tmp_path, name, content, message):
    train(tmp_path / "run", epochs=1)
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "result.json").exists()


def test_a_saved_schedule_of_another_kind_is_named(train, tmp_path):
    train(tmp_path / "run", epochs=1)
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"step_size": 3', '"step_size": "3"'))
    with pytest.raises(ValueError, match="the saved schedule cannot be used: step_size must be a whole number"):
        train(tmp_path / "run", resume=True, on_change="keep")


def test_a_function_is_the_same_schedule_in_another_process():
    assert schedule_config(nan_at_sevens) == {"name": "test_resume.nan_at_sevens"}
    assert "0x" not in schedule_config(lambda steps: steps)["name"]


def test_history_that_was_cut_short_behind_the_checkpoint_is_named(train, tmp_path):
    train(tmp_path / "run", epochs=1)
    (tmp_path / "run" / "history.csv").write_text("")
    with pytest.raises(ValueError, match=r"history.csv must have at least \d+ bytes, received 0; restore it"):
        train(tmp_path / "run", resume=True)


def test_a_loss_that_is_not_finite_names_the_checkpoint_to_go_back_to(train, tmp_path):
    with pytest.raises(NonFiniteLossError) as caught:
        train(tmp_path / "run", lambda steps: np.where(steps < 7, 0.01, 1e38), checkpoint_every=3)
    assert caught.value.checkpoint == tmp_path / "run" / "checkpoints" / "step_0000000006"
    assert f"the checkpoint before it is {caught.value.checkpoint}; resume from it" in str(caught.value)
    result = train(tmp_path / "run", SCHEDULES["constant"], checkpoint_every=3, resume=True, on_change="replace")
    assert np.isfinite(result.history["loss"]).all()
    np.testing.assert_array_equal(result.history["step"], np.arange(15))


def test_a_slow_step_makes_short_blocks_so_that_a_signal_is_answered(fresh_loop, validation, monkeypatch):
    now = 0.0
    train_loop = fresh_loop()
    run = train_loop.run

    def slow_run(rates, momentums):
        nonlocal now
        now += 0.4 * len(rates)
        return run(rates, momentums)

    monkeypatch.setattr(train_loop, "run", slow_run)
    monkeypatch.setattr(training, "Stopwatch", lambda: Stopwatch(clock=lambda: now))
    steps_done = []
    fit(train_loop, SCHEDULES["constant"], validation, epochs=2, on_block=lambda done, metrics: steps_done.append(done))
    assert max(np.diff(steps_done)) * 0.4 <= 2.0


def test_skipped_updates_are_counted_kept_over_a_resume_and_do_not_advance_the_schedule(mnist, validation, tmp_path):
    train_loop = TrainLoop(
        models.build("relu_mlp", (28, 28), 10, 0), keras.optimizers.Adam(), *(a[:30] for a in mnist.train),
        batch_size=1, loss=nan_at_sevens, skip_non_finite=True, jit_compile=False,
    )  # fmt: skip
    start = train_loop.snapshot()
    num_sevens = int((mnist.train.labels[:30] == 7).sum())
    no_sevens = Split(*(a[mnist.validation.labels[:50] != 7] for a in (x[:50] for x in mnist.validation)))

    def train(run_dir, **arguments):
        return fit(train_loop, SCHEDULES["triangular"], no_sevens, epochs=2, run_dir=run_dir, checkpoint_every=7,
                   **arguments)  # fmt: skip

    whole = train(tmp_path / "whole")
    assert whole.num_skipped == 2 * num_sevens > 0
    steps = np.arange(60 - 2 * num_sevens)
    np.testing.assert_array_equal(whole.history["step"], steps)
    np.testing.assert_array_equal(whole.history["learning_rate"], SCHEDULES["triangular"](steps).astype(np.float32))
    train_loop.restore(start)
    with pytest.raises(CrashError):
        train(tmp_path / "broken", on_block=crash_after(40))
    train_loop.restore(start)
    assert train(tmp_path / "broken", resume=True).num_skipped == whole.num_skipped
    assert differences(tmp_path / "whole", tmp_path / "broken") == []
