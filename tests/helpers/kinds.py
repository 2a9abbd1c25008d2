"""Small compiled models of every kind that Keras trains, each with data for it: 200 examples.

Each function builds its kind anew. Two models of a kind that are built after the same `keras.utils.set_random_seed`
start from the same weights. The activations are smooth: a rectifier turns a rounding error into another path.
"""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

NUM_EXAMPLES = 200


@dataclass
class Kind:
    """A compiled model and its data.

    not_means: the metrics whose value over an epoch is not the mean of their values at its steps.
    """

    model: keras.Model
    inputs: Any
    targets: Any = None
    sample_weight: Any = None
    class_weight: dict[int, float] | None = None
    not_means: tuple[str, ...] = ()
    rate: float = 0.05


def momentum(**arguments):
    return keras.optimizers.SGD(momentum=0.9, **arguments)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(NUM_EXAMPLES, *shape)).astype(np.float32)


def integers(high, *shape, dtype=np.int32, seed=1):
    return np.random.default_rng(seed).integers(0, high, (NUM_EXAMPLES, *shape)).astype(dtype)


def weights(seed=2):
    return np.random.default_rng(seed).uniform(0.1, 3, NUM_EXAMPLES).astype(np.float32)


def one_hot(classes):
    return np.eye(classes.max() + 1, dtype=np.float32)[classes]


FEATURES = normal(6)
SCORES = FEATURES @ normal(5, seed=3)[:6] / 2
CLASSES = SCORES.argmax(axis=1).astype(np.int32)  # Five of them, and there is something to learn.


def classifier(activation=None, width=5):
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="tanh"), layers.Dense(width, activation=activation)]
    )


def from_logits(loss="SparseCategoricalCrossentropy", **arguments):
    return getattr(keras.losses, loss)(from_logits=True, **arguments)


def sparse_classifier(optimizer=None):
    model = classifier()
    model.compile(optimizer or momentum(), from_logits(), metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES)


def softmax_classifier():
    model = classifier("softmax")
    model.compile(keras.optimizers.Adam(), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES, rate=0.01)


def soft_labels():
    model = classifier()
    model.compile(momentum(), from_logits("CategoricalCrossentropy", label_smoothing=0.1), metrics=["accuracy"])
    return Kind(model, FEATURES, 0.8 * one_hot(CLASSES) + 0.04)


def one_logit_binary():
    model = classifier(width=1)
    model.compile(
        momentum(),
        from_logits("BinaryCrossentropy"),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0), keras.metrics.AUC(from_logits=True, name="auc")],
    )
    return Kind(model, FEATURES, (SCORES[:, 0] > 0).astype(np.int32), not_means=("auc",))


def multi_label():
    model = classifier("sigmoid", width=4)
    model.compile(keras.optimizers.Adam(), "binary_crossentropy", metrics=["binary_accuracy", "precision"])
    return Kind(model, FEATURES, (SCORES[:, :4] > 0).astype(np.float32), not_means=("precision",), rate=0.01)


def regression():
    model = classifier(width=1)
    model.compile(keras.optimizers.RMSprop(), "mse", metrics=["mae"])
    return Kind(model, FEATURES, SCORES[:, :1], rate=0.01)


def huber_with_two_metrics():
    def within_one(y_true, y_pred):
        return keras.ops.mean(keras.ops.cast(keras.ops.abs(y_true - y_pred) < 1, "float32"), axis=-1)

    model = classifier(width=3)
    model.compile(
        momentum(), keras.losses.Huber(0.5), metrics=[keras.metrics.RootMeanSquaredError(name="rmse"), within_one]
    )
    return Kind(model, FEATURES, SCORES[:, :3], not_means=("rmse",))


def top_k():
    model = classifier()
    model.compile(momentum(), from_logits(), metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)])
    return Kind(model, FEATURES, CLASSES)


# Keras' History takes a short last batch for a whole one in the loss of each output, though not in their sum.
LOSS_OF_EACH = ("kind_loss", "size_loss")


def two_headed(names_outputs):
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, activation="tanh")(inputs)
    outputs = {"kind": layers.Dense(5, name="kind")(hidden), "size": layers.Dense(1, name="size")(hidden)}
    return keras.Model(inputs, outputs if names_outputs else list(outputs.values()))


