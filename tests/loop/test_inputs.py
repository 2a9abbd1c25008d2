"""Inputs reach the model as they are, as with Keras' `fit`; what looks unscaled is warned of."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from clr_loop.loop.loop import TrainLoop
from helpers.small import LABELS, NUM_CLASSES, NUM_EXAMPLES
from helpers.warned import user_warnings

PIXELS = np.random.default_rng(0).integers(0, 256, (NUM_EXAMPLES, 4, 4), np.uint8)


def model_of(*first):
    model = keras.Sequential([keras.Input((4, 4)), *first, layers.Flatten(), layers.Dense(NUM_CLASSES)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def nested(*first):
    return keras.Sequential([keras.Input((4, 4)), *first])


def loop_over(model, inputs, feed):
    if feed == "resident":
        return TrainLoop(model, inputs, LABELS, batch_size=50)
    dataset = tf.data.Dataset.from_tensor_slices((inputs, LABELS)).batch(50)
    return TrainLoop.from_dataset(model, dataset)


@pytest.mark.parametrize("feed", ["resident", "stream"])
@pytest.mark.parametrize(
    ("first", "inputs", "words"),
    [
        ((), PIXELS, "uint8 images, and the model has no layer that scales them"),
        ((layers.RandomFlip(),), PIXELS, "uint8 images, and the model has no layer that scales them"),
        ((), PIXELS.astype(np.float32), "between 0 and 255; 0 to 1, or a mean of 0 and a variance of 1, is usual"),
    ],
    ids=["uint8", "behind_a_flip", "floats"],
)
def test_what_enters_unscaled_is_warned_of_once(first, inputs, words, feed):
    with pytest.warns(UserWarning, match=words) as caught:
        loop_over(model_of(*first), inputs, feed)
    assert len(user_warnings(caught)) == 1


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("feed", ["resident", "stream"])
@pytest.mark.parametrize(
    "first",
    [
        lambda: layers.Rescaling(1 / 255),
        lambda: nested(layers.Rescaling(1 / 127.5, offset=-1.0)),
        lambda: layers.BatchNormalization(),
        lambda: keras.Sequential([layers.Reshape((16,)), layers.Embedding(256, 2)]),
    ],
    ids=["rescaling", "nested", "batch_norm", "embedding"],
)
def test_a_model_that_scales_or_looks_up_its_inputs_is_left_alone(first, feed):
    loop_over(model_of(first()), PIXELS, feed)


def test_the_saved_model_gives_the_loss_that_it_was_trained_to(tmp_path):
    model = model_of(layers.Rescaling(1 / 255))
    loop = TrainLoop(model, PIXELS, LABELS, batch_size=50)
    loop.run(np.full(40, 0.1))
    model.save(tmp_path / "model.keras")
    opened = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        opened.evaluate(PIXELS, LABELS, verbose=0), loop.evaluate(PIXELS, LABELS)["loss"], rtol=1e-5
    )
