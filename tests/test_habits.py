"""What people type who come from Keras, and what they are told."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from clr_loop import (
    Constant,
    Dataset,
    Examples,
    RunOptions,
    StepOptions,
    StreamedDataset,
    TrainLoop,
    Triangular,
    build_model,
    fit,
)
from helpers.small import FEATURES, LABELS, NUM_CLASSES, classifier, loop_again

PAIR = (FEATURES, LABELS)
DATA = Dataset("mine", Examples(*PAIR), Examples(FEATURES[:50], LABELS[:50]), NUM_CLASSES)
STREAM = StreamedDataset("stream", lambda size, seed, epoch: None, 200, None, None, (6,))
CYCLE = Triangular(0.001, 0.01, 4)

HABITS = [
    (lambda: fit(loop_again(), CYCLE, epochs=1, validation_data=PAIR), r"fit\(…, validation=\(inputs, targets\)\)"),
    (lambda: fit(loop_again(), 0.01, epochs=1), r"For a constant rate give Constant\(0.01\)"),
    (lambda: fit(loop_again(), "triangular", epochs=1), r"Give one such as Triangular\("),
    (lambda: fit(loop_again(), Triangular, epochs=1), r"schedule is the class Triangular; give a schedule such as"),
    (lambda: fit(loop_again(), lambda epoch, lr: lr, epochs=1), r"schedule is a function of \(epoch, lr\); give"),
    (lambda: fit(loop_again(), CYCLE, 3), r"fit needs epochs; give fit\(…, epochs=…\)"),
    (lambda: fit(loop_again(), CYCLE, *PAIR, epochs=1), r"fit takes loop, schedule, validation by position; name"),
    (lambda: fit(classifier(), *PAIR, epochs=1), r"Make one with TrainLoop\(model, inputs, targets"),
    (lambda: fit(loop_again(), CYCLE, FEATURES, epochs=1), r"Give \(inputs, targets\), a tf.data.Dataset of batches"),
    (lambda: fit(loop_again(), CYCLE, epochs=1, patience=3), r"give fit\(…, options=RunOptions\(patience=…\)\)"),
    (lambda: TrainLoop(classifier(), *PAIR, clip_norm=1.0), r"give TrainLoop\(…, options=StepOptions\(clip_norm=…\)"),
    (lambda: TrainLoop(classifier(), *PAIR, 50), r"TrainLoop takes model, inputs, targets by position; name the oth"),
    (lambda: TrainLoop(classifier(), FEATURES.tolist(), LABELS.tolist()), r"make one with np.array\(…\)"),
    (lambda: TrainLoop(classifier(), STREAM), r"from_dataset\(model, lambda seed, epoch: dataset.batches\("),
    (lambda: loop_again().evaluate(DATA), r"give its examples, as in loop.evaluate\(\*dataset.validation\)"),
    (lambda: loop_again().evaluate(*PAIR, verbose=0), r"evaluate has no argument verbose, which Keras has; only fit"),
    (lambda: loop_again().run(CYCLE), r"give run\(schedule\(np.arange\(loop.step, loop.step \+ 100\)\)\)"),
    (lambda: loop_again().fit(*PAIR, epochs=2), r"TrainLoop has no attribute fit; call clr_loop.fit\(loop, schedule"),
    (lambda: loop_again().summary(), r"call loop.model.summary\(\)"),
    (lambda: StepOptions(clipnorm=1.0), r"give TrainLoop\(…, options=StepOptions\(clip_norm=…\)\)"),
    (lambda: StepOptions(clip_nrom=1.0), r"StepOptions has no argument clip_nrom; did you mean clip_norm\?"),
    (lambda: RunOptions(save_best_only=True), r"give fit\(…, run_dir=…\), which keeps .* the best one"),
    (lambda: Triangular(initial_learning_rate=0.1, max_lr=0.2, step_size=3), r"the lowest rate of a cycle is base_lr"),
    (lambda: Triangular(0.1, 0.2, step=3), r"Triangular has no argument step; did you mean step_size\?"),
    (lambda: Triangular(0.1, 0.2, "25%"), r"As steps it is loop.steps\('25%', epochs=…\)"),
]


@pytest.mark.parametrize(("habit", "advice"), HABITS, ids=[advice[:40] for _, advice in HABITS])
def test_a_habit_of_keras_is_told_what_to_type_here(habit, advice):
    with pytest.raises((TypeError, AttributeError, ValueError), match=advice):
        habit()


@pytest.mark.filterwarnings("ignore:The structure of `inputs` doesn't match:UserWarning")
def test_a_pair_in_place_of_two_arguments_is_told_to_be_unpacked():
    with pytest.raises(ValueError, match=r"so for inputs and targets give TrainLoop\(model, \*data\)\.$"):
        TrainLoop(classifier(), PAIR)
    with pytest.raises(ValueError, match=r"so for inputs and targets give evaluate\(\*data\)\.$"):
        loop_again().evaluate(PAIR)


def test_a_dataset_and_its_parts_are_taken():
    plain = {"batch_size": 50, "options": StepOptions(jit_compile=False)}
    loop, same = (TrainLoop(classifier(), data, **plain) for data in (DATA, DATA.train))
    expected = TrainLoop(classifier(), *PAIR, **plain).run([0.01] * 4)["loss"]
    np.testing.assert_array_equal([each.run([0.01] * 4)["loss"] for each in (loop, same)], [expected] * 2)
    assert loop.evaluate(DATA.validation) == loop.evaluate(*DATA.validation[:2])
    np.testing.assert_array_equal(loop.predict(DATA.validation), loop.predict(FEATURES[:50]))


def test_a_dataset_is_unpacked_like_what_load_data_returns():
    (x_train, y_train), (x_test, y_test) = DATA
    assert (x_train, y_train) == PAIR
    assert (len(x_test), len(y_test)) == (50, 50)


@pytest.mark.parametrize(
    ("last", "from_logits"),
    [("softmax", False), (None, True), (keras.layers.Softmax(), False)],
)
def test_a_model_that_is_not_compiled_gets_the_loss_that_fits_its_last_layer(monkeypatch, last, from_logits):
    def make():
        keras.utils.set_random_seed(0)
        layers = [keras.Input((6,)), keras.layers.Dense(NUM_CLASSES)]
        return keras.Sequential([*layers, last if isinstance(last, keras.Layer) else keras.layers.Activation(last)])

    monkeypatch.setattr("clr_loop.data.models._own_model", lambda name, dataset, seed: make())
    model = build_model("mine:model", DATA, 0)
    assert model.loss.get_config()["from_logits"] is from_logits
    assert TrainLoop(model, DATA, batch_size=50).evaluate(*PAIR)["loss"] == pytest.approx(np.log(NUM_CLASSES), rel=0.5)


@pytest.mark.filterwarnings("ignore:.*received `from_logits=True`:UserWarning")
def test_a_softmax_before_a_loss_from_logits_is_told_without_what_nobody_wrote():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(NUM_CLASSES, "softmax")])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    message = r"its loss, SparseCategoricalCrossentropy with from_logits=True, applies it once more; compile it with"
    with pytest.raises(ValueError, match=message):
        TrainLoop(model, *PAIR)


def test_lengths_are_turned_into_steps_of_the_loops_own_epochs():
    loop = loop_again()
    assert [loop.steps("2ep"), loop.steps("25%", epochs=15), loop.steps("0.5ep"), loop.steps("7")] == [8, 15, 2, 7]
    with pytest.raises(ValueError, match=r"^25% is a share of a run; say how long that is: steps\('25%', epochs=15\)"):
        loop.steps("25%")
    with pytest.raises(ValueError, match=r"^epochs is 0; it must be at least 1"):
        loop.steps("2ep", epochs=0)


def test_a_keras_schedule_is_taken_as_it_is():
    keras_schedule = keras.optimizers.schedules.CosineDecay(0.01, 8)
    result = fit(loop_again(), keras_schedule, epochs=2)
    oracle = [float(keras_schedule(tf.constant(step))) for step in range(8)]
    np.testing.assert_allclose(result.history["learning_rate"], oracle, rtol=1e-6)
    assert fit(loop_again(), Constant(0.01), epochs=1).history["learning_rate"][0] == np.float32(0.01)
