import dataclasses

import numpy as np
import pytest

from clr_loop.studies.pictures.bands import MOST_POINTS, training_bands, validation_bands
from helpers.made_up_runs import ARMS, make_run


def results(num_seeds, num_steps, steps_per_epoch, num_examples, batch_size):
    """Results whose loss at step s is (seed + 1) · s, and whose validation loss after epoch e is (seed + 1) · e."""
    made = []
    for seed in range(num_seeds):
        run = make_run(ARMS[0], seed, 0.5)
        history = {
            "step": np.arange(num_steps),
            "learning_rate": np.linspace(0.1, 0.2, num_steps, dtype=np.float32),
            "loss": ((seed + 1) * np.arange(num_steps)).astype(np.float32),
        }
        epochs = [
            dataclasses.replace(record, step=(e + 1) * steps_per_epoch - 1, metrics={"val_loss": (seed + 1.0) * e})
            for e, record in enumerate(run.result.epochs[: num_steps // steps_per_epoch])
        ]
        settings = {**run.result.settings, "batch_size": batch_size}
        changes = {"history": history, "epochs": epochs, "settings": settings, "num_examples": num_examples}
        made.append(dataclasses.replace(run.result, **changes))
    return made


def test_a_short_run_has_every_step_with_its_mean_and_standard_deviation_over_the_examples_visited():
    bands = training_bands(results(3, num_steps=9, steps_per_epoch=3, num_examples=25, batch_size=10), 9)
    assert set(bands) == {"learning_rate", "loss"}
    # The last batch of an epoch is short.
    np.testing.assert_array_equal(bands["loss"].examples, [10, 20, 25, 35, 45, 50, 60, 70, 75])
    np.testing.assert_allclose(bands["loss"].mean, 2.0 * np.arange(9))
    np.testing.assert_allclose(bands["loss"].sd, np.arange(9))
    np.testing.assert_allclose(bands["loss"].lower, np.arange(9))
    np.testing.assert_allclose(bands["loss"].upper, 3.0 * np.arange(9))
    np.testing.assert_allclose(bands["learning_rate"].mean, np.linspace(0.1, 0.2, 9), rtol=1e-6)


def test_a_long_run_is_cut_into_parts_that_leave_no_step_out():
    num_steps = 2 * MOST_POINTS + 500
    made = results(2, num_steps=num_steps, steps_per_epoch=500, num_examples=5000, batch_size=10)
    loss, rate = (training_bands(made, MOST_POINTS)[name] for name in ("loss", "learning_rate"))
    assert len(loss.mean) == MOST_POINTS
    np.testing.assert_array_equal(loss.examples, 25 * np.arange(1, MOST_POINTS + 1))
    ends = loss.examples // 10  # The steps that are done by then.
    lengths = np.diff(ends, prepend=0)
    assert set(lengths) == {2, 3}
    assert np.sum(lengths * loss.mean) == pytest.approx(1.5 * np.arange(num_steps).sum())
    np.testing.assert_allclose(rate.mean, made[0].history["learning_rate"][ends - 1])


def test_a_run_of_fewer_steps_than_points_has_the_value_of_a_step_at_each_point_within_it():
    bands = training_bands(results(1, num_steps=4, steps_per_epoch=2, num_examples=20, batch_size=10), 10)
    np.testing.assert_array_equal(bands["loss"].examples, 4 * np.arange(1, 11))
    np.testing.assert_array_equal(bands["loss"].mean, [0, 0, 0, 1, 1, 2, 2, 2, 3, 3])


def test_validations_are_those_of_the_epochs_ends_and_one_seed_has_no_spread():
    (band,) = validation_bands(results(2, 9, 3, 25, 10)).values()
    np.testing.assert_array_equal(band.examples, [25, 50, 75])
    np.testing.assert_allclose(band.mean, [0.0, 1.5, 3.0])
    np.testing.assert_allclose(band.sd, np.array([0.0, 1.0, 2.0]) / np.sqrt(2))
    (alone,) = validation_bands(results(1, 9, 3, 25, 10)).values()
    np.testing.assert_array_equal(alone.sd, np.zeros(3))


def test_a_run_that_skipped_an_update_is_compared_as_far_as_the_shortest():
    made = results(2, 9, 3, 25, 10)
    shorter = {name: values[:8] for name, values in made[1].history.items()}
    bands = training_bands([made[0], dataclasses.replace(made[1], history=shorter)], 8)
    np.testing.assert_array_equal(bands["loss"].examples, [10, 20, 25, 35, 45, 50, 60, 70])
    np.testing.assert_allclose(bands["loss"].mean, 1.5 * np.arange(8))
