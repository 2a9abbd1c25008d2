import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from clr_loop.runs.events import HYPERPARAMETERS, SummaryWriter
from clr_loop.runs.fit import NonFiniteLossError, RunOptions, fit
from clr_loop.schedules import ExpRange
from helpers.small import FEATURES, LABELS, loop_of

SCHEDULE = ExpRange(0.001, 0.01, 5, gamma=0.99, momentum=(0.8, 0.9))


def events(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(directory, tag):
    return [(event.step, event.value) for event in events(directory).Scalars(tag)]


def hparams(directory, field):
    """The content of the HParams plugin's summaries that have this field."""
    contents = events(directory).summary_metadata
    data = [
        plugin_data_pb2.HParamsPluginData.FromString(meta.plugin_data.content)
        for meta in contents.values()
        if meta.plugin_data.plugin_name == "hparams"
    ]
    (found,) = (getattr(one, field) for one in data if one.HasField(field))
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("summaries") / "triangular" / "seed_3"
    options = RunOptions(settings={"dataset": "made up", "model": "small"})
    loop = loop_of(seed=3)
    return directory, fit(loop, SCHEDULE, (FEATURES, LABELS), epochs=3, run_dir=directory, options=options)


def test_every_step_is_there_once_with_the_rate_of_the_schedule(run):
    directory, result = run
    steps, rates = zip(*scalars(directory / "train", "learning_rate"), strict=True)
    assert steps == tuple(range(12))
    np.testing.assert_array_equal(np.float32(rates), SCHEDULE(np.arange(12)).astype(np.float32))
    for tag in ("loss", "accuracy", "momentum"):
        np.testing.assert_array_equal(
            scalars(directory / "train", tag), list(zip(range(12), result.history[tag].tolist(), strict=True))
        )


def test_epochs_are_at_their_last_step(run):
    directory, result = run
    assert scalars(directory / "validation", "accuracy") == [
        (record.step, pytest.approx(record.metrics["val_accuracy"])) for record in result.epochs
    ]
    assert scalars(directory / "validation", "loss") == [
        (record.step, pytest.approx(record.metrics["val_loss"])) for record in result.epochs
    ]
    assert scalars(directory / "train", "epoch_seconds") == [
        (record.step, pytest.approx(record.epoch_seconds)) for record in result.epochs
    ]


def test_wall_times_of_steps_rise_within_the_run(run):
    directory, _ = run
    times = [event.wall_time for event in events(directory / "train").Scalars("loss")]
    assert times == sorted(times)
    assert times[-1] <= events(directory / "validation").Scalars("loss")[-1].wall_time


def test_settings_are_shown_as_text(run):
    directory, _ = run
    (event,) = events(directory).Tensors("settings")
    table = event.tensor_proto.string_val[0].decode()
    for row in ("| dataset | made up |", "| seed | 3 |", "| schedule | ExpRange |", "| gamma | 0.99 |"):
        assert row in table


def test_the_hparams_page_has_every_setting_and_final_value(run):
    directory, result = run
    experiment = hparams(directory, "experiment")
    assert [info.name for info in experiment.hparam_infos] == list(HYPERPARAMETERS)
    assert [info.name.tag for info in experiment.metric_infos] == ["final/val_loss", "final/val_accuracy"]
    start = hparams(directory, "session_start_info")
    assert start.group_name == "triangular/seed_3"
    assert start.hparams["schedule"].string_value == "ExpRange"
    assert start.hparams["batch_size"].number_value == 64
    assert start.hparams["momentum"].string_value == "[0.8, 0.9]"
    assert hparams(directory, "session_end_info").status == api_pb2.STATUS_SUCCESS
    for name in ("val_loss", "val_accuracy"):
        assert scalars(directory, f"final/{name}") == [(11, pytest.approx(result.final[name]))]
    assert scalars(directory, "final/epoch_seconds") == [(11, pytest.approx(np.median(result.epoch_seconds)))]


def test_a_failed_run_is_marked_as_failed_and_its_steps_are_there(tmp_path):
    with pytest.raises(NonFiniteLossError):
        fit(loop_of(batch_size=50), lambda steps: np.full(len(steps), 1e38), epochs=1, run_dir=tmp_path)
    assert hparams(tmp_path, "session_end_info").status == api_pb2.STATUS_FAILURE
    assert [step for step, _ in scalars(tmp_path / "train", "loss")] == [0, 1]


def test_metrics_of_any_name_have_tags_and_a_run_without_validation_has_none_there(line_loop, tmp_path):
    result = fit(line_loop(), SCHEDULE, epochs=2, run_dir=tmp_path)
    assert [value for _, value in scalars(tmp_path / "train", "mae")] == result.history["mae"].tolist()
    assert events(tmp_path / "validation").Tags()["scalars"] == []
    assert scalars(tmp_path, "final/mae") == [(9, pytest.approx(result.final["mae"]))]


def test_what_was_added_can_be_read_before_the_run_ends(tmp_path):
    with SummaryWriter(tmp_path, {"schedule": "Constant"}) as writer:
        writer.add_steps(7, {"loss": np.float32([0.5, 0.25])}, began=100.0, ended=102.0)
        assert [(e.step, e.value, e.wall_time) for e in events(tmp_path / "train").Scalars("loss")] == [
            (7, 0.5, 101.0),
            (8, 0.25, 102.0),
        ]
