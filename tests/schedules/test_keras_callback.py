import keras
import numpy as np
import pytest

from clr_loop.schedules.for_keras import CyclicLR, as_keras

BASE, MAX = 0.001, 0.006


def listing_of_the_paper(iteration, base_lr, max_lr, step_size, scale):
    """The formula of arXiv 1506.01186, section 3.1, as the CLR repository has it; `scale` of (cycle, iteration)."""
    cycle = np.floor(1 + iteration / (2 * step_size))
    x = np.abs(iteration / step_size - 2 * cycle + 1)
    return base_lr + (max_lr - base_lr) * np.maximum(0, 1 - x) * scale(cycle, iteration)


def make_model(optimizer=None, **arguments):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.Adam(), "mse", **arguments)
    return model


def fit(model, callback, num_batches=20, epochs=1):
    data = np.zeros((4 * num_batches, 2)), np.zeros((4 * num_batches, 1))
    model.fit(*data, batch_size=4, epochs=epochs, verbose=0, callbacks=[callback])


@pytest.mark.parametrize(
    ("arguments", "scale"),
    [
        ({}, lambda cycle, iteration: 1.0),
        ({"mode": "triangular2"}, lambda cycle, iteration: 1 / 2.0 ** (cycle - 1)),
        ({"mode": "exp_range", "gamma": 0.99}, lambda cycle, iteration: 0.99**iteration),
        ({"scale_fn": lambda x: 1 / 5 ** (x * 0.0001)}, lambda cycle, iteration: 1 / 5 ** (cycle * 0.0001)),
        (
            {"scale_fn": lambda x: max(0.0, 1 - x / 15), "scale_mode": "iterations"},
            lambda cycle, iteration: np.maximum(0, 1 - iteration / 15),
        ),
    ],
)
def test_each_batch_runs_at_the_rate_of_the_original_formula(arguments, scale):
    callback = CyclicLR(BASE, MAX, 4.0, **arguments)
    fit(make_model(), callback, num_batches=10, epochs=2)
    expected = listing_of_the_paper(np.arange(20), BASE, MAX, 4, scale)
    np.testing.assert_allclose(callback.history["lr"], expected, rtol=1e-6)
    assert callback.clr() == pytest.approx(listing_of_the_paper(20, BASE, MAX, 4, scale))


def test_the_recorded_rate_is_the_one_that_moved_the_weights():
    model = make_model(keras.optimizers.SGD(momentum=0.0))
    model.set_weights([np.zeros((2, 1)), np.ones(1)])
    callback = CyclicLR(0.01, 0.06, 4)
    weights = [1.0]
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: weights.append(float(model.get_weights()[1][0]))
    )
    model.fit(np.zeros((40, 2)), np.zeros((40, 1)), batch_size=4, verbose=0, callbacks=[callback, note])
    # The loss is the square of the bias: a step multiplies it by 1 - 2 * rate.
    rates = (1 - np.array(weights[1:]) / weights[:-1]) / 2
    np.testing.assert_allclose(rates, callback.history["lr"], rtol=1e-4)


def test_history_has_an_entry_of_everything_for_each_batch_and_goes_on_over_calls_of_fit():
    callback, model = CyclicLR(BASE, MAX, 4), make_model(metrics=["mae"])
    fit(model, callback, num_batches=6)
    fit(model, callback, num_batches=5)
    assert callback.history.keys() == {"lr", "iterations", "loss", "mae"}
    assert callback.history["iterations"] == list(range(1, 12))
    assert {len(values) for values in callback.history.values()} == {11}
    expected = listing_of_the_paper(np.arange(11), BASE, MAX, 4, lambda cycle, iteration: 1.0)
    np.testing.assert_allclose(callback.history["lr"], expected, rtol=1e-6)


def test_reset_begins_a_cycle_with_other_bounds_and_keeps_what_is_not_given():
    callback, model = CyclicLR(BASE, MAX, 4), make_model()
    fit(model, callback, num_batches=6)
    callback._reset(new_max_lr=0.1, new_step_size=2.0)
    assert callback.clr_iterations == 0
    fit(model, callback, num_batches=5)
    np.testing.assert_allclose(callback.history["lr"][6:], np.interp(np.arange(5), [0, 2, 4], [BASE, 0.1, BASE]), 1e-6)
    assert callback.trn_iterations == 11
    assert (callback.base_lr, callback.max_lr, callback.step_size) == (BASE, 0.1, 2.0)


class Interrupt(keras.callbacks.Callback):
    """Stops a run with an error after some batches."""

    def __init__(self, num_batches):
        super().__init__()
        self.left = num_batches

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise InterruptedError


