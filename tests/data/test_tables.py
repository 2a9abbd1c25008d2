"""CSV files: what is read from them, how they are split, and what is wrong with them in a line."""

import numpy as np
import pytest

from clr_loop import data

WEIGHTS = np.round(np.random.default_rng(0).normal(size=(40, 2)), 3)
KINDS = ["oak", "ash", "fir", "elm"]


def table(path, targets, delimiter=",", target="kind", lines=None):
    rows = [delimiter.join(["height", target, "width"])]
    for (height, width), value in zip(WEIGHTS, targets, strict=False):
        rows.append(delimiter.join([str(height), str(value), str(width)]))
    path.write_text("\n".join(rows if lines is None else lines) + "\n")
    return str(path)


def whole(dataset):
    """All rows of a table, those that validate behind the others, in an order that the split does not decide."""
    inputs = np.concatenate([dataset.train.inputs, dataset.validation.inputs])
    targets = np.concatenate([dataset.train.targets, dataset.validation.targets])
    order = np.lexsort(inputs.T)
    return inputs[order], targets[order]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_text_becomes_classes_in_alphabetical_order_and_all_other_columns_features(tmp_path, delimiter):
    labels = [KINDS[i % 4] for i in range(40)]
    dataset = data.load(table(tmp_path / "trees.csv", labels, delimiter), target="kind")
    assert (dataset.feature_names, dataset.class_names) == (("height", "width"), ("ash", "elm", "fir", "oak"))
    assert dataset.num_classes == 4
    inputs, targets = whole(dataset)
    order = np.lexsort(WEIGHTS.astype(np.float32).T)
    np.testing.assert_array_equal(inputs, WEIGHTS.astype(np.float32)[order])
    np.testing.assert_array_equal(targets, np.array([3, 0, 2, 1] * 10, np.int32)[order])
    assert targets.dtype == np.int32


def test_a_fifth_of_each_class_validates_whatever_else_is_asked_for(tmp_path):
    path = table(tmp_path / "trees.csv", [KINDS[i % 4] for i in range(40)])
    dataset = data.load(path, target="kind")
    np.testing.assert_array_equal(np.bincount(dataset.validation.targets), [2, 2, 2, 2])
    again = data.load(path, target="kind", validation_split=0.2)
    assert again.sha256() == dataset.sha256()
    half = data.load(path, target="kind", validation_split=0.5)
    np.testing.assert_array_equal(np.bincount(half.validation.targets), [5, 5, 5, 5])
    all_of_it = data.load(path, target="kind", validation_split=0.0)
    assert (all_of_it.num_examples, all_of_it.validation) == (40, None)


@pytest.mark.parametrize(
    ("values", "task", "expected"),
    [
        (np.arange(40) % 3 + 5, "auto", ("5", "6", "7")),
        ((np.arange(40) % 2).astype(float), "auto", ("0", "1")),  # As 0.0 and 1.0.
        (np.arange(40) % 2 + 0.5, "auto", ()),
        (np.arange(40), "auto", ()),
        (np.arange(40) % 3 + 5, "regression", ()),
        (np.arange(40) % 2 + 0.5, "classification", ("0.5", "1.5")),
    ],
)
def test_numbers_are_classes_if_they_are_whole_and_few_or_if_it_is_asked_for(tmp_path, values, task, expected):
    dataset = data.load(table(tmp_path / "trees.csv", values), target="kind", task=task)
    assert dataset.class_names == expected
    order = np.lexsort(WEIGHTS.astype(np.float32).T)
    targets = whole(dataset)[1]
    if expected:
        np.testing.assert_array_equal(np.array(expected, float)[targets], values[order])
    else:
        assert (dataset.num_classes, targets.shape, targets.dtype) == (None, (40, 1), np.float32)
        np.testing.assert_array_equal(targets[:, 0], values[order])


HEADER = "height,kind,width"


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (
            [HEADER, "1,oak,2"],
            {"target": "kinds"},
            "no column 'kinds'; did you mean 'kind'. Its columns are: height, k",
        ),
        ([HEADER, "1,oak,2"], {}, "t.csv needs a target, the column to predict. Its columns are: height, kind"),
        ([HEADER, "1,oak,2", "1,ash"], {"target": "kind"}, "Line 3 of .* has 2 cells for 3 columns"),
        ([HEADER, "1,oak,", "NA,ash,3"], {"target": "kind"}, "a value in 2 of its 2 rows, .* in line 2, column width"),
        ([HEADER, "1,oak,2", "1,ash,low"], {"target": "kind"}, "Column width .* text, such as 'low' in line 3"),
        ([HEADER, "1,oak,2"], {"target": "kind", "task": "regression"}, "Column kind .* text, such as 'oak' in line 2"),
        (["1,2,3", "4,5,6"], {"target": "kind"}, "first row of .* holds numbers only; put the names"),
        ([",kind,width", "0,oak,2"], {"target": "kind"}, "Column 1 of .* has no name; .* pandas"),
        (["a,a,kind", "0,1,oak"], {"target": "kind"}, "two columns named a"),
        ([HEADER], {"target": "kind"}, "holds no example"),
        (["kind", "oak"], {"target": "kind"}, "has only the column kind"),
        ([HEADER, *["1,oak,2"] * 9, "1,ash,3"], {"target": "kind"}, "no example of class ash is left to train on|held"),
        ([HEADER, "1,oak,2"], {"target": "kind", "task": "cluster"}, "task is 'cluster'; it must be 'auto' or"),
    ],
)
def test_what_is_wrong_with_a_table_is_told_in_a_line_that_says_where(tmp_path, lines, arguments, message):
    path = table(tmp_path / "t.csv", [], lines=lines)
    with pytest.raises(ValueError, match=message) as caught:
        data.load(path, **arguments)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_or_is_missing_is_told_so(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="no CSV file in UTF-8"):
        data.load(str(tmp_path / "t.csv"), target="a")
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        data.load(str(tmp_path / "none.csv"), target="a")


def test_a_target_belongs_to_a_table_only():
    with pytest.raises(ValueError, match=r"are for \.csv files, but the dataset is mnist"):
        data.load("mnist", target="label")


def test_a_model_for_classes_says_how_numbers_become_classes(tmp_path):
    numbers = data.load(table(tmp_path / "trees.csv", np.arange(40)), target="kind")
    with pytest.raises(ValueError, match=r"needs labels .* from \d+ to 39. If they are classes, give task=class"):
        data.build_model("relu_mlp", numbers, 0)
    prices = data.load(table(tmp_path / "prices.csv", np.arange(40) / 7), target="kind")
    with pytest.raises(ValueError, match=r"float32 numbers from \S+ to 5.* as for a regression. Compile a model of"):
        data.build_model("relu_mlp", prices, 0)
    x, floats = np.zeros((6, 2), np.float32), np.array([0.0, 1.0] * 3)
    np.savez(tmp_path / "floats.npz", x_train=x, y_train=floats, x_test=x, y_test=floats)
    with pytest.raises(ValueError, match=r"If they are classes, give whole numbers, as y.astype\('int32'\)"):
        data.build_model("relu_mlp", data.load(str(tmp_path / "floats.npz")), 0)
