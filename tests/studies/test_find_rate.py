import numpy as np
import pytest

from clr_loop import Triangular, find_rate
from clr_loop.studies import range_test
from clr_loop.studies.range_test import NoSuggestionError, suggested_bounds
from helpers.shown import cells_of, is_drawing
from helpers.small import classifier, loop_again, loop_of

SWEEP = {"num_steps": 60, "early_stop": None}


def sampled(tests):
    return [test.curve.loss for test in tests]


def test_the_sweeps_begin_with_the_loops_own_weights_and_other_orders_of_the_data():
    loop = loop_again()
    loop.run([0.1, 0.1])
    before = loop.snapshot()
    found = find_rate(loop, seeds=2, **SWEEP)
    assert loop.snapshot().seed == before.seed
    assert loop.weights_sha256() == loop_of_state(before).weights_sha256()
    assert [test.settings["seed"] for test in found.tests] == [0, 1]
    loop.seed = 1
    np.testing.assert_array_equal(range_test.run(loop, **SWEEP).curve.loss, found.tests[1].curve.loss)


def loop_of_state(state):
    loop = loop_of()
    loop.restore(state)
    return loop


def test_with_build_model_each_seed_has_the_weights_of_a_fresh_loop():
    found = find_rate(loop_again(), lambda seed: classifier(seed=seed), seeds=(3, 1), **SWEEP)
    oracle = [range_test.run(loop_of(classifier(seed=seed), seed=seed), **SWEEP) for seed in (3, 1)]
    for ours, theirs in zip(sampled(found.tests), sampled(oracle), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_the_bounds_can_be_handed_on_and_what_is_found_is_shown():
    found = find_rate(loop_again(), seeds=3, epochs=50, num_steps=600)
    expected = suggested_bounds(found.tests, 50)
    schedule = Triangular(**found.bounds)
    assert (schedule.base_lr, schedule.max_lr, schedule.step_size) == (
        expected.base_lr, expected.max_lr, expected.step_size
    )  # fmt: skip
    assert repr(found).startswith(f"RangeTests(base_lr {expected.base_lr:g}, max_lr {expected.max_lr:g}, step_size ")
    assert dict(cells_of(found))["max_lr"] == f"{expected.max_lr:g}"
    assert str(found) == range_test.text(found.tests, 50)
    assert is_drawing(found)


def test_curves_that_support_no_bounds_say_why():
    found = find_rate(loop_again(), seeds=1, num_steps=40, end_lr=1e-6)
    with pytest.raises(NoSuggestionError, match=r"^no suggestion: .*end_lr") as caught:
        _ = found.bounds
    assert dict(cells_of(found))["bounds"] == str(caught.value)


MODEL = classifier()


@pytest.mark.parametrize(
    ("build_model", "error", "message"),
    [
        (MODEL, TypeError, r"^build_model is the model .*; each seed needs fresh weights"),
        (lambda: MODEL, ValueError, r"^build_model returned the model .* twice"),
        (lambda: None, TypeError, r"^build_model returned None; it must return a compiled keras.Model"),
    ],
)
def test_what_makes_no_fresh_model_is_refused(build_model, error, message):
    loop = loop_again()
    before = loop.weights_sha256()
    with pytest.raises(error, match=message):
        find_rate(loop, build_model, seeds=2, **SWEEP)
    assert loop.weights_sha256() == before