def two_outputs_by_name():
    model = two_headed(names_outputs=True)
    model.compile(
        momentum(),
        loss={"kind": from_logits(), "size": "mse"},
        loss_weights={"kind": 1.0, "size": 0.3},
        metrics={"kind": ["accuracy"], "size": ["mae"]},
    )
    return Kind(model, FEATURES, {"kind": CLASSES, "size": SCORES[:, :1]}, not_means=LOSS_OF_EACH, rate=0.02)


def two_outputs_in_a_list():
    model = two_headed(names_outputs=False)
    model.compile(momentum(), loss=[from_logits(), "mse"], loss_weights=[0.5, 0.2], metrics=[["accuracy"], ["mae"]])
    return Kind(model, FEATURES, [CLASSES, SCORES[:, :1]], not_means=LOSS_OF_EACH, rate=0.02)


def two_outputs_with_weights_each():
    kind = two_outputs_by_name()
    kind.sample_weight = {"kind": weights(), "size": weights(seed=4)}
    return kind


def dict_inputs():
    inputs = {"numbers": keras.Input((6,), name="numbers"), "picture": keras.Input((3, 3), name="picture")}
    joined = layers.Concatenate()([inputs["numbers"], layers.Flatten()(layers.Rescaling(1 / 255)(inputs["picture"]))])
    model = keras.Model(inputs, layers.Dense(1)(layers.Dense(8, activation="tanh")(joined)))
    model.compile(momentum(), "mse", metrics=["mae"])
    pictures = integers(256, 3, 3, dtype=np.uint8)
    return Kind(
        model,
        {"numbers": FEATURES, "picture": pictures},
        SCORES[:, :1],
        rate=0.02,
    )


def list_inputs():
    inputs = [keras.Input((6,)), keras.Input((2,))]
    hidden = layers.Dense(8, activation="tanh")(layers.Concatenate()(inputs))
    model = keras.Model(inputs, layers.Dense(5)(hidden))
    model.compile(momentum(), from_logits(), metrics=["accuracy"])
    return Kind(model, [FEATURES, normal(2, seed=5)], CLASSES)


def embedding(shape, *more):
    return keras.Sequential([keras.Input(shape, dtype="int32"), layers.Embedding(20, 4), *more])


def tokens():
    model = embedding((7,), layers.GlobalAveragePooling1D(), layers.Dense(3))
    model.compile(keras.optimizers.Adam(), from_logits(), metrics=["accuracy"])
    words = integers(20, 7)
    return Kind(model, words, (words[:, 0] % 3).astype(np.int64), rate=0.02)


def uint8_tokens():
    """Three sentences of seven words: an array of the shape of gray images, and still not an image."""
    model = embedding((3, 7), layers.Flatten(), layers.Dense(3))
    model.compile(keras.optimizers.Adam(), from_logits(), metrics=["accuracy"])
    words = integers(20, 3, 7, dtype=np.uint8)
    return Kind(model, words, words[:, 0, 0] % 3, rate=0.02)


def a_label_for_each_token():
    model = embedding((7,), layers.Dense(8, activation="tanh"), layers.Dense(4))
    model.compile(momentum(), from_logits(), metrics=["accuracy"])
    words = integers(20, 7)
    return Kind(model, words, words % 4)


def segmentation():
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(4, 3, padding="same", activation="tanh"), layers.Conv2D(3, 1)]
    )
    model.compile(
        momentum(), from_logits(), metrics=["accuracy", keras.metrics.MeanIoU(3, sparse_y_pred=False, name="mean_io_u")]
    )
    images = normal(8, 8, 1)
    masks = np.digitize(images[..., 0], [-0.5, 0.5]).astype(np.uint8)
    return Kind(model, images, masks, not_means=("mean_io_u",), rate=0.1)


def sample_weights():
    model = classifier()
    model.compile(momentum(), from_logits(), metrics=["accuracy"], weighted_metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES, weights(), not_means=("weighted_accuracy",), rate=0.02)


def class_weights():
    model = classifier()
    model.compile(momentum(), from_logits(), weighted_metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES, class_weight={0: 3.0, 1: 0.2, 3: 1.5}, not_means=("accuracy",), rate=0.02)


def class_weights_of_one_hot_targets():
    model = classifier()
    model.compile(momentum(), from_logits("CategoricalCrossentropy"), metrics=["accuracy"])
    return Kind(model, FEATURES, one_hot(CLASSES), class_weight={0: 3.0, 1: 0.2, 3: 1.5}, rate=0.02)


