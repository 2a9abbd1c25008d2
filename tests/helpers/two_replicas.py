"""Training on two replicas, in a process of its own: a CPU is split before TensorFlow computes."""

import pickle

from clr_loop.loop.strategies import make_strategy, split_cpu
from helpers.keras_fit import BATCH_SIZE, make, rates_of
from helpers.loops import loop_of, train


def main(path, *names_and_ways):
    """Train kinds on two logical CPUs, and pickle their ends: {"name:way": End}.

    A way is "resident", or "uneven", with shares of 13 and 12 examples.
    """
    split_cpu(2)
    strategy = make_strategy("mirrored")
    ends = {}
    for each in names_and_ways:
        name, way = each.split(":")
        with strategy.scope():
            kind = make(name)
        loop = loop_of(kind, way, batch_size=25 if way == "uneven" else BATCH_SIZE)
        assert loop.chosen["replicas"] == "2 replicas of MirroredStrategy"
        ends[each], _ = train(loop, kind, way, rates_of(kind))
    with open(path, "wb") as file:
        pickle.dump(ends, file)
