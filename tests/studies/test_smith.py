"""The policies of Smith's experiment against what the paper says of them, and what is told of their runs."""

import dataclasses
import json

import numpy as np
import pytest

from clr_loop.runs.result import EpochRecord
from clr_loop.studies import smith
from clr_loop.studies.arms import Arm
from clr_loop.studies.pictures.comparison import policies_picture
from helpers.made_up_runs import make_run

TABLE_1 = {policy.name: policy for policy in smith.policies()}


def corners(*points):
    """Straight lines between (step, rate)."""
    return lambda steps: np.interp(steps, *zip(*points, strict=True))


def triangles(step, base, top, half, num_cycles):
    """The corners of triangles whose height halves after each cycle, as the paper's table 2 has them."""
    heights = [(top - base) / 2**cycle for cycle in range(num_cycles)]
    peaks = [(step + half * (2 * cycle + 1), base + height) for cycle, height in enumerate(heights)]
    return [(step, base), *(point for place, peak in peaks for point in ((place, peak), (place + half, base)))]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fixed", lambda steps: 0.001 / 10.0 ** np.searchsorted([60_000, 65_000], steps, side="right")),
        ("fixed_25000", lambda steps: 0.001 / 10.0 ** np.searchsorted([16_000, 22_000], steps, side="right")),
        ("decay", corners((0, 0.007), (3_999, 0.001), (25_000, 0.001))),
        ("exp", lambda steps: 0.001 * np.exp(steps * np.log(0.99994))),
        (
            "exp_range",
            lambda steps: (
                np.interp(steps, *zip(*((2_000 * i, 0.006 if i % 2 else 0.001) for i in range(36)), strict=True))
                * np.exp(steps * np.log(0.99994))
            ),
        ),
    ],
)
def test_a_policy_of_table_1_is_the_papers(name, expected):
    steps = np.arange(TABLE_1[name].num_steps)
    np.testing.assert_allclose(TABLE_1[name].schedule(steps), expected(steps), rtol=1e-9)


def test_triangular2_has_the_three_stages_of_table_2():
    for first, last, base, half in (
        (0, 16_000, 1e-3, 2_000),
        (16_000, 22_000, 1e-4, 1_000),
        (22_000, 25_000, 1e-5, 500),
    ):
        steps = np.arange(first, last)
        expected = corners(*triangles(first, base, 5 * base, half, (last - first) // (2 * half)))(steps)
        np.testing.assert_allclose(TABLE_1["triangular2"].schedule(steps), expected, rtol=1e-9)


def test_lengths_and_accuracies_are_those_of_the_tables():
    told = {name: (policy.num_steps, policy.accuracy) for name, policy in TABLE_1.items()}
    assert told == {
        "fixed": (70_000, 81.4),
        "triangular2": (25_000, 81.4),
        "fixed_25000": (25_000, None),
        "decay": (25_000, 78.5),
        "exp": (70_000, 79.1),
        "exp_range": (42_000, 82.2),
    }
    adam = smith.policies("adam")
    assert [(policy.name, policy.num_steps, policy.accuracy) for policy in adam] == [
        ("fixed", 70_000, 81.4),
        ("triangular_25000", 25_000, 79.8),
        ("triangular_70000", 70_000, 81.1),
    ]
    assert adam[0].schedule([0, 60_000, 65_000]) == pytest.approx([0.0005, 0.00005, 0.000005])
    assert adam[1].schedule([0, 2_000, 4_000]) == pytest.approx([0.0005, 0.002, 0.0005])
    assert [policy.num_steps for policy in smith.policies("nesterov")] == [70_000, 25_000]


@pytest.mark.parametrize("optimizer", smith.OPTIMIZERS)
def test_a_shortened_policy_has_the_same_rates_at_the_same_share_of_its_run(optimizer):
    for whole, tenth in zip(smith.policies(optimizer), smith.policies(optimizer, 0.1), strict=True):
        if whole.name == "decay":  # Its ramp ends one step before the next part, whatever that step's share.
            continue
        steps = np.arange(0, whole.num_steps, 10)
        np.testing.assert_allclose(tenth.schedule(steps // 10), whole.schedule(steps), rtol=1e-9)


def test_optimizers_have_caffes_arguments():
    configs = {name: smith.make_optimizer(name).get_config() for name in smith.OPTIMIZERS}
    assert [(configs[name]["momentum"], configs[name]["nesterov"]) for name in ("sgd", "nesterov")] == [
        (0.9, False),
        (0.9, True),
    ]
    assert (configs["adam"]["beta_1"], configs["adam"]["beta_2"], configs["adam"]["epsilon"]) == (0.9, 0.999, 1e-8)
    assert (configs["rmsprop"]["rho"], configs["rmsprop"]["epsilon"]) == (0.99, 1e-8)


def made_up(policy, seed, curve):
    """A run of a policy whose validations, one after every 100 steps, have these accuracies."""
    run = make_run(Arm(100, policy.name, policy.schedule), seed, curve[-1], num_epochs=1)
    records = [EpochRecord(1, 100 * i + 99, 0.1, {"val_accuracy": value}, 1.0) for i, value in enumerate(curve)]
    last = dataclasses.replace(run.result.epochs[0], step=records[-1].step, metrics=records[-1].metrics)
    result = dataclasses.replace(run.result, epochs=[last], validations=records[:-1])
    return dataclasses.replace(run, result=result)


def test_the_report_has_the_end_the_best_step_and_the_steps_to_the_fixed_policys_accuracy_of_each_seed(tmp_path):
    fixed, triangular2 = of = [TABLE_1["fixed"], TABLE_1["triangular2"]]
    curves = {
        (fixed, 0): [0.5, 0.8, 0.7],
        (triangular2, 0): [0.6, 0.7, 0.65],
        (fixed, 1): [0.4, 0.5, 0.6],
        (triangular2, 1): [0.3, 0.4, 0.5],
    }
    runs = [made_up(policy, seed, curve) for (policy, seed), curve in curves.items()]
    text = smith.write(runs, of, "made up", tmp_path)
    assert text == (tmp_path / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        ["fixed", "81.4 after 70,000", "600", "65.00 ± 7.07", "70.00 ± 14.14", "250 ± 71", "250 ± 71 (2 of 2)"],
        ["triangular2", "81.4 after 25,000", "600", "57.50 ± 10.61", "60.00 ± 14.14", "250 ± 71", "200 (1 of 2)"],
    ]
    assert "Triangular2 instead of fixed, validation accuracy: -7.50 ± 3.54 points" in text
    (_, second) = json.loads((tmp_path / "smith.json").read_text())["policies"]
    assert second["accuracy"] == pytest.approx([65.0, 50.0])
    assert (second["best_steps"], second["steps_to_fixed"]) == ([200, 300], [200, None])
    assert (tmp_path / "smith.png").read_bytes().startswith(b"\x89PNG")


def test_the_band_of_a_policy_is_the_standard_deviation_of_the_table():
    policy = TABLE_1["fixed"]
    runs = [made_up(policy, seed, curve) for seed, curve in enumerate([[0.5, 0.7], [0.5, 0.6], [0.5, 0.8]])]
    picture = policies_picture(runs, "val_accuracy", "made up")
    (band,) = picture.together().axes[0].collections
    assert sorted({round(y, 6) for y in band.get_paths()[0].vertices[:, 1]}) == [0.5, 0.6, 0.8]  # 0.7 ± 0.1.
    assert "band: ± standard deviation" in picture.note
    assert "one seed" in policies_picture(runs[:1], "val_accuracy", "made up").note
