"""Two small problems besides images, whose data a seeded generator makes: a regression, and a classification of text.

python scripts/train.py --model=clr_loop.data.examples:regression_model --dataset=clr_loop.data.examples:regression
python scripts/train.py --model=clr_loop.data.examples:text_model --dataset=clr_loop.data.examples:text
"""

from typing import TypeAlias

import keras
import numpy as np

from clr_loop.data.nests import Nest

Pair: TypeAlias = tuple[Nest, np.ndarray]


def regression() -> tuple[Pair, Pair]:
    """Return 10,000 and 2,000 noisy temperatures: inputs {"place": float [n, 2], "hour": float [n, 1]}.

    The targets, float [n, 1], are sin(3 x) · y + cos(2π hour / 24) plus normal noise of standard deviation 0.1.
    """
    rng = np.random.default_rng(0)
    return _temperatures(10_000, rng), _temperatures(2_000, rng)


def _temperatures(n: int, rng: np.random.Generator) -> Pair:
    place, hour = rng.uniform(-1, 1, (n, 2)), rng.uniform(0, 24, (n, 1))
    signal = np.sin(3 * place[:, :1]) * place[:, 1:] + np.cos(2 * np.pi * hour / 24)
    return {"place": place, "hour": hour}, signal + rng.normal(0, 0.1, (n, 1))


def regression_model() -> keras.Model:
    """Return a model for `regression`, compiled with the mean squared error as loss and the mean absolute error."""
    place, hour = keras.Input((2,), name="place"), keras.Input((1,), name="hour")
    hidden = keras.layers.Concatenate()([place, keras.layers.Rescaling(1 / 12, offset=-1.0)(hour)])
    for _ in range(2):
        hidden = keras.layers.Dense(64, activation="relu")(hidden)
    model = keras.Model({"place": place, "hour": hour}, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.Adam(), keras.losses.MeanSquaredError(), metrics=["mae"])
    return model


def text() -> tuple[Pair, Pair]:
    """Return 10,000 and 2,000 sentences that are positive (1) or negative (0): inputs uint8 [n, 16], targets int [n].

    Words 1–4 count +1 and words 5–8 count -1, or the opposite directly after word 0, "not". The label is the sign of
    the sum, so the order of the words matters. No sum is 0. The other words, up to 20, say nothing.
    """
    words = np.random.default_rng(0).integers(0, 24, (20_000, 16), np.uint8)
    words[words > 20] = 0
    values = np.isin(words, (1, 2, 3, 4)).astype(int) - np.isin(words, (5, 6, 7, 8))
    values[:, 1:] *= np.where(words[:, :-1] == 0, -1, 1)
    sums = values.sum(axis=1)
    words, labels = words[sums != 0], (sums[sums != 0] > 0).astype(int)
    return (words[:10_000], labels[:10_000]), (words[10_000:12_000], labels[10_000:12_000])


def text_model() -> keras.Model:
    """Return a model for `text` that looks at pairs of neighboring words, compiled as a classifier from logits."""
    words = keras.Input((16,), name="words", dtype="int32")
    embedded = keras.layers.Embedding(21, 16)(words)
    pairs = keras.layers.Concatenate()([embedded[:, :-1], embedded[:, 1:]])
    features = keras.layers.GlobalAveragePooling1D()(keras.layers.Dense(32, activation="relu")(pairs))
    model = keras.Model(words, keras.layers.Dense(2)(features))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss, metrics=["accuracy"])
    return model
