"""A compiled `tf.GradientTape` training loop with a cyclical learning rate, and a fair comparison around it.

The rooms, from the ground up; each imports only what stands before it:

    schedules   step → learning rate, pure NumPy
    data        named datasets as uint8 arrays, the order of an epoch
    models      named Keras models, seeded
    loop        the compiled training block: `TrainLoop`
    timing      a stopwatch
    summaries   arrays → TensorBoard events
    run_files   the files of a run directory
    plots       results → pictures
    suggestions curves of an LR range test → base_lr and max_lr, pure NumPy
    training    `fit`: epochs, validation, timing and records around a `TrainLoop`
    range_test  a sweep of rates that leaves no trace
    comparison  arms × seeds → runs → effects with their spread

Importing `clr_loop` or `clr_loop.schedules` does not import TensorFlow.
"""

__version__ = "0.1.0"