def regularized():
    l2 = keras.regularizers.L2(0.01)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, activation="tanh", kernel_regularizer=l2),
            layers.ActivityRegularization(l1=0.01),
            layers.Dense(5, kernel_regularizer=l2),
        ]
    )
    model.compile(momentum(), from_logits(), metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES)


class Bottleneck(keras.Model):
    """An autoencoder that makes its own loss and needs no targets."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = layers.Dense(2, activation="tanh"), layers.Dense(6)

    def call(self, inputs):
        outputs = self.decoder(self.encoder(inputs))
        self.add_loss(keras.ops.mean(keras.ops.square(inputs - outputs)))
        return outputs


def added_loss_without_targets():
    model = Bottleneck()
    model.compile(momentum())
    return Kind(model, FEATURES)


def batch_norm():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            # A bias in front of the normalization has no gradient in theory, and Adam would divide rounding errors.
            layers.Dense(8, use_bias=False),
            layers.BatchNormalization(momentum=0.8),
            layers.Activation("tanh"),
            layers.Dense(5),
        ]
    )
    model.compile(keras.optimizers.AdamW(weight_decay=0.1), from_logits(), metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES, rate=0.01)


IMAGES = integers(256, 4, 4, dtype=np.uint8)
IMAGES[:, 0, 0] //= 2
BRIGHT = (IMAGES[:, :2].mean(axis=(1, 2)) > IMAGES[:, 2:].mean(axis=(1, 2))).astype(np.uint8)


def image_classifier(*first):
    model = keras.Sequential(
        [keras.Input((4, 4)), *first, layers.Flatten(), layers.Dense(8, activation="tanh"), layers.Dense(2)]
    )
    model.compile(momentum(), from_logits(), metrics=["accuracy"])
    return model


def uint8_images():
    return Kind(image_classifier(), IMAGES, BRIGHT, rate=1e-4)  # Pixels up to 255, as they are.


def uint8_images_and_a_rescaling():
    return Kind(image_classifier(layers.Rescaling(1 / 255)), IMAGES, BRIGHT)


def uint8_images_and_a_nested_rescaling():
    entrance = keras.Sequential([keras.Input((4, 4)), layers.Rescaling(1 / 127.5, offset=-1.0)])
    return Kind(image_classifier(entrance), IMAGES, BRIGHT)


class Confident(keras.Model):
    """Adds to the compiled loss a reward for large outputs, and reads the inputs."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss - 0.05 * keras.ops.mean(keras.ops.abs(y_pred) * keras.ops.abs(x[:, :1]))


def own_compute_loss():
    inputs = keras.Input((6,))
    model = Confident(inputs, layers.Dense(5)(layers.Dense(8, activation="tanh")(inputs)))
    model.compile(momentum(), from_logits(), metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES)


class Residual(keras.Model):
    """A model that exists as a `call` alone, without a shape until it sees data."""

    def __init__(self):
        super().__init__()
        self.hidden, self.again, self.last = (layers.Dense(width, activation="tanh") for width in (8, 8, 5))

    def call(self, inputs, training=False):
        hidden = self.hidden(inputs)
        return self.last(hidden + self.again(hidden)) * (2.0 if training else 1.9)


def subclassed():
    model = Residual()
    model.compile(momentum(), from_logits(), metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES)


def averaged_weights():
    return sparse_classifier(keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))


def averaged_and_overwritten_weights():
    return sparse_classifier(momentum(use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=5))


def f1_score():
    model = classifier("softmax")
    model.compile(momentum(), "categorical_crossentropy", metrics=[keras.metrics.F1Score(average="macro")])
    return Kind(model, FEATURES, one_hot(CLASSES), not_means=("f1_score",))


KINDS = {
    build.__name__: build
    for build in (
        sparse_classifier,
        softmax_classifier,
        soft_labels,
        one_logit_binary,
        multi_label,
        regression,
        huber_with_two_metrics,
        top_k,
        two_outputs_by_name,
        two_outputs_in_a_list,
        two_outputs_with_weights_each,
        dict_inputs,
        list_inputs,
        tokens,
        uint8_tokens,
        a_label_for_each_token,
        segmentation,
        sample_weights,
        class_weights,
        class_weights_of_one_hot_targets,
        regularized,
        added_loss_without_targets,
        batch_norm,
        uint8_images,
        uint8_images_and_a_rescaling,
        uint8_images_and_a_nested_rescaling,
        own_compute_loss,
        subclassed,
        averaged_weights,
        averaged_and_overwritten_weights,
        f1_score,
    )
}
