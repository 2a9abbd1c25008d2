"""Models, losses and data of many kinds: trained to the weights of Keras' `fit`, or refused with the reason."""

import itertools
import re
import textwrap
import warnings
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from clr_loop.data.datasets import Examples
from clr_loop.loop import checks
from clr_loop.loop.loop import TrainLoop
from clr_loop.loop.options import StepOptions
from clr_loop.runs.fit import fit
from clr_loop.schedules import Constant
from helpers.processes import run_code
from helpers.small import FEATURES, LABELS, assert_same_weights, classifier
from helpers.warned import user_warnings

X, SUMS = FEATURES, FEATURES.sum(axis=1, keepdims=True)
ONE_HOT = np.eye(5, dtype=np.float32)[LABELS]
IGNORED = np.where(np.arange(len(LABELS)) % 5, LABELS, -1)
PLAIN = StepOptions(jit_compile=False)


@pytest.fixture(scope="module")
def plain_loop():
    return TrainLoop(classifier(), X, LABELS, batch_size=50, shuffle=False, options=PLAIN)


def sparse(**arguments):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def assert_trained_as_by_fit(build, x, y, epochs=2):
    """Train by both from the same seed; compare weights, the last epoch's columns, and the evaluation."""
    keras.utils.set_random_seed(0)
    loop = TrainLoop(build(), x, y, batch_size=50, shuffle=False)
    steps = loop.run(np.full(epochs * loop.steps_per_epoch, 0.05))
    keras.utils.set_random_seed(0)
    model = build()
    model.jit_compile, model.optimizer.learning_rate = False, 0.05
    history = model.fit(x, y, batch_size=50, epochs=epochs, shuffle=False, verbose=0).history
    assert_same_weights(loop.model, model, rtol=1e-4, atol=1e-6)
    for name in set(history) - set(loop.not_means):
        last = steps[name][-loop.steps_per_epoch :].mean()
        assert last == pytest.approx(float(history[name][-1]), rel=1e-4, abs=1e-6), name
    return loop, model


def assert_evaluated_as_by_keras(loop, model, x, y):
    expected = model.evaluate(x, y, batch_size=50, verbose=0, return_dict=True)
    assert loop.evaluate(x, y) == pytest.approx({name: float(np.squeeze(v)) for name, v in expected.items()}, rel=1e-4)


def dense(width=1, loss="mse", activation=None, metrics=None):
    inner = layers.Dense(4, activation="tanh"), layers.Dense(width, activation=activation)
    model = keras.Sequential([keras.Input((6,)), *inner])
    model.compile("sgd", loss, metrics=metrics)
    return model


# --- Losses ---


def three_outputs(nest, losses):
    inputs = keras.Input((6,))
    a, b, c = (layers.Dense(width, name=name)(inputs) for name, width in (("a", 1), ("b", 5), ("c", 1)))
    model = keras.Model(inputs, nest(a, b, c))
    model.compile("sgd", losses)
    return model


@pytest.mark.parametrize(
    ("nest", "losses"),
    [
        (lambda a, b, c: {"a": a, "n": {"b": b, "c": c}}, {"a": "mse", "n": {"b": sparse(), "c": "mae"}}),
        (lambda a, b, c: {"a": a, "n": [b, c]}, {"a": "mse", "n": [sparse(), "mae"]}),
        (lambda a, b, c: [a, [b, c]], ["mse", [sparse(), "mae"]]),
    ],
    ids=["dicts_in_a_dict", "a_list_in_a_dict", "a_list_in_a_list"],
)
def test_losses_nested_in_one_another_belong_to_the_outputs_that_keras_gives_them(nest, losses):
    targets = nest(SUMS, LABELS, 2 * SUMS)
    loop, model = assert_trained_as_by_fit(lambda: three_outputs(nest, losses), X, targets)
    assert_evaluated_as_by_keras(loop, model, X, targets)
    with pytest.raises(ValueError, match=r"holds numbers from 0 to 9, but the model's output has classes 0 to 4"):
        TrainLoop(three_outputs(nest, losses), X, nest(SUMS, np.where(LABELS == 4, 9, LABELS), SUMS), batch_size=50)


class OfThoseThatCount(keras.losses.SparseCategoricalCrossentropy):
    """Leaves out targets of -1, and is a mean over the others."""

    def call(self, y, logits):
        counts = ops.cast(y >= 0, "float32")
        return counts * super().call(ops.maximum(y, 0), logits) / ops.mean(counts)


