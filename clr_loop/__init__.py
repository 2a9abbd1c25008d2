"""A compiled `tf.GradientTape` training loop with a cyclical learning rate, and a fair comparison around it.

The rooms, from the ground up; each imports only what stands before it:

    schedules   step → learning rate, pure NumPy
    data        named datasets as uint8 arrays, the order of an epoch
    models      named Keras models, seeded
    momentum    a momentum that changes inside a compiled step
    loop        the compiled training block: `TrainLoop`
    timing      a stopwatch
    summaries   arrays → TensorBoard events
    run_files   the files of a run directory
    plots       results → pictures
    training    `fit`: epochs, validation, timing and records around a `TrainLoop`
    comparison  arms × seeds → runs → effects with their spread

Importing `clr_loop` or `clr_loop.schedules` does not import TensorFlow.
"""

__version__ = "0.1.0"
