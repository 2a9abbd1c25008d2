"""The flags of the model, its optimizer and its loss, and what they make."""

import importlib
import sys

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from clr_loop.commands import model_flags
from clr_loop.data import load


@pytest.fixture
def given():
    """Parses flags for one test."""
    with flagsaver.flagsaver():
        yield lambda text: flags.FLAGS(["script", *text.split()])


@pytest.fixture(scope="module")
def mnist():
    return load("mnist")


@pytest.fixture(autouse=True)
def _own(tmp_path, monkeypatch):
    """A module of the user's own optimizers."""
    text = (
        "import keras\ndef make(momentum, nesterov=True):\n    return keras.optimizers.SGD(0.1, momentum, nesterov)\n"
    )
    (tmp_path / "own_optimizers.py").write_text(f"{text}def three():\n    return 3\n")
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_optimizers", None)


@pytest.mark.parametrize(
    ("text", "kind", "arguments"),
    [
        ("", "Adam", {"beta_1": 0.9}),
        ("--optimizer=sgd", "SGD", {"momentum": 0.9, "nesterov": False}),
        ("--optimizer=sgd --momentum=0.5 --nesterov", "SGD", {"momentum": 0.5, "nesterov": True}),
        ("--optimizer=sgd --momentum=0", "SGD", {"momentum": 0.0}),
        ("--optimizer=rmsprop --momentum=0.5", "RMSprop", {"momentum": 0.5}),
        ("--momentum=0.8 --beta_2=0.99", "Adam", {"beta_1": 0.8, "beta_2": 0.99}),
        ("--optimizer=adamw --momentum=0.85,0.95", "AdamW", {"beta_1": 0.9}),
        ("--optimizer=own_optimizers:make --momentum=0.7", "SGD", {"momentum": 0.7, "nesterov": True}),
        ("--optimizer=own_optimizers:make --momentum=0.7 --nonesterov", "SGD", {"momentum": 0.7, "nesterov": False}),
    ],
)
def test_the_flags_make_the_optimizer(given, mnist, text, kind, arguments):
    given(text)
    optimizer = model_flags.make_model(mnist, 0).optimizer
    assert type(optimizer).__name__ == kind
    assert {name: optimizer.get_config()[name] for name in arguments} == arguments


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--optimizer=sgd --beta_1=0.9", "--beta_1 means nothing to sgd; remove it or choose another --optimizer"),
        ("--momentum=0.8 --beta_1=0.9", "--momentum and --beta_1 are the same to adam; leave one of them out"),
        ("--optimizer=own_optimizers:make --beta_1=0.9", "--beta_1 means nothing to own_optimizers:make"),
        ("--optimizer=own_optimizers:make", r"optimizer own_optimizers:make failed: TypeError: .*'momentum'"),
        ("--optimizer=own_optimizers:three", "must return a Keras optimizer, but it returned 3"),
        ("--optimizer=own_optimizers:missing", "optimizer own_optimizers:missing cannot be imported"),
    ],
)
def test_what_is_wrong_with_an_optimizer_is_told_in_a_line(given, mnist, text, message):
    given(text)
    with pytest.raises(ValueError, match=message):
        model_flags.make_model(mnist, 0)


def test_an_optimizer_that_is_none_is_told_with_those_that_are(given):
    with pytest.raises(flags.IllegalFlagValueError, match=r"must be adam, .*sgd, or package\.module:function"):
        given("--optimizer=adagrad")


def test_smoothed_labels_are_those_of_the_formula(given, mnist):
    given("--label_smoothing=0.1 --model=relu_mlp")
    dataset = model_flags.load_dataset()
    model = model_flags.make_model(dataset, 0)
    inputs, targets = dataset.validation.inputs[:50], dataset.validation.targets[:50]
    logits = model.predict(inputs, verbose=0).astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    smooth = 0.9 * np.eye(10)[mnist.validation.targets[:50]] + 0.01
    loss, _ = model.evaluate(inputs, targets, verbose=0)
    assert loss == pytest.approx(-(smooth * log_probabilities).sum(axis=1).mean(), rel=1e-5)
    assert isinstance(model.loss, keras.losses.CategoricalCrossentropy)


def test_smoothed_labels_are_refused_where_there_are_none_to_smooth(given):
    given("--label_smoothing=0.1 --dataset=clr_loop.data.examples:regression")
    with pytest.raises(ValueError, match="regression has no classes; use its model's loss"):
        model_flags.load_dataset()
