"""How a result shows itself in a shell and in a notebook."""

import numpy as np
import pytest

from clr_loop.studies.pictures.runs import training_picture
from helpers.made_up_runs import ARMS, make_run
from helpers.shown import cells_of, is_drawing

RESULT = make_run(ARMS[1], 0, 0.95125).result


def test_in_a_shell_it_is_a_line():
    assert repr(RESULT) == (
        "TrainingResult(15 epochs, 9,000 steps: loss 1, accuracy 0.5, val_loss 0.9, val_accuracy 0.9513; "
        "trained 3.00 s)"
    )


def test_in_a_notebook_it_is_a_small_table_and_its_picture():
    ((*names,), (*values,)) = zip(*cells_of(RESULT), strict=True)
    cells = dict(zip(names, values, strict=True))
    assert (cells["epochs"], cells["steps"], cells["val_accuracy"]) == ("15", "9,000", "0.9513")
    assert is_drawing(RESULT)
    (rate, *_), (oracle, *_) = (picture.together().axes for picture in (RESULT.plot(), training_picture(RESULT)))
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), RESULT.history["learning_rate"])
    assert rate.get_ylabel() == oracle.get_ylabel() == "learning rate"


@pytest.mark.parametrize("loss", [[2.0], [2.0, np.nan, 1.0]])
def test_a_run_of_one_step_or_with_a_loss_that_is_not_finite_is_drawn_too(loss):
    result = make_run(ARMS[0], 0, 0.5).result
    history = {name: np.asarray(loss, np.float32) for name in ("step", "learning_rate", "loss")}
    object.__setattr__(result, "history", history)
    assert is_drawing(result)
