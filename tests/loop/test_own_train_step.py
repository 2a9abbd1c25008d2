"""Models with a `train_step` of their own: the loop assigns the rates, and they end as with Keras' `fit`."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import clr_loop
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from helpers.keras_fit import BATCH_SIZE, EPOCHS, STEPS_PER_EPOCH, rates_of, stream_of
from helpers.own_steps import OWN_STEPS, Gan, gan
from helpers.small import assert_same_metrics


def make(name):
    keras.utils.set_random_seed(0)
    return OWN_STEPS[name]()


def optimizers_of(model):
    return [v for v in [*vars(model).values(), *getattr(model, "optimizers", {}).values()]
            if isinstance(v, keras.optimizers.Optimizer)]  # fmt: skip


class GivenRates(keras.callbacks.Callback):
    def __init__(self, rates):
        super().__init__()
        self.rates = iter(rates)

    def on_train_batch_begin(self, batch, logs=None):
        rate = float(next(self.rates))
        for optimizer in optimizers_of(self.model):
            optimizer.learning_rate = rate


@functools.cache
def fitted(name):
    """Train with Keras' `fit`, and return the model and the logs."""
    kind = make(name)
    logs = kind.model.fit(
        kind.inputs, kind.targets, sample_weight=kind.sample_weight, batch_size=BATCH_SIZE, epochs=EPOCHS,
        shuffle=False, verbose=0, callbacks=[GivenRates(rates_of(kind))],
    ).history  # fmt: skip
    return kind.model, logs


def loop_of(kind, feed="resident", **options):
    if feed == "stream":
        dataset = stream_of(kind) if kind.targets is not None else stream_of(kind).map(lambda x: x)
        return TrainLoop.from_dataset(kind.model, dataset, options=StepOptions(**options))
    return TrainLoop(
        kind.model, kind.inputs, kind.targets, sample_weight=kind.sample_weight, batch_size=BATCH_SIZE, shuffle=False,
        options=StepOptions(**options),
    )  # fmt: skip


@functools.cache
def made(name):
    """Return a kind, a loop over it, and its start."""
    kind = make(name)
    loop = loop_of(kind)
    return kind, loop, loop.snapshot()


def assert_same_state(ours, theirs):
    assert len(ours.variables) == len(theirs.variables)
    for our, their in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(our.numpy(), their.numpy(), rtol=1e-5, atol=1e-6, err_msg=our.path)


@pytest.mark.parametrize("name", OWN_STEPS)
def test_they_end_as_with_fit_and_their_logs_are_the_columns(name):
    kind, loop, start = made(name)
    assert loop.chosen["xla"] == "without XLA (the model has a train_step of its own)"
    loop.restore(start)
    metrics = loop.run(rates_of(kind))
    model, logs = fitted(name)
    assert_same_state(kind.model, model)
    for our, their in zip(loop.optimizers, optimizers_of(model), strict=True):
        if int(their.iterations):
            assert_same_state(our, their)
    assert set(metrics) == {"learning_rate", *loop.metric_names}
    assert set(loop.metric_names) == set(logs)
    assert (loop.step, len(metrics["learning_rate"])) == (EPOCHS * STEPS_PER_EPOCH,) * 2


@pytest.mark.parametrize("name", ["masked_autoencoder", "augmented"], ids=["inputs_alone", "with_weights"])
def test_a_stream_ends_as_arrays_do_to_the_bit(name):
    kind, arrays, start = made(name)
    arrays.restore(start)
    stream = loop_of(make(name), "stream")
    assert_same_metrics(stream.run(rates_of(kind)), arrays.run(rates_of(kind)))
    assert stream.weights_sha256() == arrays.weights_sha256()


