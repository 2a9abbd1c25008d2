"""A compiled `tf.GradientTape` training loop with a cyclical learning rate, and a fair comparison around it.

The rooms, from the ground up; each imports only those below it:

    schedules   step → learning rate, in NumPy alone
    data        what is trained on: datasets, models, the order of an epoch
    loop        one update, many times, compiled
    runs        a run on disk, from its first to its last byte
    studies     runs, and what they show
"""

__version__ = "0.1.0"
