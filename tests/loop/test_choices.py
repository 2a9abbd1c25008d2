"""What a step runs on: when XLA is chosen and when it refuses, which strategy, and how the CPU is split."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from clr_loop.loop import choose, keras_private, strategies
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from helpers.small import NUM_CLASSES, RATES, assert_same_metrics, classifier, compiled, loop_again, loop_of
from helpers.warned import user_warnings

IMAGES = np.random.default_rng(0).normal(size=(20, 8, 8, 1)).astype(np.float32)
CLASSES = np.arange(20) % NUM_CLASSES


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Lets the choice be made as on a CPU, whatever this machine has."""
    monkeypatch.setattr(choose, "device", lambda: "CPU:0")


class HiddenConvolution(layers.Layer):
    """A convolution that no list of layers shows: raw keras.ops, in a layer of its own."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], 4))

    def call(self, x):
        return keras.ops.conv(x, self.kernel, padding="same")


class HiddenConvolutionLayer(layers.Layer):
    def __init__(self):
        super().__init__()
        self.inner = layers.SeparableConv2D(4, 3)

    def call(self, x):
        return self.inner(x)


class AttentionWithDropout(layers.Layer):
    def __init__(self, dropout=0.1):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 4, dropout=dropout)

    def build(self, shape):
        self.attention.build(shape[:-1], shape[:-1])

    def call(self, x, training=None):
        x = keras.ops.squeeze(x, -1)
        return self.attention(x, x, training=training)


class ConvolutionInALoop(layers.Layer):
    """A convolution in the body of a loop of the graph, which is a function of its own there."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 3, shape[-1], shape[-1]))

    def call(self, x):
        return tf.while_loop(
            lambda i, x: i < 2, lambda i, x: (i + 1, keras.ops.conv(x, self.kernel, padding="same")), (0, x)
        )[1]


