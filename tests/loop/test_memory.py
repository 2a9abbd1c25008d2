"""Memory: what a process holds, and what is held once."""

import numpy as np
import tensorflow as tf

from clr_loop.loop.batches import tensor_of
from clr_loop.loop.choose import device
from helpers.processes import finish, run_code, start

# Half a gigabyte of images, made on the fly.
STREAM = """
import resource
import keras, numpy as np, tensorflow as tf
from clr_loop.loop.loop import TrainLoop

pixels = tf.random.stateless_uniform((1000, 28, 28), seed=(0, 0), maxval=256, dtype=tf.int32)
pixels = tf.cast(pixels, tf.uint8)

def batch(i):
    images = pixels + tf.cast(i % 256, tf.uint8)
    return images, tf.cast(images[:, 0, 0] % 10, tf.int32)

model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10)])
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
loop = TrainLoop.from_dataset(model, tf.data.Dataset.range(600).map(batch), 600_000)
for n in (150, 450):  # Its windows are full after a fourth.
    loop.run(np.full(n, 0.001))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(loop.step)
"""


def test_data_larger_than_memory_trains_in_a_fraction_of_it():
    early, late, step = map(int, run_code(STREAM).split())
    assert step == 600
    assert late - early < 50e6  # TensorFlow included, it does not grow by a tenth of the data.


EPOCHS = """
import gc, sys
import numpy as np
from helpers.small import loop_of

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

loop = loop_of(feed=sys.argv[1], batch_size=50)
for part in (50, 150):
    for epoch in range(part):
        loop.run(np.full(4, 0.01))
        snapshot = loop.snapshot()
    gc.collect()
    print(resident_bytes())
print(loop.num_traces, loop.step)
"""


def test_200_epochs_hold_no_more_at_their_end_than_at_the_fiftieth():
    for said in finish(*(start(EPOCHS, feed) for feed in ("resident", "stream"))):
        at_50, at_200, num_traces, step = map(int, said.split())
        assert (num_traces, step) == (1, 800)
        assert at_200 < at_50 + 10e6


def test_an_array_that_nobody_can_write_to_shares_its_memory_and_others_are_copied():
    memory = np.arange(1064, dtype=np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :][:1000]  # As TensorFlow wants it; it copies others.
    read_only = aligned.view()
    read_only.setflags(write=False)
    shifted = np.frombuffer(aligned.tobytes(), np.uint8, offset=1)
    tensors = {"writable": tensor_of(aligned), "view": tensor_of(read_only), "shifted": tensor_of(shifted)}
    expected = aligned.copy()
    memory[:] = 7
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, expected[1:] if name == "shifted" else expected)
    memory.setflags(write=False)
    constant = memory[-memory.ctypes.data % 64 :][:1000]
    assert np.shares_memory(np.asarray(tensor_of(constant)), constant) == device().startswith("CPU")
    tensor = tf.constant(1)
    assert tensor_of(tensor) is tensor
