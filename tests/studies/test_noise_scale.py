"""The gradient noise scale, against a model whose noise is known."""

import keras
import numpy as np
import pytest

from clr_loop.data import Examples
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.schedules import Constant
from clr_loop.studies.comparison import noise_scale

NUM, WIDTH, SPREAD = 20_000, 5, 3.0


@pytest.fixture(scope="module")
def examples():
    """Targets around 1 with a known spread, for a model whose gradient is (prediction - target) in each output."""
    targets = 1.0 + SPREAD * np.random.default_rng(0).standard_normal((NUM, WIDTH))
    return Examples(np.ones((NUM, 1), np.float32), targets.astype(np.float32))


def make_loop(examples, dropout=0.0):
    model = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dropout(dropout), keras.layers.Dense(WIDTH, kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(), lambda y, p: keras.ops.sum((p - y) ** 2, axis=-1) / 2)
    return TrainLoop(model, examples.inputs, examples.targets, batch_size=100, seed=4)


def test_noise_and_signal_are_those_of_a_known_model(examples):
    loop = make_loop(examples)
    found = noise_scale.measure(loop, Constant(0.0), 1, examples)
    assert found.steps == (0, 200)
    # Weights 0: the gradient of an example is minus its target, in the weights and again in the biases.
    for noise, signal in zip(found.noise, found.signal, strict=True):
        assert noise == pytest.approx(2 * WIDTH * SPREAD**2, rel=0.05)
        assert signal == pytest.approx(2 * WIDTH * 1.0, rel=0.2)
    assert found.largest == 10_000
    assert found.batch_sizes[0] == pytest.approx(SPREAD**2, rel=0.2)
    for size, (low, high) in zip(found.batch_sizes, found.intervals_95, strict=True):
        assert low < SPREAD**2 < high
        assert low < size < high < 2 * low


class Given:
    """A loop whose gradients are its targets."""

    def gradients(self, inputs, targets):
        return targets.mean(axis=0)


@pytest.mark.parametrize("num_batches", [20, 50])
@pytest.mark.parametrize("mean", [0.3, 0.02])
def test_the_interval_holds_the_true_scale_in_19_draws_of_20_also_where_its_end_is_infinite(mean, num_batches):
    rng = np.random.default_rng(2)
    truth, num_draws = 1 / mean**2, 2000
    intervals = []
    for _ in range(num_draws):
        batches = [(np.zeros((4, 1)), x) for x in mean + rng.standard_normal((num_batches, 4, 30))]
        noise, signal, covariance = noise_scale._noise_and_signal(Given(), batches)
        found = noise_scale.NoiseScale((0,), (noise,), (signal,), (covariance,), 4 * num_batches, 20)
        intervals += found.intervals_95
    lows, highs = np.array(intervals).T
    held = np.mean((lows <= truth) & (truth <= highs))
    if mean == 0.3:
        assert 0.93 < held < 0.975
        assert np.isfinite(highs).all()
    else:  # The gradient is lost in the noise, so nearly every interval has no upper end and misses on one side alone.
        assert held > 0.96
        assert np.isinf(highs).mean() > 0.9


@pytest.mark.parametrize(
    ("noise", "signal", "covariance"),
    [(9.0, 1.0, (0.4, 0.1, 0.04)), (9.0, 0.1, (0.4, -0.1, 0.04)), (9.0, -0.1, (0.4, 0.0, 0.04)), (1.0, 0.1, (9, 0, 1))],
)
def test_the_interval_holds_the_ratios_that_the_two_estimates_do_not_refute(noise, signal, covariance):
    (interval,) = noise_scale.NoiseScale((0,), (noise,), (signal,), (covariance,), 1000, 20).intervals_95
    ratios = np.linspace(0.0, 2000.0, 200_001)
    of_noise, of_both, of_signal = covariance
    error = np.sqrt(of_noise - 2 * ratios * of_both + ratios**2 * of_signal)
    kept = ratios[np.abs(noise - ratios * signal) <= 2.093024 * error]  # Student's t with 19 degrees of freedom.
    assert interval[0] == pytest.approx(kept[0], abs=0.01)
    assert interval[1] == (np.inf if kept[-1] == 2000.0 else pytest.approx(kept[-1], abs=0.01))


def test_both_estimates_are_without_bias_over_many_draws():
    rng = np.random.default_rng(1)
    noise, signal = [], []
    for _ in range(3000):
        batches = [(np.zeros((4, 1)), 0.1 + rng.standard_normal((4, 3))) for _ in range(5)]
        found = noise_scale._noise_and_signal(Given(), batches)
        noise.append(found[0])
        signal.append(found[1])
    for values, truth in ((noise, 3.0), (signal, 0.03)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / np.sqrt(len(values))


def test_it_leaves_no_trace(examples):
    loop = make_loop(examples, dropout=0.5)
    loop.run([0.01] * 3)
    before, step = loop.weights_sha256(), loop.step
    noise_scale.measure(loop, Constant(0.1), 1, examples, num_batches=5)
    assert (loop.weights_sha256(), loop.step) == (before, step)


def test_the_gradient_is_that_of_the_mean_loss_before_clipping(examples):
    loop = make_loop(examples)
    clipped = TrainLoop(loop.model, *examples[:2], batch_size=100, options=StepOptions(clip_norm=0.001))
    found = clipped.gradients(examples.inputs[:50], examples.targets[:50])
    np.testing.assert_allclose(found, np.tile(-examples.targets[:50].mean(axis=0), 2), rtol=1e-5)


def test_words_say_when_the_scale_is_larger_than_what_was_measured():
    found = noise_scale.NoiseScale((0, 1), (90.0, 90.0), (1.0, 0.0), ((1.0, 0.0, 1e-4), (1.0, 0.0, 1e-4)), 1000, 20)
    assert found.batch_sizes == (90.0, np.inf)
    assert str(found).startswith("90 examples (87 to 93) at the beginning, 90 examples (87 to 93) in the median of 2 ")
    assert str(found).endswith("at least 4,299 examples at the end")


def test_few_examples_are_refused(examples):
    with pytest.raises(ValueError, match="There are 5 examples; the noise of a gradient needs at least 6"):
        noise_scale.measure(make_loop(examples), Constant(0.1), 1, Examples(examples.inputs[:5], examples.targets[:5]))
