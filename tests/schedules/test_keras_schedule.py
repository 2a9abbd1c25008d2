import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop.schedules import (
    Constant,
    CosineDecay,
    CosineRestarts,
    Cyclic,
    ExponentialRamp,
    ExpRange,
    LinearDecay,
    LinearRamp,
    OneCycle,
    OneTriangle,
    Triangular,
    Triangular2,
    join,
)
from clr_loop.schedules.for_keras import KerasSchedule, as_keras

BASE, MAX = 0.001, 0.006
SCHEDULES = [
    Constant(0.1),
    Cyclic(BASE, MAX, 7, 16),
    Triangular(BASE, MAX, 2000),
    Triangular2(BASE, MAX, 12, 5),
    ExpRange(BASE, MAX, 60, gamma=0.999),
    OneCycle(MAX, 500),
    OneCycle(MAX, 500, 0.0, anneal="linear"),
    CosineRestarts(BASE, MAX, 12),
    CosineRestarts(BASE, MAX, 12, 2, 0.9),
    LinearDecay(BASE, MAX, 500),
    CosineDecay(BASE, MAX, 500),
    OneTriangle(BASE, MAX, 501),
    LinearRamp(BASE, MAX, 500),
    ExponentialRamp(BASE, MAX, 500),
    join([LinearRamp(0.0, BASE, 100), Triangular(BASE, MAX, 20), OneCycle(MAX, 50)], [100, 200]),
]
names = [f"{i}-{type(schedule).__name__}" for i, schedule in enumerate(SCHEDULES)]
# From the start, and where float32 can no longer tell a step from the next.
STEPS = np.concatenate([np.arange(600), 10**9 + np.arange(600), 2**40 + np.arange(600)])


@pytest.fixture(autouse=True)
def past_the_end(recwarn):
    """The finite schedules are looked at past their end here, of which the plain call warns."""


def on_a_small_model(schedule, **arguments):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(schedule), "mse", **arguments)
    return model


def fit(model, callbacks=()):
    model.fit(np.zeros((40, 2)), np.zeros((40, 1)), batch_size=4, verbose=0, callbacks=list(callbacks))


@pytest.mark.parametrize("jit_compile", [None, True], ids=["eager", "xla"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=names)
def test_every_rate_is_the_float32_of_the_plain_schedules(schedule, jit_compile):
    call = as_keras(schedule)
    if jit_compile:
        call = tf.function(call, jit_compile=True)
    rates = call(tf.constant(STEPS)).numpy()
    assert rates.dtype == np.float32
    # One unit in float32's last place: TensorFlow's cosines and powers round float64 in their own way.
    np.testing.assert_array_max_ulp(rates, schedule(STEPS).astype(np.float32), maxulp=1)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_a_step_may_be_of_any_integer_type(dtype):
    schedule = SCHEDULES[-1]
    expected = np.float32(schedule(100))
    for step in (np.array(100, dtype), tf.constant(100, dtype), keras.Variable(100, dtype=dtype)):
        assert float(as_keras(schedule)(step)) == pytest.approx(expected, rel=2e-7)
    assert float(as_keras(Triangular(BASE, MAX, 10))(10**10 + 10)) == np.float32(MAX)


def test_a_users_own_function_runs_in_a_graph_as_it_does_in_numpy():
    schedule = Cyclic(BASE, MAX, 7, 16, scale_fn=lambda cycle: 0.5 * (1 + np.sin(cycle * np.pi / 2)))
    rates = tf.function(as_keras(schedule))(tf.constant(STEPS)).numpy()
    np.testing.assert_array_max_ulp(rates, schedule(STEPS).astype(np.float32), maxulp=1)
    model = on_a_small_model(as_keras(schedule), jit_compile=False)
    fit(model)
    assert float(model.optimizer.learning_rate) == pytest.approx(schedule(10), rel=1e-6)
    with pytest.raises(ValueError, match="has no name, so the schedule cannot be saved"):
        as_keras(schedule).get_config()


def test_the_rates_that_keras_fit_uses_are_those_of_the_schedule():
    schedule = Triangular2(BASE, MAX, 3)
    seen = []
    model = on_a_small_model(as_keras(schedule))
    note = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(float(model.optimizer.learning_rate))
    )
    fit(model, [note])
    plain = schedule(np.arange(10)).astype(np.float32)
    np.testing.assert_array_max_ulp(np.float32(seen), plain, maxulp=1)


def test_the_tensorboard_callback_writes_its_rate(tmp_path):
    schedule = Triangular(BASE, MAX, 7)
    fit(on_a_small_model(as_keras(schedule)), [keras.callbacks.TensorBoard(tmp_path)])
    values = [
        tf.make_ndarray(value.tensor)
        for path in (tmp_path / "train").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "epoch_learning_rate"
    ]
    np.testing.assert_allclose(values, [schedule(10)], rtol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=names)
def test_it_is_made_again_from_its_config(schedule):
    config = keras.optimizers.serialize(keras.optimizers.Adam(as_keras(schedule)))
    again = keras.optimizers.deserialize(config)
    assert again._learning_rate.schedule == schedule


def test_it_is_loaded_in_another_process_or_the_error_of_keras_says_what_to_import(tmp_path):
    schedule = CosineRestarts(BASE, MAX, 4, 2, momentum=(0.8, 0.9))
    model = on_a_small_model(as_keras(schedule))
    fit(model)
    model.save(tmp_path / "model.keras")
    code = f"""
import keras
try:
    keras.saving.load_model({str(tmp_path / "model.keras")!r})
except Exception as error:
    print(str(error).splitlines()[-1])
import clr_loop.schedules.for_keras
optimizer = keras.saving.load_model({str(tmp_path / "model.keras")!r}).optimizer
print(optimizer._learning_rate.schedule, int(optimizer.iterations), float(optimizer.learning_rate), sep="|")
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    error, found = output.splitlines()
    assert "import clr_loop.schedules.for_keras" in error
    loaded, iterations, rate = found.split("|")
    assert loaded == repr(schedule)
    assert int(iterations) == 10
    assert float(rate) == pytest.approx(schedule(10), rel=1e-6)


def test_only_a_schedule_of_ours_is_taken():
    with pytest.raises(TypeError, match=r"as_keras was given 0\.1, which is not a schedule"):
        KerasSchedule(0.1)