@dataclass
class Scaled:
    """A loss that is an object, and one that has no hash."""

    factor: float = 2.0

    def __call__(self, y, outputs):
        return self.factor * keras.losses.sparse_categorical_crossentropy(y, outputs, from_logits=True)


class Renamed(keras.losses.SparseCategoricalCrossentropy):
    """Computes what it inherits."""


def embedding(loss):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.UnitNormalization()])
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize(
    ("build", "targets"),
    [
        (lambda: dense(5, OfThoseThatCount(from_logits=True)), IGNORED),
        (lambda: dense(5, keras.losses.CategoricalGeneralizedCrossEntropy(), "softmax"), LABELS),
        (lambda: embedding(keras.losses.Circle(gamma=4)), LABELS),
        (lambda: dense(5, Scaled()), LABELS),
    ],
    ids=["a_subclass_that_ignores_-1", "generalized_cross_entropy", "circle", "an_object"],
)
def test_losses_of_classes_take_the_targets_that_they_are_made_for(build, targets):
    loop, model = assert_trained_as_by_fit(build, X, targets)
    assert_evaluated_as_by_keras(loop, model, X, targets)


def test_a_subclass_of_a_loss_is_taken_for_what_it_computes():
    own, inherited = (dense(5, kind(from_logits=True)) for kind in (OfThoseThatCount, Renamed))
    x, y = np.tile(X, (3, 1)), np.tile(LABELS, 3)
    assert not TrainLoop(own, x, y, batch_size=300).halves
    assert TrainLoop(inherited, x, y, batch_size=300).halves
    assert (checks.has_plain_mean(own), checks.has_plain_mean(inherited)) == (False, True)
    with pytest.raises(ValueError, match="the model's output has classes 0 to 4"):
        TrainLoop(dense(5, Renamed(from_logits=True)), X, IGNORED, batch_size=50)


# --- What happens in training only ---


class LayerInTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.extra, self.last = layers.Dense(4), layers.Dense(4, activation="tanh"), layers.Dense(1)

    def call(self, x, training=False):
        x = self.first(x)
        return self.last(self.extra(x) if training else x)


