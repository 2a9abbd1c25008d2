import keras
import ml_dtypes
import numpy as np
import pytest

from clr_loop.data.datasets import Examples
from clr_loop.data.nests import as_arrays, flatten, num_examples

NEST = Examples({"right": np.zeros((3, 2)), "left": [np.ones(3), (np.ones(3, np.uint8),)]}, np.arange(3))


def test_paths_are_those_that_python_would_take():
    leaves = flatten(NEST, "train")
    assert [*leaves] == [
        "train.inputs['left'][0]",
        "train.inputs['left'][1][0]",
        "train.inputs['right']",
        "train.targets",
    ]
    for path, leaf in leaves.items():
        assert eval(path, {"train": NEST}) is leaf
    assert [*flatten(NEST)][-1] == "targets"
    assert flatten(None) == {}


def test_order_is_that_of_keras():
    ours, theirs = flatten(NEST).values(), keras.tree.flatten(NEST._replace(sample_weight=NEST.targets))[:-1]
    assert [*map(id, ours)] == [*map(id, theirs)]


def test_arrays_keep_their_dtype_except_for_double_precision():
    kinds = [np.uint8, np.int64, np.bool_, np.float16, np.float32, np.complex64, ml_dtypes.bfloat16, np.dtype("U3")]
    nest = {str(np.dtype(kind)): np.zeros(3, kind) for kind in kinds}
    assert {name: str(array.dtype) for name, array in as_arrays(nest, "x").items()} == {name: name for name in nest}
    found = as_arrays((np.array([0.1, 1e30]), np.longdouble([1.0]), keras.ops.ones(2), None), "x")
    assert [array.dtype for array in found[:3]] == [np.float32] * 3
    assert found[3] is None
    np.testing.assert_array_equal(found[0], np.float32([0.1, 1e30]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_number_that_is_not_finite_is_named_with_its_example(value):
    x = np.zeros((4, 2))
    x[2, 1] = value
    with pytest.raises(ValueError, match=r"x\['b'\]\[0\] holds NaN, infinity .*, first in example 2\."):
        as_arrays({"a": np.zeros(4), "b": [x]}, "x")
    with pytest.raises(ValueError, match="first in example 1"):
        as_arrays(np.array([0, np.nan], ml_dtypes.bfloat16), "x")


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", 1, None], dtype=object),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(3, [("a", int)]),
        object(),
    ],
)
def test_what_tensorflow_cannot_take_is_named(array):
    with pytest.raises(ValueError, match=r"x\[1\] has dtype .*, which TensorFlow cannot take\. Convert it"):
        as_arrays([np.zeros(3), array], "x")


def test_number_of_examples_is_the_common_length():
    assert num_examples(NEST, "train") == 3


@pytest.mark.parametrize(
    ("nest", "message"),
    [
        (NEST._replace(targets=np.arange(4)), r"^train\.inputs\['left'\]\[0\] has 3 and train\.targets has 4 examples"),
        (NEST._replace(sample_weight=np.ones(2)), r"\[0\] has 3 and train\.sample_weight has 2 examples"),
        (Examples([1, 2, 3]), r"^train\.inputs\[0\] is a single value, not an array of examples\. Make lists"),
        (Examples(np.zeros((0, 3))), "^There are no examples in train"),
        (Examples(None), "^There are no examples in train"),
    ],
)
def test_lengths_that_differ_are_named_with_their_paths(nest, message):
    with pytest.raises(ValueError, match=message):
        num_examples(nest, "train")
