"""How a result shows itself in a shell and in a notebook."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from helpers.made_up_runs import ARMS, make_run

RESULT = make_run(ARMS[1], 0, 0.95125).result


def test_in_a_shell_it_is_a_line():
    assert repr(RESULT) == (
        "TrainingResult(15 epochs, 9,000 steps: loss 1, accuracy 0.5, val_loss 0.9, val_accuracy 0.9513; "
        "trained 3.00 s)"
    )


def test_in_a_notebook_it_is_a_small_table_and_small_pictures_that_show_the_triangle():
    text = RESULT._repr_html_()
    assert len(text) < 40_000
    table, *pictures = ElementTree.fromstring(f"<body>{text}</body>")
    cells = {row[0].text: row[1].text for row in table}
    assert (cells["epochs"], cells["steps"], cells["val_accuracy"]) == ("15", "9,000", "0.9513")
    titles = [picture[0].text for picture in pictures]
    assert titles == ["loss: 1 to 1 over 9,000 steps", "learning_rate: 0.001 to 0.006 over 9,000 steps"]
    points = np.array([pair.split(",") for pair in pictures[1][1].get("points").split()], float)
    assert len(points) <= 1000
    x, y = points.T
    rates = RESULT.history["learning_rate"]
    assert np.all(np.diff(x) > 0)
    drawn = (y.max() - y) / np.ptp(y) * np.ptp(rates) + rates.min()
    np.testing.assert_allclose(
        drawn, np.interp(x / x.max() * (len(rates) - 1), np.arange(len(rates)), rates), rtol=0.01
    )


@pytest.mark.parametrize("loss", [[2.0], [2.0, np.nan, 1.0]])
def test_a_run_of_one_step_or_with_a_loss_that_is_not_finite_is_drawn_too(loss):
    result = make_run(ARMS[0], 0, 0.5).result
    history = {name: np.asarray(loss, np.float32) for name in ("step", "learning_rate", "loss")}
    object.__setattr__(result, "history", history)
    assert re.findall(r"nan|inf", result._repr_html_()) == []
