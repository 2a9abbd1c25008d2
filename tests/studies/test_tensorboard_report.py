import dataclasses

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from clr_loop.studies.comparison.compare import compare
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.pictures.canvas import to_png
from clr_loop.studies.pictures.comparison import arms_picture
from clr_loop.studies.report.tensorboard import FOLDER, write_events
from helpers.made_up_runs import ARMS, make_run

VALUES = {100: (0.7, 0.8, 0.9), 2000: (0.5, 0.6, 0.8)}


@pytest.fixture(scope="module")
def compared():
    """Four arms of three seeds, two epochs each, whose records stand at their real steps."""
    runs = []
    for arm in ARMS:
        for seed, value in enumerate(VALUES[arm.batch_size]):
            run = make_run(arm, seed, value, num_epochs=2)
            per_epoch = run.result.settings["steps_per_epoch"]
            epochs = [dataclasses.replace(r, step=(e + 1) * per_epoch - 1) for e, r in enumerate(run.result.epochs)]
            settings = {**run.result.settings, "arm": arm.label}
            runs.append(
                dataclasses.replace(run, result=dataclasses.replace(run.result, epochs=epochs, settings=settings))
            )
    return compare(runs)


@pytest.fixture(scope="module")
def shown(compared, tmp_path_factory):
    directory = tmp_path_factory.mktemp("shown") / FOLDER
    png = to_png(arms_picture(compared).alone()["last"])
    noise = NoiseScale((0, 600), (50.0, 90.0), (0.5, 0.3), ((1.0, 0.0, 0.001),) * 2, 1000, 20)
    for text in ("an earlier report", "the report"):
        write_events(compared, directory, text, {"comparison/last": png}, noise)
    return directory


def events(directory):
    everything = {"scalars": 0, "tensors": 0, "images": 0}
    return EventAccumulator(str(directory), size_guidance=everything).Reload()


def scalars(directory, tag):
    return [(event.step, event.value) for event in events(directory).Scalars(tag)]


def test_there_is_a_run_for_each_arm_beside_the_report_and_no_other(shown):
    assert {path.parent for path in shown.rglob("*tfevents*")} == {
        shown, shown / "noise_scale", *(shown / arm.directory for arm in ARMS)
    }  # fmt: skip
    assert events(shown).Tags()["images"] == ["comparison/last"]
    assert len(events(shown).Images("comparison/last")) == 1  # The second report has replaced the first.


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.directory)
def test_an_arm_has_the_mean_and_the_band_of_the_reports_standard_deviation_over_examples(compared, shown, arm):
    (summary,) = (each for each in compared.arms if each.arm == arm)
    for line, sign in (("mean_minus_sd", -1), ("mean", 0), ("mean_plus_sd", 1)):
        curve = scalars(shown / arm.directory, f"{line}/val_accuracy")
        assert [step for step, _ in curve] == [60000, 120000]
        assert curve[-1][1] == pytest.approx(summary.final.mean + sign * summary.final.sd)


def test_arms_of_unlike_batch_sizes_have_points_at_the_same_examples_and_few_enough(shown):
    for arm in ARMS:  # Of 1,200 steps and of 60.
        rates = scalars(shown / arm.directory, "mean/learning_rate")
        examples = np.array([step for step, _ in rates])
        np.testing.assert_array_equal(examples, 120 * np.arange(1, 1001))
        # The last step that was done or, if none ended within the point, the one that was being done.
        steps = np.maximum(examples // arm.batch_size - 1, (examples - 120) // arm.batch_size)
        np.testing.assert_allclose([rate for _, rate in rates], arm.schedule(steps), rtol=1e-6)
        assert ("mean_plus_sd/learning_rate" in events(shown / arm.directory).Tags()["scalars"]) is False


def test_only_arms_whose_rate_changes_are_in_the_chart_of_those(shown):
    tag = "mean/changing_learning_rate"
    has_it = {arm.schedule_name for arm in ARMS if tag in events(shown / arm.directory).Tags()["scalars"]}
    assert has_it == {"triangular"}


def test_the_layout_lays_rates_loss_and_accuracy_above_each_other_and_each_of_its_tags_is_there(shown):
    config = events(shown).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    rows = layout_pb2.Layout.FromString(config).category
    spread = "mean ± standard deviation of 3 seeds"
    assert [row.title for row in rows] == [
        "by examples visited, 60,000 an epoch", f"loss: {spread}",
    ]  # fmt: skip
    charts = {chart.title: chart for row in rows for chart in row.chart}
    assert set(charts) == {
        "learning rate", "learning rate of the arms that change it", "training loss", "validation loss",
    }  # fmt: skip
    (series,) = charts["validation loss"].margin.series
    bounds = ("mean/val_loss", "mean_minus_sd/val_loss", "mean_plus_sd/val_loss")
    assert (series.value, series.lower, series.upper) == bounds
    tags = set(events(shown / ARMS[1].directory).Tags()["scalars"])
    assert set(bounds) <= tags
    assert {tag.strip("^$") for title in ("learning rate",) for tag in charts[title].multiline.tag} <= tags


def test_the_noise_scale_is_over_examples_too(shown):
    assert [step for step, _ in scalars(shown / "noise_scale", "noise_scale")] == [0, 60000]
