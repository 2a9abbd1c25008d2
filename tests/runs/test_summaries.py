import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups, plugin_data_pb2

from clr_loop.runs.events import FINAL, SummaryWriter, write_means, write_report
from clr_loop.runs.fit import NonFiniteLossError, fit
from clr_loop.runs.options import RunOptions
from clr_loop.schedules import ExpRange
from helpers.small import FEATURES, LABELS, loop_again

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
    loop = loop_again(seed=3)
    return directory, fit(loop, SCHEDULE, (FEATURES, LABELS), epochs=3, run_dir=directory, options=options)


def test_every_step_is_there_once_with_the_rate_of_the_schedule(run):
    directory, result = run
    steps, rates = zip(*scalars(directory, "train/learning_rate"), strict=True)
    assert steps == tuple(range(12))
    np.testing.assert_array_equal(np.float32(rates), SCHEDULE(np.arange(12)).astype(np.float32))
    for tag in ("loss", "accuracy", "momentum"):
        np.testing.assert_array_equal(
            scalars(directory, f"train/{tag}"), list(zip(range(12), result.history[tag].tolist(), strict=True))
        )


def test_epochs_are_at_their_last_step(run):
    directory, result = run
    assert scalars(directory, "validation/accuracy") == [
        (record.step, pytest.approx(record.metrics["val_accuracy"])) for record in result.epochs
    ]
    assert scalars(directory, "validation/loss") == [
        (record.step, pytest.approx(record.metrics["val_loss"])) for record in result.epochs
    ]
    assert scalars(directory, "wall_time/epoch_seconds") == [
        (record.step, pytest.approx(record.epoch_seconds)) for record in result.epochs
    ]


def test_wall_times_of_steps_rise_within_the_run(run):
    directory, _ = run
    times = [event.wall_time for event in events(directory).Scalars("train/loss")]
    assert times == sorted(times)
    assert times[-1] <= events(directory).Scalars("validation/loss")[-1].wall_time


def test_settings_are_shown_as_text(run):
    directory, _ = run
    (event,) = events(directory).Tensors("settings")
    table = event.tensor_proto.string_val[0].decode()
    for row in ("| dataset | made up |", "| seed | 3 |", "| schedule | ExpRange |", "| gamma | 0.99 |"):
        assert row in table


def test_a_run_has_its_settings_and_final_values_for_the_hparams_page(run):
    directory, result = run
    start = hparams(directory, "session_start_info")
    assert start.group_name == "triangular/seed_3"
    assert set(start.hparams) == {
        "schedule", "batch_size", "seed", "model", "optimizer", "highest_rate", "base_lr", "step_size", "gamma",
        "momentum", "epochs", "dataset",
    }  # fmt: skip
    assert start.hparams["schedule"].string_value == "ExpRange"
    assert start.hparams["batch_size"].number_value == 50
    assert start.hparams["momentum"].string_value == "[0.8, 0.9]"
    assert start.hparams["highest_rate"].number_value == 0.01
    assert hparams(directory, "session_end_info").status == api_pb2.STATUS_SUCCESS
    for name in ("val_loss", "val_accuracy"):
        assert scalars(directory, f"when_finished/{name}") == [(11, pytest.approx(result.final[name]))]
    assert scalars(directory, "when_finished/epoch_seconds") == [(11, pytest.approx(np.median(result.epoch_seconds)))]


@pytest.mark.parametrize(("arm", "seed", "shown"), [
    ({"arm": "constant, batch 10"}, 2**32 - 1, "trial 1"), ({"arm": "constant, batch 10"}, 2**32 - 3, "trial 3"),
    ({"arm": "constant, batch 10"}, 7, "7"), ({}, 2**32 - 1, "4294967295"),
])  # fmt: skip
def test_the_seed_of_a_trial_is_shown_as_its_number(tmp_path, arm, seed, shown):
    with SummaryWriter(tmp_path, {"schedule": "Constant", "seed": seed, **arm}):
        pass
    assert hparams(tmp_path, "session_start_info").hparams["seed"].string_value == shown


def charts(directory):
    """Title → the tags, of the charts of the page Custom Scalars."""
    (event,) = events(directory).Tensors("custom_scalars__config__")
    rows = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0]).category
    return {chart.title: list(chart.multiline.tag) for row in rows for chart in row.chart}


def test_a_run_has_a_chart_of_its_rate_and_one_of_training_and_validation_for_each_metric(run):
    directory, _ = run
    tags = events(directory).Tags()["scalars"]
    drawn = {title: [tag for tag in tags if re.match(pattern, tag)] for title, (pattern,) in charts(directory).items()}
    assert drawn == {
        "learning rate": ["train/learning_rate"],
        "loss": ["train/loss", "validation/loss"],
        "accuracy": ["train/accuracy", "validation/accuracy"],
    }


def test_a_run_of_a_comparison_has_no_charts_of_its_own(tmp_path):
    with SummaryWriter(tmp_path, {"schedule": "Constant", "arm": "constant, batch 10", "metric_names": ["loss"]}):
        pass
    assert "custom_scalars__config__" not in events(tmp_path).Tags()["tensors"]