class LossInTraining(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.last = layers.Dense(4, activation="tanh"), layers.Dense(1)

    def call(self, x, training=False):
        hidden = self.first(x)
        if training:
            self.add_loss(0.1 * ops.mean(hidden**2))
        return self.last(hidden)


def made(kind, loss="mse", call=False):
    model = kind()
    if call:
        model(X[:2])  # Builds what works in inference, too.
    model.compile("sgd", loss)
    return model


@pytest.mark.parametrize("kind", [LayerInTraining, LossInTraining])
def test_layers_and_losses_of_training_alone_count_in_training_alone(kind):
    loop, model = assert_trained_as_by_fit(lambda: made(kind), X, SUMS)
    assert_evaluated_as_by_keras(loop, model, X, SUMS)


def test_a_layer_that_was_not_built_yet_when_the_model_was_called_is_trained():
    loop = TrainLoop(made(LayerInTraining, call=True), X, SUMS, batch_size=50)
    before = loop.snapshot().model
    loop.run([0.1])
    assert len(before) == 6
    assert all((old != new).any() for old, new in zip(before, loop.snapshot().model, strict=True))


def test_a_loss_of_training_alone_needs_no_targets_and_cannot_be_evaluated():
    loop, _ = assert_trained_as_by_fit(lambda: made(LossInTraining, loss=None), X, None)
    with pytest.raises(ValueError, match=r"fails without targets \(ValueError: No loss to compute"):
        loop.evaluate(X)


# --- Nothing to train, metrics, evaluation ---


def nothing_to_train():
    model = dense()
    model.trainable = False
    model.compile("sgd", "mse")
    return model


@pytest.mark.filterwarnings("ignore:The model does not have any trainable weights")
def test_a_model_with_nothing_to_train_is_measured():
    loop, model = assert_trained_as_by_fit(nothing_to_train, X, SUMS)
    assert loop.step == 8
    assert_evaluated_as_by_keras(loop, model, X, SUMS)


def test_a_metric_of_one_value_in_an_array_is_a_number():
    def build():
        return dense(1, "binary_crossentropy", "sigmoid", [keras.metrics.F1Score(threshold=0.5)])

    y = (SUMS > 0).astype("float32")
    loop, model = assert_trained_as_by_fit(build, X, y)
    assert_evaluated_as_by_keras(loop, model, X, y)
    assert loop.score(loop.predict(X), y) == pytest.approx(loop.evaluate(X, y), rel=1e-5)
    several = dense(5, "categorical_crossentropy", "softmax", [keras.metrics.F1Score()])
    with pytest.raises(ValueError, match=r"The metric f1_score has 5 values.*average=\"macro\""):
        TrainLoop(several, X, ONE_HOT, batch_size=50)


def test_an_evaluation_without_targets_says_what_to_give():
    loop = TrainLoop(classifier(), X, LABELS, batch_size=50, options=PLAIN)
    for data, advice in (
        (X, r"; give evaluate\(inputs, targets\)\.$"),
        ((X, LABELS), r"; a tuple is several inputs, so for inputs and targets give evaluate\(\*data\)\.$"),
        (tf.data.Dataset.from_tensor_slices(X).batch(50), r"; give a dataset of \(inputs, targets\)\.$"),
    ):
        with pytest.raises(ValueError, match="The data are inputs alone.*" + advice) as caught:
            loop.evaluate(data)
        assert "\n" not in str(caught.value)


# --- What a step is compiled with ---


class NotInAGraph(keras.metrics.Metric):
    def update_state(self, y, p, sample_weight=None):
        if not tf.executing_eagerly():
            raise ValueError("this metric cannot be traced")

    def result(self):
        return 0.0


def test_what_fails_without_xla_too_is_not_blamed_on_xla():
    loop = TrainLoop(dense(metrics=[NotInAGraph(name="own")]), X, SUMS, batch_size=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for _ in range(2):
            with pytest.raises(ValueError, match="this metric cannot be traced"):
                loop.run([0.1])
    assert (loop.jit_compile, loop.chosen["xla"]) == (True, "with XLA")


IN_ITS_OWN_PROCESS = """
import keras, numpy as np, tensorflow as tf
from clr_loop.loop import strategies
from clr_loop.loop.loop import TrainLoop
from helpers.small import FEATURES, LABELS, classifier, compiled, with_dropout_and_batch_norm

strategies.split_cpu(2)
with strategies.make_strategy("mirrored").scope():
    draws = lambda: keras.layers.Lambda(lambda x: x + tf.random.normal(tf.shape(x)))
    models = compiled(draws), with_dropout_and_batch_norm()
for model in models:
    before = [variable.numpy() for variable in model.variables]
    loop = TrainLoop(model, FEATURES, LABELS, batch_size=50)
    same = all((new == old).all() for new, old in zip(loop.snapshot().model, before, strict=True))
    print(same, len(loop.other_variables), loop.not_resumable and loop.not_resumable[:30])

tf.config.experimental.enable_op_determinism()
stream = TrainLoop.from_dataset(classifier(), tf.data.Dataset.from_tensor_slices((FEATURES, LABELS)).batch(64))
resident = TrainLoop(classifier(), FEATURES, LABELS, batch_size=64, shuffle=False)
assert (stream.run([0.01] * 8)["loss"] == resident.run([0.01] * 8)["loss"]).all()
print("equal", stream.evaluate(FEATURES, LABELS) == resident.evaluate(FEATURES, LABELS))
"""


@pytest.fixture(scope="module")
def said():
    return run_code(IN_ITS_OWN_PROCESS).splitlines()


def test_on_replicas_too_states_are_kept_and_random_numbers_that_cannot_be_resumed_are_noticed(said):
    assert said[:2] == ["True 0 the model draws from tf.random", "True 0 None"]


def test_a_stream_trains_where_operations_are_asked_to_be_deterministic(said):
    assert said[2:] == ["equal True"]


# --- Datasets ---


def examples():
    return tf.data.Dataset.from_tensor_slices((X, LABELS))


SAME = examples().batch(50).shuffle(4, seed=1)


def streamed(dataset, num_examples=None, build=classifier, **options):
    return TrainLoop.from_dataset(build(), dataset, num_examples, options=StepOptions(jit_compile=False, **options))


def of_numbers(dataset):
    """Return a loop whose loss of each step is the sum of the batch's numbers, and its steps in an epoch."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    model.compile("sgd", lambda y, p: ops.sum(y) + 0.0 * ops.sum(p), metrics=[])
    return TrainLoop.from_dataset(model, dataset, options=PLAIN)


# Sums of five of these tell which five they are.
POWERS = 2.0 ** np.arange(20, dtype=np.float32)


def visited(losses):
    """Return the numbers of the examples in each batch, by the sums of their powers of 2."""
    return [[i for i in range(20) if int(loss) >> i & 1] for loss in losses]


@pytest.mark.parametrize(
    "shuffled",
    [
        lambda numbers: numbers.shuffle(20, seed=3).batch(5),
        lambda numbers: numbers.shuffle(20).batch(6),
        lambda numbers: numbers.batch(5).shuffle(4, seed=1).prefetch(2),
    ],
    ids=["examples", "with_a_short_batch", "batches"],
)
def test_a_dataset_that_is_shuffled_anew_is_taken_with_a_warning_and_each_epoch_visits_every_example_once(shuffled):
    numbers = tf.data.Dataset.from_tensor_slices((np.zeros((20, 1), np.float32), POWERS))
    with pytest.warns(UserWarning, match="cannot be repeated or resumed exactly") as caught:
        loop = of_numbers(shuffled(numbers))
    (warning,) = user_warnings(caught)
    assert warning.filename == __file__
    epochs = [visited(loop.run(np.zeros(loop.steps_per_epoch))["loss"]) for _ in range(3)]
    assert all(sorted(itertools.chain(*epoch)) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert loop.not_resumable.startswith("the dataset gives other batches each time it is read")
    assert loop.chosen["resuming"] == f"not exact ({loop.not_resumable})"


def test_a_run_of_a_dataset_that_is_shuffled_anew_is_not_resumed_and_its_digest_tells_no_order(tmp_path):
    with pytest.warns(UserWarning, match="cannot be repeated"):
        loops = [streamed(examples().shuffle(200).batch(50)) for _ in range(2)]
    assert loops[0].data_sha256() == loops[1].data_sha256() != streamed(examples().batch(50)).data_sha256()
    fit(loops[0], Constant(0.01), epochs=1, run_dir=tmp_path / "run")
    with pytest.raises(ValueError, match="The run cannot be resumed exactly: the dataset gives other batches"):
        fit(loops[1], Constant(0.01), epochs=2, run_dir=tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (tf.where(x[:1] > X[:, 0].max() - 1e-6, np.nan, x), y), "of epoch 1: inputs holds NaN"),
        (lambda x, y: (x, y + 5 * tf.cast(x[0] > X[:, 0].max() - 1e-6, y.dtype)), "of epoch 1: targets holds numbers"),
    ],
)
def test_a_bad_batch_of_a_dataset_that_is_shuffled_anew_is_named(spoil, message):
    order = np.argsort(X[:, 0])  # The last example is bad; batches of one class each come later only by chance.
    dataset = tf.data.Dataset.from_tensor_slices((X[order], LABELS[order])).map(spoil).shuffle(50, seed=1).batch(20)
    with pytest.warns(UserWarning, match="cannot be repeated"):
        loop = streamed(dataset, 200)
    with pytest.raises(ValueError, match=rf"^Batch \d {message}"):
        loop.run([0.1] * 10)


def test_both_remedies_in_the_warning_give_orders_that_come_again():
    examples_, buffer_size, batch_size = examples(), 200, 50
    with pytest.warns(UserWarning, match="cannot be repeated") as caught:
        streamed(examples_.shuffle(200).batch(50))
    text = str(user_warnings(caught)[0].message)
    fixed = text.partition("reshuffle_each_iteration=False: ")[2].partition(". For")[0]
    of_epoch = text.partition("in place of the dataset: ")[2].removesuffix(".")
    names = {"dataset": examples_, "buffer_size": buffer_size, "batch_size": batch_size}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for dataset in (eval(fixed, names).batch(50), eval(of_epoch, names)):
            whole, resumed = streamed(dataset), streamed(dataset)
            assert whole.not_resumable is None
            whole.run([0.01] * 6)
            middle = whole.snapshot()
            whole.run([0.01] * 5)
            resumed.restore(middle)
            resumed.run([0.01] * 5)
            assert resumed.weights_sha256() == whole.weights_sha256()


@pytest.mark.parametrize(
    "dataset_of",
    [
        lambda seed, epoch: examples().batch(50).shuffle(4),
        lambda seed, epoch: SAME,
    ],
    ids=["without_a_seed", "the_same_dataset"],
)
def test_a_function_whose_datasets_are_shuffled_anew_is_noticed_whatever_their_first_batch(dataset_of):
    for _ in range(6):
        with pytest.warns(UserWarning, match="cannot be repeated"):
            streamed(dataset_of)


class Autoencoder(keras.Model):
    """Takes a tensor, or a dict of two, and needs no targets."""

    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(4, activation="tanh"), layers.Dense(6)

    def call(self, x):
        x = ops.concatenate([x["a"], x["b"]], axis=1) if isinstance(x, dict) else x
        y = self.out(self.hidden(x))
        self.add_loss(ops.mean((x - y) ** 2))
        return y


@pytest.mark.parametrize("data", [X, {"a": X[:, :2], "b": X[:, 2:]}, (X,)], ids=["tensor", "dict", "tuple_of_one"])
def test_a_dataset_of_inputs_alone_is_trained_on_as_by_fit(data):
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(64)
    keras.utils.set_random_seed(0)
    loop = TrainLoop.from_dataset(made(Autoencoder, loss=None), dataset)
    loop.run([0.05] * 8)
    keras.utils.set_random_seed(0)
    model = made(Autoencoder, loss=None)
    model.jit_compile, model.optimizer.learning_rate = False, 0.05
    model.fit(dataset, epochs=2, verbose=0)
    assert_same_weights(loop.model, model, rtol=1e-4, atol=1e-6)
    expected = model.evaluate(dataset, verbose=0)
    assert loop.evaluate(dataset) == {"loss": pytest.approx(np.ravel(expected)[0], rel=0.05)}


# --- Other sources of batches ---


class Pairs(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        chosen = slice(50 * index, 50 * index + 50)
        return X[chosen], LABELS[chosen]


def make_generator():
    return iter([Pairs()[i] for i in range(4)])


class Tensor:
    """As PyTorch's, for what a `DataLoader` gives."""

    def __init__(self, array):
        self.array = array

    def numpy(self):
        return self.array


class DataLoader:
    __module__ = "torch.utils.data.dataloader"

    def __iter__(self):
        return ([Tensor(array) for array in Pairs()[i]] for i in range(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Pairs(), r"a keras\.utils\.PyDataset \(Pairs\)"),
        ((pair for pair in make_generator()), "a generator, of which an epoch cannot be read again"),
        (make_generator(), "a list_iterator, of which"),
        (DataLoader(), "a DataLoader of PyTorch"),
    ],
    ids=["py_dataset", "generator", "iterator", "data_loader"],
)
def test_other_sources_of_batches_are_refused_with_code_that_makes_a_dataset_of_them(data, message):
    loop = streamed(examples().batch(50))
    takers = (
        lambda: TrainLoop(classifier(), data),
        lambda: TrainLoop.from_dataset(classifier(), data),
        lambda: TrainLoop.from_dataset(classifier(), lambda seed, epoch: data, 200),
        lambda: loop.evaluate(data),
    )
    for take in takers:
        with pytest.raises(TypeError, match=rf"^The data are {message}.*; make a tf.data.Dataset of it:\n") as caught:
            take()
    names = {"tf": tf, "keras": keras, "TrainLoop": TrainLoop, "model": classifier(), "data": data,
             "data_loader": data, "make_generator": make_generator}  # fmt: skip
    exec(textwrap.dedent(str(caught.value).partition("\n")[2]), names)
    assert names["loop"].num_examples == 200
    losses = (each.run([0.01] * 8)["loss"] for each in (names["loop"], loop))
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_generator_function_is_no_function_of_seed_and_epoch():
    def batches():
        yield X, LABELS

    with pytest.raises(TypeError, match="The data are the generator function batches; make a tf"):
        TrainLoop.from_dataset(classifier(), batches)


# --- Text ---


WORDS = np.array(["red", "green", "blue", "dark", "light"])
TEXT = np.array([" ".join(WORDS[np.argsort(row[:5])[:3]]) for row in X])


def reads_text(kind):
    inputs = keras.Input((), dtype="string")
    if kind == "words":
        tokens = layers.StringLookup(vocabulary=list(WORDS))(inputs)[:, None]
    else:
        tokens = layers.TextVectorization(output_sequence_length=4, vocabulary=list(WORDS))(inputs)
    hidden = layers.GlobalAveragePooling1D()(layers.Embedding(8, 3)(tokens))
    model = keras.Model(inputs, layers.Dense(5)(hidden))
    model.compile("sgd", sparse(), metrics=["accuracy"])
    return model


@pytest.mark.parametrize("kind", ["sentences", "words"])
def test_text_that_the_model_looks_up_is_taken_from_a_dataset_as_by_fit(kind):
    text = TEXT if kind == "sentences" else WORDS[X.argmax(axis=1) % 5]
    dataset = tf.data.Dataset.from_tensor_slices((text, LABELS)).batch(64)
    keras.utils.set_random_seed(0)
    loop = TrainLoop.from_dataset(reads_text(kind), dataset)
    steps = loop.run([0.5] * 8)
    keras.utils.set_random_seed(0)
    model = reads_text(kind)
    model.jit_compile, model.optimizer.learning_rate = False, 0.5
    model.fit(dataset, epochs=2, verbose=0)
    assert_same_weights(loop.model, model, rtol=1e-4, atol=1e-6)
    assert np.ptp(steps["loss"]) > 0
    assert loop.chosen["xla"] == "without XLA (it does not know strings)"
    expected = model.evaluate(dataset, verbose=0, return_dict=True)
    for data in ((dataset,), (text, LABELS)):
        assert loop.evaluate(*data)["accuracy"] == pytest.approx(expected["accuracy"])
    np.testing.assert_allclose(loop.predict(text), model.predict(dataset, verbose=0), rtol=1e-4, atol=1e-6)


def test_text_in_arrays_or_as_targets_or_for_xla_is_refused_with_the_way_to_go():
    with pytest.raises(TypeError, match=r"inputs is of dtype <U.*takes it from a dataset; see TrainLoop.from_dataset"):
        TrainLoop(reads_text("sentences"), TEXT, LABELS)
    with pytest.raises(TypeError, match=r"The first batch: targets is of dtype object"):
        streamed(tf.data.Dataset.from_tensor_slices((X, TEXT)).batch(50))
    dataset = tf.data.Dataset.from_tensor_slices((TEXT, LABELS)).batch(50)
    with pytest.raises(ValueError, match="jit_compile is True for inputs that are strings"):
        TrainLoop.from_dataset(reads_text("sentences"), dataset, options=StepOptions(jit_compile=True))


# --- Keras' habits ---


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (
            {"validation_data": (X, LABELS)},
            r"give fit\(…, validation=\(inputs, targets\)\)",
        ),
        ({"validation_split": 0.1}, r"split the arrays yourself"),
        ({"batch_size": 10}, r"TrainLoop\(model, inputs, targets, batch_size=…\)"),
        ({"shuffle": False}, r"TrainLoop\(model, inputs, targets, shuffle=…\)"),
        ({"class_weight": {0: 1.0}}, r"TrainLoop\(…, class_weight=…\)"),
        ({"initial_epoch": 2}, r"resume=True"),
        ({"steps_per_epoch": 2}, r"num_examples=…"),
        ({"x": X}, r"TrainLoop\(model, inputs, targets\)"),
    ],
)
def test_what_keras_calls_otherwise_is_called_by_the_name_here(plain_loop, arguments, advice):
    with pytest.raises(TypeError, match=rf"^fit has no argument {next(iter(arguments))}, which Keras") as caught:
        fit(plain_loop, Constant(0.1), epochs=1, **arguments)
    assert re.search(advice, str(caught.value))