def image_loop(*hidden, jit_compile="auto"):
    model = keras.Sequential([keras.Input((8, 8, 1)), *hidden, layers.Flatten(), layers.Dense(NUM_CLASSES)])
    model.compile(keras.optimizers.SGD(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return TrainLoop(model, IMAGES, CLASSES, batch_size=8, options=StepOptions(jit_compile=jit_compile))


@pytest.mark.usefixtures("on_a_cpu")
@pytest.mark.parametrize(
    ("make_layer", "reason"),
    [
        (lambda: layers.Conv2D(4, 3), "slow for convolutions on a CPU"),
        (lambda: keras.Sequential([layers.SeparableConv2D(2, 3)]), "slow for convolutions on a CPU"),
        (HiddenConvolution, "slow for convolutions on a CPU"),
        (HiddenConvolutionLayer, "slow for convolutions on a CPU"),
        (ConvolutionInALoop, "slow for convolutions on a CPU"),
        (AttentionWithDropout, "slow for random numbers, such as dropout's, on a CPU"),
        (lambda: layers.Dropout(0.5), "slow for random numbers, such as dropout's, on a CPU"),
        (lambda: layers.RandomRotation(0.1), "does not support it"),
    ],
    ids=["convolution", "nested", "raw", "custom_layer", "in_a_loop", "attention", "dropout", "rotation"],
)
def test_auto_leaves_to_the_plain_graph_what_xla_cannot_do_well_wherever_it_hides(make_layer, reason):
    loop = image_loop(make_layer())
    assert loop.jit_compile is False
    assert loop.chosen["xla"].startswith("without XLA (")
    assert reason in loop.chosen["xla"]


def test_auto_compiles_dense_models_and_attention_without_dropout():
    assert image_loop().jit_compile is True
    loop = image_loop(AttentionWithDropout(dropout=0.0))
    assert (loop.jit_compile, loop.chosen["xla"]) == (True, "with XLA")


def test_deciding_moves_no_random_state():
    loop = image_loop(layers.Dropout(0.5, seed=3))
    fresh = image_loop(layers.Dropout(0.5, seed=3))
    assert_same_metrics({"state": loop.snapshot().model[0]}, {"state": fresh.snapshot().model[0]})
    seeds = [variable.numpy() for variable in loop.model.variables if "seed" in variable.path]
    assert [seed.tolist() for seed in seeds] == [[3, 0]]


@pytest.mark.parametrize(("wish", "words"), [(True, "with XLA (as asked)"), (False, "without XLA (as asked)")])
def test_what_is_asked_for_is_done_and_said(wish, words):
    loop = loop_of(jit_compile=wish)
    assert (loop.jit_compile, loop.chosen["xla"]) == (wish, words)


@pytest.mark.usefixtures("on_a_cpu")
def test_xla_that_is_asked_for_is_refused_for_convolutions():
    with pytest.raises(ValueError, match="jit_compile is True for a model with convolutions on a CPU"):
        image_loop(layers.Conv2D(4, 3), jit_compile=True)


class Unsupported(layers.Layer):
    """An operation that XLA has no kernel for."""

    def call(self, x):
        return x + 0.0 * tf.ensure_shape(tf.numpy_function(lambda x: x, [x], x.dtype), x.shape)


def refused(jit_compile):
    return loop_of(compiled(Unsupported, lambda: layers.Dense(8, activation="tanh")), jit_compile=jit_compile)


def test_a_model_that_xla_refuses_trains_on_the_plain_graph_with_one_warning():
    loop = refused("auto")
    assert loop.jit_compile is True
    with pytest.warns(UserWarning, match="XLA cannot compile the model") as caught:
        metrics = loop.run(RATES)
    (warning,) = [str(each.message) for each in user_warnings(caught)]
    assert "\n" not in warning
    assert (loop.jit_compile, loop.chosen["xla"]) == (False, "without XLA (it refuses the model)")
    assert loop.step == 30
    assert_same_metrics(metrics, loop_again().run(RATES), rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loop.run(RATES, np.full(30, 0.9))
        loop.model.layers[0].trainable = False
        loop.run(RATES)


def test_a_model_that_xla_refuses_is_an_error_where_xla_was_asked_for():
    with pytest.raises((tf.errors.OpError, ValueError)):
        refused(True).run(RATES)


@pytest.mark.filterwarnings("ignore:XLA cannot compile")
def test_a_model_that_fails_by_itself_shows_its_own_error():
    class FailsInBatchesOf64(layers.Layer):
        def call(self, x):
            if x.shape[0] == 64:
                raise ValueError("own error")
            return x

    loop = loop_of(compiled(FailsInBatchesOf64), batch_size=64, jit_compile="auto")
    with pytest.raises(ValueError, match="own error"):
        loop.run(RATES)


def test_a_cpu_cannot_be_split_once_tensorflow_computes():
    tf.zeros(())
    with pytest.raises(ValueError, match="cannot be split into 2 logical devices any more"):
        strategies.split_cpu(2)
    with pytest.raises(ValueError, match="logical_devices is 0; it must be at least 1"):
        strategies.split_cpu(0)


def test_one_device_needs_no_strategy_and_an_unknown_name_is_refused():
    if len(tf.config.list_logical_devices("GPU")) < 2:
        assert strategies.make_strategy("mirrored") is None
    assert strategies.make_strategy("none") is None
    with pytest.raises(ValueError, match="There is no strategy 'x'; choose none, mirrored or multi_worker"):
        strategies.make_strategy("x")


def test_parameter_servers_are_refused_with_the_alternative():
    class OfParameterServers(tf.distribute.ParameterServerStrategy):
        def __init__(self):
            """Without the servers that the real one waits for."""

    with pytest.raises(ValueError, match=r"ParameterServerStrategy.*use MultiWorkerMirroredStrategy"):
        strategies.check_strategy(OfParameterServers())


def test_the_scope_puts_the_precision_back_after_an_error_too():
    def fail_inside():
        with strategies.scope(None, "mixed_bfloat16"):
            assert keras.config.dtype_policy().name == "mixed_bfloat16"
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert keras.config.dtype_policy().name == "float32"


def test_what_was_chosen_is_said_in_words():
    loop = loop_of(classifier(), jit_compile=False)
    assert loop.chosen == {
        "device": choose.device(),
        "replicas": "one replica",
        "feed": "resident",
        "precision": "float32",
        "xla": "without XLA (as asked)",
        "oneDNN": "on" if keras_private.has_onednn() else "off (TF_ENABLE_ONEDNN_OPTS=1 asks for it)",
    }
    assert (loop.device, loop.num_workers) == (choose.device(), 1)
