"""Data that is neither arrays nor a `tf.data.Dataset`: an error shows the code that makes a dataset of it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras

from clr_loop.data.datasets import AnyDataset, StreamedDataset

_CODE = """
    def batches():
        {batches}

    def spec(array):
        return tf.TensorSpec((None, *array.shape[1:]), array.dtype)

    signature = keras.tree.map_structure(spec, next(batches()))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    num_examples = None  # Or a number, if you know how many examples an epoch has: None reads one to count them.
    loop = TrainLoop.from_dataset(model, dataset, num_examples)
"""
_OF_PY_DATASET = """for i in range(len(data)):
            yield keras.tree.lists_to_tuples(data[i])"""
_OF_GENERATOR = "yield from make_generator()  # What made your generator; each epoch begins with a new one."
_OF_DATA_LOADER = """for batch in data_loader:
            yield keras.tree.map_structure(lambda tensor: tensor.numpy(), keras.tree.lists_to_tuples(batch))"""


def refuse(data: Any) -> None:
    """Raise TypeError for a whole `Dataset`, and, with the code that makes a dataset of it, for other sources.

    They are a `keras.utils.PyDataset`, a generator or another iterator, and a `DataLoader` of PyTorch.
    """
    if isinstance(data, AnyDataset):
        advice = "give its examples, as in loop.evaluate(*dataset.validation)"
        if isinstance(data, StreamedDataset):
            of_epoch = "lambda seed, epoch: dataset.batches(100, seed, epoch)"
            advice += f"; train on TrainLoop.from_dataset(model, {of_epoch}, dataset.num_examples)"
        raise TypeError(f"The data are the whole dataset {data.name}; {advice}.")
    from_torch = any(kind.__module__.startswith("torch.utils.data") for kind in type(data).__mro__)
    if isinstance(data, keras.utils.PyDataset):
        what, batches = f"a keras.utils.PyDataset ({type(data).__name__})", _OF_PY_DATASET
    elif from_torch:
        what, batches = f"a {type(data).__name__} of PyTorch", _OF_DATA_LOADER
    elif isinstance(data, Iterator) or inspect.isgeneratorfunction(data):
        what, batches = f"a {type(data).__name__}, of which an epoch cannot be read again", _OF_GENERATOR
        if inspect.isgeneratorfunction(data):
            what = f"the generator function {data.__name__}"
    else:
        return
    raise TypeError(f"The data are {what}; make a tf.data.Dataset of it:\n{_CODE.format(batches=batches)}")
