"""The two shipped examples learn what cannot be had without learning."""

import numpy as np

from clr_loop.data import build_model, load


def trained(name, dataset, epochs):
    model = build_model(f"clr_loop.data.examples:{name}_model", dataset, seed=0)
    model.fit(*dataset.train[:2], batch_size=100, epochs=epochs, verbose=0)
    return model.evaluate(*dataset.validation[:2], verbose=0, return_dict=True)


def test_regression_explains_nearly_all_that_is_not_noise():
    dataset = load("clr_loop.data.examples:regression")
    assert (dataset.num_classes, dataset.input_shape) == (None, {"place": (2,), "hour": (1,)})
    targets = dataset.validation.targets
    inputs = np.column_stack([dataset.validation.inputs["place"], dataset.validation.inputs["hour"]]).astype(float)
    signal = np.sin(3 * inputs[:, 0]) * inputs[:, 1] + np.cos(2 * np.pi * inputs[:, 2] / 24)
    noise = targets[:, 0] - signal
    assert abs(noise.std() - 0.1) < 0.005
    values = trained("regression", dataset, epochs=4)
    of_the_mean = ((targets - dataset.train.targets.mean()) ** 2).mean()
    assert noise.var() < values["loss"] < 0.1 * of_the_mean
    assert values["mae"] < 0.25 * np.abs(targets - np.median(dataset.train.targets)).mean()


def test_text_needs_the_order_of_the_words_and_the_model_sees_it():
    dataset = load("clr_loop.data.examples:text")
    words, labels = dataset.validation[:2]
    assert (dataset.num_classes, dataset.input_shape, words.dtype) == (2, (16,), np.uint8)
    # The rule, word for word.
    for sentence, label in zip(words[:200].tolist(), labels, strict=False):
        total = 0
        for before, word in zip([None, *sentence], sentence, strict=False):
            value = 1 if 1 <= word <= 4 else -1 if 5 <= word <= 8 else 0
            total += -value if before == 0 else value
        assert total != 0
        assert label == (total > 0)
    majority = max(np.mean(labels), 1 - np.mean(labels))
    # The best linear rule that knows how often each word occurs, and not where.
    counts = [
        np.column_stack([*((part.inputs == word).sum(axis=1) for word in range(21)), np.ones(len(part.inputs))])
        for part in (dataset.train, dataset.validation)
    ]
    solution = np.linalg.lstsq(counts[0], 2.0 * dataset.train.targets - 1, rcond=None)[0]
    without_order = ((counts[1] @ solution > 0) == labels).mean()
    accuracy = trained("text", dataset, epochs=5)["accuracy"]
    assert 0.5 <= majority < 0.55 < without_order < 0.8 < 0.88 < accuracy


def test_examples_are_the_same_each_time():
    for name in ("regression", "text"):
        first, second = (load(f"clr_loop.data.examples:{name}") for _ in range(2))
        assert first.sha256() == second.sha256()
