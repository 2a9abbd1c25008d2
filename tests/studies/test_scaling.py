"""What a report says of batch sizes: targets, tuning, rules and noise."""

import dataclasses
import math

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clr_loop.runs.result import EpochRecord
from clr_loop.schedules import Constant
from clr_loop.studies.comparison import scaling
from clr_loop.studies.comparison.effects import Arm, compare
from clr_loop.studies.comparison.measures import Measure
from clr_loop.studies.comparison.noise_scale import NoiseScale
from clr_loop.studies.comparison.tuning import Search, Trial
from clr_loop.studies.report import files as report
from helpers.made_up_runs import make_run

SIZES = (32, 128, 512)


def comparison_reaching(steps_to_target, target=0.9):
    """A comparison of constant arms whose seeds reach 0.9 at these steps, None where they never do."""
    runs = []
    for size, by_seed in steps_to_target.items():
        arm = Arm(size, "constant", Constant(0.1))
        for seed, steps in enumerate(by_seed):
            run = make_run(arm, seed, 0.5, num_epochs=2)
            epochs = [EpochRecord(e + 1, (e + 1) * 60000 // size - 1, 0.1, {"val_accuracy": 0.5}, 2.0) for e in (0, 1)]
            within = [] if steps is None else [EpochRecord(1, steps - 1, 0.1, {"val_accuracy": 0.9}, 1.0)]
            runs.append(
                dataclasses.replace(run, result=dataclasses.replace(run.result, epochs=epochs, validations=within))
            )
    return compare(runs, Measure(target=target))


def test_a_seed_that_does_not_reach_the_target_counts_as_infinite():
    compared = comparison_reaching({32: (100, 200, None), 128: (60, None, None), 512: (None, None, None)})
    found = {arm.arm.batch_size: arm.median_to_target("steps") for arm in compared.arms}
    assert found == {32: 200, 128: math.inf, 512: math.inf}
    assert compared.arms[0].median_to_target("examples") == 6400
    assert compared.arms[0].median_to_target("seconds") == 1.0
    assert [arm.num_reached for arm in compared.arms] == [2, 1, 0]
    assert compared.arms[1].to_json()["to_target"] == {"steps": None, "examples": None, "seconds": None}
    lines = [line for line in scaling.to_target(compared).splitlines() if line.startswith("| constant")]
    cells = [[cell.strip() for cell in line.split("|")[2:6]] for line in lines]
    assert cells == [
        ["2 of 3", "200", "6,400", "1.00"],
        ["1 of 3", *["not reached"] * 3],
        ["0 of 3", *["not reached"] * 3],
    ]


def test_a_target_that_no_arm_reaches_is_said_in_words_and_draws_nothing(tmp_path):
    compared = comparison_reaching({32: (None, None), 128: (None, None)})
    assert "Not reached by any arm; the best mean after the last epoch is 0.5." in scaling.to_target(compared)
    report.write(compared, tmp_path, report.Context("mnist", "relu_mlp"))
    assert not (tmp_path / "comparison.scaling.png").exists()


def test_a_target_that_is_reached_at_one_batch_size_alone_draws_no_line(tmp_path):
    compared = comparison_reaching({32: (100, 200), 128: (None, None)})
    report.write(compared, tmp_path, report.Context("mnist", "relu_mlp"))
    assert not (tmp_path / "comparison.scaling.png").exists()


def searches(rates, values=(0.9, 0.95, 0.93)):
    return [
        Search(
            Arm(size, "constant", Constant(0.1)),
            tuple(Trial(rate * f, value, 2.0) for f, value in zip((0.5, 1, 2), values, strict=True)),
            Measure(),
        )
        for size, rate in rates.items()
    ]


def test_the_power_of_the_batch_size_is_recovered():
    exact = scaling.fitted_power(searches({size: 0.001 * (size / 32) ** 0.5 for size in SIZES}))
    assert exact.exponent == pytest.approx(0.5)
    assert exact.standard_error == pytest.approx(0.0, abs=1e-6)
    x, y = np.log([32.0, 128.0, 512.0]), np.log([0.001, 0.003, 0.004])
    slope, intercept = np.polyfit(x, y, 1)
    error = np.sqrt(((y - slope * x - intercept) ** 2).sum() / ((x - x.mean()) ** 2).sum())
    fitted = scaling.fitted_power(searches({32: 0.001, 128: 0.003, 512: 0.004}))
    assert (fitted.exponent, fitted.standard_error) == pytest.approx((slope, error))
    assert str(scaling.fitted_power(searches({32: 0.001, 128: 0.004}))) == "1.00"
    assert scaling.fitted_power(searches({32: 0.001})) is None


def test_the_report_shows_what_was_tried_what_it_cost_and_what_the_rules_would_have_chosen(tmp_path):
    compared = comparison_reaching({32: (100, 200, 300), 128: (60, 70, 80)})
    tried = searches({32: 0.001, 128: 0.003})
    noise = NoiseScale((0, 10, 20), (50.0, 90.0, 40.0), (0.5, 0.3, -0.1), 1000)
    context = report.Context("mnist", "relu_mlp", "steps", tried, noise)
    text = report.markdown(compared, context)
    assert text.splitlines()[2].startswith("This report compares schedules, each at its best")
    assert "All arms take as many steps, rounded to whole epochs." in text
    words = " ".join(text.split())
    assert "Tuning took 6 trial runs, with 12 seconds of training." in words
    assert "100 examples at the beginning, 300 in the median of 3 points, more than 10,000 at the end" in words
    assert "stay below twice those of perfect scaling up to batch 128 (constant)." in words
    (row,) = [line for line in text.splitlines() if line.startswith("| constant ") and "| 128 " in line]
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["0.003", "0.004", "0.002"]
    assert "Fitted power: constant 0.79." in words

    report.write(compared, tmp_path, context)
    events = EventAccumulator(str(tmp_path / "report"), size_guidance={"tensors": 0, "images": 0}).Reload()
    panels = {tag.partition("/")[0] for tag in events.Tags()["images"]}
    assert panels == {"comparison", "tuning", "scaling"}
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "comparison.png", "comparison.tuning.png", "comparison.scaling.png",
    }  # fmt: skip
    texts = [tag for tag in events.Tags()["tensors"] if not tag.startswith("_hparams_")]
    assert text.encode() in [events.Tensors(tag)[0].tensor_proto.string_val[0] for tag in texts]


def test_a_diverged_trial_is_counted_and_never_the_best():
    (search,) = searches({32: 0.001}, values=(0.9, None, math.nan))
    assert search.best.learning_rate == 0.0005
    assert search.edge == "lower"
    assert "1 of them diverged" in scaling.tuning([search])
    (nothing,) = searches({32: 0.001}, values=(None, None, None))
    with pytest.raises(ValueError, match=r"constant, batch 32 diverged in each trial, at rates from 0\.0005 to 0\.002"):
        nothing.best  # noqa: B018