def test_a_run_is_one_of_tensorboards_and_what_a_reader_looks_for_comes_first_in_it(run):
    directory, _ = run
    assert {path.parent for path in directory.rglob("*tfevents*")} == {directory}
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in sorted(events(directory).Tags()["scalars"])))
    assert groups == ["train", "validation", "wall_time", "when_finished"]


def hparams_page(log_dir):
    """The columns of settings and of metrics, and trial → metrics, as TensorBoard itself hands them to the page."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(log_dir)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(log_dir))
    page = backend_context.Context(TBContext(data_provider=provider))
    request = RequestContext()
    content = page.hparams_metadata(request, "")
    experiment = page.experiment_from_metadata(request, "", True, content, [])
    asked = api_pb2.ListSessionGroupsRequest(
        slice_size=100, allowed_statuses=[api_pb2.STATUS_SUCCESS], aggregation_type=api_pb2.AGGREGATION_AVG
    )
    rows = list_session_groups.Handler(request, page, "", asked).run().session_groups
    return (
        [info.name for info in experiment.hparam_infos],
        [info.display_name for info in experiment.metric_infos],
        {row.name: {value.name.tag: value.value for value in row.metric_values} for row in rows},
    )


def write_runs(log_dir):
    """Write two arms of two seeds each, and return the settings; only one arm has base_lr and step_size."""
    common = {"epochs": 2, "model": "small", "batch_size": 10}
    constant = {"schedule": "Constant", "learning_rate": 0.1}
    triangular = {"schedule": "Triangular", "base_lr": 0.001, "max_lr": 0.006, "step_size": 7, "step_size_down": None}
    runs = [{**common, **arm, "seed": seed} for arm in (constant, triangular) for seed in (0, 1)]
    for settings in runs:
        with SummaryWriter(log_dir / settings["schedule"] / f"seed_{settings['seed']}", settings) as writer:
            writer.add_scalars(FINAL, 3, {"val_accuracy": 0.5 + 0.25 * settings["seed"]})
    return runs


def test_a_comparison_has_columns_of_what_differs_a_row_for_each_run_and_one_for_their_mean(tmp_path):
    runs = write_runs(tmp_path)
    mean = {**runs[0], "seed": "mean of 2"}
    write_report(tmp_path / "report", "first", {}, rows=runs[:1])
    measures = {"val_accuracy": True, "val_loss": False}
    write_report(tmp_path / "report", "again", {}, rows=[*runs, mean], measures=measures)
    write_means(tmp_path / "report" / "Constant", mean, {"val_accuracy": 0.625})
    columns, measures, rows = hparams_page(tmp_path)
    assert columns == ["highest_rate", "schedule", "seed"]
    assert measures == ["val_accuracy ↑", "val_loss ↓"]
    assert rows == {
        **{f"{schedule}/seed_0": {"when_finished/val_accuracy": 0.5} for schedule in ("Constant", "Triangular")},
        **{f"{schedule}/seed_1": {"when_finished/val_accuracy": 0.75} for schedule in ("Constant", "Triangular")},
        "Constant/mean": {"when_finished/val_accuracy": 0.625},
    }


def test_runs_without_a_report_have_columns_of_all_that_any_of_them_has(tmp_path):
    write_runs(tmp_path)
    columns, _, rows = hparams_page(tmp_path)
    used = {"batch_size", "epochs", "model", "base_lr", "step_size", "highest_rate", "schedule", "seed"}
    assert columns[:3] == ["highest_rate", "schedule", "seed"]
    assert set(columns) == used
    assert len(rows) == 4


def test_the_highest_rate_of_joined_schedules_is_that_of_the_highest_part(tmp_path):
    parts = [{"name": "LinearRamp", "start_lr": 0.0, "end_lr": 0.2}, {"name": "Constant", "learning_rate": 0.1}]
    with SummaryWriter(tmp_path, {"schedule": "Joined", "schedules": parts}):
        pass
    assert hparams(tmp_path, "session_start_info").hparams["highest_rate"].number_value == 0.2


def test_a_failed_run_is_marked_as_failed_and_its_steps_are_there(tmp_path):
    with pytest.raises(NonFiniteLossError):
        fit(loop_again(), lambda steps: np.full(len(steps), 1e38), epochs=1, run_dir=tmp_path)
    assert hparams(tmp_path, "session_end_info").status == api_pb2.STATUS_FAILURE
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [0, 1]


def test_metrics_of_any_name_have_tags_and_a_run_without_validation_has_none_there(line_loop, tmp_path):
    result = fit(line_loop(), SCHEDULE, epochs=2, run_dir=tmp_path)
    assert [value for _, value in scalars(tmp_path, "train/mae")] == result.history["mae"].tolist()
    assert not [tag for tag in events(tmp_path).Tags()["scalars"] if tag.startswith("validation/")]
    assert scalars(tmp_path, "when_finished/mae") == [(9, pytest.approx(result.final["mae"]))]


def test_what_was_added_can_be_read_before_the_run_ends(tmp_path):
    with SummaryWriter(tmp_path, {"schedule": "Constant"}) as writer:
        writer.add_steps(7, {"loss": np.float32([0.5, 0.25])}, began=100.0, ended=102.0)
        assert [(e.step, e.value, e.wall_time) for e in events(tmp_path).Scalars("train/loss")] == [
            (7, 0.5, 101.0),
            (8, 0.25, 102.0),
        ]
