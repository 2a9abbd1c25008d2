"""Models with a `train_step` of their own, of the kinds that Keras' documentation teaches, each with data for it."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from helpers.kinds import CLASSES, FEATURES, NUM_EXAMPLES, Kind, from_logits

IMAGES = np.tanh(np.random.default_rng(5).normal(size=(NUM_EXAMPLES, 8))).astype(np.float32)


def dense(width, activation="tanh", seed=0):
    return layers.Dense(width, activation=activation, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))


def stack(num_features, *widths, seed=0):
    hidden = [dense(width, seed=seed + i) for i, width in enumerate(widths[:-1])]
    return keras.Sequential([keras.Input((num_features,)), *hidden, dense(widths[-1], None, seed=seed + 9)])


class Plain(keras.Model):
    """Keras' guide: the standard step, written by hand, with a metric of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.error = stack(6, 8, 5), keras.metrics.Mean(name="error")

    def call(self, x):
        return self.body(x)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(y=y, y_pred=y_pred)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        self.error.update_state(ops.mean(ops.abs(ops.softmax(y_pred) - ops.one_hot(y, 5))))
        return {"loss": loss, "error": self.error.result()}


def plain():
    model = Plain()
    model.compile(keras.optimizers.Adam(), from_logits())
    return Kind(model, FEATURES, CLASSES, rate=0.01)


class Gan(keras.Model):
    """Two networks with an optimizer each; its logs have no `loss`."""

    def __init__(self):
        super().__init__()
        self.generator, self.discriminator = stack(3, 8, 8, seed=1), stack(8, 8, 1, seed=2)
        self.seed_generator = keras.random.SeedGenerator(7)

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn

    def train_step(self, real):
        size = ops.shape(real)[0]
        noise = keras.random.normal((size, 3), seed=self.seed_generator)
        both = ops.concatenate([self.generator(noise), real])
        labels = ops.concatenate([ops.ones((size, 1)), ops.zeros((size, 1))])
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, weights), weights)
        noise = keras.random.normal((size, 3), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(ops.zeros((size, 1)), self.discriminator(self.generator(noise)))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, weights), weights)
        return {"d_loss": d_loss, "g_loss": g_loss}


def gan():
    model = Gan()
    adam = keras.optimizers.Adam
    model.compile(adam(), adam(beta_1=0.5), keras.losses.BinaryCrossentropy(from_logits=True))
    return Kind(model, IMAGES, rate=0.01)


class Distiller(keras.Model):
    """A student that learns from labels and from a teacher, which is not trained."""

    def __init__(self):
        super().__init__()
        self.teacher, self.student = stack(6, 16, 5, seed=3), stack(6, 4, 5, seed=4)
        self.accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")

    def call(self, x):
        return self.student(x)

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        soft = self.teacher(x, training=False)
        with tf.GradientTape() as tape:
            y_pred = self.student(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight)
            loss = 0.3 * loss + 0.7 * keras.losses.KLDivergence()(ops.softmax(soft / 3), ops.softmax(y_pred / 3))
        weights = self.student.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.accuracy.update_state(y, y_pred)
        return {"loss": loss, "accuracy": self.accuracy.result()}

    def test_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        self.accuracy.update_state(y, self.student(x, training=False))
        return {"accuracy": self.accuracy.result()}


def distillation():
    model = Distiller()
    model.compile(keras.optimizers.SGD(momentum=0.9), from_logits())
    return Kind(model, FEATURES, CLASSES)


class MaskedAutoencoder(keras.Model):
    """Fills in what a mask of random numbers takes away; inputs alone, and a tracker of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.tracker = stack(8, 6, 8, seed=5), keras.metrics.Mean(name="loss")
        self.seed_generator = keras.random.SeedGenerator(11)

    @property
    def metrics(self):
        return [self.tracker]

    def train_step(self, images):
        mask = ops.cast(keras.random.uniform(ops.shape(images), seed=self.seed_generator) > 0.5, "float32")
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(self.body(images * mask) - images) * (1 - mask))
        weights = self.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.tracker.update_state(loss)
        return {"loss": self.tracker.result()}


def masked_autoencoder():
    model = MaskedAutoencoder()
    model.compile(keras.optimizers.Adam())
    return Kind(model, IMAGES, rate=0.01)


class Contrastive(keras.Model):
    """SimCLR: an encoder that tells two views of an example from others, and a probe of what it has learned."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head, self.probe = stack(6, 8, 8, seed=6), stack(8, 4, 4, seed=7), stack(8, 5, seed=8)
        self.noise = layers.GaussianNoise(0.1, seed=3)
        self.optimizers = {}

    def compile(self, contrastive, probe, **arguments):
        super().compile(**arguments)
        self.optimizers = {"contrastive": contrastive, "probe": probe}

    def train_step(self, data):
        x, y = data
        one, two = self.noise(x, training=True), self.noise(x, training=True)
        with tf.GradientTape() as tape:
            views = [self.head(self.encoder(view, training=True), training=True) for view in (one, two)]
            views = [view / ops.norm(view, axis=1, keepdims=True) for view in views]
            similar = ops.matmul(views[0], ops.transpose(views[1])) / 0.5
            loss = ops.mean(keras.losses.sparse_categorical_crossentropy(ops.arange(ops.shape(x)[0]), similar, True))
        weights = [*self.encoder.trainable_weights, *self.head.trainable_weights]
        self.optimizers["contrastive"].apply(tape.gradient(loss, weights), weights)
        with tf.GradientTape() as tape:
            logits = self.probe(self.encoder(x, training=False), training=True)
            probe_loss = ops.mean(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
        weights = self.probe.trainable_weights
        self.optimizers["probe"].apply(tape.gradient(probe_loss, weights), weights)
        return {"c_loss": loss, "p_loss": probe_loss}


def contrastive():
    model = Contrastive()
    model.compile(keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.5))
    return Kind(model, FEATURES, CLASSES, rate=0.01)


class Augmented(keras.Model):
    """Changes the data, and leaves the rest to Keras' own step; its layers draw random numbers."""

    def train_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return super().train_step((1.5 * x, y, sample_weight))


def augmented():
    inputs = keras.Input((6,))
    hidden = layers.Dropout(0.3, seed=2)(layers.BatchNormalization()(dense(8)(inputs)))
    model = Augmented(inputs, dense(5, None, seed=1)(hidden))
    model.compile(keras.optimizers.Adam(), from_logits(), metrics=["accuracy"])
    return Kind(model, FEATURES, CLASSES, sample_weight=np.linspace(0, 2, NUM_EXAMPLES, dtype=np.float32), rate=0.01)


OWN_STEPS = {build.__name__: build for build in (plain, gan, distillation, masked_autoencoder, contrastive, augmented)}