def test_habits_at_a_loop_and_its_evaluation_get_a_hint_too(plain_loop):
    with pytest.raises(TypeError, match=r"^TrainLoop has no argument epochs, .*; give fit\(loop, schedule, epochs=…\)"):
        TrainLoop(classifier(), X, LABELS, epochs=3)
    with pytest.raises(TypeError, match=r"^TrainLoop.evaluate has no argument y, .*loop.evaluate\(inputs, targets\)"):
        plain_loop.evaluate(X, y=LABELS)
    with pytest.raises(TypeError, match=r"^TrainLoop.evaluate has no argument nonsense; it has inputs"):
        plain_loop.evaluate(X, LABELS, nonsense=1)
    with pytest.raises(TypeError, match=r"^schedule is 0.01; it must be a function. For a constant rate give Constant"):
        fit(plain_loop, 0.01, epochs=1)
    with pytest.raises(TypeError, match=r"The inputs are a dataset; .*TrainLoop\.from_dataset\(model, dataset\)"):
        TrainLoop(classifier(), examples().batch(50))


def test_examples_are_taken_as_they_are():
    weights = np.linspace(0.5, 2.0, len(X)).astype("float32")
    together = TrainLoop(classifier(), Examples(X, LABELS, weights), batch_size=50, options=PLAIN)
    apart = TrainLoop(classifier(), X, LABELS, sample_weight=weights, batch_size=50, options=PLAIN)
    np.testing.assert_array_equal(together.run([0.1] * 3)["loss"], apart.run([0.1] * 3)["loss"])
    assert together.evaluate(Examples(X, LABELS, weights)) == apart.evaluate(X, LABELS, weights)