def triangle(iterations):
    return listing_of_the_paper(np.asarray(iterations), BASE, MAX, 7, lambda cycle, iteration: 1.0)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_run_restored_from_a_backup_goes_on_at_the_rate_of_its_step(tmp_path, is_first, is_new):
    def run(callback, *others):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        model = make_model()
        data = np.zeros((40, 2)), np.zeros((40, 1))
        callbacks = [callback, backup, *others] if is_first else [backup, callback, *others]
        model.fit(*data, batch_size=4, epochs=4, verbose=0, callbacks=callbacks)
        return model

    callback = CyclicLR(BASE, MAX, 7)
    with pytest.raises(InterruptedError):
        run(callback, Interrupt(25))
    np.testing.assert_allclose(callback.history["lr"], triangle(range(25)), rtol=1e-6)
    second = CyclicLR(BASE, MAX, 7) if is_new else callback
    model = run(second)
    # The backup is that of the second epoch's end.
    np.testing.assert_allclose(second.history["lr"][-20:], triangle(range(20, 40)), rtol=1e-6)
    assert second.clr_iterations == int(model.optimizer.iterations) == 40


def test_a_loaded_model_goes_on_at_its_step_also_where_gradients_are_accumulated(tmp_path):
    model = make_model(keras.optimizers.Adam(gradient_accumulation_steps=2))
    fit(model, CyclicLR(BASE, MAX, 7), num_batches=10)
    model.save(tmp_path / "model.keras")
    callback = CyclicLR(BASE, MAX, 7)
    fit(keras.saving.load_model(tmp_path / "model.keras"), callback, num_batches=5, epochs=2)
    np.testing.assert_allclose(callback.history["lr"], triangle(range(10, 20)), rtol=1e-6)


def test_cycles_go_on_with_a_new_optimizer_and_count_no_skipped_or_accumulated_step_twice():
    callback, model = CyclicLR(BASE, MAX, 7), make_model(keras.optimizers.Adam(gradient_accumulation_steps=3))
    for num_batches in (5, 4):  # Neither is a multiple of 3, so the optimizer's counter is behind the batches.
        fit(model, callback, num_batches)
    model.compile(keras.optimizers.SGD(), "mse")
    fit(model, callback, num_batches=6)
    np.testing.assert_allclose(callback.history["lr"], triangle(range(15)), rtol=1e-6)
    assert callback.clr_iterations == callback.trn_iterations == 15


def test_steps_that_the_optimizer_took_without_the_callback_move_the_cycles():
    callback, model = CyclicLR(BASE, MAX, 7), make_model()
    fit(model, callback, num_batches=3)
    fit(model, keras.callbacks.Callback(), num_batches=2)
    fit(model, callback, num_batches=4)
    np.testing.assert_allclose(callback.history["lr"], triangle([0, 1, 2, 5, 6, 7, 8]), rtol=1e-6)


def test_mixed_precisions_wrapped_optimizer_gets_its_rate():
    callback = CyclicLR(BASE, MAX, 4)
    model = make_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))
    fit(model, callback, num_batches=5)
    np.testing.assert_allclose(callback.history["lr"], np.linspace(BASE, MAX, 5), rtol=1e-6)
    assert float(model.optimizer.inner_optimizer.learning_rate) == pytest.approx(callback.clr())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: CyclicLR(mode="triangle"), ValueError, "mode is 'triangle'; it must be 'triangular'"),
        (lambda: CyclicLR(base_lr=0.1), ValueError, "base_lr 0.1 is above max_lr 0.006"),
        (lambda: CyclicLR(step_size=2.5), TypeError, "step_size is 2.5; it must be a whole number"),
        (lambda: CyclicLR(step_size=0.0), ValueError, "step_size is 0; it must be at least 1"),
        (lambda: CyclicLR(mode="exp_range", gamma=1.5), ValueError, "gamma is 1.5; it must be above 0 and at most 1"),
        (lambda: CyclicLR(scale_fn=lambda x: 2.0), ValueError, "returned 2.0 for 1"),
        (lambda: CyclicLR(scale_fn=lambda x: float("nan")), ValueError, "returned nan"),
        (
            lambda: CyclicLR(scale_fn=lambda x: 1.0, scale_mode="batch"),
            ValueError,
            "scale_mode is 'batch'; it must be 'cycle' or 'iterations'",
        ),
        (
            lambda: fit(make_model(keras.optimizers.Adam(as_keras(CyclicLR().schedule))), CyclicLR()),
            ValueError,
            "the optimizer has a schedule",
        ),
        (
            lambda: fit(make_model(steps_per_execution=5), CyclicLR()),
            ValueError,
            "the model has steps_per_execution 5",
        ),
    ],
)
def test_bad_arguments_are_named_in_one_line(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