@pytest.mark.parametrize("name", ["gan", "contrastive", "augmented"])
def test_through_fit_resumed_they_end_as_in_one_go(name, tmp_path):
    kind, loop, start = made(name)
    schedule = lambda steps: rates_of(kind)[steps]  # noqa: E731
    validation = (kind.inputs, kind.targets, kind.sample_weight) if name == "augmented" else None

    def run(directory, epochs, **options):
        loop.restore(start)
        return clr_loop.fit(loop, schedule, validation, epochs=epochs, run_dir=tmp_path / directory, **options)

    whole = run("whole", EPOCHS)
    assert_same_state(kind.model, fitted(name)[0])
    run("parts", 1)
    again = run("parts", EPOCHS, resume=True)
    assert again.weights_sha256 == whole.weights_sha256
    assert_same_metrics(again.history, whole.history)
    assert set(whole.history) == {"step", "learning_rate", *loop.metric_names}


def test_validation_is_by_the_test_step_of_the_model():
    kind, loop, _ = made("distillation")
    expected = kind.model.evaluate(kind.inputs, kind.targets, batch_size=50, verbose=0, return_dict=True)
    evaluated = loop.evaluate(kind.inputs, kind.targets, batch_size=64)
    assert evaluated == pytest.approx(expected, rel=1e-6)
    assert set(evaluated) == {"accuracy"}


def test_named_optimizers_alone_get_the_rate_and_the_others_keep_theirs():
    kind = make("gan")
    own = float(kind.model.d_optimizer.learning_rate.numpy())
    loop = loop_of(kind, optimizers=["g_optimizer"])
    loop.run([0.25])
    assert float(kind.model.g_optimizer.learning_rate.numpy()) == 0.25
    assert float(kind.model.d_optimizer.learning_rate.numpy()) == own
    with pytest.raises(ValueError, match="names the optimizer 'h_optimizer', and the model has none of that name"):
        loop_of(make("gan"), optimizers=["h_optimizer"])


@pytest.mark.parametrize(
    "options",
    [{"accumulate": 2}, {"clip_norm": 1.0}, {"rate_multipliers": {"bias": 0.5}}, {"skip_non_finite": True},
     {"transforms": [lambda gradients: gradients]}, {"average": 0.9}],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_what_belongs_inside_a_step_is_refused_with_the_reason(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"train_step of its own, .*so {name} cannot come in between") as caught:
        loop_of(make("gan"), **options)
    assert "\n" not in str(caught.value)


def test_a_cycled_momentum_is_refused_too():
    with pytest.raises(ValueError, match="own train_step decides on that itself"):
        made("gan")[1].run(np.full(9, 0.01), np.full(9, 0.3))


class FromTensorFlow(Gan):
    """Draws its noise from tf.random, whose state is inside the operation."""

    def train_step(self, real):
        return super().train_step(real + 0.0 * tf.random.normal((8,)))


def test_what_draws_from_tf_random_trains_but_cannot_be_resumed_exactly(tmp_path):
    keras.utils.set_random_seed(0)
    model = FromTensorFlow()
    adam = keras.optimizers.Adam
    model.compile(adam(), adam(), keras.losses.BinaryCrossentropy(from_logits=True))
    loop = TrainLoop(model, gan().inputs, batch_size=50)
    assert "tf.random (RandomStandardNormal)" in loop.chosen["resuming"]
    schedule = clr_loop.Constant(0.01)
    clr_loop.fit(loop, schedule, epochs=1, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match=r"cannot be resumed exactly: .*keras\.random\.SeedGenerator"):
        clr_loop.fit(loop, schedule, epochs=2, run_dir=tmp_path / "run", resume=True)


def test_a_train_step_that_fails_shows_its_own_line():
    class Fails(keras.Model):
        def train_step(self, data):
            raise RuntimeError("own words")

    model = Fails()
    model.compile()
    with pytest.raises(ValueError, match=r"The train_step of Fails fails on data of shape .*own words.*line \d+"):
        TrainLoop(model, np.zeros((9, 2), np.float32), batch_size=3)