# --- State ---


class Counting(layers.Layer):
    """Counts its calls in a variable, and adds noise from Keras' global generator."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x + 0.01 * keras.random.normal(ops.shape(x))


def with_state():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(20, 6))
    hidden = layers.SimpleRNN(4, stateful=True, dropout=0.2)(layers.Reshape((3, 2))(inputs))
    hidden = layers.BatchNormalization()(Counting()(layers.GaussianNoise(0.1)(layers.Dropout(0.2)(hidden))))
    model = keras.Model(inputs, layers.Dense(5)(hidden))
    model.compile(keras.optimizers.Adam(0.01), sparse(), metrics=["accuracy"])
    return model


def all_state(model):
    seeds = keras.src.random.seed_generator.global_seed_generator().state
    return [np.array(ops.convert_to_numpy(variable)) for variable in (*model.variables, seeds)]


def test_variables_outside_of_the_model_are_in_the_order_of_their_use():
    kept = [tf.Variable(float(i)) for i in range(12)]  # Keras does not see them in a list of a layer's closure.
    for order in np.random.default_rng(0).permuted(np.tile(np.arange(12), (3, 1)), axis=1):
        used = [kept[i] for i in order]
        scaled = layers.Lambda(lambda x, used=used: x + sum(variable.read_value() for variable in used))
        model = keras.Sequential([keras.Input((6,)), scaled, layers.Dense(5)])
        model.compile(keras.optimizers.SGD(0.01), sparse())
        loop = TrainLoop(model, X, LABELS, batch_size=20, options=PLAIN)
        assert [float(variable.numpy()) for variable in loop.other_variables if variable.dtype == "float32"] == list(
            order
        )


@pytest.mark.parametrize("feed", ["resident", "stream"])
def test_to_make_and_compile_a_loop_leaves_no_trace_in_any_state(feed):
    model = with_state()
    before = all_state(model)
    if feed == "resident":
        loop = TrainLoop(model, X, LABELS, batch_size=20, options=PLAIN)
    else:
        loop = TrainLoop.from_dataset(model, examples().batch(20), options=PLAIN)
    loop.compile()
    loop.gradients(X[:20], LABELS[:20])
    assert [array.tobytes() for array in all_state(model)] == [array.tobytes() for array in before]
    loop.run([0.01])
    assert sum((new != old).any() for new, old in zip(all_state(model), before, strict=True)) >= 10


def test_a_model_with_states_and_random_numbers_is_trained_as_by_fit_and_resumed_to_the_bit(tmp_path):
    def train(name, epochs, resume=False):
        loop = TrainLoop(with_state(), X, LABELS, batch_size=20, shuffle=False, options=PLAIN)
        validation = X[:100], LABELS[:100]
        result = fit(loop, Constant(0.01), validation, epochs=epochs, run_dir=tmp_path / name, resume=resume)
        return loop, result

    whole, result = train("whole", 2)
    train("broken", 1)
    resumed, again = train("broken", 2, resume=True)
    assert again.weights_sha256 == result.weights_sha256
    for ours, theirs in zip(all_state(resumed.model), all_state(whole.model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model = with_state()
    model.jit_compile = False
    history = model.fit(
        X, LABELS, batch_size=20, epochs=2, shuffle=False, verbose=0, validation_data=(X[:100], LABELS[:100])
    ).history
    assert_same_weights(whole.model, model, rtol=1e-4, atol=1e-5)
    assert result.final["val_loss"] == pytest.approx(history["val_loss"][-1], rel=1e-4)
    assert whole.predict(X).shape == (200, 5)
